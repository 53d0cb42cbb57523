"""`trisite mount` and `trisite umount`: the file system at the writing site.

Without --foreground the command starts itself again, detached, and returns when that process has mounted.
"""

import contextlib
import errno
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import trio
from cyclopts import Parameter

from jfs.filesystem import FileSystem, FileSystemOptions
from jfs.memory import within
from jfs.mountpoint import MountOptions, check_fuse, check_mountpoint, parse_options
from jfs.store import Store, StoreOptions
from replication import config as configuration
from replication.config import Config
from replication.mounting import open_writer
from tools import background
from tools.background import Ready
from tools.errors import ExitCode, Failure, explain
from tools.mount_table import mount_source
from tools.options import ConfigOption, SiteName, config_path
from tools.render import note
from tools.running import ended_by_signal, keep_freed_memory, log_to_standard_error, run_serving

DRAIN_SECONDS: Final = 600.0  # what a clean end may take: everything dirty goes to both near sites
# What fstab and mount(8) say for their own use; a file system accepts and drops it.
NOISE: Final = frozenset(
    {
        *("defaults", "auto", "noauto", "nofail", "_netdev", "_rnetdev", "silent", "loud"),
        *("user", "nouser", "users", "owner", "group", "async", "sync", "mand", "nomand"),
        *("relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime"),
        *("diratime", "nodiratime"),
    }
)
NOISE_BEGINNINGS: Final = ("x-", "X-", "comment=")

MountpointArgument = Annotated[Path, Parameter(help="An empty directory.")]


def mount(
    mountpoint: MountpointArgument,
    /,
    *,
    config: ConfigOption = None,
    at: Annotated[SiteName, Parameter(help="The site to mount at: the one that writes.")] = "primary",
    options: Annotated[
        list[str] | None,
        Parameter(
            name=["-o", "--options"],
            negative="",
            help="Mount options, separated by commas, such as ro, noatime or allow_other.",
        ),
    ] = None,
    foreground: Annotated[
        bool, Parameter(negative="", help="Stay until unmounted or SIGTERM, in this process.")
    ] = False,
    ready_fd: Annotated[int | None, Parameter(show=False)] = None,
) -> int:
    """Mount the volume, and return when it is mounted; it goes on in the background."""
    path = config_path(config)
    words = known_options(options or [])
    loaded = configuration.load(path)
    mount_options = parse_options(",".join(words), fsname=str(loaded.path))
    if foreground or ready_fd is not None:
        return serve_mount(loaded, at, str(mountpoint.absolute()), mount_options, Ready(ready_fd))
    check_fuse()
    place = check_mountpoint(str(mountpoint))
    arguments = ["mount", place, "-c", str(loaded.path), "--at", at]
    if words:
        arguments += ["-o", ",".join(words)]
    warning = background.start(arguments, here(loaded, at) / background.LOG_NAME)
    if warning is not None:
        note(f"warning: {warning}")
    return ExitCode.OK


def here(config: Config, site: SiteName) -> Path:
    """The directory of a site; Failure where it is not on this machine."""
    place = config.site(site)
    if not place.directory.is_dir():
        raise Failure(
            f"site {site} is not on this machine: its directory {place.directory} does not exist here; mount "
            f"at site {site} on its own machine ({place.host}), or name the site of this one with --at",
            ExitCode.REFUSED,
        )
    return place.directory


def known_options(given: Sequence[str]) -> list[str]:
    """The options without what is only meant for mount(8) and systemd."""
    words = [word for text in given for word in text.split(",") if word]
    return [word for word in words if word not in NOISE and not word.startswith(NOISE_BEGINNINGS)]


def serve_mount(config: Config, site: SiteName, mountpoint: str, options: MountOptions, ready: Ready) -> int:
    """Serve the mount in this process until it is unmounted; what goes wrong is also left for `umount`."""
    log_to_standard_error()
    keep_freed_memory()
    directory = here(config, site)
    place = os.path.realpath(mountpoint)  # now: later a look at it would ask this very process

    was_mounted = False

    def mounted(warning: str | None) -> None:
        nonlocal was_mounted
        was_mounted = True
        if warning is not None:
            note(f"warning: {warning}")
        ready.mounted(warning)

    # The record is there before the mount point is: whoever sees the one and unmounts it finds the other.
    begun = partial(background.write_record, directory, place, site)
    try:
        run_serving(serve, config, site, place, options, begun, mounted, busy_wait=config.options.busy_wait)
    except BaseException as error:
        sentence, code = explain(error)
        ready.failed(sentence, code)
        background.note_failure(directory, sentence, keep=was_mounted)
        raise
    background.remove_record(directory)
    return ExitCode.OK


