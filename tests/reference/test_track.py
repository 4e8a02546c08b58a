"""The plain tracker is the engine's: the same boxes, with the student as it stands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import SMALL
from torch import Tensor

from ckd_fast import Tracker, load_model
from ckd_fast.reference.boxes import hann_window
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.track import make_template, track_frame

MODEL = load_model("random", SMALL, seed=4)
PAIRS = [tuple(pair) for pair in np.random.default_rng(2).integers(0, 256, (5, 2, 120, 160, 3), dtype=np.uint8)]
WINDOW = hann_window(SMALL.search_grid)
BOX = (60.0, 40.0, 30.0, 20.0)


def test_the_plain_tracker_walks_as_the_public_one() -> None:
    student = MODEL.student()

    def network(*inputs: Tensor | None) -> HeadMaps:
        return student(*inputs).maps

    tracker = Tracker(MODEL, engine="reference", device="cpu")
    tracker.init(*PAIRS[0], BOX)
    template = make_template(student.embed_template, SMALL, PAIRS[0], BOX)
    box = BOX
    for rgb, tir in [*PAIRS[1:4], (None, PAIRS[4][1])]:
        (found,) = track_frame(network, SMALL, WINDOW, [template], [box], [SMALL.search_factor], (rgb, tir))
        expected = tracker.update(rgb, tir)
        assert (found.box, found.score) == (expected.box, expected.score)
        box = found.box


def test_a_result_that_is_not_finite_is_an_error() -> None:
    student = MODEL.student()
    template = make_template(student.embed_template, SMALL, PAIRS[0], BOX)

    def network(*_inputs: Tensor | None) -> HeadMaps:
        grid = torch.rand(1, 2, SMALL.search_grid, SMALL.search_grid)
        return HeadMaps(score=grid[:, :1], size=grid * torch.nan, offset=grid)

    with pytest.raises(FloatingPointError, match="not finite"):
        track_frame(network, SMALL, WINDOW, [template], [BOX], [4.0], PAIRS[1])
