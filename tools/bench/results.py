"""What the measurements came to: medians with their spread, as a table, a JSON file and a picture."""

import itertools
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final

import msgspec

from tools.bench.workloads import Sample

PLAIN: Final = "plain directory"
PASSTHROUGH: Final = "pass-through mount"
TRISITE: Final = "trisite mount"
TARGETS: Final = (PLAIN, PASSTHROUGH, TRISITE)
COLOURS: Final = {PLAIN: "#b8bfc6", PASSTHROUGH: "#7aa6c2", TRISITE: "#d1603d"}
OTHER_COLOURS: Final = ("#8f9d6a", "#c9a24d", "#8d6e97")

BAR_HEIGHT: Final = 14
BAR_GAP: Final = 3
ROW_GAP: Final = 11
LEGEND_WIDTH: Final = 140
LABEL_WIDTH: Final = 300
BAR_WIDTH: Final = 420
VALUE_WIDTH: Final = 190
HEAD_HEIGHT: Final = 64


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One workload on one target over all rounds: units a second, and the time of one operation in ms."""

    median: float
    low: float
    high: float
    p50_ms: float | None
    p99_ms: float | None
    rounds: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One workload, measured on every target."""

    name: str
    unit: str
    figures: dict[str, Figure]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run and the machine it ran on."""

    machine: dict[str, str | int | bool]
    results: list[Result]
    targets: list[str]
    """In the order in which they are shown."""
    peak_memory_bytes: dict[str, int]
    """Of the processes of trisite: the mount and the daemon of each site."""


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of an ordered, non-empty list lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def figure(samples: Sequence[Sample]) -> Figure:
    """Fold the rounds of one workload on one target."""
    rates = [sample.rate for sample in samples]
    times = sorted(latency for sample in samples for latency in sample.latencies)
    return Figure(
        median=statistics.median(rates),
        low=min(rates),
        high=max(rates),
        p50_ms=quantile(times, 0.5) * 1e3 if times else None,
        p99_ms=quantile(times, 0.99) * 1e3 if times else None,
        rounds=len(rates),
    )


def report(
    samples: Mapping[str, Sequence[Sample]],
    *,
    cold: bool,
    quick: bool,
    peak_memory_bytes: Mapping[str, int] | None = None,
) -> Report:
    """Fold everything; the workloads keep the order in which they ran."""
    grouped: dict[tuple[str, str], dict[str, list[Sample]]] = {}
    for target, taken in samples.items():
        for sample in taken:
            grouped.setdefault((sample.name, sample.unit), {}).setdefault(target, []).append(sample)
    results = [
        Result(name=name, unit=unit, figures={target: figure(group) for target, group in targets.items()})
        for (name, unit), targets in grouped.items()
    ]
    machine: dict[str, str | int | bool] = {
        "system": platform.platform(),
        "processors": os.cpu_count() or 0,
        "python": platform.python_version(),
        "caches_dropped": cold,
        "quick": quick,
    }
    return Report(
        machine=machine,
        results=results,
        targets=list(samples),
        peak_memory_bytes=dict(peak_memory_bytes or {}),
    )


def columns(whole: Report) -> tuple[str, ...]:
    """The heads of the table; ">" before a name: figures, to the right."""
    targets = (f">{target}" for target in whole.targets)
    return ("workload", "unit", *targets, ">of pass-through", ">p50/p99 ms")


def number(value: float) -> str:
    """A rate, with as many digits as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def cell(figure: Figure | None) -> str:
    """Median and spread."""
    if figure is None:
        return "-"
    if figure.rounds == 1:
        return number(figure.median)
    return f"{number(figure.median)} [{number(figure.low)} .. {number(figure.high)}]"


