"""Whose lists go without attributes: threads that look at what they list, that do not, and that look late."""

import random
from collections.abc import Sequence
from itertools import pairwise
from stat import S_IFDIR, S_IFLNK, S_IFREG

import pytest

from jfs.listers import DIRECTORY, FILE, MOST, MOST_SPARED, PROBED_FILES, Listers

DOTS = [DIRECTORY, DIRECTORY]
FILES = [*DOTS, *[FILE] * PROBED_FILES]
LINK = S_IFLNK >> 12
THREAD = 4711


def nothing_held(place: int) -> bool:
    """The kernel is as after a mount."""
    return False


class Program:
    """A thread that lists one directory after the other, 1, 2, 3..., all of them alike."""

    def __init__(self, listers: Listers, thread: int = THREAD) -> None:
        self.listers = listers
        self.thread = thread
        self.directory = thread << 20

    def lists(self, kinds: Sequence[int] = tuple(FILES)) -> int:
        """It lists the next directory: how many files of it are bare."""
        self.directory += 1
        bare = self.listers.bare(self.thread, self.directory, kinds, nothing_held, first=True)
        return sum(bare)

    def looks(self, directory: int = 0) -> None:
        """A bare file of a directory, the last one, is looked up, as `fuse_requests` tells it."""
        if (directory or self.directory) in self.listers.watched:
            self.listers.looked_up(directory or self.directory)

    def is_forgotten(self, directory: int) -> None:
        """The kernel lets go of a directory, as `fuse_requests` tells it."""
        if directory in self.listers.watched:
            self.listers.forgotten(directory)


@pytest.fixture
def program() -> Program:
    return Program(Listers())


def test_types() -> None:
    assert (FILE << 12, DIRECTORY << 12) == (S_IFREG, S_IFDIR)


def test_one_file_is_a_probe_and_it_is_the_last(program: Program) -> None:
    kinds = [*DOTS, LINK, *[FILE] * PROBED_FILES, LINK]
    bare = program.listers.bare(THREAD, 1, kinds, nothing_held, first=True)
    assert [place for place, is_bare in enumerate(bare) if is_bare] == [len(kinds) - 2]


def test_what_the_kernel_holds_is_no_probe(program: Program) -> None:
    """It would not be looked up."""
    listers = program.listers
    for number in range(9):
        assert not any(listers.bare(THREAD, number, FILES, (len(FILES) - 1).__eq__, first=True))
    assert not listers.watched
    program.lists()
    program.lists()
    assert sum(listers.bare(THREAD, 1, FILES, lambda _: True, first=True)) == PROBED_FILES


@pytest.mark.parametrize(
    "kinds",
    [[], DOTS, FILES[:-1], [*FILES[:-1], LINK], [*DOTS, DIRECTORY, *FILES], [DIRECTORY] * 99],
)
def test_small_and_mixed_directories_have_no_probe_and_say_nothing(
    program: Program, kinds: list[int]
) -> None:
    for _ in range(9):
        assert program.lists(kinds) == 0
    assert not program.listers.watched
    assert program.lists() == 1
    program.looks()
    for _ in range(9):
        assert program.lists(kinds) == 0


def test_whoever_leaves_the_probe_alone_gets_names_of_all_files(program: Program) -> None:
    assert program.lists() == 1
    for _ in range(5):
        assert program.lists() == PROBED_FILES
    mixed = [*DOTS, FILE, LINK, DIRECTORY, FILE]
    assert program.listers.bare(THREAD, 1, mixed, nothing_held, first=True) == [
        kind == FILE for kind in mixed
    ]


def test_whoever_looks_at_everything_gets_attributes_and_few_probes(program: Program) -> None:
    probes = []
    for number in range(100):
        bare = program.lists()
        assert bare <= 1
        if bare:
            probes.append(number)
        program.looks()
    assert probes[:5] == [0, 2, 6, 14, 30]
    assert {after - before for before, after in pairwise(probes[3:])} == {MOST_SPARED + 1}


def test_whoever_stops_looking_is_noticed(program: Program) -> None:
    for _ in range(100):
        program.lists()
        program.looks()
    assert PROBED_FILES in [program.lists() for _ in range(MOST_SPARED + 2)]
    bare = []
    for _ in range(7):  # and is not trusted for long when it looks again
        program.looks()
        bare.append(program.lists())
    assert bare == [1, 0, 1, 0, 0, 0, 1]


