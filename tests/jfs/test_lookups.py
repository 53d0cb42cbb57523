"""The counts of what the kernel holds: like a dictionary of integers, in a small share of its memory."""

import random
import tracemalloc

from jfs.lookups import LookupCounts


def test_like_a_dictionary(seed: int) -> None:
    rng = random.Random(seed)
    counts, model = LookupCounts(), dict[int, int]()
    inos = [rng.choice((1, rng.randrange(600), rng.randrange(1 << 40))) for _ in range(60)]
    for _ in range(40_000):
        ino = rng.choice(inos)
        if rng.random() < 0.7:
            counts.add(ino)
            model[ino] = model.get(ino, 0) + 1
        else:
            taken = rng.choice((1, 2, 254, 255, 256, 300))
            left = model.get(ino, 0) - taken
            assert counts.remove(ino, taken) == max(left, 0)
            model[ino] = left
            if left <= 0:
                del model[ino]
        assert counts[ino] == model.get(ino, 0)
        assert (ino in counts) == (ino in model)
    assert len(counts) == len(model)
    for ino in inos:
        counts.remove(ino, 1 << 30)
    assert len(counts) == 0


def test_a_million_inodes_held_take_little() -> None:
    tracemalloc.start()
    try:
        counts = LookupCounts()
        for ino in range(16, 1_000_016):
            counts.add(ino)
        for ino in range(16, 1_000_016):
            if ino % 1000:  # what is left is spread out thinly
                counts.remove(ino, 1)
        used, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(counts) == 1000
    assert peak < 4 << 20
    assert used <= peak
