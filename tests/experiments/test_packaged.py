"""experiments/packaged.py on trackers with known answers."""

from __future__ import annotations

import numpy as np
import packaged
import pytest
from packaged import Box, Clip, Image, Tracked, TrackFrame

from ckd_fast.datasets import ClipConfig, SyntheticClip

FRAMES = [np.full((40, 60, 3), level, np.uint8) for level in range(5)]
BOXES: list[Box] = [(10.0 + 5 * index, 10.0, 20.0, 10.0) for index in range(5)]
CLIP = Clip("walk", FRAMES, FRAMES, BOXES)


def knowing(_rgb: Image, _tir: Image, _box: Box) -> TrackFrame:
    """Reads the frame's number from its level."""
    return lambda rgb, _tir: (BOXES[int(rgb[0, 0, 0])], 0.9)


def test_overlaps_leave_out_the_first_frame() -> None:
    assert packaged.track_clip(CLIP, knowing).ious == (1.0, 1.0, 1.0, 1.0)
    still = packaged.track_clip(CLIP, packaged.still)
    assert still.ious == pytest.approx((15 / 25, 10 / 30, 5 / 35, 0.0))
    assert still.mean_iou == pytest.approx(sum(still.ious) / 4)
    assert still.last_iou == still.mean_iou  # fewer than ten frames


def test_the_threshold_lies_between_tracked_and_lost() -> None:
    run = Tracked((0.9, 0.8, 0.6, 0.0, 0.05, 0.3), (0.8, 0.7, 0.6, 0.2, 0.3, 0.1), 1.0)
    assert 0.3 < packaged.lost_threshold([run]) <= 0.6
    assert np.isnan(packaged.lost_threshold([Tracked((0.9,), (0.9,), 1.0)]))


def test_a_tracker_that_opencv_lacks_is_none() -> None:
    assert packaged.opencv_tracker("NoSuchTracker") is None
    start = packaged.opencv_tracker("MIL")
    if start is None:
        pytest.skip("this OpenCV has no tracker MIL")
    random = np.random.default_rng(0)
    image = random.integers(0, 60, (60, 80, 3), dtype=np.uint8)
    image[20:40, 30:50] = (200, 180, 30)
    box, _ = start(image, image, (30.0, 20.0, 20.0, 20.0))(image, image)
    assert packaged.iou(box, (30.0, 20.0, 20.0, 20.0)) > 0.5


def test_a_box_that_stays() -> None:
    assert packaged.still_overlap(BOXES) == pytest.approx((15 / 25 + 10 / 30 + 5 / 35 + 0) / 4)


def test_the_generated_test_clips() -> None:
    """A box that stays fails on all; two of them are drawn where it matters: hidden, and seen again."""
    assert len(set(packaged.TEST_SEEDS)) == 20
    clips = [SyntheticClip(ClipConfig(seed=seed, frames=packaged.TEST_FRAMES)) for seed in packaged.TEST_SEEDS]
    assert max(packaged.still_overlap(clip.boxes()) for clip in clips) <= packaged.MOST_STILL_OVERLAP
    for clip in clips[::10]:
        frames = [clip[index] for index in range(0, packaged.TEST_FRAMES, 6)]
        assert not frames[0].occluded
        assert any(frame.hidden for frame in frames)
        assert any(frame.crossover for frame in frames)
        assert sum(frame.visible_share < 0.5 for frame in frames) < len(frames) / 2


def test_generated_clips() -> None:
    (clip,) = packaged.generated_clips(1, 2)
    assert len(clip.rgb) == len(clip.tir) == len(clip.boxes) == 2
    assert clip.hidden == (False, False)
    assert clip.tir[0].shape == clip.rgb[0].shape == (480, 640, 3)
    tracker = packaged.our_tracker(packaged.load_model("random", "tiny", 0), tir_seen=False)
    run = packaged.track_clip(clip, tracker)
    assert 0 <= run.mean_iou <= 1
    assert run.frames_per_second > 0
