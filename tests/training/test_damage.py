"""Damaged modalities, and modalities made from the other one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ckd_fast.training import damage as damages
from ckd_fast.training.batches import noisy, normalised
from ckd_fast.training.counterparts import thermal_like, visible_like
from ckd_fast.training.damage import KINDS, Views, damage


def views(count: int, template: int = 16, search: int = 33) -> Views:
    """Random levels; sides are odd on purpose."""
    generator = torch.Generator().manual_seed(5)
    return Views(*(torch.rand(2, count, 3, side, side, generator=generator) * 255 for side in (template, search)))


def test_one_modality_of_the_asked_share_is_damaged() -> None:
    before = views(400)
    template, search = damage(before, 0.5, np.random.default_rng(1))
    changed = (search != before.search).flatten(2).any(-1)  # [2, B]
    assert not changed.all(0).any()  # the other one stays as it is
    assert changed.any(0).float().mean() == pytest.approx(0.5, abs=0.08)
    assert changed.float().mean(1).tolist() == pytest.approx([0.25, 0.25], abs=0.07)
    templates = (template != before.template).flatten(2).any(-1)
    assert not (templates & ~changed).any()  # the same modality
    share = templates.sum() / changed.sum()
    assert share == pytest.approx(damages.IN_TEMPLATE * (1 - 2 / len(KINDS)), abs=0.08)


def test_nothing_is_damaged_in_place_or_without_being_asked() -> None:
    before = views(20)
    kept = before.search.clone()
    damage(before, 1.0, np.random.default_rng(0))
    assert torch.equal(before.search, kept)
    _, search = damage(before, 0.0, np.random.default_rng(0))
    assert torch.equal(search, before.search)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_every_kind_stays_in_range(kind: str, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damages, "KINDS", (kind,))

    class Fixed(np.random.Generator):
        def random(self, *arguments: object, **named: object) -> object:  # type: ignore[override]
            return super().random(*arguments, **named) if arguments or named else strength  # type: ignore[call-overload]

    before = views(6)
    _, search = damage(before, 1.0, Fixed(np.random.PCG64(3)))
    assert search.isfinite().all()
    assert search.min() >= 0
    assert search.max() <= 255
    assert (search != before.search).flatten(2).any(-1).sum() >= 5  # a shift may be none


def test_missing_is_what_the_tracker_shows_for_a_missing_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damages, "KINDS", ("missing",))
    before = views(8)
    _, search = damage(before, 1.0, np.random.default_rng(0))
    gone = (search != before.search).flatten(2).any(-1)
    assert gone.sum() == 8
    assert normalised(search)[gone].abs().max() < 1e-6


def test_a_shifted_view_shows_the_same_things_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damages, "KINDS", ("shift",))
    before = Views(torch.zeros(2, 30, 3, 8, 8), torch.zeros(2, 30, 3, 101, 101))
    before.search[..., 50, 50] = 200
    _, search = damage(before, 1.0, np.random.default_rng(2))
    places = search[:, :, 0].nonzero()  # modality, sample, row, column
    assert len(places) == 60
    moved = (places[:, 2:] - 50).abs().amax(1)
    assert moved.max() <= 7  # 7 % of the crop
    assert (moved > 0).sum() >= 24


def test_noise_has_the_asked_strength_and_is_not_shared() -> None:
    images = torch.full((2, 40, 3, 64, 64), 128.0)
    seen = noisy(images, 8.0, np.random.default_rng(4))
    strengths = (seen - 128).flatten(2).std(-1)
    assert strengths.max() < 8.3
    assert strengths.mean() == pytest.approx(4.0, abs=0.6)
    first, second = (seen[0, :2] - 128).flatten(1)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.05


def edges(image: np.ndarray) -> np.ndarray:
    gray = image.astype(np.float64).mean(-1)
    return np.abs(np.diff(gray, axis=1))[:, 4:-4]


@pytest.mark.parametrize("make", [thermal_like, visible_like])
def test_a_made_modality_has_the_same_edges_and_another_look(make: object) -> None:
    crop = np.zeros((64, 64, 3), np.uint8)
    crop[:, 32:] = 200  # one edge
    edge_found, rising, levels = 0, 0, set()
    for seed in range(40):
        one, two = make([crop, crop[:32]], np.random.default_rng(seed))  # type: ignore[operator]
        assert one.shape == (64, 64, 3)
        assert two.shape == (32, 64, 3)
        left, right = (float(part.mean()) for part in (one[:, 4:28], one[:, 36:60]))
        assert left == pytest.approx(float(two[:, 4:28].mean()), abs=3)  # both views alike
        levels.add(round(left))
        edge_found += abs(int(edges(one).mean(0).argmax()) + 4 - 31) <= 1
        rising += right > left
    assert edge_found >= 30  # curves may be flat
    assert 8 < rising < 36
    assert len(levels) > 15
    gray = [np.ptp(thermal_like([crop], np.random.default_rng(seed))[0], axis=-1).max() for seed in range(5)]
    assert gray == [0] * 5
