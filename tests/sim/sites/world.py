"""One run: the calls to the host replaced, three machines, trio's clock and order of tasks from the seed."""

from __future__ import annotations

import errno
import fcntl
import gc
import itertools
import os
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import trio
import trio._core._run as trio_run

import jfs.attributes
import jfs.device
import jfs.fileio
import jfs.filesystem
import jfs.mkfs
import jfs.namespace
import jfs.nodes
import replication.channel
import replication.connections
import replication.control
import replication.received_record
import replication.shipper
import replication.state
import vsap.area
import vsap.condition
import vsap.pointing
import vsap.queue_files
from replication.config import SITE_NAMES, Config, Options, SiteConfig, VolumeConfig
from tests.sim.sites import network as network_module
from tests.sim.sites.host import EPOCH_NS, PROCESS, Dead, Host, acting, no_room
from tests.sim.sites.loop import Loop
from tests.sim.sites.network import End, Factory, Network

KEEPS_TIMES = (jfs.attributes, jfs.fileio, jfs.filesystem, jfs.namespace, jfs.nodes)
VOLUME_BYTES = 2 << 20
PORTS = {"primary": 7001, "sync": 7002, "async": 7003}

real_open, real_close, real_dup = os.open, os.close, os.dup
real_pwrite, real_pwritev, real_pread, real_write = os.pwrite, os.pwritev, os.pread, os.write
real_ftruncate, real_fsync, real_fdatasync, real_lseek = os.ftruncate, os.fsync, os.fdatasync, os.lseek
real_flock = fcntl.flock
real_unlink, real_punch, real_lmdb_open = os.unlink, jfs.device.punch_hole, lmdb.open
real_wait_readable, real_wait_writable = trio.lowlevel.wait_readable, trio.lowlevel.wait_writable
real_notify_closing = trio.lowlevel.notify_closing


class World:
    """The machines and the network of one run, and what happened in it."""

    def __init__(self, seed: str, directory: Path, **options: Any) -> None:  # noqa: ANN401
        self.rng = random.Random(seed)
        self.directory = directory
        self.loop = Loop(seed, PROCESS)
        self.loop.too_long = self._end
        self.network = Network(self.loop, random.Random(f"{seed} network"))
        self.hosts = {name: Host(name, self.loop, random.Random(f"{seed} {name}")) for name in SITE_NAMES}
        self.config = Config(
            path=directory / "trisite.toml",
            volume=VolumeConfig(name="sim", size_bytes=VOLUME_BYTES),
            sites={
                name: SiteConfig(directory=directory / name, host="127.0.0.1", port=PORTS[name])
                for name in SITE_NAMES
            },
            keys=directory / "keys",
            options=Options(plain=True, **options),
        )
        self.trace: list[str] = []
        self.latency = random.Random(f"{seed} latency")
        self.slow_disks = self.latency.random() < 0.4
        """Every flush is work for a thread, and other things happen meanwhile."""
        sets = random.Random(f"{seed} sets")
        # So that a queue of some writes may be a long one, and need several sets all the same.
        self.set_bytes = sets.choice((8 << 20, 1 << 14, 1 << 12))
        self.gathered_bytes = sets.choice((256 << 20, 1 << 17))
        self.points_early = sets.random() < 0.6
        """Entries that have waited half a second point into the area, if their segment is durable."""
        self.disks_fail = random.Random(f"{seed} disks").random() < 0.25
        """Flushes of areas may fail."""
        self.environments: dict[str, list[Any]] = {}
        self.endless = False
        self.nursery: trio.Nursery

    def note(self, line: str) -> None:
        """A line of the trace, by which runs are compared, also those of other processes."""
        self.trace.append(f"{self.loop.now:.6f} {line.replace(str(self.directory), 'DIR')}")

    def _end(self) -> None:
        """The run goes round in a circle, perhaps without time passing; the same step in every replay."""
        self.endless = True
        self.nursery.cancel_scope.cancel()
        for host in self.hosts.values():
            for name in list(host.processes):
                host.kill(name)


# --- files ----------------------------------------------------------------------------------------------


def _open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:  # noqa: ANN401
    process = acting()
    descriptor = real_open(path, flags, mode, dir_fd=dir_fd)
    if process is not None:
        process.descriptors[descriptor] = None
    return descriptor


def _close(descriptor: int) -> None:
    process = PROCESS.get()
    if process is None:
        real_close(descriptor)
    elif not process.dead:
        process.descriptors.pop(descriptor, None)
        real_close(descriptor)


