"""Synthetic clips: seeded, any size, and their ground truth is where the target is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ckd_fast import InputError
from ckd_fast.datasets import ClipConfig, SyntheticClip
from ckd_fast.datasets.synthetic import Pose, coverage

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


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.0])
def test_the_box_is_the_outline_of_what_is_drawn(angle: float) -> None:
    pose = Pose(70.0, 50.0, 31.0, 19.0, angle, (0.1, -0.08, 0.06, 0.05))
    xs, ys = torch.arange(140) + 0.5, torch.arange(100) + 0.5
    alpha, _, _ = coverage(pose, xs[None, :], ys[:, None])
    rows, columns = (alpha > 0.5).nonzero(as_tuple=True)
    x, y, w, h = pose.box()
    assert columns.min().item() == pytest.approx(x, abs=1)
    assert rows.min().item() == pytest.approx(y, abs=1)
    assert columns.max().item() + 1 == pytest.approx(x + w, abs=1)
    assert rows.max().item() + 1 == pytest.approx(y + h, abs=1)


def test_coverage_against_trigonometry() -> None:
    pose = Pose(10.0, 12.0, 8.0, 5.0, 0.4, (0.1, 0.05, -0.07, 0.09))
    xs, ys = torch.rand(200, dtype=torch.float64) * 20, torch.rand(200, dtype=torch.float64) * 24
    alpha, u, v = coverage(pose, xs, ys)
    phi, radius = torch.atan2(v, u), torch.hypot(u, v)
    a2, b2, a3, b3 = pose.shape
    edge = 1 + a2 * (2 * phi).cos() + b2 * (2 * phi).sin() + a3 * (3 * phi).cos() + b3 * (3 * phi).sin()
    assert torch.equal(alpha > 0.5, edge > radius)


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
