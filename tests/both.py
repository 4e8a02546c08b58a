"""The engine under test beside the reference, on the same frames and searches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from ckd_fast import ModelConfig, TrackerConfig
from ckd_fast.engines import Engine, Search, Target
from ckd_fast.engines.base import Found
from ckd_fast.frames import FrameForm, RawPair
from ckd_fast.types import Box

# Two blocks, the second of which drops tokens; odd sizes.
TWO_BLOCKS = ModelConfig(
    dim=48, depth=2, heads=3, head_channels=24, eliminate_at=(1,), template_size=32, search_size=80
)  # fmt: skip
BOX = (40.0, 30.0, 24.0, 20.0)
BOXES = [BOX, (10.0, 10.0, 40.0, 20.0), (70.0, 40.0, 50.0, 50.0)]
Twins = tuple[Target, Target]  # one target, as either engine knows it


def frames(seed: int = 0, size: tuple[int, int] = (96, 128), config: TrackerConfig | None = None) -> RawPair:
    """Coarse noise."""
    height, width = size
    coarse = np.random.default_rng(seed).integers(0, 256, (2, height // 4, width // 4, 3), dtype=np.uint8)
    rgb, tir = coarse.repeat(4, axis=1).repeat(4, axis=2)
    return RawPair(rgb, tir, FrameForm(size, size, None), config or TrackerConfig())


@dataclass(frozen=True)
class Both:
    """Two engines of one model.

    Attributes:
        ours, plain: under test, and the reference.
        limit: how far boxes may lie apart, in pixels.
    """

    ours: Engine
    plain: Engine
    limit: float = 0.1

    def target(self, box: Box = BOX, pair: RawPair | None = None) -> Twins:
        pair = pair or frames()
        return self.ours.make_target(pair, box), self.plain.make_target(pair, box)

    def agree(self, pair: RawPair, *searched: tuple[Twins, Box | None], start: Box | None = None) -> list[Found]:
        """Search in both; our results, which are the reference's. It starts at `start` where our box is carried."""
        ours = self.ours.start([Search(target, box, 4.0) for (target, _), box in searched], pair).result()
        theirs = self.plain.start([Search(twin, box or start, 4.0) for (_, twin), box in searched], pair).result()
        for found, expected in zip(ours, theirs, strict=True):
            assert found.cell == expected.cell
            assert found.box == pytest.approx(expected.box, abs=self.limit)
            assert found.score == pytest.approx(expected.score, abs=1e-4)
        return ours
