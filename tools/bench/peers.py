"""`python -m tools.bench.peers`: trisite beside other file systems, all mounted at once, measured in turns.

The peers that this machine has the programs of (Debian: bindfs, fuse2fs, glusterfs-server, glusterfs-client),
a pass-through mount and a plain directory. `--suite` has an external program measure instead of the
project's own workloads: it is called with `--mount DIR --label NAME` for each, `--rounds` and `--json`.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import App, Parameter

from jfs.mountpoint import check_fuse
from tools import render
from tools.bench import results, targets
from tools.bench.__main__ import run, take_turns
from tools.bench.workloads import FULL, QUICK, drop_caches
from tools.errors import ExitCode, Failure

OWN: Final[dict[str, Callable[[Path], AbstractContextManager[Path]]]] = {
    results.PLAIN: targets.plain,
    results.PASSTHROUGH: targets.passthrough,
}

app = App(name="bench.peers", help=__doc__, help_format="plaintext")


@app.default
def peers(
    *words: Annotated[str, Parameter(help="Passed on to the suite, after --.")],
    suite: Annotated[Path | None, Parameter(help="An external program that measures.")] = None,
    only: Annotated[str | None, Parameter(name="--targets", help="Names, separated by commas; all.")] = None,
    quick: Annotated[bool, Parameter(negative="", help="Smaller amounts, one round.")] = False,
    rounds: Annotated[int | None, Parameter(help="3, or 1 with --quick.")] = None,
    output: Annotated[Path, Parameter(help="Where the results go.")] = Path("build") / "peers",
    directory: Annotated[Path | None, Parameter(name="--dir", help="Where to measure.")] = None,
) -> int:
    """Set everything up, measure, take everything down."""
    check_fuse()
    available = {**OWN, **targets.installed_peers()}
    chosen = [name for name in (*results.TARGETS, *targets.PEERS) if _is_wanted(name, only, available)]
    if not chosen:
        raise Failure("none of the targets can be measured on this machine", ExitCode.USAGE)
    times = rounds if rounds is not None else 1 if quick else 3
    output.mkdir(parents=True, exist_ok=True)
    out = render.Output()
    prefix = "trisite-peers-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=directory) as place, ExitStack() as stack:
        mounts: dict[str, Path] = {}
        processes: dict[str, int] = {}
        for name in chosen:
            render.note(f"setting up: {name}")
            if name == results.TRISITE:
                stage = stack.enter_context(targets.trisite(Path(place)))
                mounts[name] = stage.mountpoint
                processes = {who: process.pid for who, process in stage.running.items()}
            else:
                mounts[name] = stack.enter_context(available[name](Path(place)))
        code: int = ExitCode.OK
        whole: results.Report | None = None
        if suite is not None:
            code = _measure_with(suite, mounts, times, output, [*(["--quick"] * quick), *words])
        else:
            samples = take_turns(mounts, QUICK if quick else FULL, times)
            whole = results.report(samples, cold=drop_caches(), quick=quick)
        memory = {who: targets.peak_memory_bytes(pid) for who, pid in processes.items()}
    if whole is not None:
        whole = msgspec.structs.replace(whole, peak_memory_bytes=memory)
        out.table("median [lowest .. highest]", results.columns(whole), results.rows(whole))
        out.say(f"written: {', '.join(map(str, results.save(whole, output)))}")
    out.say(results.memory(memory))
    return code


def _is_wanted(name: str, only: str | None, available: Mapping[str, object]) -> bool:
    """Whether a target is to be measured: `only` names some by their first words."""
    if name != results.TRISITE and name not in available:
        return False
    return only is None or name.split(" ")[0] in only.split(",")


def _measure_with(
    suite: Path, mounts: Mapping[str, Path], rounds: int, output: Path, words: Sequence[str]
) -> int:
    """Run the external suite over all mounts; its exit code."""
    command = [sys.executable, str(suite), "--rounds", str(rounds)]
    for name, mount in mounts.items():
        command += ["--mount", str(mount), "--label", name.split(" ")[0]]
    command += ["--json", str(output / "peers.json"), *words]
    sys.stdout.flush()
    return subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    sys.exit(run(app))
