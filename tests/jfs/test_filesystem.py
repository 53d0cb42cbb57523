"""POSIX rules of the file system, on a device in memory."""

import errno
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfs import directory, namespace
from jfs.errors import CorruptionError
from jfs.filesystem import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    FileSystem,
    FileSystemOptions,
    Owner,
)
from jfs.layout import DIRENT, INODE, ORPHAN, ORPHAN_INO, key_range, make_key
from jfs.store import Store
from tests.devices import MemoryDevice
from tests.jfs.world import (
    DIRECTORY,
    FILE,
    ROOT,
    SIZE,
    content,
    found,
    names,
    new_file_system,
    refused,
    reopened,
)


@pytest.fixture
async def fs() -> FileSystem:
    return await new_file_system()


async def test_the_kinds_of_files(fs: FileSystem) -> None:
    for name, mode in ((b"fifo", S_IFIFO), (b"sock", S_IFSOCK), (b"file", S_IFREG), (b"dev", S_IFBLK)):
        made = fs.make(ROOT, name, mode | 0o640, Owner(3, 4), rdev=0x1234 if mode == S_IFBLK else 0)
        assert found(fs, name) is made
        assert (made.mode, made.uid, made.gid, made.nlink) == (mode | 0o640, 3, 4, 1)
    link = fs.symlink(ROOT, b"link", b"/some/where" * 370)
    fs = await reopened(fs)
    assert found(fs, b"dev").rdev == 0x1234
    assert fs.readlink(link.ino) == b"/some/where" * 370
    assert found(fs, b"link").size_bytes == 11 * 370
    assert {n.name: n.kind << 12 for n in fs.readdir(ROOT)} == {
        b".": S_IFDIR,
        b"..": S_IFDIR,
        b"fifo": S_IFIFO,
        b"sock": S_IFSOCK,
        b"file": S_IFREG,
        b"dev": S_IFBLK,
        b"link": S_IFLNK,
    }
    refused(errno.ENAMETOOLONG, fs.symlink, ROOT, b"long", b"x" * 4096)
    refused(errno.ENOENT, fs.symlink, ROOT, b"empty", b"")
    refused(errno.EINVAL, fs.readlink, found(fs, b"file").ino)
    refused(errno.EINVAL, fs.read, link.ino, 0, 1)
    refused(errno.EISDIR, fs.read, ROOT, 0, 1)


async def test_names(fs: FileSystem) -> None:
    longest = b"n" * 255
    node = fs.make(ROOT, longest, FILE)
    assert (node.parent_ino, node.name) == (ROOT, longest)
    for call in (fs.make, fs.lookup):
        refused(errno.ENAMETOOLONG, call, ROOT, longest + b"n", *([FILE] if call == fs.make else []))
    refused(errno.ENOTDIR, fs.lookup, node.ino, b"x")
    refused(errno.EEXIST, fs.make, ROOT, longest, FILE)
    refused(errno.EEXIST, fs.make, ROOT, b"..", DIRECTORY)
    assert fs.lookup(ROOT, b"missing") is None
    refused(errno.ENOENT, fs.unlink, ROOT, b"missing")
    assert found(fs, b".").ino == found(fs, b"..").ino == ROOT
    refused(errno.ESTALE, fs.node, 4711)


async def test_directories_count_their_names_and_directories(fs: FileSystem) -> None:
    top = fs.make(ROOT, b"top", DIRECTORY)
    sub = fs.make(top.ino, b"sub", DIRECTORY)
    fs.make(top.ino, b"file", FILE)
    assert (top.nlink, top.size_bytes, sub.nlink) == (3, 2, 2)
    assert found(fs, b"..", sub.ino) is top
    refused(errno.ENOTEMPTY, fs.rmdir, ROOT, b"top")
    refused(errno.EISDIR, fs.unlink, top.ino, b"sub")
    refused(errno.ENOTDIR, fs.rmdir, top.ino, b"file")
    refused(errno.EINVAL, fs.rmdir, top.ino, b".")
    refused(errno.ENOTEMPTY, fs.rmdir, top.ino, b"..")
    fs.remember_lookup(sub.ino)
    fs.rmdir(top.ino, b"sub")
    assert (top.nlink, top.size_bytes, sub.nlink) == (2, 1, 0)
    refused(errno.ENOENT, fs.make, sub.ino, b"in a removed directory", FILE)
    fs.forget(sub.ino)
    refused(errno.ESTALE, fs.node, sub.ino)


