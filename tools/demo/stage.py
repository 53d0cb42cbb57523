"""The processes of the demo: daemons, mount, application. It signals only what it started, by process id."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from jfs.mountpoint import mounted_file_system
from tools.errors import ExitCode, Failure

SITES: Final = ("primary", "sync", "async")
START_SECONDS: Final = 30.0
END_SECONDS: Final = 60.0
COMMAND_SECONDS: Final = 600.0
POLL_SECONDS: Final = 0.05


def trisite_command() -> list[str]:
    """The installed `trisite` that belongs to this Python, else the one on the path, else this very code."""
    beside = Path(sys.executable).with_name("trisite")
    found = str(beside) if beside.exists() else shutil.which("trisite")
    return [found] if found else [sys.executable, "-P", "-m", "tools.cli"]


class Stage:
    """Three sites under a directory, their daemons, a mount. Leaving it ends and unmounts everything."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "trisite.toml"
        self.mountpoint = directory / "mnt"
        self.ledgers = directory / "ledgers"
        self.logs = directory / "logs"
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        for made in (self.mountpoint, self.ledgers, self.logs):
            made.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:  # whatever one of them meets, the others have their turn
            stack.callback(self.clear_mountpoint)
            for name in reversed(("application", "mount", *SITES)):
                stack.callback(self.end, name)

    def trisite_words(self) -> list[str]:
        """How `trisite` is called here."""
        return trisite_command()

    # -- commands that run to their end

    def trisite(self, *arguments: str, codes: Sequence[int] = (0,), config: bool = True) -> str:
        """Run one `trisite` command on the demo's volume; its standard output. Failure if it fails."""
        command = [*self.trisite_words(), *arguments, *(("-c", str(self.config)) if config else ())]
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        if run.returncode not in codes:
            said = run.stderr.strip() or run.stdout.strip() or "no message"
            last = "; ".join(said.splitlines()[-2:])
            raise Failure(f"`trisite {' '.join(arguments)}` ended with {run.returncode}: {last}")
        return run.stdout

    def answer(self, *arguments: str, codes: Sequence[int] = (0,)) -> dict[str, Any]:
        """Run one command with --json; its object."""
        return msgspec.json.decode(self.trisite(*arguments, "--json", codes=codes), type=dict[str, Any])

    # -- processes that stay

    def start(self, name: str, command: Sequence[str], cwd: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a process under a name; what it prints goes to a file of that name."""
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=cwd
            )
        self.running[name] = process
        return process

    def start_site(self, site: str) -> None:
        """Start a daemon and wait until it answers."""
        process = self.start(site, [*trisite_command(), "site", site, "-c", str(self.config)])

        def answers() -> bool:
            return bool(self.answer("status")["sites"][site]["reachable"])

        self.wait_for(answers, f"the daemon of site {site} to answer", process, site)

    def mount(self, site: str) -> None:
        """Mount at a site, in the foreground of a process of its own, and wait until it is there."""
        command = [*trisite_command(), "mount", "--foreground", "--at", site, "-c", str(self.config)]
        process = self.start("mount", [*command, str(self.mountpoint)])
        self.wait_for(self.is_mounted, f"the mount at site {site}", process, "mount")

    def is_mounted(self) -> bool:
        """Whether the file system is mounted, as the kernel's table says."""
        return mounted_file_system(os.path.realpath(self.mountpoint)) is not None

    def start_application(self, sources: Path) -> None:
        """Start the writers on the mounted file system."""
        command = [sys.executable, "-P", "-m", "tools.demo.workload"]
        self.start("application", [*command, str(self.mountpoint), str(self.ledgers), str(sources)])

    def wait_for(
        self,
        condition: Callable[[], bool],
        what: str,
        process: subprocess.Popen[bytes] | None = None,
        name: str = "",
        seconds: float = START_SECONDS,
    ) -> None:
        """Wait until `condition()` holds; Failure when it takes too long or the process ends instead."""
        deadline = time.monotonic() + seconds
        while not condition():
            if process is not None and process.poll() is not None:
                raise Failure(
                    f"waited for {what}, but it ended with {process.returncode}: {self.last_words(name)}"
                )
            if time.monotonic() > deadline:
                raise Failure(f"waited {seconds:.0f} seconds for {what}; the logs are in {self.logs}")
            time.sleep(POLL_SECONDS)

    def last_words(self, name: str) -> str:
        """The last line a process wrote."""
        lines = (self.logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"

    # -- faults

    def kill(self, *names: str) -> None:
        """SIGKILL the processes, all at once, as the loss of a site does."""
        for name in names:
            os.kill(self.running[name].pid, signal.SIGKILL)
        for name in names:
            self.running.pop(name).wait(END_SECONDS)

    def hold(self, site: str) -> None:
        """Stop a daemon where it stands: a site that is stalled, not dead."""
        os.kill(self.running[site].pid, signal.SIGSTOP)

    def release(self, site: str) -> None:
        """Let a held daemon go on."""
        os.kill(self.running[site].pid, signal.SIGCONT)

    # -- the end

    def end(self, name: str) -> int | None:
        """Ask a process to end and wait for it; SIGKILL if it does not. Its exit code, if there was one."""
        process = self.running.pop(name, None)
        if process is None:
            return None
        if process.poll() is None:
            os.kill(process.pid, signal.SIGCONT)
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(END_SECONDS)
        return process.returncode

    def unmount(self) -> None:
        """Unmount with `trisite umount`, which returns when everything is drained."""
        command = [*self.trisite_words(), "umount", str(self.mountpoint)]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS)
        if run.returncode != 0:
            raise Failure(f"`trisite umount` ended with {run.returncode}: {run.stderr.strip()}")
        self.mount_ended()

    def mount_ended(self) -> None:
        """Wait for the mount process to end by itself; Failure if it did not end well."""
        code = self.running.pop("mount").wait(END_SECONDS)
        if code != 0:
            raise Failure(f"the mount process ended with {code}: {self.last_words('mount')}")

    def application_ended(self) -> None:
        """Wait for the writers to notice that their file system is gone; end those that do not."""
        process = self.running.pop("application", None)
        if process is None:
            return
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise Failure("the application hung on the file system that was killed under it") from error

    def clear_mountpoint(self) -> None:
        """Take away what a killed mount process left at the mount point."""
        deadline = time.monotonic() + END_SECONDS
        while self.is_mounted():
            tool = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
            run = subprocess.run([*tool, str(self.mountpoint)], capture_output=True, text=True, check=False)
            if run.returncode != 0 and time.monotonic() > deadline:
                raise Failure(
                    f"{self.mountpoint} cannot be unmounted ({run.stderr.strip()}); unmount it by hand",
                    ExitCode.OPERATIONAL,
                )
            time.sleep(POLL_SECONDS)

    def remove(self) -> None:
        """Remove everything the demo made; never across a mount."""
        if self.is_mounted():
            return
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.directory)
