"""daemon.sock: the mount process and the daemon of its site find each other, and again after a restart."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from replication.control import ControlError
from replication.errors import PeerUnreachable
from replication.local_link import LocalClient, LocalServer, RequestFailed
from replication.parts import SitePaths
from replication.site_link import MountLink
from tests.replication.sync_pair import until
from vsap.area import FileArea


class Daemon:
    """A daemon that notes what it hears."""

    def __init__(self, path: Path) -> None:
        self.eligible: list[int] = []
        self.mounts: list[int | None] = []
        self.faults: list[str] = []
        self.server = LocalServer(
            path,
            on_eligible=self.eligible.append,
            on_mount=self.mounts.append,
            on_fault=self.faults.append,
        )

    @asynccontextmanager
    async def up(self) -> AsyncIterator[LocalServer]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.server.run)
            yield self.server
            nursery.cancel_scope.cancel()


class Mount:
    """A mount process that notes what it hears and answers a few requests."""

    def __init__(self, path: Path) -> None:
        self.far: list[tuple[int, int, int]] = []
        self.client = LocalClient(
            path,
            on_far=lambda *position: self.far.append(position),
            handlers={"status": self._status, "finish": self._finish},
        )

    async def _status(self, params: dict[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {"log": 3, **params}

    async def _finish(self, params: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError(f"cannot finish {params['what']}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # Longer than a socket's name may be, as a site directory can well be.
    directory = tmp_path / ("d" * 100) / ("e" * 50)
    directory.mkdir(parents=True)
    return directory / "daemon.sock"


async def test_positions_and_requests_travel(path: Path) -> None:
    daemon, mount = Daemon(path), Mount(path)
    async with daemon.up() as server, trio.open_nursery() as nursery:
        nursery.start_soon(mount.client.run)
        await until(lambda: server.mount_pid is not None)
        assert path.stat().st_mode & 0o777 == 0o600
        for sequence in range(1, 2001):
            mount.client.eligible(sequence)
        await until(lambda: bool(daemon.eligible) and daemon.eligible[-1] == 2000)
        assert len(daemon.eligible) < 100
        server.far(1, 10, 9)
        await until(lambda: mount.far == [(1, 10, 9)])
        assert await server.request("status", {"deep": True}) == {"log": 3, "deep": True}
        with pytest.raises(RequestFailed, match="cannot finish everything"):
            await server.request("finish", {"what": "everything"})
        with pytest.raises(RequestFailed, match="does not know"):
            await server.request("jump")
        nursery.cancel_scope.cancel()
    assert daemon.faults == []


async def test_a_restarted_daemon_learns_the_position(path: Path) -> None:
    first, second, mount = Daemon(path), Daemon(path), Mount(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.client.run)
        mount.client.eligible(5)
        async with first.up():
            await until(lambda: first.eligible == [5])
        await until(lambda: not mount.client.connected)
        mount.client.eligible(7)
        async with second.up() as server:
            server.far(2, 7, 7)
            await until(lambda: second.eligible == [7])
            await until(lambda: mount.far == [(2, 7, 7)])
        nursery.cancel_scope.cancel()


async def test_without_a_mount_process_requests_fail_at_once(path: Path) -> None:
    daemon, mount = Daemon(path), Mount(path)
    async with daemon.up() as server:
        with pytest.raises(PeerUnreachable, match="no mount process"):
            await server.request("status")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.client.run)
            await until(lambda: server.mount_pid is not None)
            nursery.cancel_scope.cancel()
        await until(lambda: server.mount_pid is None)
        assert daemon.mounts[-1] is None


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"nonsense\n", "cannot be read"),
        (b'{"kind":"eligible","sequence":3}\n', "before hello"),
        (
            b'{"kind":"hello","pid":1}\n{"kind":"far","epoch":1,"durable_sequence":1,"applied_sequence":1}\n',
            "only",
        ),
        (b"[" * 100_000 + b"\n", "cannot be read"),
        (b"\xff\xfe\n", "cannot be read"),
    ],
)
async def test_a_line_that_is_none_drops_the_connection(path: Path, sent: bytes, why: str) -> None:
    daemon = Daemon(path)
    async with daemon.up():
        with trio.socket.socket(trio.socket.AF_UNIX) as sock:
            directory = os.open(path.parent, os.O_PATH)
            try:
                await sock.connect(f"/proc/self/fd/{directory}/{path.name}")
            finally:
                os.close(directory)
            await sock.send(sent)
            await until(lambda: bool(daemon.faults))
            assert why in daemon.faults[0]
            while await sock.recv(1000):
                pass


async def test_a_restarted_daemon_reads_no_log_before_the_living_mount_has_found_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that has written and not committed would be in no list of what a far site lacks."""
    paths = SitePaths(tmp_path)
    site: Any = SimpleNamespace(
        name="primary", place=SimpleNamespace(paths=paths), state=SimpleNamespace(roles=None), part=None
    )
    link, settled = MountLink(site), []
    await link.settle()  # no mount process: nothing to wait for
    FileArea.create(paths.area, 1 << 20).close()
    area = FileArea(paths.area)
    area.lock_writer(paths.writer_lock)
    monkeypatch.setattr("replication.site_link.ARRIVAL_SECONDS", 0.05)
    with pytest.raises(ControlError, match="has not found the restarted daemon yet"):
        await link.settle()
    monkeypatch.setattr("replication.site_link.ARRIVAL_SECONDS", 20.0)

    async def settle(_: dict[str, Any]) -> None:
        settled.append(True)

    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        nursery.start_soon(link.settle)
        await trio.testing.wait_all_tasks_blocked()
        assert not settled
        client = LocalClient(paths.socket, on_far=lambda *_: None, handlers={"settle": settle})
        nursery.start_soon(client.run)
        await until(lambda: bool(settled))
        nursery.cancel_scope.cancel()
    area.close()