async def test_hard_links(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    node = fs.make(ROOT, b"a", FILE)
    fs.write(node.ino, 0, b"data")
    where = fs.make(ROOT, b"d", DIRECTORY)
    assert fs.link(node.ino, where.ino, b"b") is node
    assert (node.nlink, node.parent_ino, node.name) == (2, where.ino, b"b")
    refused(errno.EPERM, fs.link, where.ino, ROOT, b"c")
    refused(errno.EEXIST, fs.link, node.ino, ROOT, b"a")
    monkeypatch.setattr(namespace, "NLINK_MAX", 2)
    refused(errno.EMLINK, fs.link, node.ino, ROOT, b"c")
    refused(errno.EMLINK, fs.make, where.ino, b"sub", DIRECTORY)
    monkeypatch.setattr(namespace, "NLINK_MAX", 100)
    fs.unlink(where.ino, b"b")
    assert (node.nlink, node.parent_ino, node.name) == (1, 0, b""), "nothing is said of a name that went"
    assert content(fs, found(fs, b"a")) == b"data"


async def test_an_open_file_outlives_its_name_and_leaves_no_trace(fs: FileSystem) -> None:
    await fs.commit()
    before = fs.statfs().blocks_free
    node = fs.make(ROOT, b"a", FILE)
    fs.remember_lookup(node.ino)
    fs.remember_lookup(node.ino)
    fs.write(node.ino, 0, b"x" * 100_000)
    fs.setxattr(node.ino, b"user.a", b"1")
    fs.unlink(ROOT, b"a")
    assert fs.store.get(make_key(ORPHAN_INO, ORPHAN, node.ino)) is not None
    assert content(fs, node) == b"x" * 100_000
    refused(errno.ENOENT, fs.link, node.ino, ROOT, b"again")
    fs.forget(node.ino)
    assert fs.node(node.ino) is node
    fs.forget(node.ino)
    refused(errno.ESTALE, fs.node, node.ino)
    await fs.commit()
    for kind in range(1, 8):
        assert list(fs.store.scan(*key_range(node.ino, kind))) == []
    assert list(fs.store.scan(*key_range(ORPHAN_INO, ORPHAN))) == []
    assert fs.statfs().blocks_free >= before


async def test_a_mount_after_a_crash_removes_orphans(fs: FileSystem) -> None:
    node = fs.make(ROOT, b"a", FILE)
    fs.remember_lookup(node.ino)
    fs.write(node.ino, 0, b"x" * 10_000)
    fs.unlink(ROOT, b"a")
    await fs.commit()
    # The process dies here: nobody closes the store.
    again = FileSystem(await Store.open(fs.store.device))
    await again.settle()
    refused(errno.ESTALE, again.node, node.ino)
    assert list(again.store.scan(*key_range(ORPHAN_INO, ORPHAN))) == []


@pytest.mark.parametrize("options", [FileSystemOptions(), FileSystemOptions(cache_inodes=2)])
async def test_everything_is_there_after_a_remount(options: FileSystemOptions) -> None:
    fs = await new_file_system(options=options)
    for number in range(50):
        sub = fs.make(ROOT, b"d%d" % number, DIRECTORY, Owner(number, 5))
        node = fs.make(sub.ino, b"f", FILE)
        fs.write(node.ino, number * 1000, b"%d" % number * 500)
        fs.setxattr(node.ino, b"user.number", b"%d" % number)
    fs = await reopened(fs)
    assert found(fs, b"d3").nlink == 2
    assert fs.node(ROOT).nlink == 52
    for number in range(50):
        sub = found(fs, b"d%d" % number)
        node = found(fs, b"f", sub.ino)
        assert content(fs, node) == bytes(number * 1000) + b"%d" % number * 500
        assert fs.getxattr(node.ino, b"user.number") == b"%d" % number
        assert sub.uid == number


async def test_the_inode_cache_is_bounded() -> None:
    fs = await new_file_system(options=FileSystemOptions(cache_inodes=10))
    made = [fs.make(ROOT, b"%d" % number, FILE, Owner(number)).ino for number in range(100)]
    assert len(fs._nodes) == 10
    assert [fs.node(ino).uid for ino in made] == list(range(100))
    assert len(fs._nodes) == 10


async def test_reading_and_writing_by_pieces(fs: FileSystem) -> None:
    node = fs.make(ROOT, b"f", FILE)
    expected = bytearray()
    for offset, length in (
        (0, 10),
        (4090, 12),
        (100_000, 1),
        (8192, 4096),
        (1, 4095),
        (0, 20_000),
        (12_287, 2),
    ):
        data = bytes((offset + index) % 251 + 1 for index in range(length))
        fs.write(node.ino, offset, data)
        expected.extend(bytes(max(0, offset + length - len(expected))))
        expected[offset : offset + length] = data
        assert content(fs, node) == expected
        assert node.size_bytes == len(expected)
    assert node.blocks == 6, "holes take no room"
    assert bytes(fs.read(node.ino, 4000, 200)) == expected[4000:4200]
    assert bytes(fs.read(node.ino, 99_990, 100)) == expected[99_990:]
    assert bytes(fs.read(node.ino, 200_000, 10)) == b""


async def test_sparse_and_huge_files(fs: FileSystem) -> None:
    node = fs.make(ROOT, b"f", FILE)
    end = 2**63 - 1
    fs.write(node.ino, end - 5, b"12345")
    assert (node.size_bytes, node.blocks) == (end, 1)
    assert bytes(fs.read(node.ino, end - 10, 100)) == bytes(5) + b"12345"
    refused(errno.EFBIG, fs.write, node.ino, end - 4, b"12345")
    refused(errno.EFBIG, fs.truncate, node.ino, end + 1)
    fs.truncate(node.ino, 1 << 40)
    assert (node.size_bytes, node.blocks) == (1 << 40, 0)


@given(st.integers(0, 20_000), st.integers(0, 20_000), st.integers(0, 30_000))
async def test_what_is_cut_off_never_comes_back(length: int, cut: int, grown: int) -> None:
    fs = await new_file_system()
    node = fs.make(ROOT, b"f", FILE)
    fs.write(node.ino, 0, b"x" * length)
    fs.truncate(node.ino, cut)
    kept = min(length, cut)
    fs.truncate(node.ino, grown)
    kept = min(kept, grown)
    assert content(fs, node) == b"x" * kept + bytes(grown - kept)
    fs.write(node.ino, grown + 7, b"end")
    assert content(fs, node) == b"x" * kept + bytes(grown + 7 - kept) + b"end"


async def test_truncating_into_a_block_leaves_the_old_block_alone(fs: FileSystem) -> None:
    node = fs.make(ROOT, b"f", FILE)
    fs.write(node.ino, 0, b"x" * 8192)
    await fs.commit()
    device = fs.store.device
    assert isinstance(device, MemoryDevice)
    old = {block for block, data in device.blocks.items() if data == b"x" * 4096}
    assert len(old) == 2
    fs.truncate(node.ino, 5000)
    assert all(device.blocks[block] == b"x" * 4096 for block in old)
    assert content(fs, node) == b"x" * 5000


async def test_bytes_left_behind_the_end_by_a_crash_read_as_zeros(fs: FileSystem) -> None:
    """A write in place may reach the disk although the size that goes with it does not."""
    node = fs.make(ROOT, b"f", FILE)
    fs.write(node.ino, 0, b"x" * 6000)
    node.size_bytes = 5000
    fs.truncate(node.ino, 6000)
    assert content(fs, node) == b"x" * 5000 + bytes(1000)
    node.size_bytes = 4500
    fs.write(node.ino, 20_000, b"y")
    assert content(fs, node) == b"x" * 4500 + bytes(15_500) + b"y"


async def test_large_writes_are_one_device_write_in_one_extent(fs: FileSystem) -> None:
    node = fs.make(ROOT, b"f", FILE)
    device = fs.store.device
    before = device.issued_sequence
    last = fs.write(node.ino, 0, b"a" * (1 << 20))
    assert last == device.issued_sequence == before + 1
    for part in range(1, 4):
        fs.write(node.ino, part << 20, b"b" * (1 << 20))
    assert node.extent == (0, node.extent.start, 1024)


async def test_a_full_volume_says_so_and_recovers() -> None:
    fs = await new_file_system(16 << 20)
    node = fs.make(ROOT, b"f", FILE)
    keep = fs.make(ROOT, b"keep", FILE)
    fs.write(keep.ino, 0, b"k" * 10_000)
    while fs.statfs().blocks_available > 64:
        fs.write(node.ino, node.size_bytes, b"z" * (256 << 10))
    written = node.size_bytes
    assert written > 8 << 20
    refused(errno.ENOSPC, fs.write, node.ino, written, b"z" * (16 << 20))
    assert node.size_bytes == written
    assert content(fs, node) == b"z" * written
    fs.truncate(keep.ino, 5000)
    fs.write(keep.ino, 100, b"in place needs no room")
    fs.unlink(ROOT, b"f")
    await fs.commit()
    again = fs.make(ROOT, b"again", FILE)
    fs.write(again.ino, 0, b"y" * (written // 2))
    assert content(fs, again) == b"y" * (written // 2)
    assert content(fs, keep)[:5000] == b"k" * 100 + b"in place needs no room" + b"k" * (4900 - 22)


async def test_times(fs: FileSystem) -> None:
    node = fs.make(ROOT, b"f", FILE)
    assert node.atime_ns == node.mtime_ns == node.ctime_ns == node.btime_ns
    far = (2**62) * 10**9 + 999_999_999
    fs.setattr(node.ino, atime_ns=-far, mtime_ns=far, ctime_ns=-1)
    fs = await reopened(fs)
    node = found(fs, b"f")
    assert (node.atime_ns, node.mtime_ns, node.ctime_ns) == (-far, far, -1)
    fs.read(node.ino, 0, 1)
    assert node.atime_ns > 0
    once = node.atime_ns
    fs.setattr(node.ino, mtime_ns=once - 1, ctime_ns=once - 1)
    fs.read(node.ino, 0, 1)
    assert node.atime_ns == once, "relatime: newer than the last change is good enough"
    node.mtime_ns = node.ctime_ns = 5
    fs.write(node.ino, 0, b"x", stamp=False)
    assert node.mtime_ns == 5
    fs.write(node.ino, 0, b"x")
    assert node.mtime_ns == node.ctime_ns >= once


async def test_no_access_times_if_not_wanted() -> None:
    fs = await new_file_system(options=FileSystemOptions(relatime=False))
    node = fs.make(ROOT, b"f", FILE)
    node.atime_ns = 3
    fs.read(node.ino, 0, 1)
    assert node.atime_ns == 3


async def test_rename_moves_and_replaces(fs: FileSystem) -> None:
    left, right = fs.make(ROOT, b"l", DIRECTORY), fs.make(ROOT, b"r", DIRECTORY)
    node = fs.make(left.ino, b"a", FILE)
    old = fs.make(right.ino, b"b", FILE)
    fs.rename(left.ino, b"a", right.ino, b"b")
    assert names(fs, left.ino) == set()
    assert found(fs, b"b", right.ino) is node
    assert (node.parent_ino, node.name, node.nlink) == (right.ino, b"b", 1)
    refused(errno.ESTALE, fs.node, old.ino)
    sub = fs.make(left.ino, b"s", DIRECTORY)
    empty = fs.make(right.ino, b"e", DIRECTORY)
    assert (left.nlink, right.nlink) == (3, 3)
    fs.rename(left.ino, b"s", right.ino, b"e")
    assert (left.nlink, right.nlink, left.size_bytes, right.size_bytes) == (2, 3, 0, 2)
    assert found(fs, b"..", sub.ino) is right
    refused(errno.ESTALE, fs.node, empty.ino)
    fs.rename(right.ino, b"e", left.ino, b"s")
    assert (left.nlink, right.nlink) == (3, 2)
    fs.link(node.ino, right.ino, b"same")
    fs.rename(right.ino, b"same", right.ino, b"b")
    assert names(fs, right.ino) == {b"b", b"same"}, "two names of one file: nothing happens"


async def test_a_whiteout_takes_the_place_of_the_old_name(fs: FileSystem) -> None:
    fs.make(ROOT, b"a", FILE)
    old = fs.make(ROOT, b"b", FILE)
    fs.rename(ROOT, b"a", ROOT, b"b", RENAME_WHITEOUT, Owner(5, 6))
    fs = await reopened(fs)
    whiteout = fs.lookup(ROOT, b"a")
    assert whiteout is not None
    assert (S_IFMT(whiteout.mode), whiteout.rdev, whiteout.uid, whiteout.gid) == (S_IFCHR, 0, 5, 6)
    moved = fs.lookup(ROOT, b"b")
    assert moved is not None
    assert moved.ino != old.ino
    assert fs.node(ROOT).size_bytes == 2


async def test_what_rename_refuses(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    top = fs.make(ROOT, b"top", DIRECTORY)
    sub = fs.make(top.ino, b"sub", DIRECTORY)
    fs.make(sub.ino, b"deep", DIRECTORY)
    fs.make(ROOT, b"file", FILE)
    refused(errno.EINVAL, fs.rename, ROOT, b"top", sub.ino, b"x")
    refused(errno.EINVAL, fs.rename, ROOT, b"top", top.ino, b"x")
    refused(errno.EINVAL, fs.rename, ROOT, b"top", sub.ino, b"deep", RENAME_EXCHANGE)
    refused(errno.EINVAL, fs.rename, sub.ino, b"deep", ROOT, b"top", RENAME_EXCHANGE)
    refused(errno.ENOTEMPTY, fs.rename, sub.ino, b"deep", ROOT, b"top")
    refused(errno.ENOTDIR, fs.rename, ROOT, b"top", ROOT, b"file")
    refused(errno.EISDIR, fs.rename, ROOT, b"file", ROOT, b"top")
    refused(errno.ENOENT, fs.rename, ROOT, b"none", ROOT, b"file")
    refused(errno.ENOENT, fs.rename, ROOT, b"file", ROOT, b"none", RENAME_EXCHANGE)
    refused(errno.EEXIST, fs.rename, ROOT, b"file", ROOT, b"top", RENAME_NOREPLACE)
    refused(errno.EINVAL, fs.rename, ROOT, b"file", ROOT, b"x", RENAME_EXCHANGE | RENAME_NOREPLACE)
    refused(errno.EINVAL, fs.rename, ROOT, b"file", ROOT, b"x", RENAME_EXCHANGE | RENAME_WHITEOUT)
    refused(errno.EINVAL, fs.rename, ROOT, b"file", ROOT, b"x", 8)
    refused(errno.EINVAL, fs.rename, ROOT, b".", ROOT, b"x")
    refused(errno.EINVAL, fs.rename, ROOT, b"file", ROOT, b"..")
    refused(errno.ENAMETOOLONG, fs.rename, ROOT, b"file", ROOT, b"x" * 256)
    monkeypatch.setattr(namespace, "NLINK_MAX", 3)
    refused(errno.EMLINK, fs.rename, sub.ino, b"deep", ROOT, b"deep")
    assert names(fs) == {b"top", b"file"}
    assert names(fs, sub.ino) == {b"deep"}


async def test_rename_noreplace_and_exchange(fs: FileSystem) -> None:
    left, right = fs.make(ROOT, b"l", DIRECTORY), fs.make(ROOT, b"r", DIRECTORY)
    sub, file = fs.make(left.ino, b"s", DIRECTORY), fs.make(right.ino, b"f", FILE)
    fs.rename(left.ino, b"s", right.ino, b"f", RENAME_EXCHANGE)
    assert found(fs, b"s", left.ino) is file
    assert found(fs, b"f", right.ino) is sub
    assert (left.nlink, right.nlink) == (2, 3)
    assert (sub.parent_ino, sub.name, file.parent_ino, file.name) == (right.ino, b"f", left.ino, b"s")
    assert {entry.name: entry.kind << 12 for entry in fs.readdir(right.ino)}[b"f"] == S_IFDIR
    fs.rename(left.ino, b"s", left.ino, b"t", RENAME_NOREPLACE)
    assert names(fs, left.ino) == {b"t"}


async def test_names_that_share_a_bucket(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody finds two names with one hash, so make the hash a poor one."""
    monkeypatch.setattr(directory, "suffix_of", lambda name, seed: (name[0] % 2 + 1) << 8)
    for number in range(20):
        fs.make(ROOT, b"%c" % (65 + number), FILE, Owner(number))
    assert len(list(fs.store.scan(*key_range(ROOT, DIRENT)))) == 2
    for number in range(20):
        fs.rename(ROOT, b"%c" % (65 + number), ROOT, b"%c" % (97 + number))
    assert {entry.name: fs.node(entry.ino).uid for entry in fs.readdir(ROOT) if entry.name.isalpha()} == {
        b"%c" % (97 + number): number for number in range(20)
    }
    cookies = [entry.cookie for entry in fs.readdir(ROOT)]
    assert cookies == sorted(set(cookies))
    for number in range(20):
        fs.unlink(ROOT, b"%c" % (97 + number))
    assert list(fs.store.scan(*key_range(ROOT, DIRENT))) == []


async def test_reading_a_directory_in_pieces_while_it_changes(fs: FileSystem) -> None:
    stay = {b"stay%d" % number for number in range(300)}
    for name in stay | {b"go%d" % number for number in range(300)}:
        fs.make(ROOT, name, FILE)
    seen: list[bytes] = []
    cookie = 0
    turn = 0
    while True:
        piece = [entry for entry, _ in zip(fs.readdir(ROOT, cookie), range(7), strict=False)]
        if not piece:
            break
        seen += [entry.name for entry in piece]
        cookie = piece[-1].cookie
        fs.unlink(ROOT, b"go%d" % turn)
        fs.make(ROOT, b"new%d" % turn, FILE)
        turn += 1
    assert seen[:2] == [b".", b".."]
    assert len(seen) == len(set(seen)), "no name twice"
    assert stay <= set(seen), "no name that stayed is missing"


async def test_fdatasync_of_a_write_in_place_is_only_a_flush(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = 0
    commit = fs.store.commit

    async def counting() -> None:
        nonlocal commits
        commits += 1
        await commit()

    monkeypatch.setattr(fs.store, "commit", counting)
    device = fs.store.device
    assert isinstance(device, MemoryDevice)
    node = fs.make(ROOT, b"f", FILE)
    fs.write(node.ino, 0, b"x" * 8192)
    await fs.fsync(node.ino, datasync=True)
    assert commits == 1
    fs.write(node.ino, 0, b"y" * 4096)
    await fs.fsync(node.ino, datasync=True)
    assert commits == 2, "the batch before vouches for this block: it was moved"
    flushes = device.flushes
    fs.write(node.ino, 4096, b"y" * 4096)
    await fs.fsync(node.ino, datasync=True)
    assert (commits, device.flushes) == (2, flushes + 1)
    await fs.fsync(node.ino)
    assert commits == 3
    fs.write(node.ino, 8192, b"z")
    await fs.fsync(node.ino, datasync=True)
    assert commits == 4
    fs.truncate(node.ino, 100)
    await fs.fsync(node.ino, datasync=True)
    assert commits == 5


async def test_a_name_that_leads_nowhere_is_damage(fs: FileSystem) -> None:
    node = fs.make(ROOT, b"f", FILE)
    await fs.commit()
    fs.store.delete(make_key(node.ino, INODE))
    fs._nodes.clear()
    with pytest.raises(CorruptionError, match="leads to inode"):
        fs.lookup(ROOT, b"f")


async def test_inode_numbers_and_generations_are_fresh(fs: FileSystem) -> None:
    made = [fs.make(ROOT, b"%d" % number, FILE) for number in range(5)]
    for number in range(5):
        fs.unlink(ROOT, b"%d" % number)
    again = [fs.make(ROOT, b"%d" % number, FILE) for number in range(5)]
    assert len({node.ino for node in made + again}) == 10
    assert all(node.ino >= 16 and 0 <= node.generation < 2**32 for node in made + again)


async def test_statfs(fs: FileSystem) -> None:
    before = fs.statfs()
    node = fs.make(ROOT, b"f", FILE)
    fs.write(node.ino, 0, b"x" * (1 << 20))
    after = fs.statfs()
    assert before.blocks * 4096 <= SIZE
    assert before.blocks_free - after.blocks_free == 256
    assert after.name_max == 255
    assert 0 <= after.blocks_available <= after.blocks_free <= after.blocks
