"""What is shown: sizes and times as people read them, and one JSON object on standard output with --json."""

import json

import pytest

from tools import render
from tools.render import Output, duration, size


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (4096, "4 KiB"), (1536, "1.5 KiB"), (8 << 30, "8 GiB"), (1 << 80, "1048576 EiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.214, "0.21 s"), (42.4, "42 s"), (250, "4 m 10 s"), (7500, "2 h 5 m"), (273600, "3 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_with_json_standard_error_has_the_progress_and_nothing_of_the_answer(
    capfd: pytest.CaptureFixture[str],
) -> None:
    output = Output(as_json=True)
    output.say("said")
    output.note("noted")
    output.table("title", ("a", ">b"), [("x", "1")])
    output.result({"answer": 42})
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"answer": 42}
    assert captured.out.count("\n") == 1
    assert captured.err == "noted\n"


def test_what_is_shown_aside_leaves_standard_output_alone(capfd: pytest.CaptureFixture[str]) -> None:
    Output(aside=True).table("title", ("a",), [("x",)])
    captured = capfd.readouterr()
    assert captured.out == ""
    assert " x " in captured.err


def test_without_json_the_answer_is_for_a_person(capfd: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.say("said [bold]as it is[/bold] :smile:")
    output.result({"answer": 42})
    captured = capfd.readouterr()
    assert captured.out == "said [bold]as it is[/bold] :smile:\n"
    assert captured.err == ""


def test_a_long_sentence_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    render.error("word " * 200 + "end")
    assert capfd.readouterr().err.count("\n") == 1


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("tools.render.time.monotonic", lambda: clock[0])
    with Output().progress("copying") as advance:
        for second in range(12):
            clock[0] = float(second)
            advance(second, 12)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "copying: 5 of 12\ncopying: 10 of 12\n"


def test_nobody_is_asked_where_there_is_no_terminal() -> None:
    assert render.confirm("really?") is None
