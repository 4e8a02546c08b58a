"""`ckd-fast demo`, with weights that find nothing: what it prints is what the tracker did."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import ON_CPU, Command

from ckd_fast import Tracker
from ckd_fast.boxes import iou
from ckd_fast.datasets import ClipConfig, SyntheticClip

pytest.importorskip("matplotlib")


def test_it_tracks_a_clip_and_shows_it(tmp_path: Path, command: Command) -> None:
    arguments = ["--out", tmp_path, "--frames", "4", "--clip", "3", "--weights", "random", "--model", "tiny", "--json"]
    told = command("demo", *arguments, *ON_CPU)
    assert told.code == 0
    tracker, overlaps = Tracker("random", "tiny", engine="reference", device="cpu"), []
    for index, frame in enumerate(SyntheticClip(ClipConfig(frames=4, seed=3))):
        tir = np.repeat(frame.tir[:, :, None], 3, axis=2)
        if index == 0:
            tracker.init(frame.rgb, tir, frame.box)
        else:
            overlaps.append(float(iou(tracker.update(frame.rgb, tir).box, frame.box)))
    assert told.json["mean_iou"] == pytest.approx(sum(overlaps) / 3)
    assert told.json["frames"] == 3
    video = cv2.VideoCapture(told.json["video"])
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 4
    assert int(video.get(cv2.CAP_PROP_FRAME_WIDTH)) == 1280  # both modalities
    assert cv2.imread(told.json["plot"]).std() > 5
    assert command("demo", *arguments, *ON_CPU).refuses("plot.png exist")


def test_a_clip_of_one_frame_is_refused(command: Command) -> None:
    assert command("demo", "--frames", "1").refuses("expected at least 2")
