"""What the log is made of: batches and the records in them. Pure encoding and decoding."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from xxhash import xxh3_64_intdigest

from jfs.errors import CorruptionError
from jfs.layout import BLOCK_BYTES, KEY
from jfs.record import Field, Record
from jfs.runs import Run
from jfs.vouchers import Voucher

BATCH = Record(
    "batch",
    Field("checksum", "Q", "xxh3-64 of the rest of the header and the body"),
    Field("chain", "Q", "checksum of the batch before"),
    Field("magic", "4s", "`TRIB`"),
    Field("kind", "B", "1 records, 2 jump"),
    Field("flags", "B", "1: the next batch belongs to the same atomic change; 2: it vouches for data"),
    Field("records", "H", "0"),
    Field("body_bytes", "I", "length of the body; the batch is padded with zeros to whole blocks"),
    Field("lsn", "Q", "number of the batch"),
    Field("uuid", "16s", "of the volume"),
    Field("incarnation", "Q", "random number of the mount that wrote it"),
    Field("durable_lsn", "Q", "batches below this number are durable if this one is"),
)
BATCH_MAGIC = b"TRIB"
MAGIC_AT = 16
RECORDS_BATCH = 1
JUMP_BATCH = 2
MORE = 1
VOUCHES = 2

JUMP = Record("jump", Field("segment", "Q", "first block of the segment where the log goes on"))

LOG_RECORD = Record(
    "log record",
    Field("kind", "B", "1 file, 2 region, 3 files retired, 4 regions retired, 5 vouchers"),
    Field("flags", "B", "1: covers the whole file; 2: names all that is covered of the file"),
    Field("ranges", "H", "file ranges that follow, u32 each: numbers of aligned 1 MiB pieces of the file"),
    Field("allocations", "H", "runs that follow, u64 first block and u32 blocks each"),
    Field("frees", "H", "runs that follow, alike"),
    Field("items", "H", "items, u64 numbers of files or regions, or vouchers, that follow last"),
    Field("item_bytes", "I", "length of all items"),
    Field("ino", "Q", "the file, or the number of the region"),
)
FILE_RECORD = 1
REGION_RECORD = 2
RETIRED_FILES = 3
RETIRED_REGIONS = 4
VOUCHERS = 5
WHOLE = 1
RESTATED = 2
LOG_ITEM = Record(
    "log item",
    Field("kind", "B", "of the key; the inode is that of the record"),
    Field("suffix", "Q", "of the key"),
    Field("value_bytes", "H", "length of the value that follows; 65535: the item is deleted"),
    order=">",
)
LOG_RUN = Record(
    "log run", Field("start_block", "Q", "first block on the volume"), Field("count", "I", "blocks")
)
LOG_VOUCHER = Record(
    "voucher",
    Field("block", "Q", "on the volume"),
    Field("size_bytes", "I", "bytes from the start of the block that the file shows, 1 to 4096"),
    Field("checksum", "Q", "xxh3-64 of these bytes"),
)
DELETED = 0xFFFF
_KEY_TAIL = KEY.size - 8
_LENGTH = struct.Struct(">H")
_RUN_BYTES = LOG_RUN.size
RECORD_ITEMS_BYTES = 16384
RECORD_ENTRIES = 512


@dataclass(slots=True)
class LogRecord:
    """What one record says. Retirements use `numbers`, regions `allocations`, vouchers `vouchers`."""

    kind: int
    ino: int = 0
    whole: bool = False
    restated: bool = False
    ranges: Sequence[int] = ()
    allocations: Sequence[Run] = ()
    frees: Sequence[Run] = ()
    items: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    item_count: int = 0
    numbers: Sequence[int] = ()
    vouchers: Sequence[Voucher] = ()


def encode_item(key: bytes, value: bytes | None) -> bytes:
    """One redo item, without the inode."""
    if value is None:
        return key[8:] + b"\xff\xff"
    return key[8:] + _LENGTH.pack(len(value)) + value


def _encode_runs(runs: Sequence[Run]) -> bytes:
    pack = LOG_RUN.struct.pack
    return b"".join([pack(start, count) for start, count in runs])


def encode_record(record: LogRecord, items: Sequence[bytes] = ()) -> bytes:
    """One record; `items` are encoded already."""
    body = b"".join(items)
    count = len(items)
    if record.numbers:
        body = struct.pack(f"<{len(record.numbers)}Q", *record.numbers)
        count = len(record.numbers)
    header = LOG_RECORD.struct.pack(
        record.kind,
        (WHOLE if record.whole else 0) | (RESTATED if record.restated else 0),
        len(record.ranges),
        len(record.allocations),
        len(record.frees),
        count,
        len(body),
        record.ino,
    )
    if record.ranges or record.allocations or record.frees:
        header += struct.pack(f"<{len(record.ranges)}I", *record.ranges)
        header += _encode_runs(record.allocations) + _encode_runs(record.frees)
    return header + body


def encode_file(record: LogRecord, items: list[bytes]) -> list[bytes]:
    """The record of one file, as several if one would be long. Runs and ranges come before all items."""
    allocations, frees = record.allocations, record.frees
    if len(items) <= 4 and len(allocations) + len(frees) + len(record.ranges) <= RECORD_ENTRIES:
        return [encode_record(record, items)]
    encoded: list[bytes] = []
    for start in range(0, max(len(allocations), len(frees), 1), RECORD_ENTRIES):
        end = start + RECORD_ENTRIES
        part = LogRecord(FILE_RECORD, record.ino, allocations=allocations[start:end], frees=frees[start:end])
        if start == 0:
            part.whole, part.restated, part.ranges = record.whole, record.restated, record.ranges
        encoded.append(encode_record(part))
    size, chunk = 0, list[bytes]()
    for item in items:
        chunk.append(item)
        size += len(item)
        if size >= RECORD_ITEMS_BYTES:
            encoded.append(encode_record(LogRecord(FILE_RECORD, record.ino), chunk))
            size, chunk = 0, []
    if chunk:
        encoded.append(encode_record(LogRecord(FILE_RECORD, record.ino), chunk))
    return encoded


def encode_numbers(kind: int, numbers: Sequence[int]) -> list[bytes]:
    """Retirement records."""
    return [
        encode_record(LogRecord(kind, numbers=numbers[start : start + RECORD_ENTRIES]))
        for start in range(0, len(numbers), RECORD_ENTRIES)
    ]


def encode_vouchers(vouchers: Sequence[Voucher]) -> bytes:
    """The record of what a batch vouches for: at most RECORD_ENTRIES."""
    body = b"".join([LOG_VOUCHER.struct.pack(*voucher) for voucher in vouchers])
    return LOG_RECORD.struct.pack(VOUCHERS, 0, 0, 0, 0, len(vouchers), len(body), 0) + body


def encode_region(number: int, runs: Sequence[Run], *, restated: bool) -> list[bytes]:
    """Region records; several with one number add up."""
    return [
        encode_record(
            LogRecord(
                REGION_RECORD, number, restated=restated, allocations=runs[start : start + RECORD_ENTRIES]
            )
        )
        for start in range(0, len(runs), RECORD_ENTRIES)
    ]


def decode_records(body: bytes, lsn: int, *, with_items: bool) -> Iterator[LogRecord]:
    """The records of a batch; CorruptionError if the body does not hold together."""
    position, end = 0, len(body)
    unpack, size = LOG_RECORD.struct.unpack_from, LOG_RECORD.size
    while position < end:
        if position + size > end:
            raise broken_batch(lsn)
        kind, flags, ranges, allocations, frees, items, item_bytes, ino = unpack(body, position)
        position += size
        runs_at = position + 4 * ranges
        items_at = runs_at + _RUN_BYTES * (allocations + frees)
        if items_at + item_bytes > end or not FILE_RECORD <= kind <= VOUCHERS:
            raise broken_batch(lsn)
        record = LogRecord(kind, ino, bool(flags & WHOLE), bool(flags & RESTATED), item_count=items)
        if ranges:
            record.ranges = struct.unpack_from(f"<{ranges}I", body, position)
        if allocations or frees:
            runs = list(LOG_RUN.struct.iter_unpack(memoryview(body)[runs_at:items_at]))
            record.allocations, record.frees = runs[:allocations], runs[allocations:]
        position = items_at + item_bytes
        if kind in (RETIRED_FILES, RETIRED_REGIONS):
            if item_bytes != 8 * items:
                raise broken_batch(lsn)
            record.numbers = struct.unpack_from(f"<{items}Q", body, items_at)
        elif kind == VOUCHERS:
            record.vouchers = _decode_vouchers(memoryview(body)[items_at:position], items, lsn)
        elif with_items and items:
            record.items = _decode_items(body, items_at, position, ino, lsn)
        yield record


def _decode_vouchers(body: memoryview, count: int, lsn: int) -> list[Voucher]:
    if len(body) != count * LOG_VOUCHER.size:
        raise broken_batch(lsn)
    found = [Voucher(*fields) for fields in LOG_VOUCHER.struct.iter_unpack(body)]
    if any(not 0 < voucher.size_bytes <= BLOCK_BYTES for voucher in found):
        raise broken_batch(lsn)
    return found


def _decode_items(body: bytes, at: int, end: int, ino: int, lsn: int) -> list[tuple[bytes, bytes | None]]:
    prefix = ino.to_bytes(8, "big")
    found: list[tuple[bytes, bytes | None]] = []
    while at < end:
        value_at = at + LOG_ITEM.size
        if value_at > end:
            raise broken_batch(lsn)
        key = prefix + body[at : at + _KEY_TAIL]
        length = body[value_at - 2] << 8 | body[value_at - 1]
        if length == DELETED:
            found.append((key, None))
            at = value_at
            continue
        at = value_at + length
        if at > end:
            raise broken_batch(lsn)
        found.append((key, body[value_at:at]))
    return found


def broken_batch(lsn: int) -> CorruptionError:
    return CorruptionError(f"log batch {lsn} has the right checksum but does not hold together")


def batch_blocks(body_bytes: int) -> int:
    """Blocks that a batch with such a body takes."""
    return -(-(BATCH.size + body_bytes) // BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as it was found."""

    kind: int
    more: bool
    vouches: bool
    lsn: int
    block: int
    body: bytes
    checksum: int
    chain: int
    incarnation: int
    durable_lsn: int

    @property
    def next_block(self) -> int:
        return self.block + batch_blocks(len(self.body))