async def serve(
    config: Config,
    site: SiteName,
    place: str,
    options: MountOptions,
    begun: Callable[[], None],
    mounted: Callable[[str | None], None],
) -> None:
    """FUSE over jfs over the virtual area of the writing site: the one place where the parts meet.

    `begun`: this process is the writer now, and is about to mount; `mounted`: it has.
    """
    from jfs.fuse import serve as serve_fuse  # needs libfuse; every other command works without

    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ended_by_signal, stop.set)
        async with open_writer(config, site, finish=stop.set) as writer:
            store_options, file_system_options = chosen(config, options, writer.roles.epoch)
            store = await Store.open(writer.device, read_only=options.read_only, options=store_options)
            writer.store, writer.log_status = store, store.log_status
            writer.mountpoint = place
            begun()
            file_system = FileSystem(store, file_system_options, read_only=options.read_only)
            warning = config.contradicts(writer.volume.size_bytes)
            await serve_fuse(file_system, place, options, ready=partial(mounted, warning), stop=stop)
        nursery.cancel_scope.cancel()


def chosen(config: Config, options: MountOptions, epoch: int) -> tuple[StoreOptions, FileSystemOptions]:
    """What configuration and command say of the file system."""
    return within(
        config.options.memory_bytes,
        StoreOptions(on_log_full=config.options.on_log_full, epoch=epoch),
        FileSystemOptions(relatime=options.relatime),
    )


def umount(mountpoint: Annotated[Path, Parameter(help="Where it is mounted.")], /) -> int:
    """Unmount, and return when everything is written out and the mount process has ended."""
    place, source = mount_at(mountpoint)
    if source is None:
        raise Failure(f"nothing is mounted on {mountpoint}", ExitCode.REFUSED)
    try:
        directory, record = find_record(source, place)
    except PermissionError as error:
        sentence = f"{place} was mounted by another user; unmount it as that user, or as root"
        raise Failure(sentence, ExitCode.OPERATIONAL) from error
    detach(place, record)
    if record is None or directory is None:
        return ExitCode.OK  # the mount process was dead already: there was only the mount point to clear
    background.wait_for_end(record, DRAIN_SECONDS)
    left = background.read_record(directory)
    if left is not None and left.failure is not None:
        background.remove_record(directory)
        raise Failure(f"unmounted, but the mount had ended badly: {left.failure}")
    return ExitCode.OK


def mount_at(mountpoint: Path) -> tuple[str, str | None]:
    """The resolved place, and the configuration of what is mounted there.

    As far as possible by the mount table alone: a look at the place asks the very process that serves it.
    """
    named = os.path.abspath(mountpoint)
    for place in (named, os.path.join(os.path.realpath(os.path.dirname(named)), os.path.basename(named))):
        source = mount_source(place)
        if source is not None:
            return place, source
    place = os.path.realpath(mountpoint)
    return place, mount_source(place)


def find_record(source: str, place: str) -> tuple[Path | None, background.MountRecord | None]:
    """The record of the process that serves `place`, by the configuration the mount table names."""
    with contextlib.suppress(configuration.ConfigurationError):
        for site in configuration.load(Path(source)).sites.values():
            record = background.read_record(site.directory)
            if record is not None and record.mountpoint == place and background.lives(record):
                return site.directory, record
    return None, None


def detach(place: str, record: background.MountRecord | None) -> None:
    """Take the mount out of the name space; Failure if it is in use, or its process does not let it go."""
    tool = ["umount", place] if os.geteuid() == 0 else ["fusermount3", "-u", place]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(tool, stdout=said, stderr=said, stdin=subprocess.DEVNULL)
        code = background.wait_or_stopped(process, record, DRAIN_SECONDS)
        said.seek(0)
        words = said.read().decode(errors="replace").strip()
    if code == 0:
        return
    if "busy" in words:
        raise Failure(
            f"{place} is in use; end what works there (fuser -vm {place} shows it) and try again",
            ExitCode.REFUSED,
        )
    raise Failure(f"{place} cannot be unmounted: {words or os.strerror(errno.EIO)}")
