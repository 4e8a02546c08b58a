"""The plain tracker is the engine's: the same boxes, with the student as it stands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import SMALL

from ckd_fast import Tracker, load_model
from ckd_fast.reference.boxes import hann_window
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.preprocess import normalise
from ckd_fast.reference.track import locate, look, make_template

MODEL = load_model("random", SMALL, seed=4)
PAIRS = [tuple(pair) for pair in np.random.default_rng(2).integers(0, 256, (5, 2, 120, 160, 3), dtype=np.uint8)]
WINDOW = hann_window(SMALL.search_grid)
BOX = (60.0, 40.0, 30.0, 20.0)


def test_the_plain_tracker_walks_as_the_public_one() -> None:
    """Written as in the docstring of `reference/track.py`."""
    student = MODEL.student()
    tracker = Tracker(MODEL, engine="reference", device="cpu")
    tracker.init(*PAIRS[0], BOX)
    template = make_template(student.embed_template, SMALL, PAIRS[0], BOX)
    box = BOX
    for rgb, tir in [*PAIRS[1:4], (None, PAIRS[4][1])]:
        view = look(SMALL, [template], [box], [SMALL.search_factor], (rgb, tir))
        with torch.inference_mode():
            maps = student(view.template, normalise(view.crops, view.present), view.deciding, view.present).maps
        (found,) = locate(maps, WINDOW, view)
        expected = tracker.update(rgb, tir)
        assert (found.box, found.score) == (expected.box, expected.score)
        box = found.box


def test_a_result_that_is_not_finite_is_an_error() -> None:
    template = make_template(MODEL.student().embed_template, SMALL, PAIRS[0], BOX)
    view = look(SMALL, [template], [BOX], [4.0], PAIRS[1])
    grid = torch.rand(1, 2, SMALL.search_grid, SMALL.search_grid)
    with pytest.raises(FloatingPointError, match="not finite"):
        locate(HeadMaps(score=grid[:, :1], size=grid * torch.nan, offset=grid), WINDOW, view)


def test_a_missing_modality_is_the_mean_image() -> None:
    template = make_template(MODEL.student().embed_template, SMALL, PAIRS[0], BOX)
    view = look(SMALL, [template] * 2, [BOX, (10.0, 20.0, 30.0, 40.0)], [4.0, 3.0], (None, PAIRS[1][1]))
    assert view.present is not None
    assert view.present.tolist() == [[False, False], [True, True]]
    images = normalise(view.crops, view.present)
    assert not images[0].any()
    assert torch.equal(images[1], normalise(view.crops[1]))
