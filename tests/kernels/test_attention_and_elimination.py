"""Attention, scoring, ranking and gathering against their plain twins in `reference`."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import pytest
import torch
from support import INTERPRETED, assert_as_exact
from torch import Tensor

from ckd_fast.kernels.attention import TemplateRows, attention, template_rows
from ckd_fast.kernels.elimination import Decision, attend_score_gather, decide, gather
from ckd_fast.reference import elimination as plain
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.vit import attention as plain_attention

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TEMPLATE, SEARCH = 16, 49
CONFIG = ModelConfig(dim=48, depth=2, heads=3, eliminate_at=(0,), template_size=64, search_size=112)


def ids(value: object) -> str:
    return str(value).removeprefix("torch.")


def qkv(device: torch.device, dtype: torch.dtype, tokens: int = TEMPLATE + SEARCH, channels: int = 16) -> Tensor:
    """Views of one [S, B, N, 3 H D], as the linear layer leaves them: [3, S, B, H, N, D]."""
    generator = torch.Generator().manual_seed(tokens)
    packed = torch.randn(2, 2, tokens, 3 * 3 * channels, generator=generator).to(dtype).to(device)
    return packed.reshape(2, 2, tokens, 3, 3, channels).permute(3, 0, 1, 4, 2, 5)


def mask(kind: str, device: torch.device, batch: int = 2) -> Tensor:
    config = dataclasses.replace(CONFIG, template_range=kind)
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.5], [0.3, 0.3, 0.5, 0.6]])
    return plain.template_mask(config, boxes if kind == "GT_BOX" else None, batch).to(device).contiguous()


def heads_side_by_side(out: Tensor) -> Tensor:
    """[S, B, H, N, D] -> [S, B, N, H * D]."""
    return out.transpose(2, 3).flatten(3)


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("channels", [16, 24])
def test_attention(device: torch.device, dtype: torch.dtype, channels: int) -> None:
    q, k, v = qkv(device, dtype, channels=channels)
    out = torch.full((2, 2, TEMPLATE + SEARCH, 3 * channels), float("nan"), dtype=dtype, device=device)
    assert attention(q, k, v, out=out, tile_keys=32) is out
    twin, exact = (heads_side_by_side(plain_attention(*t)) for t in ((q, k, v), (q.double(), k.double(), v.double())))
    assert_as_exact(out, twin, exact)


def test_attention_with_extreme_scores(device: torch.device) -> None:
    """Logits of several hundred: the running maximum keeps the sums finite."""
    q, k, v = (tensor.contiguous() for tensor in qkv(device, torch.float32))
    q, k = q * 60, k * 60
    out = attention(q, k, v, tile_rows=32, tile_keys=16)
    twin = heads_side_by_side(plain_attention(q, k, v))
    exact = heads_side_by_side(plain_attention(q.double(), k.double(), v.double()))
    assert_as_exact(out, twin, exact)


@pytest.mark.parametrize("kind", ["ALL", "CTR_POINT", "CTR_REC", "GT_BOX"])
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_probabilities_of_deciding_rows(device: torch.device, kind: str, dtype: torch.dtype) -> None:
    q, k, v = qkv(device, dtype)
    chosen = mask(kind, device)
    rows = template_rows(chosen)
    found = torch.full((2, 2, 3, rows.most, SEARCH), float("nan"), device=device)
    attention(q, k, v, rows=rows, probabilities=found, template_tokens=TEMPLATE, tile_rows=32, tile_keys=32)
    twin = plain.template_probabilities(q, k, TEMPLATE)
    exact = plain.template_probabilities(q.double(), k.double(), TEMPLATE)
    for target in range(2):
        count = int(chosen[target].sum())
        assert int(rows.counts[target]) == count
        written, unused = found[:, target, :, :count], found[:, target, :, count:]
        assert unused.isnan().all()
        assert_as_exact(written, twin[:, target][:, :, chosen[target]], exact[:, target][:, :, chosen[target]])


def compact(probabilities: Tensor, chosen: Tensor, rows: TemplateRows) -> Tensor:
    """[S, B, H, T, L] -> [S, B, H, most, L] with NaN in unused slots."""
    result = torch.full((*probabilities.shape[:3], rows.most, probabilities.shape[-1]), float("nan"))
    for target in range(chosen.shape[0]):
        picked = probabilities[:, target][:, :, chosen[target].cpu()]
        result[:, target, :, : picked.shape[2]] = picked
    return result


def check(decision: Decision, expected: plain.Elimination, keep: int) -> None:
    """The kernel's decision against the plain one, exactly but for the scores' rounding."""
    assert torch.allclose(decision.scores.cpu(), expected.scores.cpu(), rtol=2e-6 if INTERPRETED else 1e-5, atol=0)
    assert torch.equal(decision.kept_index.cpu().long(), expected.kept_index.cpu())
    assert torch.equal(decision.kept.cpu().long(), expected.kept.cpu())
    template = decision.rows.shape[2] - keep
    assert torch.equal(decision.rows[..., :template].cpu(), torch.arange(template).expand(2, 2, -1).int())
    assert torch.equal(decision.rows[..., template:].cpu().long(), expected.kept_index.cpu() + template)


@pytest.mark.parametrize("kind", ["ALL", "CTR_POINT", "CTR_REC", "GT_BOX"])
@pytest.mark.parametrize("mode", ["mce", "ce"])
@pytest.mark.parametrize("missing", [None, "rgb", "tir"])
def test_decisions(device: torch.device, kind: str, mode: str, missing: str | None) -> None:
    config = dataclasses.replace(CONFIG, elimination=mode)
    generator = torch.Generator().manual_seed(1)
    probabilities = torch.rand(2, 2, 3, TEMPLATE, SEARCH, generator=generator)
    chosen = mask(kind, torch.device("cpu"))
    rows = template_rows(chosen.to(device))
    positions = torch.stack([torch.randperm(SEARCH, generator=generator) for _ in range(2)])
    positions = positions.expand(2, 2, SEARCH).int().contiguous()  # both branches hold the same tokens
    present = torch.ones(2, 2, dtype=torch.int32)
    if missing:
        present[0 if missing == "rgb" else 1, 1] = 0
    keep = math.ceil(0.7 * SEARCH)
    place = torch.full((2, 2, SEARCH), 99, dtype=torch.int32, device=device)
    decision = decide(
        compact(probabilities, chosen, rows).to(device), rows, positions.to(device), keep, elimination=mode,
        present=present.to(device), place=place,
    )  # fmt: skip
    scores = plain.token_scores(probabilities, chosen, config, slice(None), present.bool() if missing else None)
    expected = plain.eliminate(0, scores, positions.long(), 0.7)
    check(decision, expected, keep)
    for branch in range(2):
        for target in range(2):
            inverse = torch.full((SEARCH,), -1, dtype=torch.int32)
            inverse[expected.kept[branch, target]] = torch.arange(keep, dtype=torch.int32) + TEMPLATE
            assert torch.equal(place[branch, target].cpu(), inverse)


def test_ties_and_extremes(device: torch.device) -> None:
    """Equal scores go by position; zeros and denormals too."""
    values = torch.tensor([0.5, 0.0, 0.5, 1e-40, 1.0, 0.0, 0.5, 1e-40, 1.0, 0.25, 0.0])
    count = len(values)
    probabilities = values.expand(2, 2, 3, 1, count).contiguous().to(device)
    chosen = torch.zeros(2, TEMPLATE, dtype=torch.bool)
    chosen[:, 5] = True
    rows = template_rows(chosen.to(device))
    positions = torch.arange(count).flip(0).expand(2, 2, count).int().contiguous().to(device)
    decision = decide(
        probabilities, rows, positions, 8, elimination="mce",
        present=torch.ones(2, 2, dtype=torch.int32, device=device),
        place=torch.empty(2, 2, count, dtype=torch.int32, device=device),
    )  # fmt: skip
    assert decision.kept_index[0, 0].tolist() == [4, 8, 0, 2, 6, 9, 3, 7]
    assert torch.equal(decision.kept_index[0, 0], decision.kept_index[1, 1])


@pytest.mark.parametrize("bad", [[3], [0, 7, 10], list(range(11))], ids=["one", "some", "all"])
def test_scores_that_are_not_numbers_still_rank(device: torch.device, bad: list[int]) -> None:
    """Every place is taken once, so that nothing is gathered from nowhere; NaN comes last."""
    values = torch.linspace(0.1, 0.9, 11)
    values[bad] = float("nan")
    chosen = torch.zeros(1, TEMPLATE, dtype=torch.bool)
    chosen[:, 5] = True
    place = torch.full((2, 1, 11), 99, dtype=torch.int32, device=device)
    decision = decide(
        values.expand(2, 1, 3, 1, 11).contiguous().to(device), template_rows(chosen.to(device)),
        torch.arange(11).expand(2, 1, 11).int().contiguous().to(device), 11, elimination="mce",
        present=torch.ones(2, 1, dtype=torch.int32, device=device), place=place,
    )  # fmt: skip
    order = [index for index in range(10, -1, -1) if index not in bad] + bad
    assert decision.kept_index[0, 0].tolist() == order


def test_stages_compose(device: torch.device) -> None:
    """Two eliminations in a row: raster positions and places follow, as restoring needs them."""
    generator = torch.Generator().manual_seed(2)
    chosen = mask("CTR_POINT", device)
    rows = template_rows(chosen)
    present = torch.ones(2, 2, dtype=torch.int32, device=device)
    place = torch.full((2, 2, SEARCH), 99, dtype=torch.int32, device=device)
    positions = torch.arange(SEARCH).expand(2, 2, SEARCH).int().contiguous().to(device)
    for keep in (35, 25):
        current = positions.shape[2]
        probabilities = torch.rand(2, 2, 3, 1, current, generator=generator).to(device)
        positions = decide(probabilities, rows, positions, keep, elimination="ce", present=present, place=place).kept
    tokens = torch.randn(2, 2, TEMPLATE + 25, 8, generator=generator).to(device)
    restored = plain.restore(tokens, positions.long(), CONFIG)
    by_place = torch.zeros_like(restored)
    by_place[:, :, :TEMPLATE] = tokens[:, :, :TEMPLATE]
    live = place >= 0
    assert (live.sum(-1) == 25).all()
    index = place.clamp(min=0).long().unsqueeze(-1).expand(2, 2, SEARCH, 8)
    by_place[:, :, TEMPLATE:] = torch.where(live.unsqueeze(-1), tokens.gather(2, index), 0.0)
    assert torch.equal(by_place, restored)


def test_gather(device: torch.device) -> None:
    x = torch.randn(2, 3, 41, 200, device=device)
    rows = torch.stack([torch.randperm(41)[:33] for _ in range(6)]).reshape(2, 3, 33).int().to(device)
    expected = x.gather(2, rows.long().unsqueeze(-1).expand(2, 3, 33, 200))
    assert torch.equal(gather(x, rows), expected)


@pytest.mark.parametrize("mode", ["mce", "ce"])
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_attend_score_gather(device: torch.device, mode: str, dtype: torch.dtype) -> None:
    """The card's operation as a whole against the unfused twin in float64, in every precision."""
    config = dataclasses.replace(CONFIG, elimination=mode)
    q, k, v = qkv(device, dtype)
    chosen = mask("CTR_REC", device)
    positions = torch.arange(SEARCH, device=device).expand(2, 2, SEARCH).int().contiguous()
    keep = math.ceil(0.7 * SEARCH)
    done = attend_score_gather(
        q, k, v, rows=template_rows(chosen), positions=positions, keep=keep, elimination=mode, tile_rows=32
    )
    exact = [t.double() for t in (q, k, v)]
    scores = plain.token_scores(plain.template_probabilities(exact[0], exact[1], TEMPLATE), chosen, config, slice(None))
    expected = plain.eliminate(0, scores, positions.long(), 0.7)
    # Products are accumulated in float32 in every precision: the decision is that of float64.
    check(done.decision, dataclasses.replace(expected, scores=expected.scores.float()), keep)
    for_twin = [heads_side_by_side(plain_attention(*t)) for t in ((q, k, v), exact)]
    twin, whole = (plain.keep_tokens(t, expected.kept_index, TEMPLATE) for t in for_twin)
    assert_as_exact(done.attended, twin, whole)