def test_a_look_brings_the_attributes_back(program: Program) -> None:
    program.lists()
    assert program.lists() == PROBED_FILES
    program.looks()
    assert program.lists() == 1


def test_each_wrong_guess_takes_twice_the_evidence(program: Program) -> None:
    """A program that always lists everything before it looks at anything ends with attributes."""
    for passes in range(6):
        begun = program.directory
        bare = [program.lists() for _ in range(20)]
        probes = min(1 << passes, 20)
        assert bare == [1] * probes + [PROBED_FILES] * (20 - probes)
        for directory in range(begun, program.directory):
            program.looks(directory + 1)


@pytest.mark.parametrize("late", range(1, 6))
def test_looks_that_come_late_are_learnt(program: Program, late: int) -> None:
    """Other threads look at the files while this one lists on."""
    bare = []
    for _ in range(200):
        bare.append(program.lists())
        program.looks(program.directory - late)
    assert max(bare[-150:]) <= 1, "attributes, but for the probes"


def test_the_answers_of_a_directory_go_on_as_they_begin_until_somebody_looks(program: Program) -> None:
    listers = program.listers

    def more() -> int:
        return sum(listers.bare(THREAD, program.directory, [FILE] * PROBED_FILES, nothing_held, first=False))

    assert more() == 0, "of a list that began unnoticed"
    program.lists()
    assert [more(), more()] == [0, 0], "that the probe is left alone says nothing yet, and one is enough"
    program.lists()
    assert [more(), more()] == [PROBED_FILES] * 2
    program.looks()
    assert more() == 0


def test_threads_are_judged_each_for_itself(program: Program) -> None:
    other = Program(program.listers, THREAD + 1)
    for _ in range(9):
        program.lists()
        assert other.lists() <= 1
        other.looks()
    assert program.lists() == PROBED_FILES
    # Who looks does not matter, but whose list it was: of a directory that both list, the last one's.
    listers = program.listers
    assert sum(listers.bare(other.thread, program.directory, FILES, nothing_held, first=True)) <= 1
    assert program.lists() == PROBED_FILES


def test_nothing_is_learnt_of_threads_without_a_number() -> None:
    strangers = Program(Listers(), 0)
    assert [strangers.lists() for _ in range(9)] == [0] * 9
    assert not strangers.listers.watched


def test_the_oldest_are_forgotten() -> None:
    listers = Listers()
    programs = [Program(listers, thread) for thread in range(1, 2 * MOST)]
    for program in programs:
        program.lists()
        assert program.lists() == PROBED_FILES
        assert len(listers._known) <= MOST
        assert len(listers.watched) <= MOST
    assert programs[-MOST + 1].lists() == PROBED_FILES
    assert programs[0].lists() == 1, "of this one nothing is known any more"


def test_whatever_happens_only_files_are_bare_and_memory_is_bounded(seed: int) -> None:
    rng = random.Random(seed)
    listers = Listers()
    for _ in range(20_000):
        thread, directory = rng.randrange(2 * MOST), rng.randrange(4 * MOST)
        kinds = [*DOTS, *rng.choices([FILE, LINK, DIRECTORY], [40, 1, rng.choice((0, 1))], k=60)]
        kinds = kinds[: rng.randrange(len(kinds) + 1)]
        bare = listers.bare(thread, directory, kinds, nothing_held, first=rng.random() < 0.8)
        assert len(bare) == len(kinds)
        assert all(kind == FILE for kind, is_bare in zip(kinds, bare, strict=True) if is_bare)
        assert sum(bare) in (0, 1, kinds.count(FILE))
        if sum(bare) == 1 < kinds.count(FILE):
            assert directory in listers.watched
        if listers.watched and rng.random() < 0.3:
            listers.looked_up(rng.choice(list(listers.watched)))
        assert len(listers.watched) <= MOST
        assert len(listers._known) <= MOST


def test_a_look_after_the_kernel_forgot_the_directory_is_no_wrong_guess(program: Program) -> None:
    """A program that lists everything, and after the caches were dropped looks at everything."""
    for _ in range(5):
        listed = [program.lists() for _ in range(8)]
        directories = range(program.directory - 7, program.directory + 1)
        for directory in directories:
            program.is_forgotten(directory)
        for directory in directories:
            program.looks(directory)
    assert listed == [PROBED_FILES] * 8
