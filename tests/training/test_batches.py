"""Batches: what they are made of, and that labels follow their images."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from runs import DISTIL, MODEL, SYNTHETIC, config, write_sequence

from ckd_fast import InputError
from ckd_fast.reference.training import Batch
from ckd_fast.training.batches import Feed, augment, normalised, rotated
from ckd_fast.training.config import Augmentation, Source
from ckd_fast.training.samples import Crops

CPU = torch.device("cpu")
NOTHING = Augmentation(grayscale=0, flip=0, brightness=0)


def bright_box(size: int, box: tuple[int, int, int, int], count: int = 64) -> Crops:
    """A bright rectangle on black in every crop, with its label."""
    x, y, w, h = box
    images = torch.zeros(2, count, 3, size, size, dtype=torch.uint8)
    images[:, :, :, y : y + h, x : x + w] = torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None]
    target = torch.tensor([[x, y, w, h]]).float().repeat(count, 1) / size
    return Crops(images.clone(), images, target)


def raw(images: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation: levels 0..255."""
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images * std + mean) * 255


def extent(image: torch.Tensor) -> list[float]:
    """x, y, w, h of what is bright in [3, H, W]."""
    rows, columns = torch.where(image[0] > 100)
    left, top = int(columns.min()), int(rows.min())
    return [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]


def test_nothing_is_changed_where_nothing_is_asked() -> None:
    crops = bright_box(32, (4, 6, 10, 12), 4)
    batch = augment(crops, NOTHING, (0,)).batch
    assert torch.equal(batch.search, normalised(crops.search))
    assert torch.equal(batch.target_xywh, crops.target_xywh)


def test_labels_follow_flips_and_both_modalities_flip_together() -> None:
    batch = augment(bright_box(32, (4, 6, 10, 12)), Augmentation(grayscale=0, flip=0.5, brightness=0), (1,)).batch
    flipped = 0
    for index in range(64):
        found = [extent(raw(batch.search[modality, index])) for modality in range(2)]
        assert found[0] == found[1]
        assert found[0] == pytest.approx((batch.target_xywh[index] * 32).tolist(), abs=1e-4)
        flipped += found[0][0] == 18
    assert 20 < flipped < 44
    templates = [extent(raw(batch.template[0, index]))[0] == 18 for index in range(64)]
    searches = [extent(raw(batch.search[0, index]))[0] == 18 for index in range(64)]
    assert 10 < sum(a != b for a, b in zip(templates, searches, strict=True)) < 54  # drawn apart


def test_grayscale_and_brightness() -> None:
    gray = raw(augment(bright_box(16, (2, 2, 8, 8)), Augmentation(1, 0, 0), (0,)).batch.search)
    expected = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert torch.allclose(gray[..., 4, 4], torch.tensor(expected), atol=0.01)
    levels = raw(augment(bright_box(16, (2, 2, 8, 8), 400), Augmentation(0, 0, 0.2), (0,)).batch.search)[:, :, 0, 4, 4]
    assert torch.allclose(levels[0], levels[1])  # one factor for both modalities
    assert levels.min() == pytest.approx(160, abs=1)
    assert levels.max() == pytest.approx(240, abs=1)


@pytest.mark.parametrize("degrees", [90.0, -30.0, 10.0])
def test_labels_follow_rotation(degrees: float) -> None:
    crops = bright_box(96, (50, 20, 16, 30), 1)
    images, box = rotated(crops.search.float(), crops.target_xywh, torch.tensor([math.radians(degrees)]))
    found, label = extent(images[0, 0]), (box[0] * 96).tolist()
    assert found == pytest.approx(label, abs=1.5)
    if degrees == 90.0:
        # A quarter turn clockwise takes (x, y) from the centre to (-y, x).
        assert label == pytest.approx([96 - 20 - 30, 50, 30, 16], abs=1e-3)


def test_shares_decide_what_a_batch_is_made_of(tmp_path: Path) -> None:
    write_sequence(tmp_path / "walk")
    real = Source("dataset", share=1.0, name="folder", root=str(tmp_path))
    synthetic = Source("synthetic", share=3.0, scene=SYNTHETIC.scene)
    feed = Feed(config(sources=(real, synthetic)), 0, CPU)
    assert (feed.read, feed.rendered) == (1, 3)
    (item,) = feed.batches([3])
    assert item.batch.search.shape == (2, 4, 3, 64, 64)
    assert item.batch.visible is not None
    with pytest.raises(InputError, match="at most one"):
        Feed(config(sources=(SYNTHETIC, SYNTHETIC)), 0, CPU)


def same(one: Batch, other: Batch) -> bool:
    assert one.visible is not None
    assert other.visible is not None
    pairs = [(one.template, other.template), (one.search, other.search), (one.target_xywh, other.target_xywh)]
    return all(torch.equal(a, b) for a, b in [*pairs, (one.visible, other.visible)])


def test_workers_and_order_change_nothing(tmp_path: Path) -> None:
    write_sequence(tmp_path / "walk")
    real = Source("dataset", name="folder", root=str(tmp_path))
    alone, helped = (Feed(config(sources=(real, SYNTHETIC), workers=workers), 0, CPU) for workers in (0, 2))
    batches = {item.number: item.batch for item in alone.batches(range(4))}
    torch.manual_seed(99)  # what else is drawn must not matter
    for item in helped.batches([2, 0, 3]):
        assert same(item.batch, batches[item.number])
    assert not same(batches[0], batches[1])


def test_hidden_patches() -> None:
    many = [item.batch.visible for item in Feed(config(), 0, CPU).batches(range(60))]
    shown = torch.stack([visible for visible in many if visible is not None])
    assert shown.shape == (60, DISTIL.batch, MODEL.search_tokens)
    assert float(shown.float().mean()) == pytest.approx(0.75, abs=0.02)
    (item,) = Feed(config(), 1, CPU).batches([0])
    assert item.batch.visible is None
