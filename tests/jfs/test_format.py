"""The page of bytes and the declared records say the same; what cannot be right is refused."""

import random
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
import xxhash

import jfs.directory
import jfs.xattrs
from jfs.errors import CorruptionError
from jfs.fsck import repair
from jfs.inode import Inode
from jfs.layout import (
    BLOCK_BYTES,
    FORMAT_VERSION,
    GROUP_BLOCKS,
    INODE,
    KEY_BYTES,
    NODE_BYTES,
    SUPERBLOCK,
    LogPlace,
    Superblock,
    decode_extent,
    encode_extent,
    key_range,
    make_key,
    split_key,
)
from jfs.listing import read_listing
from jfs.log import JUMP_COPIES
from jfs.mkfs import make_file_system
from jfs.record import RECORDS, Record
from jfs.replay import load_volume, read_superblock
from jfs.store import Store
from tests.devices import MemoryDevice

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
VOLUME = UUID("f0f0f0f0-0000-4000-8000-000000000001")
ON_DISK = [
    *("key", "extent", "superblock", "batch", "jump", "node", "inode"),
    *("log record", "log item", "log run"),
    jfs.directory.ENTRY_RECORD.name,
    jfs.xattrs.ATTRIBUTE_RECORD.name,
]


def rows(record: Record) -> str:
    return "\n".join(
        f"| {offset} | {size} | {field.name} | {field.meaning} |" for offset, size, field in record.layout()
    )


@pytest.mark.parametrize("name", ON_DISK)
def test_the_page_has_every_field(name: str) -> None:
    assert rows(RECORDS[name]) in PAGE


def test_the_page_names_the_sizes() -> None:
    for name in ("superblock", "node", "batch", "inode", "log record", "jump"):
        assert f"{RECORDS[name].size} bytes" in PAGE
    assert KEY_BYTES == 17
    assert f"takes {NODE_BYTES} bytes" in PAGE
    assert f"A group is {GROUP_BLOCKS} blocks" in PAGE
    assert f"version {FORMAT_VERSION}" in PAGE


