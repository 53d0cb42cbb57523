"""What a synchronous secondary still lacks while a copy brings it level: bookkeeping without I/O.

Ranges are compared by hash where it is not known which blocks differ, and copied where it is. What was sent
and not yet acknowledged is kept, so that an interrupted copy goes on where it was.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from replication.bodies import Differ
from replication.errors import RemoteProtocolError

__all__ = ["COPY_CHUNK_BYTES", "HASH_CHUNK_BYTES", "HASH_LEAF_BYTES", "Range", "Resync"]

Range = tuple[int, int]
"""(offset, length) in bytes."""
COPY_CHUNK_BYTES: Final = 256 * 1024
HASH_CHUNK_BYTES: Final = 1024 * 1024
HASH_LEAF_BYTES: Final = 4096
WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Most bytes of COPY, or of ranges asked about, that are unanswered: writes wait behind no more than this."""


class Resync:
    """One copy, over as many connections as it takes."""

    def __init__(
        self,
        incarnation: str,
        *,
        copy: Sequence[Range] = (),
        compare: Sequence[Range] = (),
        initial: bool = False,
    ) -> None:
        """`initial`: the secondary is empty, what is zeros here need not be sent."""
        self.incarnation = incarnation
        """The secondary that this copy began with; another one has lost what it was sent."""
        self.initial = initial
        self.copied_bytes = 0
        """Acknowledged bytes of COPY."""
        self._copy = deque(copy)
        self._compare = deque(compare)
        self._in_flight: deque[tuple[int, Range]] = deque()
        self._questions: dict[int, Range] = {}
        self._unanswered_bytes = 0
        self._sent = 0
        self._asked = 0

    @property
    def done(self) -> bool:
        """Whether nothing is left to send and everything sent was acknowledged."""
        return not (self._copy or self._compare or self._in_flight or self._questions)

    @property
    def remaining_bytes(self) -> int:
        """Bytes that are still to be copied or compared."""
        return sum(length for _, length in (*self._copy, *self._compare)) + self._unanswered_bytes

    def reconnected(self) -> None:
        """A new connection: what was not acknowledged on the old one is to be done again, first."""
        self._copy.extendleft(reversed([range_ for _, range_ in self._in_flight]))
        self._compare.extendleft(self._questions.values())
        self._in_flight.clear()
        self._questions.clear()
        self._unanswered_bytes = 0
        self._sent = 0

    def next_copy(self) -> Range | None:
        """The next range to copy, or None if there is none now or too much is unacknowledged."""
        if not self._copy or self._unanswered_bytes >= WINDOW_BYTES:
            return None
        return _take(self._copy, COPY_CHUNK_BYTES)

    def sent(self, range_: Range) -> None:
        """A COPY frame for this range was sent."""
        self._sent += 1
        self._in_flight.append((self._sent, range_))
        self._unanswered_bytes += range_[1]

    def next_question(self) -> tuple[int, Range] | None:
        """The next range to compare and the number of the question; counted as sent. None as in next_copy."""
        if not self._compare or self._unanswered_bytes >= WINDOW_BYTES:
            return None
        range_ = _take(self._compare, HASH_CHUNK_BYTES)
        self._asked += 1
        self._questions[self._asked] = range_
        self._unanswered_bytes += range_[1]
        return self._asked, range_

    def acknowledged(self, count: int) -> None:
        """The secondary has applied the first `count` COPY frames of this connection."""
        if count > self._sent:
            raise RemoteProtocolError(f"{count} COPY frames are acknowledged and {self._sent} were sent")
        while self._in_flight and self._in_flight[0][0] <= count:
            _, (_, length) = self._in_flight.popleft()
            self._unanswered_bytes -= length
            self.copied_bytes += length

    def answered(self, question: int, differ: Differ) -> None:
        """The secondary said which parts of a range differ: those are to be copied."""
        asked = self._questions.pop(question, None)
        if asked is None:
            raise RemoteProtocolError(f"a DIFFER frame answers question {question}, which was not asked")
        start, end = asked[0], asked[0] + asked[1]
        if any(offset < start or offset + length > end for offset, length in differ.ranges):
            raise RemoteProtocolError("a DIFFER frame names a range that was not asked about")
        self._unanswered_bytes -= asked[1]
        self._copy.extend(differ.ranges)


def _take(ranges: deque[Range], most: int) -> Range:
    offset, length = ranges[0]
    if length <= most:
        return ranges.popleft()
    ranges[0] = (offset + most, length - most)
    return offset, most
