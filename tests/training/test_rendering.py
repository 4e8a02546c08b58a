"""Rendered pairs show what their settings and labels say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ckd_fast import ModelConfig
from ckd_fast.training.config import Sampling, SceneConfig
from ckd_fast.training.rendering import Renderer
from ckd_fast.training.samples import Crops

BARE = SceneConfig(clutter=0, distractors=0, dark=0, crossover=0, camouflage=0, occlusion=0, noise=0)


def renderer(scene: SceneConfig = BARE, sampling: Sampling | None = None) -> Renderer:
    model = ModelConfig(template_size=64, search_size=128)
    return Renderer(scene, sampling or Sampling(), model, torch.device("cpu"))


def test_the_target_is_where_the_label_says() -> None:
    """Without anything else in the scene, what is warm and what the box covers are the same."""
    pairs = renderer(sampling=Sampling(centre_jitter=1.0, scale_jitter=0.1)).render(48, (5,))
    thermal = pairs.search[1, :, 0].float()  # [B, 128, 128]
    overlaps = []
    for image, box in zip(thermal, pairs.target_xywh * 128, strict=True):
        x, y, w, h = box.tolist()
        inside = image[round(y + h * 0.35) : round(y + h * 0.65), round(x + w * 0.35) : round(x + w * 0.65)]
        around = float(image[image > 0].median())
        if abs(float(inside.mean()) - around) < 60 or min(x, y, 128 - x - w, 128 - y - h) < 2:
            continue  # hardly warmer, or cut by the crop: thresholding would not find it
        level = (around + float(inside.mean())) / 2
        rows, columns = torch.where((image > level) if float(inside.mean()) > around else (image < level) & (image > 0))
        found = (float(columns.min()), float(rows.min()), float(columns.max()) + 1, float(rows.max()) + 1)
        low = (max(found[0], x), max(found[1], y))
        high = (min(found[2], x + w), min(found[3], y + h))
        shared = max(high[0] - low[0], 0) * max(high[1] - low[1], 0)
        overlaps.append(shared / ((found[2] - found[0]) * (found[3] - found[1]) + w * h - shared))
    assert len(overlaps) > 15
    assert np.median(overlaps) > 0.9


def test_equal_seeds_give_equal_scenes() -> None:
    scene = SceneConfig()
    first, again, other = (renderer(scene).render(3, seed) for seed in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first.search, again.search)
    assert torch.equal(first.template, again.template)
    assert not torch.equal(first.search, other.search)


def test_darkness_blinds_the_visible_camera_alone() -> None:
    bright = renderer(BARE).render(16, (2,))
    dark = renderer(dataclasses.replace(BARE, dark=1)).render(16, (2,))
    seen = bright.search[0].float().mean((1, 2, 3)) > 20  # some windows lie beyond the frame's edge
    ratio = dark.search[0].float().mean((1, 2, 3)) / bright.search[0].float().mean((1, 2, 3)).clamp(min=1)
    assert float(ratio[seen].max()) < 0.35
    assert torch.equal(dark.search[1], bright.search[1])


def contrast_of_template(pairs: Crops, modality: int) -> float:
    """How far the middle of the target, which is the middle of the crop, is from the rest, in levels."""
    shades = pairs.template[modality].float().mean(1)
    return float((shades[:, 30:35, 30:35].mean((1, 2)) - shades.flatten(1).median(1).values).abs().median())


def contrast(pairs: Crops, modality: int) -> float:
    """How far the middle of the target is from the rest of the search view, in levels."""
    values = []
    for image, box in zip(pairs.search[modality].float().mean(1), pairs.target_xywh * 128, strict=True):
        x, y = (float(box[i] + box[i + 2] / 2) for i in range(2))
        if 4 < x < 124 and 4 < y < 124:
            values.append(abs(float(image[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3].mean() - image.median())))
    return float(np.median(values))


def test_crossover_hides_the_target_from_the_thermal_camera_alone() -> None:
    scene = dataclasses.replace(BARE, crossover=1)
    plain, hidden = renderer(BARE).render(24, (4,)), renderer(scene).render(24, (4,))
    assert torch.equal(plain.search[0], hidden.search[0])
    assert torch.equal(plain.template, hidden.template)
    assert contrast(hidden, 1) < 0.4 * contrast(plain, 1)


def test_camouflage_hides_the_target_from_the_visible_camera_alone() -> None:
    scene = dataclasses.replace(BARE, camouflage=1)
    plain, hidden = renderer(BARE).render(24, (4,)), renderer(scene).render(24, (4,))
    assert torch.equal(plain.search[1], hidden.search[1])
    assert torch.equal(plain.template[1], hidden.template[1])
    assert contrast(hidden, 0) < 0.5 * contrast(plain, 0)
    assert contrast_of_template(hidden, 0) < 0.5 * contrast_of_template(plain, 0)


def test_a_crossover_excludes_camouflage_in_both_views() -> None:
    both = renderer(dataclasses.replace(BARE, crossover=1, camouflage=1)).render(8, (4,))
    crossover = renderer(dataclasses.replace(BARE, crossover=1)).render(8, (4,))
    assert torch.equal(both.template, crossover.template)
    assert torch.equal(both.search, crossover.search)


def test_thermal_cameras_differ_and_are_the_same_in_both_views() -> None:
    varied = dataclasses.replace(BARE, thermal_range=1.0)
    plain, other = renderer(BARE).render(64, (6,)), renderer(varied).render(64, (6,))
    assert torch.equal(plain.template[0], other.template[0])
    # Where both are far from the ends, search view = gain * level + offset with the gain and offset of the template.
    signs, ends = [], []
    for index in range(64):
        lines = []
        for before, after in ((plain.template, other.template), (plain.search, other.search)):
            x, y = before[1, index, 0].float(), after[1, index, 0].float()
            seen = (x > 5) & (x < 250) & (y > 0) & (y < 255)
            if seen.sum() > 100:
                x, y = x[seen], y[seen]
                slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
                offset = float(y.mean() - slope * x.mean())
                assert float((y - slope * x - offset).abs().max()) <= 2  # a straight line, but for rounding
                lines.append((slope, offset))
        if len(lines) == 2:
            assert lines[0] == pytest.approx(lines[1], rel=0.05, abs=2)
            signs.append(lines[0][0] < 0)
            ends.append(abs(lines[0][0]))
    assert 0 < sum(signs) < len(signs) / 3
    assert 0.45 < min(ends) < 0.7
    assert 1.1 < max(ends) < 1.35
