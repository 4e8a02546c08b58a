"""Attention, scoring, ranking and gathering against their plain twins in `reference`."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from support import DTYPES, INTERPRETED, UNWRITTEN, PoisonedRoom, assert_as_exact, fixed, poison
from torch import Tensor

from ckd_fast.kernels.attention import DecidingTokens, attention, deciding_tokens
from ckd_fast.kernels.elimination import Decision, attend_score_gather, decide, gather
from ckd_fast.kernels.launch import Tiles
from ckd_fast.reference import elimination as plain
from ckd_fast.reference import twins
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.vit import attention as attention_of_heads

TEMPLATE, SEARCH = 16, 49
CONFIG = ModelConfig(dim=48, depth=2, heads=3, eliminate_at=(0,), template_size=64, search_size=112)


def qkv(device: torch.device, dtype: torch.dtype, tokens: int = TEMPLATE + SEARCH, channels: int = 16) -> Tensor:
    """Views of one [S, B, N, 3 H D], as the linear layer leaves them: [3, S, B, H, N, D]."""
    generator = torch.Generator().manual_seed(tokens)
    packed = torch.randn(2, 2, tokens, 3 * 3 * channels, generator=generator).to(dtype).to(device)
    return packed.reshape(2, 2, tokens, 3, 3, channels).permute(3, 0, 1, 4, 2, 5)


def mask(kind: str, device: torch.device, batch: int = 2) -> Tensor:
    config = dataclasses.replace(CONFIG, template_range=kind)
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.5], [0.3, 0.3, 0.5, 0.6]])
    return plain.template_mask(config, boxes if kind == "GT_BOX" else None, batch).to(device).contiguous()


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """With heads side by side [S, B, N, H * D]."""
    return attention_of_heads(q, k, v).transpose(2, 3).flatten(3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [16, 24])
def test_attention(device: torch.device, dtype: torch.dtype, channels: int) -> None:
    q, k, v = qkv(device, dtype, channels=channels)
    room = PoisonedRoom(device)
    out = attention(q, k, v, room=room, settings=fixed(Tiles(64, 32))).run()
    assert out.tokens is room.buffers["attended"]
    assert out.probabilities is None
    assert set(room.buffers) == {"attended"}
    assert_as_exact(out.tokens, plain_attention(q, k, v), plain_attention(q.double(), k.double(), v.double()))


@pytest.mark.parametrize("scales", [[0.002, 0.001], [0.001]], ids=["apart", "shared"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_rounds_for_a_layer_in_float8(device: torch.device, dtype: torch.dtype, scales: list[float]) -> None:
    q, k, v = qkv(device, dtype)
    room, scale = PoisonedRoom(device), torch.tensor(scales, device=device)
    out = attention(q, k, v, out_scale=scale, room=room, settings=fixed(Tiles(64, 32))).run().tokens
    assert out.dtype == torch.float8_e4m3fn
    assert not room.unwritten()
    by, twin = scale[:, None, None, None], plain_attention(q, k, v)
    exact = plain_attention(q.double(), k.double(), v.double())
    bounded = exact.clamp(-448 * by, 448 * by)
    assert (bounded != exact).any()  # some values are too large for the scale
    assert_as_exact(out.float() * by, twins.float8(twin.float(), by) * by, bounded)


def test_attention_with_extreme_scores(device: torch.device) -> None:
    """Logits of several hundred: the running maximum keeps the sums finite."""
    q, k, v = (tensor.contiguous() for tensor in qkv(device, torch.float32))
    q, k = q * 60, k * 60
    out = attention(q, k, v, room=PoisonedRoom(device), settings=fixed(Tiles(32, 16))).run()
    assert_as_exact(out.tokens, plain_attention(q, k, v), plain_attention(q.double(), k.double(), v.double()))


@pytest.mark.parametrize("kind", ["ALL", "CTR_POINT", "CTR_REC", "GT_BOX"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_probabilities_of_deciding_tokens(device: torch.device, kind: str, dtype: torch.dtype) -> None:
    q, k, v = qkv(device, dtype)
    chosen, room = mask(kind, device), PoisonedRoom(device)
    deciding = deciding_tokens(chosen)
    out = attention(q, k, v, deciding=deciding, room=room, settings=fixed(Tiles(32, 32))).run()
    found = out.probabilities
    assert found is room.buffers["probabilities"]
    assert found.shape == (2, 2, 3, deciding.most, SEARCH)
    assert out.tokens.isfinite().all()
    twin = plain.template_probabilities(q, k, TEMPLATE)
    exact = plain.template_probabilities(q.double(), k.double(), TEMPLATE)
    for target in range(2):
        count = int(chosen[target].sum())
        assert int(deciding.counts[target]) == count
        written, unused = found[:, target, :, :count], found[:, target, :, count:]
        assert unused.isnan().all()
        assert_as_exact(written, twin[:, target][:, :, chosen[target]], exact[:, target][:, :, chosen[target]])


def compact(probabilities: Tensor, chosen: Tensor, deciding: DecidingTokens) -> Tensor:
    """[S, B, H, T, L] -> [S, B, H, most, L] with NaN in rows that no token has."""
    result = torch.full((*probabilities.shape[:3], deciding.most, probabilities.shape[-1]), float("nan"))
    for target in range(chosen.shape[0]):
        picked = probabilities[:, target][:, :, chosen[target].cpu()]
        result[:, target, :, : picked.shape[2]] = picked
    return result


def check(decision: Decision, expected: plain.Elimination, keep: int) -> None:
    """The kernel's decision against the plain one, exactly but for the scores' rounding."""
    assert torch.allclose(decision.scores.cpu(), expected.scores.cpu(), rtol=2e-6 if INTERPRETED else 1e-5, atol=0)
    assert torch.equal(decision.kept_index.cpu().long(), expected.kept_index.cpu())
    assert torch.equal(decision.kept.cpu().long(), expected.kept.cpu())
    template = decision.token_index.shape[2] - keep
    assert torch.equal(decision.token_index[..., :template].cpu(), torch.arange(template).expand(2, 2, -1).int())
    assert torch.equal(decision.token_index[..., template:].cpu().long(), expected.kept_index.cpu() + template)


@pytest.mark.parametrize("kind", ["ALL", "CTR_POINT", "CTR_REC", "GT_BOX"])
@pytest.mark.parametrize("mode", ["mce", "ce"])
@pytest.mark.parametrize("missing", [None, "rgb", "tir"])
def test_decisions(device: torch.device, kind: str, mode: str, missing: str | None) -> None:
    config = dataclasses.replace(CONFIG, elimination=mode)
    generator = torch.Generator().manual_seed(1)
    probabilities = torch.rand(2, 2, 3, TEMPLATE, SEARCH, generator=generator)
    chosen = mask(kind, torch.device("cpu"))
    deciding = deciding_tokens(chosen.to(device))
    positions = torch.stack([torch.randperm(SEARCH, generator=generator) for _ in range(2)])
    positions = positions.expand(2, 2, SEARCH).int().contiguous()  # both branches hold the same tokens
    present = torch.ones(2, 2, dtype=torch.int32)
    if missing:
        present[0 if missing == "rgb" else 1, 1] = 0
    keep, room = math.ceil(0.7 * SEARCH), PoisonedRoom(device)
    token_of_cell = unwritten_cells(device)
    decision = decide(
        compact(probabilities, chosen, deciding).to(device), deciding, positions.to(device), keep, elimination=mode,
        present=present.to(device), token_of_cell=token_of_cell, room=room,
    ).run()  # fmt: skip
    assert decision.token_of_cell is token_of_cell
    assert set(room.buffers) == {"scores", "kept_index", "kept", "token_index"}
    assert not room.unwritten()
    scores = plain.token_scores(probabilities, chosen, config, slice(None), present.bool() if missing else None)
    expected = plain.eliminate(0, scores, positions.long(), 0.7)
    check(decision, expected, keep)
    for branch in range(2):
        for target in range(2):
            inverse = torch.full((SEARCH,), -1, dtype=torch.int32)
            inverse[expected.kept[branch, target]] = torch.arange(keep, dtype=torch.int32) + TEMPLATE
            assert torch.equal(token_of_cell[branch, target].cpu(), inverse)


def unwritten_cells(device: torch.device, cells: int = SEARCH) -> Tensor:
    """Memory for `token_of_cell`."""
    return torch.full((2, 2, cells), UNWRITTEN, dtype=torch.int32, device=device)


def decided(device: torch.device, values: Tensor, positions: Tensor, keep: int) -> tuple[Decision, PoisonedRoom]:
    """Both branches of two targets, of each of which one template token decides, with the same scores."""
    count, room = len(values), PoisonedRoom(device)
    chosen = torch.zeros(2, TEMPLATE, dtype=torch.bool)
    chosen[:, 5] = True
    return decide(
        values.expand(2, 2, 3, 1, count).contiguous().to(device), deciding_tokens(chosen.to(device)),
        positions.expand(2, 2, count).int().contiguous().to(device), keep, elimination="mce",
        present=torch.ones(2, 2, dtype=torch.int32, device=device),
        token_of_cell=unwritten_cells(device, cells=count), room=room,
    ).run(), room  # fmt: skip


def test_ties_and_extremes(device: torch.device) -> None:
    """Equal scores go by position; zeros and denormals too."""
    values = torch.tensor([0.5, 0.0, 0.5, 1e-40, 1.0, 0.0, 0.5, 1e-40, 1.0, 0.25, 0.0])
    decision, _ = decided(device, values, torch.arange(11).flip(0), 8)
    assert decision.kept_index[0, 0].tolist() == [4, 8, 0, 2, 6, 9, 3, 7]
    assert torch.equal(decision.kept_index[0, 0], decision.kept_index[1, 1])


@pytest.mark.parametrize("bad", [[3], [0, 7, 10], list(range(11))], ids=["one", "some", "all"])
def test_scores_that_are_not_numbers_still_rank(device: torch.device, bad: list[int]) -> None:
    """Every place is taken once, so that nothing is gathered from nowhere; NaN comes last."""
    values = torch.linspace(0.1, 0.9, 11)
    values[bad] = float("nan")
    decision, room = decided(device, values, torch.arange(11), 11)
    assert not room.unwritten()
    assert decision.token_of_cell[0, 0].sort().values.tolist() == list(range(TEMPLATE, TEMPLATE + 11))
    order = [index for index in range(10, -1, -1) if index not in bad] + bad
    assert decision.kept_index[0, 0].tolist() == order


def test_stages_compose(device: torch.device) -> None:
    """Two eliminations in a row: positions and tokens of cells follow, as restoring needs them."""
    generator = torch.Generator().manual_seed(2)
    deciding = deciding_tokens(mask("CTR_POINT", device))
    present = torch.ones(2, 2, dtype=torch.int32, device=device)
    token_of_cell = unwritten_cells(device)
    positions = torch.arange(SEARCH).expand(2, 2, SEARCH).int().contiguous().to(device)
    for keep in (35, 25):
        current = positions.shape[2]
        probabilities = torch.rand(2, 2, 3, 1, current, generator=generator).to(device)
        positions = decide(
            probabilities, deciding, positions, keep, elimination="ce", present=present, token_of_cell=token_of_cell,
            room=PoisonedRoom(device),
        ).run().kept  # fmt: skip
    tokens = torch.randn(2, 2, TEMPLATE + 25, 8, generator=generator).to(device)
    restored = plain.restore(tokens, positions.long(), CONFIG)
    looked_up = torch.zeros_like(restored)
    looked_up[:, :, :TEMPLATE] = tokens[:, :, :TEMPLATE]
    live = token_of_cell >= 0
    assert (live.sum(-1) == 25).all()
    index = token_of_cell.clamp(min=0).long().unsqueeze(-1).expand(2, 2, SEARCH, 8)
    looked_up[:, :, TEMPLATE:] = torch.where(live.unsqueeze(-1), tokens.gather(2, index), 0.0)
    assert torch.equal(looked_up, restored)


def test_gather(device: torch.device) -> None:
    x = torch.randn(2, 3, 41, 200, device=device)
    index = torch.stack([torch.randperm(41)[:33] for _ in range(6)]).reshape(2, 3, 33).int().to(device)
    expected = x.gather(2, index.long().unsqueeze(-1).expand(2, 3, 33, 200))
    room = PoisonedRoom(device)
    found = gather(x, index, room=room).run()
    assert found is room.buffers["gathered"]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mode", ["mce", "ce"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attend_score_gather(device: torch.device, mode: str, dtype: torch.dtype) -> None:
    """The card's operation as a whole against the unfused twin in float64, in every precision."""
    config = dataclasses.replace(CONFIG, elimination=mode)
    q, k, v = qkv(device, dtype)
    chosen = mask("CTR_REC", device)
    positions = torch.arange(SEARCH, device=device).expand(2, 2, SEARCH).int().contiguous()
    keep = math.ceil(0.7 * SEARCH)
    operation = attend_score_gather(
        q, k, v, deciding=deciding_tokens(chosen), positions=positions, keep=keep, elimination=mode,
        settings=fixed(Tiles(32, 64)),
    )  # fmt: skip
    for launch in operation.launches:
        poison(*launch.writes)
    done = operation.run()
    exact = [t.double() for t in (q, k, v)]
    scores = plain.token_scores(plain.template_probabilities(exact[0], exact[1], TEMPLATE), chosen, config, slice(None))
    expected = plain.eliminate(0, scores, positions.long(), 0.7)
    # Products are accumulated in float32 in every precision: the decision is that of float64.
    check(done.decision, dataclasses.replace(expected, scores=expected.scores.float()), keep)
    unfused = (plain_attention(q, k, v), plain_attention(*exact))
    assert_as_exact(done.attended, *(plain.keep_tokens(t, expected.kept_index, TEMPLATE) for t in unfused))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    q, k, v = qkv(device, torch.float32)
    deciding = deciding_tokens(mask("ALL", device))
    with pytest.raises(ValueError, match="equal shapes and strides"):
        attention(q, k.contiguous(), v)
    with pytest.raises(TypeError, match=r"torch\.float32, torch\.float16 and torch\.float32: expected one type"):
        attention(q.contiguous(), k.contiguous().half(), v.contiguous())
    with pytest.raises(ValueError, match=r"65 tokens 67108864 values apart: expected offsets below 2\^31"):
        attention(*[torch.empty_strided((1, 1, 1, 65, 16), (0, 0, 0, 2**26, 1), device="meta")] * 3)
    with pytest.raises(ValueError, match=r"deciding\.order is torch\.int32 \(1, 16\)"):
        attention(q, k, v, deciding=dataclasses.replace(deciding, order=deciding.order[:1]))
    probabilities = torch.rand(2, 2, 3, 16, SEARCH, device=device)
    positions = torch.zeros(2, 2, SEARCH, dtype=torch.int32, device=device)
    present = torch.ones(2, 2, dtype=torch.int32, device=device)
    fitting = {
        "positions": positions, "keep": 3, "present": present, "elimination": "mce",
        "token_of_cell": unwritten_cells(device),
    }  # fmt: skip
    for change, message in (
        ({"positions": positions.long()}, r"positions is torch\.int64 .* expected contiguous torch\.int32"),
        ({"positions": positions[..., 1:]}, "positions is non-contiguous"),
        ({"keep": 0}, "keep=0"),
        ({"keep": SEARCH + 1}, "keep=50"),
        ({"present": present.bool()}, r"present is torch\.bool"),
        ({"elimination": "none"}, "elimination='none': known are mce, ce"),
    ):
        with pytest.raises(ValueError, match=message):
            decide(probabilities, deciding, **(fitting | change))
