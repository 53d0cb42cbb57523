"""`trisite init`: three sites on this machine, ready to be started."""

import random
import re
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from replication import config as configuration
from replication import keys
from tools.errors import ExitCode, Failure
from tools.options import JsonOption
from tools.render import Output, size

CONFIG_NAME = "trisite.toml"
LOOPBACK = "127.0.0.1"
# Below the range Linux takes outgoing ports from (32768 up): no connection of this machine is given one.
PORTS = range(20000, 32768)
PORT_ATTEMPTS = 1000

TEMPLATE = """\
# A trisite volume with three sites. Paths are relative to this file. docs/operations.md explains every key.
keys = "keys"

[volume]
name = "{name}"
size = "{size}"

[sites.primary]
directory = "primary"
host = "127.0.0.1"
port = {primary}

[sites.sync]
directory = "sync"
host = "127.0.0.1"
port = {sync}

[sites.async]
directory = "async"
host = "127.0.0.1"
port = {async_}

[options]
# true: without the sync site writes fail instead of going on with one copy less.
protect = true
# "durable": fsync waits for the disk of the sync site; "received": for its memory.
complete = "durable"
# What may wait for the async site; beyond it the difference is copied by comparing, file by file.
queue_limit_bytes = "4GiB"
# The link to the async site: "zstd" compresses what goes over it; a limit (none by default) leaves room
# for others.
far_compression = "none"
# far_limit_bytes_per_second = "10MiB"
"""


def init(
    directory: Path,
    /,
    *,
    size: Annotated[str, Parameter(help="The size of the volume; it takes space only as it fills.")] = "8GiB",
    as_json: JsonOption = False,
) -> int:
    """Make three sites on this machine: a configuration, keys and a directory for each under DIR.

    Parameters
    ----------
    directory
        Where to put them; made if it does not exist.
    """
    output = Output(as_json=as_json)
    path, config = make_sites(directory, size)
    output.result({"config": str(path), "volume": config.volume.name, "size_bytes": config.volume.size_bytes})
    tell(output, path, config)
    return ExitCode.OK


def make_sites(directory: Path, size_text: str) -> tuple[Path, configuration.Config]:
    """Write the configuration of three sites under `directory`; refuses to write over another one."""
    path = directory / CONFIG_NAME
    if path.exists():
        raise Failure(f"{path} is there already; use it, or name another directory", ExitCode.REFUSED)
    primary, sync, async_ = free_ports(3)
    text = TEMPLATE.format(
        name=volume_name(directory),
        size=size_text.replace('"', ""),
        primary=primary,
        sync=sync,
        async_=async_,
    )
    config = configuration.parse(text, path)
    for site in config.sites.values():
        site.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys.make_keys(config.keys, config.sites)
    with path.open("x", encoding="utf-8") as file:  # last: a directory with a configuration is a whole one
        file.write(text)
    return path, config


def volume_name(directory: Path) -> str:
    """A name for the volume that the configuration allows, after its directory."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", directory.absolute().name).lstrip("._-")
    return name[:63] or "volume"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    found: list[int] = []
    with ExitStack() as held:
        for port in random.sample(PORTS, PORT_ATTEMPTS):
            listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            try:
                listener.bind((LOOPBACK, port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise Failure(
        f"no free port was found from {PORTS.start} to {PORTS.stop - 1} on {LOOPBACK}; free some ports"
    )


def tell(output: Output, path: Path, config: configuration.Config) -> None:
    """What was made, and what to type next."""
    output.say(f"volume {config.volume.name}, {size(config.volume.size_bytes)}: {path}")
    output.say("next:")
    for name in config.sites:
        output.say(f"  trisite site {name} -c {path} &")
    output.say(f"  trisite mkfs -c {path}")
    output.say(f"  trisite mount -c {path} MOUNTPOINT")
