"""Waiting in place: what comes is seen without a turn of the loop; nobody who needs one is kept from it."""

import os
import select
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
import trio.testing

from jfs import in_place
from jfs.busy_wait import CROWDED_SECONDS, PAUSE_FACTOR, PAUSE_SECONDS, BusyWait, Processors
from jfs.in_place import InPlace, QuickLock, noticing


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is just now, it is not for the time alone that the loop has a turn."""
    monkeypatch.setattr(in_place, "TURN_SECONDS", 3600.0)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A wait in place would last a minute: nothing of what the test does may wait for its end."""
    monkeypatch.setattr(in_place, "TURN_SECONDS", 60.0)
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 50


class Turns(trio.abc.Instrument):
    """Counts the turns of the loop."""

    count = 0

    def after_io_wait(self, timeout: float) -> None:
        self.count += 1


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        yield here, there


def run(work: Callable[[InPlace, Turns], Awaitable[None]]) -> None:
    place, turns = InPlace(), Turns()

    async def main() -> None:
        place.begin()
        assert in_place.current() is place
        await work(place, turns)

    trio.run(main, instruments=[place, turns])


async def settle() -> None:
    """Until no task of trio itself wants to run any more."""
    await trio.testing.wait_all_tasks_blocked()


def test_what_comes_is_seen_without_a_turn(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair

    async def work(place: InPlace, turns: Turns) -> None:
        await settle()
        before = turns.count
        assert place.may_go_on()
        there.send(b"x")
        assert place.wait(here.fileno())
        assert turns.count == before

    run(work)


class Awake(BusyWait):
    """Stays awake for a minute, and keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(60.0)
        self.waits = 0
        self.awake_seconds = 60.0
        self.pauses: list[float] = []

    def ended(self, seconds: float) -> None:
        self.waits += 1

    def crowded(self, now: float, seconds: float) -> None:
        super().crowded(now, seconds)
        self.pauses.append(seconds)


class Asked(Processors):
    """Says whether there are enough; something comes at the second question."""

    def __init__(self, there: socket.socket, enough: bool) -> None:
        self.there, self.enough, self.asked = there, enough, 0

    def are_enough(self) -> bool:
        self.asked += 1
        if self.asked == (2 if self.enough else 1):
            self.there.send(b"x")
        return self.enough


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times that a wait asked the kernel to let it sleep, in ms."""
    asked: list[float] = []

    class Poll:
        def __init__(self) -> None:
            self._poll = poll()

        def register(self, descriptor: int, events: int) -> None:
            self._poll.register(descriptor, events)

        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            if milliseconds:
                asked.append(milliseconds)
            return self._poll.poll(milliseconds)

    poll = select.poll
    monkeypatch.setattr(select, "poll", Poll)
    return asked


@pytest.fixture
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long others have the processor, nobody is said to compute."""
    monkeypatch.setattr(in_place, "CROWDED_SECONDS", 3600.0)


@pytest.mark.usefixtures("patience", "nobody_else")
@pytest.mark.parametrize("enough", [True, False])
def test_a_wait_stays_awake_while_there_is_a_processor_for_everybody(
    pair: tuple[socket.socket, socket.socket], sleeps: list[float], enough: bool
) -> None:
    here, there = pair
    place = InPlace(stays_awake=True)
    busy, asked = Awake(), Asked(there, enough)
    place._processors = asked

    async def main() -> None:
        place.begin()
        await settle()
        sleeps.clear()
        assert place.wait(here.fileno(), busy)
        assert bool(sleeps) is not enough
        assert asked.asked == (2 if enough else 1)
        assert busy.waits == 1
        assert busy.pauses == ([] if enough else [PAUSE_SECONDS])
        busy.asleep_until = time.monotonic() + 3600
        assert place.wait(here.fileno(), busy)
        assert sleeps
        assert (busy.waits, len(busy.pauses)) == (1, 0 if enough else 1), "at once asleep"

    trio.run(main, instruments=[place])


@pytest.mark.usefixtures("patience")
def test_one_that_computes_on_the_same_processor_ends_the_wait_awake(
    pair: tuple[socket.socket, socket.socket], sleeps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair
    place = InPlace(stays_awake=True)
    busy = Awake()
    asked = Asked(there, enough=True)
    asked.asked = 100  # nothing comes by it
    place._processors = asked

    def gave_way() -> None:
        there.send(b"x")
        began = time.monotonic()
        while time.monotonic() - began <= CROWDED_SECONDS:
            pass

    monkeypatch.setattr(os, "sched_yield", gave_way)

    async def main() -> None:
        place.begin()
        await settle()
        sleeps.clear()
        assert place.wait(here.fileno(), busy)
        assert sleeps
        assert busy.pauses
        assert busy.pauses[0] >= PAUSE_FACTOR * CROWDED_SECONDS

    trio.run(main, instruments=[place])


@pytest.mark.usefixtures("patience", "nobody_else")
def test_what_others_wait_for_ends_a_wait_awake(pair: tuple[socket.socket, socket.socket]) -> None:
    here, _ = pair
    other, sender = socket.socketpair()
    place = InPlace(stays_awake=True)
    place._processors = Asked(sender, enough=True)

    async def main() -> None:
        place.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, other)
            await settle()
            assert not place.wait(here.fileno(), Awake())

    with other, sender:
        other.setblocking(False)
        trio.run(main, instruments=[place])


def test_one_that_can_run_has_its_turn(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    ran = []

    async def other() -> None:
        ran.append(True)

    async def work(place: InPlace, turns: Turns) -> None:
        there.send(b"x")
        async with trio.open_nursery() as nursery:
            await settle()
            nursery.start_soon(other)
            assert not place.may_go_on()
            assert not place.wait(here.fileno())
            for _ in range(2):
                await trio.lowlevel.checkpoint()
            assert ran
            await settle()
            assert place.wait(here.fileno())

    run(work)


def test_those_in_the_same_batch_have_theirs(pair: tuple[socket.socket, socket.socket]) -> None:
    """Woken together: trio has taken both out of its queue, and the second has not run yet."""
    here, there = pair
    there.send(b"x")
    waited = []

    async def woken(place: InPlace, event: trio.Event) -> None:
        await event.wait()
        waited.append(place.wait(here.fileno()))

    async def work(place: InPlace, turns: Turns) -> None:
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(woken, place, event)
            await settle()
            event.set()

    run(work)
    assert waited == [False, False, True]


@pytest.mark.usefixtures("patience")
def test_what_the_loop_waits_for_ends_the_wait(pair: tuple[socket.socket, socket.socket]) -> None:
    here, _ = pair
    other, sender = socket.socketpair()
    served = []

    async def serve() -> None:
        await trio.lowlevel.wait_readable(other)
        served.append(other.recv(1))

    async def work(place: InPlace, turns: Turns) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await settle()
            sender.send(b"y")
            assert not place.wait(here.fileno())
        assert served == [b"y"]

    with other, sender:
        other.setblocking(False)
        run(work)


@pytest.mark.usefixtures("patience")
def test_what_nobody_else_waits_for_is_watched(pair: tuple[socket.socket, socket.socket]) -> None:
    here, _ = pair
    watched, sender = socket.socketpair()

    async def work(place: InPlace, turns: Turns) -> None:
        place.watch(watched.fileno())
        await settle()
        sender.send(b"y")
        assert not place.wait(here.fileno())
        assert place.wait(watched.fileno())

    with watched, sender:
        run(work)


def test_a_timer_that_is_due_ends_it() -> None:
    woke = []

    async def sleeper() -> None:
        await trio.sleep(0.001)
        woke.append(True)

    async def work(place: InPlace, turns: Turns) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleeper)
            await settle()
            due = trio.current_time() + 0.001
            while trio.current_time() <= due:
                place.may_go_on()
            assert not place.may_go_on()
            assert not woke
            for _ in range(2):
                await trio.lowlevel.checkpoint()
            assert woke

    run(work)


def test_the_loop_has_a_turn_now_and_then(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_place, "TURN_SECONDS", 0.01)
    here, there = pair
    there.send(b"x")

    async def work(place: InPlace, turns: Turns) -> None:
        await settle()
        began = trio.current_time()
        while place.wait(here.fileno()):
            pass
        assert trio.current_time() - began >= 0.01
        await trio.lowlevel.checkpoint()

    run(work)


@pytest.mark.usefixtures("patience")
def test_a_thread_is_heard(pair: tuple[socket.socket, socket.socket]) -> None:
    here, _ = pair
    called = threading.Event()

    async def work(place: InPlace, turns: Turns) -> None:
        token = trio.lowlevel.current_trio_token()
        await settle()
        thread = threading.Thread(target=lambda: token.run_sync_soon(called.set))
        thread.start()
        thread.join()
        assert not place.wait(here.fileno())
        await settle()
        assert called.is_set()

    run(work)


def test_nothing_without_a_beginning() -> None:
    async def main() -> None:
        assert in_place.current() is None

    trio.run(main)


def test_a_quick_lock_costs_no_turn_and_excludes() -> None:
    inside, most = 0, 0
    turns = Turns()

    async def enter(lock: QuickLock) -> None:
        nonlocal inside, most
        async with lock:
            inside += 1
            most = max(most, inside)
            await trio.lowlevel.checkpoint()
            inside -= 1

    async def main() -> None:
        lock = QuickLock()
        await settle()
        before = turns.count
        async with lock:
            pass
        assert turns.count == before
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(enter, lock)

    trio.run(main, instruments=[turns])
    assert most == 1


async def test_who_has_to_wait_is_noticed_once() -> None:
    noticed: list[bool] = []

    async def work(waits: int) -> int:
        for _ in range(waits):
            await trio.lowlevel.checkpoint()
        return waits

    with trio.testing.assert_no_checkpoints():
        assert await noticing(work(0), lambda: noticed.append(True)) == 0
    assert not noticed
    assert await noticing(work(3), lambda: noticed.append(True)) == 3
    assert noticed == [True]


async def test_what_is_raised_goes_both_ways() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            seen.append("cancelled")
            raise

    with trio.move_on_after(0.01) as scope:
        await noticing(work(), lambda: seen.append("waits"))
    assert scope.cancelled_caught
    assert seen == ["waits", "cancelled"]

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("x")

    with pytest.raises(KeyError):
        await noticing(fail(), lambda: None)
