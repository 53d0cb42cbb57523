"""Three sites on this machine as real processes, for tests that kill them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from replication.config import SITE_NAMES, Config, SiteName, load
from replication.keys import make_keys

ROOT = Path(__file__).resolve().parent.parent.parent

DAEMON = """
import sys, logging
from pathlib import Path
import trio
from replication.config import load
from replication.site import run_site
logging.basicConfig(level=logging.INFO)
async def main():
    await run_site(load(Path(sys.argv[1])), sys.argv[2], lambda: print("ready", flush=True))
trio.run(main)
"""

WRITER = """
import sys
from pathlib import Path
import trio
from jfs.filesystem import FileSystem, FileSystemOptions
from jfs.store import Store
from replication.config import load
from replication.mounting import open_writer

async def main(config, site, program):
    stop = trio.Event()
    async with open_writer(config, site, finish=stop.set) as writer:
        store = await Store.open(writer.device)
        writer.log_status, writer.store = store.log_status, store
        background = trio.CancelScope()
        async def run():
            with background:
                await store.run()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            scope = {"writer": writer, "store": store, "trio": trio, "stop": stop, "background": background}
            exec(program, scope)
            await scope["work"]()
            nursery.cancel_scope.cancel()
        await store.close()
    print("closed", flush=True)
trio.run(main, load(Path(sys.argv[1])), sys.argv[2], sys.argv[3])
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            found.append(sock.getsockname()[1])
    return found


def make_config(directory: Path, *, options: str = "", size: str = "64MiB") -> Config:
    """A configuration with keys and directories for three sites under `directory`."""
    ports = free_ports(3)
    text = f'[volume]\nname = "test"\nsize = "{size}"\n'
    for name, port in zip(SITE_NAMES, ports, strict=True):
        (directory / name).mkdir(parents=True)
        text += f'[sites.{name}]\ndirectory = "{name}"\nport = {port}\n'
    text += f"[options]\nsilence_seconds = 2.0\nprotect_timeout_seconds = 3.0\n{options}\n"
    path = directory / "trisite.toml"
    path.write_text(text, encoding="utf-8")
    make_keys(directory / "keys", SITE_NAMES)
    return load(path)


class Process:
    """A process of the test: a daemon or a writer."""

    def __init__(self, *arguments: str, log: Path) -> None:
        self._log = log.open("ab")
        self.newest = 0
        self.popen = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def line(self) -> str:
        """The next line it prints; empty at its end."""
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def expect(self, wanted: str) -> str:
        """Read lines until one begins with `wanted`."""
        while line := self.line():
            if line.startswith("synced"):
                self.newest = int(line.split()[1])
            if line.startswith(wanted):
                return line
        raise AssertionError(f"ended before {wanted!r}: {Path(self._log.name).read_text()[-3000:]}")

    def say(self, line: str) -> None:
        """A line for it to read."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.popen.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.popen.kill()
        self.close()

    def stop(self) -> int:
        """SIGTERM, and wait; the exit code."""
        self.popen.terminate()
        code = self.popen.wait(20)
        self.close()
        return code

    def close(self) -> None:
        """Wait for the end and close the pipes."""
        if self.popen.poll() is None:
            self.signal(signal.SIGCONT)
        try:
            self.popen.wait(20)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait(20)
        if self.popen.stdout is not None:
            self.popen.stdout.close()
        if self.popen.stdin is not None:
            with suppress(BrokenPipeError):  # it ended before it read
                self.popen.stdin.close()
        self._log.close()


class Cluster:
    """The daemons of three sites, and writers."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.base = config.path.parent
        self.daemons: dict[str, Process] = {}
        self.writers: list[Process] = []

    def start(self, *sites: SiteName) -> None:
        """Start daemons and wait until they answer."""
        for site in sites:
            self.daemons[site] = Process(
                "-c", DAEMON, str(self.config.path), site, log=self.base / f"{site}.log"
            )
        for site in sites:
            self.daemons[site].expect("ready")

    def kill(self, *sites: SiteName) -> None:
        """SIGKILL daemons."""
        for site in sites:
            self.daemons.pop(site).kill()

    def writer(self, site: SiteName, program: str) -> Process:
        """A process that has the volume open at `site` and runs `program`, which defines `work()`."""
        process = Process("-c", WRITER, str(self.config.path), site, program, log=self.base / "writer.log")
        self.writers.append(process)
        return process

    def close(self) -> None:
        """Kill everything that still runs."""
        for process in [*self.writers, *self.daemons.values()]:
            if process.popen.poll() is None:
                process.popen.kill()
            process.close()

    def logs(self) -> str:
        """What the processes said, for a failing test."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-4000:]}" for path in self.base.glob("*.log"))


@contextmanager
def running(directory: Path, *sites: SiteName, options: str = "", size: str = "64MiB") -> Iterator[Cluster]:
    """A cluster with these daemons running; everything is killed at the end."""
    cluster = Cluster(make_config(directory, options=options, size=size))
    try:
        cluster.start(*sites)
        yield cluster
    except BaseException:
        print(cluster.logs())
        raise
    finally:
        cluster.close()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)
