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

BARE = SceneConfig(clutter=0, distractors=0, dark=0, crossover=0, camouflage=0, occlusion=0, smoke=0, glare=0, noise=0)


def renderer(scene: SceneConfig = BARE, sampling: Sampling | None = None) -> Renderer:
    model = ModelConfig(template_size=64, search_size=128)
    return Renderer(scene, sampling or Sampling(), model, torch.device("cpu"))


def test_the_target_is_where_the_label_says() -> None:
    """A crossover changes the target's pixels alone; the box is around them."""
    jitter = Sampling(centre_jitter=1.0, scale_jitter=0.1)
    plain, faded = (
        renderer(scene, jitter).render(48, (5,)) for scene in (BARE, dataclasses.replace(BARE, crossover=1))
    )
    overlaps = []
    for before, after, box in zip(plain.search[1, :, 0], faded.search[1, :, 0], plain.target_xywh * 128, strict=True):
        x, y, w, h = box.tolist()
        changed = (before.float() - after.float()).abs()
        rows, columns = torch.where(changed > 0.3 * changed.max())  # half of the contrast and less at soft edges
        if float(changed.max()) < 30 or min(x, y, 128 - x - w, 128 - y - h) < 2:
            continue  # hardly warmer than the ground, or cut by the crop
        found = (float(columns.min()), float(rows.min()), float(columns.max()) + 1, float(rows.max()) + 1)
        low = (max(found[0], x), max(found[1], y))
        high = (min(found[2], x + w), min(found[3], y + h))
        shared = max(high[0] - low[0], 0) * max(high[1] - low[1], 0)
        overlaps.append(shared / ((found[2] - found[0]) * (found[3] - found[1]) + w * h - shared))
    assert len(overlaps) > 15
    assert np.median(overlaps) > 0.85
    assert np.mean(np.array(overlaps) > 0.6) > 0.9  # the frame may end in the middle of a target


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
    assert float(ratio[seen].max()) < 0.4  # at most 0.3, and a lamp
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


@pytest.mark.parametrize("trouble", ["smoke", "glare"])
def test_smoke_and_glare_come_to_the_search_view_of_the_visible_camera(trouble: str) -> None:
    plain, other = (renderer(scene).render(8, (3,)) for scene in (BARE, dataclasses.replace(BARE, **{trouble: 1})))
    assert torch.equal(plain.template, other.template)
    assert float((plain.search[0].float() - other.search[0]).abs().mean()) > 20
    assert float((plain.search[1].float() - other.search[1]).abs().mean()) < 4


def test_an_occluder_covers_a_part_of_the_target() -> None:
    plain, covered = (renderer(scene).render(24, (7,)) for scene in (BARE, dataclasses.replace(BARE, occlusion=1)))
    assert torch.equal(plain.template, covered.template)
    changed = []
    for before, after, box in zip(plain.search[0], covered.search[0], plain.target_xywh * 128, strict=True):
        x, y, w, h = (max(round(value), 0) for value in box.tolist())
        different = (before.float() - after.float()).abs().amax(0)[y : y + h, x : x + w] > 12
        if different.numel():
            changed.append(float(different.float().mean()))
    assert np.mean(np.array(changed) > 0.03) > 0.5  # some cover what is outside the crop or the frame
    assert np.median(changed) < 0.9


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