def encode_batch(
    uuid: UUID, incarnation: int, lsn: int, chain: int, durable_lsn: int, kind: int, flags: int, body: bytes
) -> tuple[bytes, int]:
    """The blocks of a batch and its checksum. `flags`: MORE, VOUCHES."""
    header = BATCH.struct.pack(
        0, chain, BATCH_MAGIC, kind, flags, 0, len(body), lsn, uuid.bytes, incarnation, durable_lsn
    )
    content = header[8:] + body
    checksum = xxh3_64_intdigest(content)
    whole = checksum.to_bytes(8, "little") + content
    return whole.ljust(-(-len(whole) // BLOCK_BYTES) * BLOCK_BYTES, b"\0"), checksum


def decode_batch(raw: memoryview, uuid: UUID, block: int) -> Batch | None:
    """The batch at the start of `raw`, or None if there is no whole one of this volume."""
    if len(raw) < BLOCK_BYTES:
        return None
    fields = BATCH.struct.unpack_from(raw)
    checksum, chain, magic, kind, flags, _, body_bytes, lsn, found_uuid, incarnation, durable_lsn = fields
    if magic != BATCH_MAGIC or found_uuid != uuid.bytes:
        return None
    end = BATCH.size + body_bytes
    if end > len(raw) or checksum != xxh3_64_intdigest(raw[8:end]):
        return None
    body = bytes(raw[BATCH.size : end])
    more, vouches = bool(flags & MORE), bool(flags & VOUCHES)
    return Batch(kind, more, vouches, lsn, block, body, checksum, chain, incarnation, durable_lsn)
