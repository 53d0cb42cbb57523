"""What the procedures' answers say to a person: each thing once, with the numbers an operator decides by."""

import pytest

from replication.procedures.results import (
    FailbackResult,
    FailoverResult,
    ListedFileReport,
    Quarantined,
    RecoverResult,
    StepEvent,
    as_of_fields,
)
from replication.verify import Comparison, NotCompared, VerifyResult
from tools import failover, recover, verify
from tools.errors import Failure
from tools.render import Output

SINCE = 1_000_000_000_000_000_000
STEP = StepEvent(number=1, total=1, name="keep", sentence="keeps", cost="none", status="planned")


def returned(*steps: StepEvent, quarantines: tuple[Quarantined, ...] = ()) -> FailbackResult:
    return FailbackResult(
        writer="primary",
        epoch=3,
        bytes_copied=0,
        seconds=0.1,
        sequence=7,
        quarantine=quarantines[0].path if quarantines else None,
        quarantined_bytes=sum(kept.bytes for kept in quarantines),
        quarantines=list(quarantines),
        steps=list(steps),
    )


def file(number: int, why: str) -> ListedFileReport:
    return ListedFileReport(inode=number, path=f"/f{number}", ranges=[(0, 4096)], bytes=4096, why=why)


def listed(*files: ListedFileReport) -> RecoverResult:
    file_bytes = sum(one.bytes for one in files)
    return RecoverResult(
        site="sync",
        epoch=1,
        files=list(files),
        files_listed=len(files),
        bytes_listed=file_bytes + (7 << 20),
        file_bytes=file_bytes,
        log_bytes=7 << 20,
        bytes_copied=None,
        seconds=0.1,
    )


@pytest.mark.parametrize(
    ("lost", "sentence", "text"),
    [
        (None, "not known: no site knows", "not known: no site knows"),
        (0, "nothing, proven by sequence numbers", "nothing, proven by sequence numbers"),
        (7, "at least the writes 1 to 7", "7 operations (at least the writes 1 to 7)"),
        (None, "site primary ran alone", "not known (site primary ran alone)"),
        (0, "", "nothing"),
    ],
)
def test_a_loss_is_said_once(lost: int | None, sentence: str, text: str) -> None:
    assert failover.lost_text(lost, sentence) == text


def test_a_state_of_the_past_says_of_when_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    as_of, behind_seconds = as_of_fields(SINCE, SINCE + 250 * 10**9, None)
    result = FailoverResult(
        writer="async",
        epoch=2,
        files_listed=0,
        bytes_listed=0,
        bytes_copied=0,
        lost=None,
        seconds=0.1,
        sequence=7,
        recovery="not needed",
        lost_sentence="not known: nobody knows",
        as_of=as_of,
        behind_seconds=behind_seconds,
        steps=[STEP],
    )
    failover.tell_failover(Output(), result)
    told = capfd.readouterr().out
    assert "the state of 2001-09-09T01:46:40.000+00:00, " in told
    assert "4 m 10 s before the take-over" in told
    assert "recovery copy" not in told
    assert as_of_fields(SINCE, SINCE, 0) == as_of_fields(0, SINCE, None) == (None, None)


def test_nothing_to_do_asks_nobody_and_is_a_success(capfd: pytest.CaptureFixture[str]) -> None:
    async def nothing() -> FailbackResult:
        return returned()

    failover.agree(Output(), nothing, "return", yes=False)
    failover.tell_failback(Output(), returned())
    assert capfd.readouterr().out == "nothing to do: site primary is the writer, epoch 3\n"


@pytest.mark.parametrize("as_json", [True, False])
def test_something_to_do_is_not_done_without_an_answer(
    as_json: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    async def planned() -> FailbackResult:
        return returned(STEP)

    with pytest.raises(Failure, match="--yes"):
        failover.agree(Output(as_json=as_json), planned, "return", yes=False)
    told = capfd.readouterr()
    assert ("keeps" in told.out) is not as_json
    assert told.err == ""


def test_every_quarantine_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    kept = (
        Quarantined(site="primary", path="/p/quarantine/x", bytes=2 << 20),
        Quarantined(site="sync", path="/s/quarantine/y", bytes=4096),
    )
    failover.tell_failback(Output(), returned(STEP, quarantines=kept))
    told = capfd.readouterr().out
    aside = "has and the volume no longer has are set aside there, in"
    assert f"2 MiB that site primary {aside} /p/quarantine/x" in told
    assert f"4 KiB that site sync {aside} /s/quarantine/y" in told
    assert "trisite quarantine --at sync" in told


def test_the_log_area_is_not_taken_for_files() -> None:
    assert recover.summary(listed()).startswith("0 files, 0 B in ranges, plus log area 7 MiB (always looked")
    told = recover.summary(listed(file(16, "may be newer"), file(17, "may be newer"), file(18, "other")))
    assert told.startswith("3 files, 12 KiB in ranges, plus log area 7 MiB")
    assert "why: may be newer (2), other (1);" in told
    assert "metadata" not in told


def test_rare_reasons_are_counted_together() -> None:
    told = recover.reasons([file(number, f"reason {number % 5}") for number in range(13)])
    assert told.endswith("other reasons (4)")
    assert told.count("reason ") == 3


def test_a_long_list_is_shortened_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    result = listed(*(file(number, "why") for number in range(50)))
    recover.tell(Output(), result, most=40)
    short = capfd.readouterr().out
    assert "/f39" in short
    assert "/f40" not in short
    assert "and 10 more files; --all shows them" in short
    recover.tell(Output(), result, most=None)
    whole = capfd.readouterr().out
    assert "/f49" in whole
    assert "more files" not in whole


def test_the_summary_of_verify_names_whom_it_says_nothing_about() -> None:
    same = Comparison(between=("primary", "sync"), same=True, bytes=4096, differing=[], differing_bytes=0)
    away = NotCompared(site="async", sentence="it does not answer")
    result = VerifyResult(
        same=True, compared=[same], not_compared=[away], sequence=1234, bytes=4096, seconds=0.5
    )
    told = verify.summary(result)
    assert told == "same: primary, sync, at sequence 1,234, 0.50 s; it says nothing about site async"
