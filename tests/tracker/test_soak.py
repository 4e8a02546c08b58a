"""100,000 tracked frames do not let memory grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ckd_fast import ModelConfig, Tracker

FRAMES, SAMPLES = 100_000, 10


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_memory_does_not_grow() -> None:
    config = ModelConfig(dim=8, depth=2, heads=1, head_channels=8, eliminate_at=(1,), template_size=32, search_size=64)
    tracker = Tracker("random", config, engine="reference", device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (4, 2, 48, 64, 3), dtype=np.uint8)
    tracker.init(*frames[0], (20, 20, 14, 12))
    used = []
    for index in range(FRAMES):
        tracker.update(*frames[index % 4])
        if index % (FRAMES // SAMPLES) == FRAMES // SAMPLES - 1:
            used.append(resident_mib())
    assert tracker.frame == FRAMES
    assert max(used[1:]) - used[0] < 4, used
