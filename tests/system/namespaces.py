"""The three sites in network namespaces of their own, joined by a switch whose ports fail; full disks.

Only named namespaces are made, and everything else lies in one of them: removing them removes it all.
"""

import ctypes
import errno
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from tests.system.kills import Ground
from tools.demo.stage import SITES

OPERATOR: Final = "operator"
"""The namespace of the switch, from which the operator's commands are given."""
ADDRESSES: Final = {OPERATOR: "10.77.0.1", "primary": "10.77.0.2", "sync": "10.77.0.3", "async": "10.77.0.4"}
SWITCH: Final = "switch"
PORT_DISABLED, PORT_FORWARDING = "0", "3"
NEW_NETWORK: Final = 0x40000000  # CLONE_NEWNET
T = TypeVar("T")


class NetworkUnavailable(Exception):
    """This machine lets no namespaces be made; the argument says why."""


def run(*words: str) -> str:
    """A command of iproute2; NetworkUnavailable with what it said if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NetworkUnavailable(f"{words[0]} is not installed (Debian: apt-get install iproute2)") from error
    if done.returncode != 0:
        raise NetworkUnavailable(f"`{' '.join(words)}` ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Network:
    """Namespaces of the sites and of the operator; leaving it removes them."""

    def __init__(self) -> None:
        self.names = {place: f"trisite-{os.getpid()}-{place}" for place in ADDRESSES}

    def __enter__(self) -> "Network":
        try:
            self._make()
        except NetworkUnavailable:
            self.remove()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.remove()

    def _make(self) -> None:
        for name in self.names.values():
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        switch = self.names[OPERATOR]
        run("ip", "-n", switch, "link", "add", SWITCH, "type", "bridge")
        run("ip", "-n", switch, "address", "add", f"{ADDRESSES[OPERATOR]}/24", "dev", SWITCH)
        run("ip", "-n", switch, "link", "set", SWITCH, "up")
        for site in SITES:
            there = self.names[site]
            run("ip", "-n", switch, "link", "add", site, "type", "veth", "peer", "eth0", "netns", there)
            run("ip", "-n", switch, "link", "set", site, "master", SWITCH, "up")
            run("ip", "-n", there, "address", "add", f"{ADDRESSES[site]}/24", "dev", "eth0")
            run("ip", "-n", there, "link", "set", "eth0", "up")

    def remove(self) -> None:
        """Remove the namespaces; what runs in one keeps it until it ends."""
        for name in self.names.values():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def path(self, place: str) -> str:
        """The file that stands for a namespace."""
        return f"/run/netns/{self.names[place]}"

    def within(self, place: str, command: Sequence[str]) -> list[str]:
        """A command that runs there, as the same process; mounts stay visible to everybody."""
        return ["nsenter", f"--net={self.path(place)}", *command]

    def work_within(self, place: str, work: Callable[[], T]) -> T:
        """The result of `work()`, done by a thread of its own in a namespace."""
        results: list[T] = []
        errors: list[BaseException] = []

        def enter() -> None:
            try:
                with open(self.path(place), "rb") as file:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(file.fileno(), NEW_NETWORK):
                        raise OSError(ctypes.get_errno(), "setns")
                results.append(work())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    # -- faults

    def unplug(self, site: str) -> None:
        """The cable is out: the site's own interface has no carrier either."""
        run("ip", "-n", self.names[OPERATOR], "link", "set", site, "down")

    def plug(self, site: str) -> None:
        """The cable is in again."""
        run("ip", "-n", self.names[OPERATOR], "link", "set", site, "up")

    def swallow(self, site: str, silent: bool = True) -> None:
        """A black hole: the interfaces are up, and nothing gets through, without a word to anybody."""
        state = PORT_DISABLED if silent else PORT_FORWARDING
        run("bridge", "-n", self.names[OPERATOR], "link", "set", "dev", site, "state", state)

    def narrow(self, site: str, rate: str | None) -> None:
        """Bound what goes to and from a site, like "4mbit"; None: no bound."""
        for name, device in ((self.names[OPERATOR], site), (self.names[site], "eth0")):
            words = ["tc", "-n", name, "qdisc"]
            if rate is None:
                run(*words, "delete", "dev", device, "root")
            else:
                limits = ["burst", "16k", "latency", "300ms"]
                run(*words, "replace", "dev", device, "root", "tbf", "rate", rate, *limits)

    def carried(self, site: str) -> int:
        """Bytes that the network has brought to a site up to now, headers and all."""
        counters = self.work_within(site, lambda: Path("/proc/thread-self/net/dev").read_text())
        return int(counters.partition("eth0:")[2].split()[0])


class Disk:
    """A file system of its own for the directory of a site, in a file; leaving it unmounts it."""

    def __init__(self, place: Path, size_bytes: int) -> None:
        self.place = place
        self.image = place.with_name(f"{place.name}.ext4")
        self.filler = place / "filler"
        self.size_bytes = size_bytes

    def __enter__(self) -> "Disk":
        with self.image.open("wb") as file:
            file.truncate(self.size_bytes)
        run("mkfs.ext4", "-q", "-m", "0", str(self.image))
        run("mount", "-o", "loop", str(self.image), str(self.place))
        (self.place / "lost+found").rmdir()
        return self

    def __exit__(self, *_error: object) -> None:
        subprocess.run(["umount", "-l", str(self.place)], capture_output=True, check=False)

    def fill(self) -> None:
        """Take all the room there is; called again, also what was given back meanwhile."""
        with self.filler.open("ab", buffering=0) as file:
            for step in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(bytes(step))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Give the room back."""
        self.filler.unlink(missing_ok=True)


class NetGround(Ground):
    """A ground whose sites are in namespaces of a network."""

    def __init__(self, directory: Path, network: Network, **settings: str) -> None:
        super().__init__(directory, **settings)
        self.network = network

    def make_sites(self) -> None:
        """Also: give every site its address."""
        super().make_sites()
        text = self.config.read_text(encoding="utf-8")
        for site in SITES:
            head, mark, rest = text.partition(f"[sites.{site}]")
            text = head + mark + rest.replace("127.0.0.1", ADDRESSES[site], 1)
        self.config.write_text(text, encoding="utf-8")

    def trisite_words(self) -> list[str]:
        """The operator's commands are given at the switch."""
        return self.network.within(OPERATOR, super().trisite_words())

    def start(self, name: str, command: Sequence[str], cwd: Path | None = None) -> subprocess.Popen[bytes]:
        """Daemons and mounts run at their sites."""
        at = name if name in SITES else None
        if name == "mount":
            at = command[command.index("--at") + 1]
        return super().start(name, command if at is None else self.network.within(at, command), cwd)

    def status(self) -> dict[str, Any]:
        """Asked at the switch."""
        return self.network.work_within(OPERATOR, super().status)
