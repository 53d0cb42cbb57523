"""Power cuts in the middle of checkpoints use up the log; the next mount finds room all the same."""

import pytest

from jfs.checkpoint import Checkpoint
from jfs.errors import DeviceError
from jfs.fsck import check
from jfs.layout import make_key
from jfs.store import Store
from tests.devices import MemoryDevice
from tests.jfs.store_world import QUICK, make_store, memory


async def test_crashed_checkpoints_never_use_up_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    store = await make_store(2 << 20)
    limit = store.superblock.segment_limit
    with monkeypatch.context() as patch:

        def crash(checkpoint: Checkpoint, *, clean: bool) -> None:
            raise DeviceError(5, "the power is gone")

        patch.setattr(Checkpoint, "issue_superblock", crash)
        for number in range(60):
            store.put(make_key(20, 1), bytes((number,)) * 3000)
            with pytest.raises(DeviceError):
                await store.checkpoint()
            device = MemoryDevice(store.device.size_bytes, dict(memory(store).blocks))
            store = await Store.open(device, options=QUICK)
    assert len(store.volume.writer().owned()) > limit
    assert store.get(make_key(20, 1)) == bytes((59,)) * 3000
    store.put(make_key(20, 1), b"after")
    await store.commit()
    await store.close()
    again = await Store.open(store.device, options=QUICK)
    assert again.get(make_key(20, 1)) == b"after"
    assert not [one for one in check(store.device) if one.code.startswith(("log", "map", "count"))]
