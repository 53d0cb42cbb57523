"""The memory of a mount is a setting: what it keeps follows it, and the least serves every file."""

from dataclasses import asdict

from jfs.filesystem import FileSystem, FileSystemOptions
from jfs.memory import DEFAULT_MEMORY_BYTES, LEAST_MEMORY_BYTES, within
from jfs.store import Store, StoreOptions
from tests.jfs.world import FILE, ROOT, names, new_file_system


def test_the_default_is_what_the_options_are_made_for() -> None:
    assert within(DEFAULT_MEMORY_BYTES, StoreOptions(epoch=3), FileSystemOptions(relatime=False)) == (
        StoreOptions(epoch=3),
        FileSystemOptions(relatime=False),
    )


def test_everything_that_is_kept_follows_the_setting() -> None:
    least_store, least = within(LEAST_MEMORY_BYTES, StoreOptions(), FileSystemOptions())
    whole = asdict(StoreOptions())
    changed = {name for name, value in asdict(least_store).items() if value != whole[name]}
    assert changed == {"cache_bytes", "overlay_items", "overlay_bytes", "merge_leaves"}
    for name in changed:
        assert getattr(least_store, name) == whole[name] // 4
    assert least.cache_inodes == FileSystemOptions().cache_inodes // 4


async def test_a_mount_of_the_least_memory_keeps_no_more_than_that() -> None:
    fs = await new_file_system()
    store_options, options = within(LEAST_MEMORY_BYTES // 4096, StoreOptions(), FileSystemOptions())
    await fs.close()
    fs = FileSystem(await Store.open(fs.store.device, options=store_options), options)
    for number in range(2000):
        fs.make(ROOT, b"%d" % number, FILE)
        await fs.throttle()
        assert len(fs.store.volume.overlay) <= 2 * store_options.overlay_items + 4
        assert len(fs._nodes) <= options.cache_inodes
    assert names(fs) == {b"%d" % number for number in range(2000)}
    await fs.close()
