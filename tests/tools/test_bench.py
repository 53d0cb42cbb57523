"""The measurements: every workload runs and checks what it wrote; the results fold and draw."""

import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tools.bench import durable, results, sync_away, workloads
from tools.bench.sync_away import Second
from tools.bench.workloads import NotAsWritten, Sample, Scale

TINY = Scale(stream_bytes=1 << 20, random_bytes=1 << 18, files=20, synced_files=5, seconds=0.05)


@pytest.fixture(autouse=True)
def keep_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests run on this machine too: leave its caches alone."""
    monkeypatch.setattr(workloads, "drop_caches", lambda: True)


@pytest.mark.parametrize("workload", workloads.WORKLOADS)
def test_every_workload_runs_on_a_plain_directory(
    tmp_path: Path, workload: Callable[[Path, Scale], list[Sample]]
) -> None:
    samples = workload(tmp_path, TINY)
    assert samples
    assert all(sample.amount > 0 and sample.rate > 0 for sample in samples)


@pytest.mark.parametrize(
    ("workload", "name"),
    [
        (workloads.stream, "stream"),
        (workloads.random_writes, "random"),
        (workloads.appends, "append-1-0"),
        (workloads.synced_files, "synced-00000"),
    ],
)
def test_a_file_system_that_loses_bytes_is_found_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workload: Callable[[Path, Scale], list[Sample]],
    name: str,
) -> None:
    """What is dropped together with the caches must be missed."""

    def lose() -> bool:
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
        return True

    monkeypatch.setattr(workloads, "drop_caches", lose)
    with pytest.raises(NotAsWritten):
        workload(tmp_path, TINY)


def sample(amount: float, name: str = "w") -> Sample:
    return Sample(name=name, unit="files", amount=amount, seconds=2.0, latencies=[0.001, 0.002, 0.003])


def test_rounds_fold_to_median_and_spread() -> None:
    figure = results.figure([sample(20), sample(40), sample(200)])
    assert (figure.low, figure.median, figure.high, figure.rounds) == (10, 20, 100, 3)
    assert figure.p50_ms == 2.0
    assert figure.p99_ms == 3.0


def test_a_report_is_a_table_a_json_file_and_a_picture(tmp_path: Path) -> None:
    whole = results.report(
        {
            results.PLAIN: [sample(100), sample(10, "only plain <&>")],
            results.PASSTHROUGH: [sample(50)],
            results.TRISITE: [sample(25)],
        },
        cold=True,
        quick=True,
        peak_memory_bytes={"sync": 50 << 20, "mount": 70 << 20},
    )
    assert results.rows(whole)[0] == ("w", "files/s", "50.0", "25.0", "12.5", "0.50", "2.00 / 3.00")
    assert results.rows(whole)[1][3:6] == ("-", "-", "-")
    data, picture, page = results.save(whole, tmp_path / "out")
    lines = page.read_text().splitlines()
    assert lines[2] == "| w | files/s | 50.0 | 25.0 | 12.5 | 0.50 | 2.00 / 3.00 |"
    assert lines[-1] == "peak memory: mount 70 MiB, sync 50 MiB"
    assert msgspec.json.decode(data.read_bytes(), type=results.Report) == whole
    root = ElementTree.fromstring(picture.read_text())
    widths = [
        float(bar.attrib["width"])
        for bar in root.iter("{http://www.w3.org/2000/svg}rect")
        if bar.attrib.get("height") == str(results.BAR_HEIGHT)
    ]
    assert widths == [results.BAR_WIDTH, results.BAR_WIDTH / 2, results.BAR_WIDTH / 4, results.BAR_WIDTH]


# -- the table of an outage


def seconds_of(*counts: tuple[int, int, str]) -> list[Second]:
    """Seconds with so many acknowledged, so many EIO, in that state."""
    return [Second(acknowledged=done, errors=Counter({"EIO": bad} if bad else {}), state=state)
            for done, bad, state in counts]  # fmt: skip


def test_seconds_that_look_alike_share_a_row_and_events_begin_one() -> None:
    duplex, away = (40, 0, "Duplex"), (0, 8, "Failure-Suspend")
    seconds = seconds_of(duplex, duplex, duplex, (2, 0, "Failure-Suspend"), away, away, away, away, duplex)
    run = sync_away.Run(True, 4, seconds, ["it is away"], "refused")
    assert [(first, len(group)) for first, group in sync_away.rows(run)] == [
        (-3, 3), (0, 1), (1, 3), (4, 1), (5, 1),
    ]  # fmt: skip
    text = sync_away.table(run)
    assert "| 1 to 3 | 0 | 24 EIO |" in text
    assert "| the daemon is killed |" in text
    assert "* warning: it is away" in text


# -- what it costs to make a write durable


@pytest.mark.parametrize("row", durable.ROWS)
def test_every_durable_row_runs_on_a_plain_directory(tmp_path: Path, row: str) -> None:
    mine = {"mount": os.getpid()}
    ran = durable.run(row, tmp_path, 0.02, mine)
    assert ran.rate > 0
    assert ran.microseconds["mount"] >= 0
    assert durable.run(row, tmp_path, 0.02, mine).rate > 0, "again, on what the first run left"
    assert row in durable.GOALS


def test_the_line_of_a_row_is_of_pairs_of_runs() -> None:
    passed = [durable.Run(rate, {"passthrough": 100.0}) for rate in (100.0, 200.0, 400.0)]
    ours = [durable.Run(rate, dict.fromkeys(durable.PROCESSES, 50.0)) for rate in (50.0, 200.0, 100.0)]
    calls = {"mount": {"read": 3.0}}
    line = durable.report("rand_write_4k_fsync", passed, ours, calls)
    assert line[3] == "0.50 [0.25 .. 1.00]"
    assert len(line) == len(durable.COLUMNS)
    assert "3.0" in line
