"""Runs `(start, count)` of blocks or bytes: the one place where they are merged and joined."""

from collections.abc import Iterable

Run = tuple[int, int]


def merge_runs(runs: Iterable[Run]) -> list[Run]:
    """The same members as ascending runs that neither overlap nor touch; empty runs vanish."""
    merged: list[Run] = []
    for start, count in sorted(runs):
        if count <= 0:
            continue
        if merged and start <= merged[-1][0] + merged[-1][1]:
            first, members = merged[-1]
            merged[-1] = (first, max(members, start + count - first))
        else:
            merged.append((start, count))
    return merged


def extend_runs(runs: list[Run], start: int, count: int) -> None:
    """Add a run at the end, as part of the last one if it continues it."""
    if runs and runs[-1][0] + runs[-1][1] == start:
        runs[-1] = (runs[-1][0], runs[-1][1] + count)
    else:
        runs.append((start, count))


def join_runs(runs: Iterable[Run]) -> list[Run]:
    """The same members in the same order, neighbours as one run."""
    joined: list[Run] = []
    for start, count in runs:
        extend_runs(joined, start, count)
    return joined