def rows(whole: Report) -> list[tuple[str, ...]]:
    """The table: a line a workload, a column a target, and our share of the pass-through mount."""
    table = []
    for result in whole.results:
        ours, yardstick = result.figures.get(TRISITE), result.figures.get(PASSTHROUGH)
        share = "-"
        if ours is not None and yardstick is not None and yardstick.median > 0:
            share = f"{ours.median / yardstick.median:.2f}"
        latency = "-" if ours is None or ours.p50_ms is None else f"{ours.p50_ms:.2f} / {ours.p99_ms:.2f}"
        cells = (cell(result.figures.get(target)) for target in whole.targets)
        table.append((result.name, f"{result.unit}/s", *cells, share, latency))
    return table


def memory(peak_memory_bytes: Mapping[str, int]) -> str:
    """What the processes of trisite had resident at most, in one line."""
    peaks = (f"{name} {peak >> 20} MiB" for name, peak in sorted(peak_memory_bytes.items()))
    return f"peak memory: {', '.join(peaks) or 'not measured'}"


def markdown(whole: Report) -> str:
    """The table for a page."""
    head = [column.removeprefix(">") for column in columns(whole)]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *rows(whole)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{memory(whole.peak_memory_bytes)}\n"


def save(whole: Report, directory: Path) -> tuple[Path, Path, Path]:
    """Write bench.json, bench.svg and bench.md into `directory`; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    data, picture, page = (directory / f"bench.{kind}" for kind in ("json", "svg", "md"))
    page.write_text(markdown(whole), encoding="utf-8")
    data.write_bytes(msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n")
    picture.write_text(svg(whole), encoding="utf-8")
    return data, picture, page


def svg(whole: Report) -> str:
    """Bars for every workload, each as long as its share of the fastest; a line from lowest to highest."""
    width = LABEL_WIDTH + BAR_WIDTH + VALUE_WIDTH
    row_height = len(whole.targets) * (BAR_HEIGHT + BAR_GAP) + ROW_GAP
    height = HEAD_HEIGHT + row_height * len(whole.results) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<text x="12" y="22" font-size="15">units a second, median; longer is faster</text>',
    ]
    colours = _colours(whole.targets)
    for place, target in enumerate(whole.targets):
        x = 12 + place * LEGEND_WIDTH
        parts.append(f'<rect x="{x}" y="36" width="12" height="12" fill="{colours[target]}"/>')
        parts.append(f'<text x="{x + 18}" y="46">{escape(target)}</text>')
    for line, result in enumerate(whole.results):
        parts += _svg_row(result, colours, HEAD_HEIGHT + line * row_height)
    return "\n".join([*parts, "</svg>", ""])


def _colours(targets: Sequence[str]) -> dict[str, str]:
    """A colour for each target, in their order."""
    others = itertools.cycle(OTHER_COLOURS)
    return {target: COLOURS.get(target) or next(others) for target in targets}


def _svg_row(result: Result, colours: Mapping[str, str], top: int) -> list[str]:
    fastest = max((figure.high for figure in result.figures.values()), default=0.0) or 1.0
    parts = [f'<text x="12" y="{top + 28}">{escape(result.name)}</text>']
    for place, (target, colour) in enumerate(colours.items()):
        figure = result.figures.get(target)
        if figure is None:
            continue
        y = top + 4 + place * (BAR_HEIGHT + BAR_GAP)
        low, middle, high = (
            round(BAR_WIDTH * value / fastest, 1) for value in (figure.low, figure.median, figure.high)
        )
        parts.append(
            f'<rect x="{LABEL_WIDTH}" y="{y}" width="{middle}" height="{BAR_HEIGHT}" fill="{colour}"/>'
        )
        centre = y + BAR_HEIGHT / 2
        parts.append(
            f'<line x1="{LABEL_WIDTH + low}" y1="{centre}" x2="{LABEL_WIDTH + high}" y2="{centre}" '
            'stroke="#333333"/>'
        )
        text = f"{number(figure.median)} {escape(result.unit)}/s"
        parts.append(f'<text x="{LABEL_WIDTH + BAR_WIDTH + 8}" y="{y + 11}">{text}</text>')
    return parts
