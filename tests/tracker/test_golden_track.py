"""The public tracker walks exactly where the authors' tracker walked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from support import GOLDEN_CONFIG, Golden

from ckd_fast import Tracker, load_model


@pytest.mark.parametrize("case", ["mce", "slow"])
def test_twenty_frames(tmp_path: Path, case: str) -> None:
    golden = Golden("ckd_small_track.npz")
    torch.save({"net": golden.authors_weights()}, tmp_path / "w.pth.tar")
    config = dataclasses.replace(GOLDEN_CONFIG, elimination="mce" if case == "mce" else "none")
    tracker = Tracker(load_model(tmp_path / "w.pth.tar", config), engine="reference", device="cpu")
    rgb, tir, boxes = golden["rgb"], golden["tir"], golden[f"{case}/boxes"]
    # Keys that the authors' evaluation loop passes are tolerated.
    info = {"init_bbox": golden["init_box"].tolist(), "previous_output": {}}
    assert tracker.initialize(rgb[0], tir[0], info) == {}
    for index in range(1, 20):
        more = {"gt_bbox": [1, 2, 3, 4], "previous_output": {"target_bbox": None}, "baseline_rect": None}
        out = tracker.track(rgb[index], tir[index], more)
        assert list(out) == ["target_bbox", "best_score"]
        assert out["target_bbox"] == pytest.approx(boxes[index].tolist(), abs=0.01)
        # The score is the map's value at the cell that the window made win.
        recorded = golden[f"{case}/score_map"][index - 1].ravel()
        assert min(abs(recorded - out["best_score"])) < 2e-5
    assert len(boxes) == 20
