"""Synthetic clips: seeded, any size, and their ground truth is where the target is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ckd_fast import InputError
from ckd_fast.datasets import ClipConfig, SyntheticClip

PLAIN = ClipConfig(width=161, height=121, frames=24, seed=3, dark=False, crossover=False, occlusion=False)


def test_equal_seeds_equal_clips_in_any_order() -> None:
    first, second = SyntheticClip(ClipConfig(128, 96, 12, seed=5)), SyntheticClip(ClipConfig(128, 96, 12, seed=5))
    forwards = list(first)
    for index in (11, 0, 7):
        again = second[index]
        assert np.array_equal(again.rgb, forwards[index].rgb)
        assert np.array_equal(again.tir, forwards[index].tir)
        assert again.box == forwards[index].box
    other = SyntheticClip(ClipConfig(128, 96, 12, seed=6))[0]
    assert not np.array_equal(other.rgb, forwards[0].rgb)
    with pytest.raises(IndexError):
        first[12]


def test_size_and_type() -> None:
    frame = SyntheticClip(PLAIN)[3]
    assert (frame.rgb.shape, frame.rgb.dtype) == ((121, 161, 3), np.uint8)
    assert (frame.tir.shape, frame.tir.dtype) == ((121, 161), np.uint8)


def test_the_target_stays_in_the_frame_and_moves() -> None:
    for seed in range(6):
        config = ClipConfig(320, 200, 200, seed=seed)
        boxes = np.array(SyntheticClip(config).boxes())
        centres = boxes[:, :2] + boxes[:, 2:] / 2
        assert (centres > 0).all()
        assert (centres < [320, 200]).all()
        assert np.abs(np.diff(centres, axis=0)).max() < 12
        assert boxes[:, 2].std() > 0.5


def contrast(image: np.ndarray, box: tuple) -> float:
    """Difference between the target's middle and its surroundings, in levels."""
    x, y, w, h = box
    image = image.astype(float)
    image = image.mean(-1) if image.ndim == 3 else image
    cy, cx = round(y + h / 2), round(x + w / 2)
    inside = image[max(cy - 3, 0) : cy + 4, max(cx - 3, 0) : cx + 4]
    whole = image[max(round(y - h), 0) : round(y + 2 * h), max(round(x - w), 0) : round(x + 2 * w)]
    return abs(inside.mean() - np.median(whole))


def test_dark_and_crossover_stretches() -> None:
    """In the dark only thermal shows the target, in the crossover only RGB does."""
    clip = SyntheticClip(ClipConfig(320, 240, 120, seed=4, occlusion=False, distractors=0, clutter=0))
    frames = list(clip)
    dark, crossover = [f for f in frames if f.dark], [f for f in frames if f.crossover]
    plain = [f for f in frames if not (f.dark or f.crossover)]
    assert 15 <= len(dark) <= 21
    assert 15 <= len(crossover) <= 21
    assert len(plain) >= 75
    assert np.mean([f.rgb.mean() for f in dark]) < 12
    warm = np.mean([contrast(f.tir, f.box) for f in plain])
    assert np.mean([contrast(f.tir, f.box) for f in dark]) == pytest.approx(warm, rel=0.3)
    assert np.mean([contrast(f.tir, f.box) for f in crossover]) < 0.25 * warm


def test_the_occluder_crosses_once() -> None:
    occluded = [f.occluded for f in SyntheticClip(ClipConfig(160, 120, 120, seed=2))]
    changes = sum(a != b for a, b in itertools.pairwise(occluded))
    assert 3 <= sum(occluded) <= 30
    assert changes <= 2
    assert not any(f.occluded for f in SyntheticClip(PLAIN))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 20}, "at least 64x64"),
        ({"frames": 0}, "frames=0"),
        ({"seed": -1}, "numbers from 0"),
        ({"noise": 100.0}, "noise"),
        ({"camera_motion": math.nan}, "camera_motion"),
    ],
)
def test_bad_settings(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClipConfig(**values)