def _dup(descriptor: int) -> int:
    process = acting()
    copy = real_dup(descriptor)
    if process is not None:
        process.descriptors[copy] = None
    return copy


def _pread(descriptor: int, length: int, offset: int) -> bytes:
    acting()
    return real_pread(descriptor, length, offset)


def _before_write(descriptor: int, offset: int, length: int) -> None:
    process = acting()
    if process is None:
        return
    disk = process.host.disk
    if disk.full and _needs_room(descriptor, offset, length):
        raise no_room()
    disk.before_write(descriptor, offset, length)


def _needs_room(descriptor: int, offset: int, length: int) -> bool:
    if offset + length > os.fstat(descriptor).st_size:
        return True
    try:
        return real_lseek(descriptor, offset, os.SEEK_HOLE) < offset + length
    except OSError:
        return True


def _pwrite(descriptor: int, data: Any, offset: int) -> int:  # noqa: ANN401
    _before_write(descriptor, offset, len(data))
    return real_pwrite(descriptor, data, offset)


def _pwritev(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:  # noqa: ANN401
    if flags:
        process = acting()
        if process is not None:
            process.host.disk.after_durable_write(descriptor, offset, buffers)
        return real_pwritev(descriptor, buffers, offset)
    _before_write(descriptor, offset, sum(map(len, buffers)))
    return real_pwritev(descriptor, buffers, offset)


def _ftruncate(descriptor: int, size: int) -> None:
    process = acting()
    if process is not None:
        process.host.disk.before_truncate(descriptor, size)
    real_ftruncate(descriptor, size)


def _sync(descriptor: int) -> None:
    process = acting()
    if process is not None:
        if process.host.disk.fails(descriptor):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        process.host.disk.synced(descriptor)


def _flock(descriptor: int, operation: int) -> None:
    acting()
    real_flock(descriptor, operation)


def _unlink(path: Any, *, dir_fd: int | None = None) -> None:  # noqa: ANN401
    acting()
    real_unlink(path, dir_fd=dir_fd)


def _punch_hole(descriptor: int, offset: int, length: int) -> None:
    process = acting()
    if process is not None:
        process.host.disk.before_write(descriptor, offset, length)
    real_punch(descriptor, offset, length)


class SharedEnvironment:
    """An LMDB environment as one process of the simulation has it; several share the real one."""

    def __init__(self, world: World, path: str, arguments: dict[str, Any]) -> None:
        self._world, self._path, self._open = world, path, True
        self._process = acting()
        shared = world.environments.get(path)
        if shared is None:
            shared = world.environments[path] = [real_lmdb_open(path, **arguments), 0]
        self._real = shared[0]
        shared[1] += 1
        if self._process is not None:
            self._process.environments[self] = None

    def begin(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        """A transaction, unless the process was killed."""
        acting()
        return self._real.begin(*arguments, **named)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._real, name)

    def close(self) -> None:
        """Close, for this process."""
        if self._open and not (self._process is not None and self._process.dead):
            if self._process is not None:
                self._process.environments.pop(self, None)
            self.drop()

    def drop(self) -> None:
        """Let go of the real one."""
        self._open = False
        shared = self._world.environments[self._path]
        shared[1] -= 1
        if not shared[1]:
            del self._world.environments[self._path]
            self._real.close()


# --- threads, sockets, clocks ---------------------------------------------------------------------------


async def _wait_readable(sock: Any) -> None:  # noqa: ANN401
    await (sock.wait_readable() if isinstance(sock, End) else real_wait_readable(sock))


async def _wait_writable(sock: Any) -> None:  # noqa: ANN401
    await (sock.wait_writable() if isinstance(sock, End) else real_wait_writable(sock))


def _notify_closing(sock: Any) -> None:  # noqa: ANN401
    if isinstance(sock, End):
        sock.wake()
    else:
        real_notify_closing(sock)


def _host_replacements(world: World) -> list[tuple[Any, str, Any]]:
    loop = world.loop

    def now_ns() -> int:
        process = PROCESS.get()
        return process.host.now_ns() if process is not None else EPOCH_NS + int(loop.now * 1e9)

    def boot() -> Any:  # noqa: ANN401
        process = acting()
        assert process is not None
        return process.host.boot

    async def in_place(work: Callable[..., Any], *arguments: Any, **_: Any) -> Any:  # noqa: ANN401
        """A thread: the work happens at one instant, after a moment, before one, or both."""
        fate = world.latency.random()
        if fate < 0.7:
            await loop.pass_time(fate * 0.0015)
        acting()
        try:
            return work(*arguments)
        finally:
            if fate > 0.4:
                await loop.pass_time(fate * 0.0005)

    def lmdb_open(path: str, **arguments: Any) -> SharedEnvironment:  # noqa: ANN401
        return SharedEnvironment(world, path, arguments)

    return [
        *(
            (os, name, globals()[f"_{name}"])
            for name in ("open", "close", "dup", "pread", "pwrite", "pwritev")
        ),
        *((os, name, globals()[f"_{name}"]) for name in ("ftruncate", "unlink")),
        *((os, name, _sync) for name in ("fsync", "fdatasync")),
        *((module, "punch_hole", _punch_hole) for module in (jfs.device, vsap.area)),
        (fcntl, "flock", _flock),
        (lmdb, "open", lmdb_open),
        (vsap.queue_files, "SPARE_BYTES", 4096),
        (vsap.queue_files, "SEGMENT_BYTES", 1 << 15 if world.points_early else 1 << 20),
        (vsap.pointing, "POINT_SECONDS", 0.5 if world.points_early else 10.0),
        (vsap.pointing, "LEAST_BYTES", 4096),
        (vsap.pointing, "KEPT_SHARE", 1),
        (vsap.pointing, "STEP_BYTES", 1 << 14),
        (vsap.area, "QUICK_FLUSH_SECONDS", -1.0 if world.slow_disks else vsap.area.QUICK_FLUSH_SECONDS),
        (jfs.mkfs, "SMALLEST_SEGMENT_BYTES", 16384),  # so that the log of a small volume grows
        (vsap.condition, "current_boot", boot),
        (replication.received_record, "boot_id", lambda: str(boot())),
        (replication.channel, "_RECEIVE_BYTES", 16384),
        (replication.shipper, "SET_BYTES", world.set_bytes),
        (replication.shipper, "GATHERED_BYTES", world.gathered_bytes),
        (replication.connections, "_tuned", lambda connected: connected.end()),
        (trio.to_thread, "run_sync", in_place),
        (trio.lowlevel, "wait_readable", _wait_readable),
        (trio.lowlevel, "wait_writable", _wait_writable),
        (trio.lowlevel, "notify_closing", _notify_closing),
        (time, "time_ns", now_ns),
        (time, "time", lambda: now_ns() / 1e9),
        (time, "monotonic", loop.current_time),
        (time, "monotonic_ns", lambda: int(loop.now * 1e9)),
        (trio, "current_time", loop.current_time),
        (trio, "sleep", loop.sleep),
        (trio, "sleep_until", loop.sleep_until),
        (trio_run, "unrolled_run", loop.run_tasks),
        *((module, "now_ns", now_ns) for module in KEEPS_TIMES),
        (replication.control, "_numbers", itertools.count(1)),
        (os, "urandom", world.latency.randbytes),
        (secrets, "randbits", world.latency.getrandbits),
        (network_module, "HOSTS", world.hosts),
        (network_module, "MACHINES", {port: name for name, port in PORTS.items()}),
    ]


@contextmanager
def _defaults_from_modules() -> Iterator[None]:
    """Defaults that were bound to the real clock when their module was imported."""
    from replication.shipper import Shipper

    functions: list[Any] = [replication.state.SiteState.__init__, Shipper.__init__]
    kept = [dict(function.__kwdefaults__) for function in functions]
    for function in functions:
        function.__kwdefaults__["now_ns"] = lambda: time.time_ns()
    try:
        yield
    finally:
        for function, before in zip(functions, kept, strict=True):
            function.__kwdefaults__.update(before)


@contextmanager
def simulated(world: World) -> Iterator[None]:
    """Replace what reaches the host."""
    changed = _host_replacements(world)
    before = [(where, name, getattr(where, name)) for where, name, _ in changed]
    gc.collect()
    gc.disable()
    try:
        with _defaults_from_modules():
            for where, name, value in changed:
                setattr(where, name, value)
            yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)
        gc.enable()
        for host in world.hosts.values():
            host.disk.close()


def run(world: World, main: Callable[[], Awaitable[None]]) -> None:
    """Run to the end, on trio's own order of tasks as the seed gives it."""

    async def body() -> None:
        trio.socket.set_custom_socket_factory(Factory(world.network))
        async with trio.open_nursery() as world.nursery:
            try:
                await main()
            finally:
                for host in world.hosts.values():
                    for name in list(host.processes):
                        process = host.processes.get(name)
                        if process is None:
                            continue  # it ended while another was waited for
                        host.kill(name)
                        with trio.CancelScope(shield=True):
                            await process.reap()

    with simulated(world):
        trio.run(body, clock=world.loop)


__all__ = ["Dead", "World", "run", "simulated"]
