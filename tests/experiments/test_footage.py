"""Tracklets from plain footage, and the public trackers that make them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import footage
import numpy as np
import pytest
from public_trackers import Either, Fear, Found, Image, Nano, Penalty, PublicTracker, choose
from support import SHARED

from ckd_fast.boxes import iou
from ckd_fast.types import Box

TEACHERS = SHARED / "teachers"
needs_teachers = pytest.mark.skipif(not TEACHERS.is_dir(), reason=f"{TEACHERS} is not there: see CONTRIBUTING.md")


def square(frames: int, step: int = 4) -> list[Image]:
    """A bright square on a dark ground with some texture, moving to the right."""
    random = np.random.default_rng(0)
    ground = random.integers(20, 60, (120, 240, 3), dtype=np.uint8)
    made = []
    for number in range(frames):
        image = ground.copy()
        image[50:70, 20 + step * number : 40 + step * number] = 230
        made.append(image)
    return made


class Ideal(PublicTracker):
    """Finds the bright square, or stays where it was from some frame on."""

    def __init__(self, stays_from: int = 10_000) -> None:
        self._stays_from, self._number = stays_from, 0

    def init(self, image: Image, box: Box) -> None:  # noqa: ARG002
        self.box, self._number = box, 0

    def update(self, image: Image) -> Found:
        self._number += 1
        if self._number < self._stays_from:
            columns = np.flatnonzero((image[..., 0] > 200).any(0))
            self.box = (float(columns[0]), 50.0, float(len(columns)), 20.0)
        return Found(self.box, 0.9)


START = (20.0, 50.0, 20.0, 20.0)


def test_a_tracklet_is_kept_where_all_agree() -> None:
    frames = square(30)
    boxes = footage.agreed(Ideal(), Ideal(), frames, START, may_stay=False)
    assert boxes == [(20.0 + 4 * number, 50.0, 20.0, 20.0) for number in range(30)]
    assert footage.moves(boxes)
    assert footage.agreed(Ideal(stays_from=5), Ideal(), frames, START, may_stay=True) is None
    assert footage.agreed(Ideal(), Ideal(stays_from=5), frames, START, may_stay=True) is None
    # The way back begins where the way forward ended: at a start that is no target it does not return.
    assert footage.agreed(Ideal(), Ideal(), frames, (20.0, 50.0, 60.0, 60.0), may_stay=True) is None
    still = square(30, step=0)
    assert footage.agreed(Ideal(), Ideal(), still, START, may_stay=False) is None
    assert footage.agreed(Ideal(), Ideal(), still, START, may_stay=True) == [START] * 30


def test_where_tracklets_start() -> None:
    frames = square(10)
    random = np.random.default_rng(0)
    found = footage.starts(frames, 0, 0, random)  # what moves leaves one place for another
    assert len(found) in (1, 2)
    assert min(x for x, *_ in found) == pytest.approx(20, abs=4)
    assert max(x + w for x, _, w, _ in found) == pytest.approx(64, abs=4)
    blobs = footage.starts(frames, 0, 1, random)
    assert max(iou(blobs, [START] * len(blobs))) > 0.7
    assert len(footage.starts(frames, 0, 2, random)) == 1


@needs_teachers
def test_a_recording_from_a_video(tmp_path: Path) -> None:
    train, out = tmp_path / "train", tmp_path / "out"
    (train / "m3svd_ir").mkdir(parents=True)
    (train / "m3svd_val").mkdir()
    video = cv2.VideoWriter(str(train / "m3svd_ir" / "walk.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (240, 120))
    for frame in square(12):
        video.write(frame)
    video.release()
    given = [[0, [list(START)] * 3]]
    (train / "m3svd_ir" / "tracklets.json").write_text(json.dumps({"walk": given}))
    (recording,) = footage.recordings(train)
    line = footage.prepare(recording, out, TEACHERS, attempts=0)
    assert line == "walk: 12 frames, 1 tracklets, 0 of them move"
    assert json.loads((out / "walk" / "tracklets.json").read_text()) == given
    files = sorted((out / "walk" / "infrared").iterdir())
    assert len(files) == 12
    stored = cv2.imread(str(files[3]), cv2.IMREAD_GRAYSCALE)
    assert stored is not None
    assert stored[52:68, 34:50].mean() > 200
    assert footage.prepare(recording, out, TEACHERS, attempts=0) == "walk: there already"
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_choose_by_hand() -> None:
    """The penalty prefers the cell whose box has the last size; the window prefers the middle."""
    scores = np.full((5, 5), 0.1, np.float32)
    scores[1, 1], scores[3, 3] = 0.8, 0.75
    ticks = (np.arange(5, dtype=np.float32) - 2) * 16
    x, y = np.meshgrid(ticks, ticks)
    sides = np.full((5, 5), 10.0, np.float32)
    sides[1, 1] = 40.0
    corners = np.stack([x - sides, y - sides, x + sides, y + sides])
    plain = choose(corners, scores, (20.0, 20.0), Penalty(change=0.0, window=0.0, rate=0.5, smallest=1))
    assert (plain.centre, plain.size, plain.score) == ((-16.0, -16.0), (80.0, 80.0), pytest.approx(0.8))
    assert plain.rate == pytest.approx(0.4)
    strict = choose(corners, scores, (20.0, 20.0), Penalty(change=0.1, window=0.0, rate=0.5, smallest=1))
    assert (strict.centre, strict.size, strict.score) == ((16.0, 16.0), (20.0, 20.0), pytest.approx(0.75))
    scores[2, 2] = 0.6
    middle = choose(corners, scores, (20.0, 20.0), Penalty(change=0.1, window=0.4, rate=0.5, smallest=1))
    assert middle.centre == (0.0, 0.0)


@needs_teachers
@pytest.mark.parametrize(("tracker", "expected"), [("fear", 0.737), ("nano 3", 0.772)])
def test_the_public_trackers_do_what_they_are_known_for(tracker: str, expected: float) -> None:
    """Mean IoU of two copies, one per modality, as an independent program found it on the same 40 frames."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'ckd_fast[onnx]'")
    pytest.importorskip("onnx", reason="onnx is not installed: pip install 'ckd_fast[export]'")
    clip = SHARED / "data" / "sequences" / "m3svd_0117_1605_a"
    truth = np.loadtxt(clip / "groundtruth.txt", delimiter=",")[:40]
    both = Either(lambda: Fear(TEACHERS) if tracker == "fear" else Nano(TEACHERS, 3))
    views = [
        [cv2.imread(str(path)) for path in sorted((clip / name).glob("*.jpg"))[:40]] for name in ("visible", "infrared")
    ]
    pairs = [(rgb[:, :, ::-1], tir[:, :, ::-1]) for rgb, tir in zip(*views, strict=True)]  # type: ignore[index]
    both.init(*pairs[0], tuple(truth[0]))
    found = [both.update(*pair).box for pair in pairs[1:]]
    assert float(iou(found, truth[1:]).mean()) == pytest.approx(expected, abs=0.02)
