"""`ckd-fast demo`, with weights that find nothing: what it prints is what the tracker did."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from ckd_fast import Tracker
from ckd_fast.boxes import iou
from ckd_fast.cli import main
from ckd_fast.datasets import ClipConfig, SyntheticClip

pytest.importorskip("matplotlib")


def test_it_tracks_a_clip_and_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demo", "--out", str(tmp_path), "--frames", "4", "--clip", "3", "--weights", "random", "--json"]
    arguments += ["--model", "tiny", "--engine", "reference", "--device", "cpu"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    tracker, overlaps = Tracker("random", "tiny", engine="reference", device="cpu"), []
    for index, frame in enumerate(SyntheticClip(ClipConfig(frames=4, seed=3))):
        tir = np.repeat(frame.tir[:, :, None], 3, axis=2)
        if index == 0:
            tracker.init(frame.rgb, tir, frame.box)
        else:
            overlaps.append(float(iou(tracker.update(frame.rgb, tir).box, frame.box)))
    assert printed["mean_iou"] == pytest.approx(sum(overlaps) / 3)
    assert printed["frames"] == 3
    video = cv2.VideoCapture(printed["video"])
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 4
    assert int(video.get(cv2.CAP_PROP_FRAME_WIDTH)) == 1280  # both modalities
    plot = cv2.imread(printed["plot"])
    assert plot.std() > 5
    assert main(arguments) == 2
    assert "plot.png exist" in capsys.readouterr().err


def test_a_clip_of_one_frame_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--frames", "1"]) == 2
    assert "expected at least 2" in capsys.readouterr().err