def test_memory_accesses(device: torch.device, guard: contextlib.AbstractContextManager) -> None:
    q, k, v = qkv(device, torch.float32, tokens=4 + 9, channels=16)
    chosen = torch.tensor([[True, False, True, False], [False, True, False, False]], device=device)
    rows = template_rows(chosen)
    positions = torch.arange(9, device=device).expand(2, 2, 9).int().contiguous()
    with guard:
        done = attend_score_gather(q, k, v, rows=rows, positions=positions, keep=7, tile_rows=16, tile_keys=16)
    assert done.attended.shape == (2, 2, 11, 48)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    q, k, v = qkv(device, torch.float32)
    rows = template_rows(mask("ALL", device))
    with pytest.raises(ValueError, match="equal shapes and strides"):
        attention(q, k.contiguous(), v)
    with pytest.raises(TypeError, match="expected one type"):
        attention(q.contiguous(), k.contiguous().half(), v.contiguous())
    with pytest.raises(ValueError, match="come together"):
        attention(q, k, v, rows=rows)
    with pytest.raises(ValueError, match="probabilities is"):
        attention(q, k, v, rows=rows, probabilities=torch.empty(2, device=device), template_tokens=TEMPLATE)
    probabilities = torch.rand(2, 2, 3, 16, SEARCH, device=device)
    positions = torch.zeros(2, 2, SEARCH, dtype=torch.int32, device=device)
    present = torch.ones(2, 2, dtype=torch.int32, device=device)
    for change, message in (
        ({"positions": positions.long()}, "expected int32"),
        ({"keep": 0}, "keep=0"),
        ({"present": present.bool()}, "present is"),
        ({"elimination": "none"}, "known are mce, ce"),
    ):
        given = {
            "positions": positions,
            "keep": 3,
            "present": present,
            "elimination": "mce",
            "place": positions,
        } | change
        with pytest.raises(ValueError, match=message):
            decide(probabilities, rows, **given)
