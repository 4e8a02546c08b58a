"""The renderer: outlines, boxes and coverage agree, and a batch is painted as its scenes are alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ckd_fast.datasets.scenes import Outline, Thing, View, coverage, paint, texture


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.0])
def test_the_box_is_the_outline_of_what_is_drawn(angle: float) -> None:
    outline = Outline.single(70.0, 50.0, 31.0, 19.0, angle, (0.1, -0.08, 0.06, 0.05))
    xs, ys = torch.arange(140) + 0.5, torch.arange(100) + 0.5
    alpha, _, _ = coverage(outline, xs[None, None, :], ys[None, :, None], np.ones(1))
    rows, columns = (alpha[0] > 0.5).nonzero(as_tuple=True)
    x, y, w, h = outline.boxes()[0]
    found = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    assert found == pytest.approx([x, y, x + w, y + h], abs=1)


def test_coverage_against_trigonometry() -> None:
    outline = Outline.single(10.0, 12.0, 8.0, 5.0, 0.4, (0.1, 0.05, -0.07, 0.09))
    xs, ys = torch.rand(1, 200, 1, dtype=torch.float64) * 20, torch.rand(1, 200, 1, dtype=torch.float64) * 24
    alpha, u, v = coverage(outline, xs, ys, np.ones(1))
    phi, radius = torch.atan2(v, u), torch.hypot(u, v)
    a2, b2, a3, b3 = outline.shape[:, 0]
    edge = 1 + a2 * (2 * phi).cos() + b2 * (2 * phi).sin() + a3 * (3 * phi).cos() + b3 * (3 * phi).sin()
    assert torch.equal(alpha > 0.5, edge > radius)


def random_outline(count: int, seed: int) -> Outline:
    random = np.random.default_rng(seed)
    return Outline(
        random.uniform(-20, 80, count), random.uniform(-20, 60, count), random.uniform(3, 12, count),
        random.uniform(3, 15, count), random.uniform(-1, 1, count), random.uniform(-0.1, 0.1, (4, count)),
    )  # fmt: skip


def test_bounds_contain_the_boxes() -> None:
    outline = random_outline(200, 1)
    (x, y, w, h), (left, top, width, height) = outline.boxes().T, outline.bounds().T
    assert (np.stack([left, top]) <= [x, y]).all()
    assert (np.stack([left + width, top + height]) >= [x + w, y + h]).all()
    assert (width * height < 2 * w * h).all()


def test_a_batch_is_painted_as_its_scenes_are_alone() -> None:
    """Only windows of scenes in view are painted; nothing may be missing at their borders."""
    random, count = np.random.default_rng(2), 12
    outline, look = random_outline(count, 3), texture(random, np.full(count, 150.0))
    view = View(random.uniform(-5, 5, count), random.uniform(-5, 5, count), random.uniform(0.5, 3, count))
    together = torch.zeros(count, 4, 32, 40)
    paint(together, view, Thing(outline, look))
    xs, ys = view.pixel_centres(range(32), range(40), torch.device("cpu"))
    alpha, _, _ = coverage(outline, xs, ys, view.pixel)
    untouched = (together == 0).all(1)
    assert torch.equal(untouched, alpha == 0)
    assert 0 < int((untouched.flatten(1).all(1)).sum()) < count  # some are out of view
    for index in range(count):
        scene = np.array([index])
        alone = torch.zeros(1, 4, 32, 40)
        paint(alone, view.only(scene), Thing(outline.only(scene), look[index : index + 1]))
        assert torch.allclose(alone[0], together[index], atol=1e-3)
