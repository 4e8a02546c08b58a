"""Synthetic clips: seeded, any size, and their ground truth is where the target is."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from ckd_fast import InputError
from ckd_fast.datasets import ClipConfig, SyntheticClip

NIGHT, SMOKE, GLARE, HIDING = 3, 1, 0, 2  # seeds of clips with each of these
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
    clip = SyntheticClip(ClipConfig(320, 240, 120, seed=NIGHT, occlusion=False, distractors=0, clutter=0))
    frames = list(clip)
    dark, crossover = [f for f in frames if f.dark], [f for f in frames if f.crossover]
    plain = [f for f in frames if not (f.dark or f.crossover)]
    assert 15 <= len(dark) <= 21
    assert 15 <= len(crossover) <= 21
    assert len(plain) >= 75
    assert np.mean([f.rgb.mean() for f in dark]) < 12
    warm = np.mean([contrast(f.tir, f.box) for f in plain])
    assert np.mean([contrast(f.tir, f.box) for f in dark]) == pytest.approx(warm, rel=0.3)
    assert np.mean([contrast(f.tir, f.box) for f in crossover]) < 0.35 * warm


@pytest.mark.parametrize("seed", [SMOKE, GLARE])
def test_smoke_and_glare_blind_the_visible_camera(seed: int) -> None:
    config = ClipConfig(160, 120, 60, seed=seed, occlusion=False, distractors=0)
    troubled = next(index for index in range(60) if SyntheticClip(config)[index].dark) + 4
    clear = SyntheticClip(dataclasses.replace(config, dark=False))[troubled]
    blind = SyntheticClip(config)[troubled]
    assert blind.rgb.std() < 0.6 * clear.rgb.std()
    assert blind.rgb.mean() > clear.rgb.mean() + 20
    assert blind.tir.std() > 0.8 * clear.tir.std()


def test_something_hides_the_target_once() -> None:
    """Seldom, never in the first frame, and the frames say when."""
    hidden, occluded = [], []
    for seed in range(4):
        clip = list(SyntheticClip(ClipConfig(160, 120, 120, seed=seed, distractors=0, clutter=0)))
        assert not clip[0].occluded
        assert all(0 <= frame.visible_share <= 1 for frame in clip)
        hidden.append(sum(frame.hidden for frame in clip))
        occluded.append(sum(frame.occluded for frame in clip))
        assert all(frame.occluded for frame in clip if frame.hidden)
    assert min(occluded) >= 3
    assert max(occluded) <= 60
    assert max(hidden) >= 3
    crowd = dataclasses.replace(PLAIN, distractors=8, clutter=20)
    assert not any(frame.occluded for frame in SyntheticClip(crowd))  # without occlusion nothing is in front of it


def test_a_hidden_target_leaves_no_trace() -> None:
    """What covers it is drawn as if it were not there."""
    clip = SyntheticClip(ClipConfig(160, 120, 120, seed=HIDING, distractors=0, crossover=False))
    index = next(index for index in range(120) if clip[index].hidden)
    x, y, w, h = (round(value) for value in clip.boxes()[index])
    gone = clip[index]
    clip._target = dataclasses.replace(clip._target, x=clip._target.x + 1000)
    without = clip[index]
    assert without.visible_share == 0
    inside = (slice(max(y, 0), y + h), slice(max(x, 0), x + w))
    assert np.abs(gone.rgb[inside].astype(int) - without.rgb[inside]).mean() < 1


def test_real_frames_as_backgrounds(tmp_path: Path) -> None:
    (tmp_path / "visible").mkdir()
    image = np.zeros((120, 160, 3), np.uint8)
    image[..., 2] = 250  # red
    cv2.imwrite(str(tmp_path / "visible" / "red.png"), image)
    config = dataclasses.replace(PLAIN, backgrounds=str(tmp_path), distractors=0, clutter=0)
    frame = SyntheticClip(config)[0]
    assert np.median(frame.rgb[..., 0]) > 150
    assert np.median(frame.rgb[..., 1]) < 20


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
