"""Locks: flock, POSIX locks, open file description locks, leases."""

import fcntl
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.posix.world import Outcome, as_user, check, check_each, fill, said

F_OFD_GETLK, F_OFD_SETLK = 36, 37


def in_child(work: Callable[[], Outcome]) -> Outcome:
    """What another process (of root) sees."""
    return as_user(work, 0)


def _flock(path: Path, how: int) -> Outcome:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return said(fcntl.flock, descriptor, how | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _lockf(path: Path, how: int, length: int = 0, start: int = 0) -> Outcome:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return said(fcntl.lockf, descriptor, how | fcntl.LOCK_NB, length, start)
    finally:
        os.close(descriptor)


MODES = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX}
PAIRS = [(f"{a} against {b}", (MODES[a], MODES[b])) for a in MODES for b in MODES]


@check_each(PAIRS)
def flock(place: Path, pair: tuple[int, int]) -> Outcome:
    path = fill(place / "f")
    with path.open("r+b") as file:
        fcntl.flock(file, pair[0])
        held = _flock(path, pair[1]), in_child(lambda: _flock(path, pair[1]))
        fcntl.flock(file, fcntl.LOCK_UN)
        return held, in_child(lambda: _flock(path, pair[1]))


@check_each(PAIRS)
def posix_locks(place: Path, pair: tuple[int, int]) -> Outcome:
    path = fill(place / "f")
    with path.open("r+b") as file:
        fcntl.lockf(file, pair[0], 10, 5)
        ranges = ((5, 0), (1, 4), (1, 5), (1, 14), (1, 15), (0, 100), (0, 0))
        held = [in_child(partial(_lockf, path, pair[1], *at)) for at in ranges]
        return held, _lockf(path, pair[1]), in_child(lambda: _lockf(path, pair[1]))


@check
def the_kinds_of_locks_do_not_meet(place: Path) -> Outcome:
    path = fill(place / "f")
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        posix = in_child(lambda: _lockf(path, fcntl.LOCK_EX))
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.lockf(file, fcntl.LOCK_EX)
        return posix, in_child(lambda: _flock(path, fcntl.LOCK_EX))


@check
def posix_locks_are_not_inherited_and_flock_is(place: Path) -> Outcome:
    path = fill(place / "f")
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        posix = in_child(lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB))
        fcntl.lockf(file, fcntl.LOCK_UN)
        fcntl.flock(file, fcntl.LOCK_EX)
        return posix, in_child(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB))


@check
def who_holds_a_lock(place: Path) -> Outcome:
    path = fill(place / "f")
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)
        parent = os.getpid()

        def ask() -> Outcome:
            with path.open("r+b") as other:
                asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                kind, _, start, length, pid = struct.unpack(
                    "hhqqi4x", fcntl.fcntl(other, fcntl.F_GETLK, asked)
                )
                return kind == fcntl.F_WRLCK, start, length, pid == parent

        return in_child(ask)


@check
def closing_any_descriptor_drops_posix_locks(place: Path) -> Outcome:
    path = fill(place / "f")
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        before = in_child(lambda: _lockf(path, fcntl.LOCK_EX))
        os.close(os.open(path, os.O_RDONLY))
        return before, in_child(lambda: _lockf(path, fcntl.LOCK_EX))


@check
def locks_of_open_files(place: Path) -> Outcome:
    path = fill(place / "f")
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    answers = [said(fcntl.fcntl, number, F_OFD_SETLK, wanted) for number in (one, two)]
    os.close(one)
    answers.append(said(fcntl.fcntl, two, F_OFD_SETLK, wanted))
    os.close(two)
    return answers


@check
def locks_need_the_right_descriptor(place: Path) -> Outcome:
    path = fill(place / "f")
    answers = []
    for flags in (os.O_RDONLY, os.O_WRONLY):
        descriptor = os.open(path, flags)
        answers += [said(fcntl.lockf, descriptor, how | fcntl.LOCK_NB) for how in MODES.values()]
        answers += [said(fcntl.flock, descriptor, how | fcntl.LOCK_NB) for how in MODES.values()]
        os.close(descriptor)
    return answers


@check
def a_lock_outlives_the_name(place: Path) -> Outcome:
    path = fill(place / "f")
    os.link(path, place / "g")
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.unlink(path)
        fill(path)
        return _flock(place / "g", fcntl.LOCK_EX), _flock(path, fcntl.LOCK_EX)


@check
def directories_can_be_locked(place: Path) -> Outcome:
    descriptor = os.open(place, os.O_RDONLY)
    other = os.open(place, os.O_RDONLY)
    answer = [said(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB) for fd in (descriptor, other)]
    os.close(descriptor)
    os.close(other)
    return answer


@check
def leases(place: Path) -> Outcome:
    descriptor = os.open(fill(place / "f"), os.O_RDONLY)
    try:
        return said(fcntl.fcntl, descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    finally:
        os.close(descriptor)
