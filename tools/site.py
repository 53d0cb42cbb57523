"""`trisite site NAME`: the daemon of a site, in the foreground."""

import os
import socket
from functools import partial

from replication import config as configuration
from replication.site import run_site
from tools.errors import ExitCode
from tools.options import ConfigOption, SiteName, config_path
from tools.render import note
from tools.running import keep_freed_memory, log_to_standard_error, run_serving


def site(name: SiteName, /, *, config: ConfigOption = None) -> int:
    """Run the daemon of a site until SIGTERM or Ctrl-C, in the foreground: for systemd or a shell's &.

    Parameters
    ----------
    name
        primary, sync or async.
    """
    loaded = configuration.load(config_path(config))
    log_to_standard_error()
    keep_freed_memory()
    run_serving(
        partial(run_site, loaded, name, ready=lambda: tell_ready(loaded, name)),
        busy_wait=loaded.options.busy_wait,
    )
    return ExitCode.OK


def tell_ready(config: configuration.Config, name: SiteName) -> None:
    """Say that the daemon answers: to whoever watches, and to systemd."""
    place = config.site(name)
    note(f"site {name} of volume {config.volume.name} listens at {place.host}:{place.port}")
    notify_systemd("READY=1")


def notify_systemd(state: str) -> None:
    """Tell the service manager, where there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect("\0" + address[1:] if address.startswith("@") else address)
        manager.sendall(state.encode())
