"""What is told again and again fills no log."""

import logging

import pytest

from jfs.quiet_log import MOST_SENTENCES, REPEAT_SECONDS, QuietLog


def test_a_sentence_is_told_once_a_minute_with_how_often_it_was(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    quiet = QuietLog(logging.getLogger("quiet"), now=lambda: now)
    for _ in range(1000):
        quiet.error("it is away")
    quiet.error("something else")
    now = REPEAT_SECONDS
    quiet.error("it is away")
    quiet.error("it is away")
    assert caplog.messages == ["it is away", "something else", "it is away (999 more times since)"]


def test_a_warning_is_one(caplog: pytest.LogCaptureFixture) -> None:
    quiet = QuietLog(logging.getLogger("quiet"), now=lambda: 0.0)
    for _ in range(3):
        quiet.warning("it waits")
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", "it waits")]


def test_sentences_that_are_all_different_take_no_memory(caplog: pytest.LogCaptureFixture) -> None:
    quiet = QuietLog(logging.getLogger("quiet"), now=lambda: 0.0)
    for number in range(10 * MOST_SENTENCES):
        quiet.error(f"fault {number}")
    assert len(caplog.messages) == 10 * MOST_SENTENCES
    assert len(quiet._told) <= MOST_SENTENCES