def superblock(**changes: object) -> Superblock:
    place = LogPlace(7, 100, 1 << 63)
    plain = Superblock(
        uuid=VOLUME,
        label="a volume",
        generation=3,
        epoch=2,
        created_ns=1,
        total_blocks=1024,
        reserve_blocks=64,
        tree_root=200,
        tree_height=2,
        segment_blocks=16,
        segment_limit=8,
        segments=(100, 116),
        free_blocks=5,
        inodes=6,
        next_ino=22,
        checkpoint=place,
        tail=place,
        clean=True,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_a_superblock_comes_back() -> None:
    assert Superblock.decode(superblock().encode()) == superblock()


@pytest.mark.parametrize("at", [*range(0, SUPERBLOCK.size, 7), 300, BLOCK_BYTES - 1])
def test_a_flipped_bit_in_a_superblock_is_found(at: int) -> None:
    block = bytearray(superblock().encode())
    block[at] ^= 4
    with pytest.raises(CorruptionError):
        Superblock.decode(bytes(block))


def test_a_newer_version_is_refused_by_name() -> None:
    block = bytearray(superblock().encode())
    block[16:20] = (FORMAT_VERSION + 1).to_bytes(4, "little")
    block[:8] = xxhash.xxh3_64_intdigest(bytes(block[8:])).to_bytes(8, "little")
    with pytest.raises(CorruptionError, match="version 4; this program knows version 3 only: use the newer"):
        Superblock.decode(bytes(block))


def test_a_flipped_bit_in_the_version_is_damage_and_not_a_newer_format() -> None:
    block = bytearray(superblock().encode())
    block[17] ^= 1
    with pytest.raises(CorruptionError, match="checksum"):
        Superblock.decode(bytes(block))


@pytest.mark.parametrize(("step", "age"), [(1, "newer"), (-1, "older")])
async def test_a_slot_of_another_version_is_refused_and_never_repaired(step: int, age: str) -> None:
    """The other slot has less: going on from it, or writing over that one, would lose what it has."""
    device = MemoryDevice(64 << 20)
    await make_file_system(device, volume_uuid=UUID(int=5), epoch=1, label="home")
    newest = read_superblock(device)
    slot = (newest.generation + 1) % 2 * BLOCK_BYTES
    block = bytearray(replace(newest, generation=newest.generation + 1).encode())
    block[16:20] = (FORMAT_VERSION + step).to_bytes(4, "little")
    block[:8] = xxhash.xxh3_64_intdigest(bytes(block[8:])).to_bytes(8, "little")
    device.write(slot, bytes(block))
    with pytest.raises(CorruptionError, match=f"{age} trisite"):
        read_superblock(device)
    written = device.issued_sequence
    assert [(finding.code, finding.repaired) for finding in await repair(device)] == [
        (f"superblock-{age}", False)
    ]
    assert device.issued_sequence == written


def test_a_superblock_that_points_outside_is_refused() -> None:
    with pytest.raises(CorruptionError, match="outside the volume"):
        Superblock.decode(superblock(tree_root=5000).encode())
    with pytest.raises(CorruptionError, match="cut short"):
        Superblock.decode(b"short")


def test_keys_sort_as_their_parts() -> None:
    parts = [(16, 1, 0), (16, 2, 5), (16, 2, 256), (17, 1, 0), (1 << 40, 7, 1 << 63)]
    keys = [make_key(*part) for part in parts]
    assert keys == sorted(keys)
    assert [split_key(key) for key in keys] == parts
    first, last = key_range(16, 2)
    assert [key for key in keys if first <= key <= last] == keys[1:3]


def test_extents_and_inodes_come_back() -> None:
    assert decode_extent(encode_extent(1 << 40, 77)) == (1 << 40, 77)
    with pytest.raises(CorruptionError):
        decode_extent(b"too short")
    inode = Inode(
        0o100644, 1, 2, 3, 1 << 50, 6, 7, 8, 9, 10, -1, 1_999_999_999, 0, -1_000_000_001, b"\xff\xfename"
    )
    assert Inode.decode(inode.encode()) == inode
    for broken in (b"", inode.encode()[:-1], inode.encode() + b"x"):
        with pytest.raises(CorruptionError):
            Inode.decode(broken)


async def a_volume() -> MemoryDevice:
    """A volume with a tree of two levels and a log that is not checkpointed."""
    device = MemoryDevice(64 << 20)
    await make_file_system(device, volume_uuid=VOLUME, epoch=1, label="x")
    store = await Store.open(device)
    for ino in range(16, 316):
        store.put(make_key(ino, INODE), Inode(0o100644, name=b"file", parent_ino=1).encode())
    await store.checkpoint()
    for ino in range(16, 53):
        store.put(make_key(ino, INODE), Inode(0o100600, name=b"other", parent_ino=1).encode())
        await store.commit()
    return device


async def test_damage_anywhere_is_one_clear_error_or_harmless() -> None:
    """A damaged block is refused, or was not needed; nothing hangs and no error of another kind comes out."""
    device = await a_volume()
    good = dict(device.blocks)
    rng = random.Random(22)
    sentences: list[str] = []
    for block in sorted(good):
        for damage in ("bit", "zeros", "noise"):
            raw = bytearray(good[block])
            if damage == "bit":
                raw[rng.randrange(512)] ^= 1 << rng.randrange(8)
            else:
                raw = bytearray(BLOCK_BYTES if damage == "zeros" else rng.randbytes(BLOCK_BYTES))
            device.blocks = {**good, block: bytes(raw)}
            try:
                volume, _ = load_volume(device)
                list(volume.scan(b"", b"\xff" * 17))
                list(volume.free_map.used_runs())
                read_listing(device)
            except CorruptionError as error:
                sentences.append(error.sentence)
    assert len(sentences) > 30
    assert not any("\n" in sentence for sentence in sentences)


async def test_a_damaged_durable_batch_is_told_from_the_end_of_the_log() -> None:
    device = await a_volume()
    good = dict(device.blocks)
    volume, end = load_volume(device)
    checkpoint = volume.superblock.checkpoint
    assert end.place.lsn > checkpoint.lsn + 20
    assert len(end.segments) > 2
    last_block = volume.superblock.segment_blocks - JUMP_COPIES
    jumps = [segment.start + last_block for segment in end.segments[:-1]]  # every batch here is one block
    assert end.place.lsn > end.segments[-1].place.lsn + 1  # a batch behind the last jump saw it durable
    for block in [*range(checkpoint.block + 1, jumps[0]), *jumps]:
        copies = range(block, block + (JUMP_COPIES if block in jumps else 1))
        device.blocks = good | dict.fromkeys(copies, bytes(BLOCK_BYTES))
        with pytest.raises(CorruptionError, match="it was durable once"):
            load_volume(device)


async def test_a_device_cut_short_is_refused() -> None:
    device = await a_volume()
    device.size_bytes -= BLOCK_BYTES
    with pytest.raises(CorruptionError, match="cut short"):
        read_superblock(device)
    with pytest.raises(CorruptionError, match="cannot hold"):
        read_superblock(MemoryDevice(BLOCK_BYTES))
    with pytest.raises(CorruptionError, match="no magic"):
        read_superblock(MemoryDevice(1 << 20))


async def test_one_broken_slot_is_survived() -> None:
    device = await a_volume()
    newest = read_superblock(device).generation
    device.blocks[newest % 2] = b"\xff" * BLOCK_BYTES
    assert read_superblock(device).generation == newest - 1
