"""The model that comes with the package: what its card says is true, and it tracks."""

from __future__ import annotations

import hashlib
import re

import pytest
from support import ROOT

from ckd_fast import Tracker, load_model
from ckd_fast.boxes import iou
from ckd_fast.datasets import ClipConfig, SyntheticClip
from ckd_fast.training.recipes import PACKAGED_MODEL
from ckd_fast.weights.load import PACKAGED

CARD = (ROOT / "docs" / "model-card.md").read_text(encoding="utf-8")


def test_it_is_what_the_recipe_makes() -> None:
    model = load_model(None)
    assert model.config == PACKAGED_MODEL
    assert not model.teachers
    assert model.provenance.source == "packaged"
    assert PACKAGED.stat().st_size <= 14e6


def test_the_card_is_of_this_file() -> None:
    assert hashlib.sha256(PACKAGED.read_bytes()).hexdigest() in CARD
    model = load_model(None)
    (parameters,) = re.findall(r"([\d,]+) parameters", CARD)
    counted = sum(value.numel() for name, value in model.weights.items() if "running_" not in name)
    assert int(parameters.replace(",", "")) == counted
    (threshold,) = re.findall(r"`lost_threshold` (0\.\d+)", CARD)
    assert model.lost_threshold == pytest.approx(float(threshold))


def test_it_tracks() -> None:
    """Far better than a box that stays, on a clip that training never drew."""
    clip = SyntheticClip(ClipConfig(frames=25, seed=20_001))
    tracker, found, stayed = Tracker(engine="reference", device="cpu"), [], []
    for index, frame in enumerate(clip):
        if index == 0:
            tracker.init(frame.rgb, frame.tir, frame.box)
            first = frame.box
            continue
        result = tracker.update(frame.rgb, frame.tir)
        found.append(float(iou(result.box, frame.box)))
        stayed.append(float(iou(first, frame.box)))
    assert sum(found) / len(found) > 0.5
    assert sum(stayed) / len(stayed) < 0.2
