"""The head's kernels against the reference's head on restored, normed tokens."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import torch
from support import DTYPES, PoisonedRoom, assert_as_exact, big, enliven, fixed
from torch import Tensor

from ckd_fast.engines.triton.weights import PackedStudent, pack
from ckd_fast.kernels.head import convolution, last_convolution, sum_taps
from ckd_fast.kernels.launch import Operation, Tiles
from ckd_fast.kernels.linear import PlainLayer, Rows, RowStatistics, linear
from ckd_fast.reference import twins
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.elimination import restore
from ckd_fast.reference.head import HeadMaps, search_features
from ckd_fast.reference.model import Student, initialise

LARGE = big(128, 256, 64)
CONFIG = ModelConfig(dim=48, depth=1, heads=2, eliminate_at=(0,), head_channels=40, template_size=32, search_size=112)
TARGETS, LIVE = 3, 19


def student(*, share: bool = False) -> Student:
    model = Student(ModelConfig(**{**vars(CONFIG), "share_students": share}))
    initialise(model, seed=5)
    enliven(model, seed=6)
    return model.eval().requires_grad_(requires_grad=False)


def tokens_and_positions(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tokens [2, B, T + LIVE, C] and the raster positions of the live ones [2, B, LIVE]; the branches differ (CE)."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randn(2, TARGETS, CONFIG.template_tokens + LIVE, CONFIG.dim, generator=generator) * 2 + 0.5
    positions = torch.stack(
        [torch.randperm(CONFIG.search_tokens, generator=generator)[:LIVE] for _ in range(2 * TARGETS)]
    )
    return tokens.to(dtype).to(device), positions.reshape(2, TARGETS, LIVE).to(device)


def plain(model: Student, tokens: Tensor, positions: Tensor) -> HeadMaps:
    model = model.to(tokens.device, tokens.dtype)
    normed = torch.stack([branch.norm(x) for branch, x in zip(model.branches, tokens, strict=True)])
    maps: HeadMaps = model.head(search_features(restore(normed, positions, CONFIG), CONFIG.search_tokens))
    return maps


def head_of(packed: PackedStudent, tokens: Tensor, positions: Tensor, tiles: Tiles) -> Operation[Tensor]:
    """From tokens to maps [B, 3, 2, cells], in poisoned memory."""
    device, template, settings = tokens.device, CONFIG.template_tokens, fixed(tiles)
    live = torch.arange(template, template + LIVE, dtype=torch.int32, device=device).expand(2, TARGETS, LIVE)
    token_of_cell = torch.full((2, TARGETS, CONFIG.search_tokens), -1, dtype=torch.int32, device=device)
    token_of_cell.scatter_(2, positions, live)
    rows = Rows(tokens, RowStatistics(twins.row_statistics(tokens, 16).contiguous(), 16))
    rooms = ({"room": PoisonedRoom(device), "settings": settings} for _ in range(5))
    products = linear(rows, packed.taps, token_index=live.contiguous(), **next(rooms))
    tokens, bias = products.out.tokens, packed.taps_bias
    steps = [sum_taps(tokens, token_of_cell, bias, template_tokens=template, **next(rooms))]
    *middle, last = packed.convolutions
    for layer in middle:
        steps.append(convolution(steps[-1].out, layer, **next(rooms)))
    maps = last_convolution(steps[-1].out, last, packed.maps, **next(rooms))
    launches = [launch for operation in (products, *steps, maps) for launch in operation.launches]
    return Operation(maps.out, tuple(launches))


@pytest.mark.parametrize("share", [False, True], ids=["two", "shared"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_maps(device: torch.device, dtype: torch.dtype, *, share: bool) -> None:
    packed = pack(student(share=share), device, dtype)
    tokens, positions = tokens_and_positions(device, dtype)
    maps = head_of(packed, tokens, positions, LARGE).run()
    twin = plain(student(share=share), tokens, positions)
    exact = plain(student(share=share), tokens.double(), positions)
    grid = CONFIG.search_grid
    for found, ours, best in (
        (maps[:, 0, :1], twin.score, exact.score),
        (maps[:, 1], twin.offset, exact.offset),
        (maps[:, 2], twin.size, exact.size),
    ):
        assert_as_exact(found.reshape(TARGETS, -1, grid, grid), ours, best)


def test_a_cell_without_live_neighbours_has_only_biases(device: torch.device) -> None:
    """Nothing is added for dropped tokens, not even the norm's bias."""
    packed = pack(student(), device, torch.float32)
    features = 3 * CONFIG.head_channels
    dropped = torch.full((2, 1, CONFIG.search_tokens), -1, dtype=torch.int32, device=device)
    products = torch.full((2, 1, LIVE, 9 * features), float("nan"), device=device)
    out = sum_taps(
        products, dropped, packed.taps_bias, template_tokens=CONFIG.template_tokens, room=PoisonedRoom(device)
    ).run()
    assert torch.equal(out, packed.taps_bias.clamp(min=0).expand_as(out))


def test_overflow_stays_visible(device: torch.device) -> None:
    """A NaN among the tokens reaches the maps: neither relu nor clamp hides it."""
    packed = pack(student(), device, torch.float32)
    tokens, positions = tokens_and_positions(device, torch.float32)
    tokens[0, 1, CONFIG.template_tokens + 3] = float("nan")
    maps = head_of(packed, tokens, positions, LARGE).run()
    assert torch.isnan(maps[1, 0, 0]).any()
    assert torch.isnan(maps[1, 2]).any()
    assert torch.isfinite(maps[[0, 2]]).all()


def test_scores_are_clamped(device: torch.device) -> None:
    model = student()
    for tower, bias in ((model.head.score, 40.0), (model.head.size, -40.0), (model.head.offset, 40.0)):
        tower[-1].bias.fill_(bias)
    packed = pack(model, device, torch.float32)
    maps = head_of(packed, *tokens_and_positions(device, torch.float32), LARGE).run()
    assert (maps[:, 0, 0] == torch.tensor(1 - 1e-4)).all()
    assert (maps[:, 2] == torch.tensor(1e-4)).all()
    assert (maps[:, 1] > 30).all()


def test_memory_accesses(device: torch.device, guard: contextlib.AbstractContextManager) -> None:
    """In tiles that divide neither 49 cells nor 40 features. A value left unwritten would reach the maps as NaN."""
    packed = pack(student(), device, torch.float32)
    tokens, positions = tokens_and_positions(device, torch.float32)
    operation = head_of(packed, tokens, positions, Tiles(16, 32, 16))
    with guard:
        guarded_maps = operation.run()
    assert torch.allclose(guarded_maps, head_of(packed, tokens, positions, LARGE).run(), atol=1e-5)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    packed = pack(student(), device, torch.float32)
    layer = packed.convolutions[0]
    x = torch.zeros(1, CONFIG.search_tokens, 3 * CONFIG.head_channels, device=device)
    token_of_cell = torch.zeros(2, 1, CONFIG.search_tokens, dtype=torch.int32, device=device)
    products = torch.zeros(2, 1, LIVE, 9 * x.shape[2], device=device)
    gathering = partial(sum_taps, bias=packed.taps_bias, template_tokens=4)
    narrow = PlainLayer(torch.zeros(3, 2, 20, device=device), packed.maps.bias[:, :1])
    for operation, arguments, error, message in (
        (convolution, (x[..., :-1], layer), ValueError, r"x is \(1, 49, 119\) .* expected \[B, cells, 3 C\]"),
        (
            convolution,
            (x, PlainLayer(layer.weight.half(), layer.bias)),
            TypeError,
            r"weight is torch\.float16: expected",
        ),
        (convolution, (x, PlainLayer(layer.weight, layer.bias[0])), ValueError, r"bias is torch\.float32 \(20,\)"),
        (gathering, (products, token_of_cell.long()), ValueError, r"token_of_cell is torch\.int64"),
        (gathering, (products[..., :-1], token_of_cell), ValueError, "products have 1079 columns"),
        (last_convolution, (x, layer, packed.maps), ValueError, r"maps\.weight is torch.float32 \(3, 2, 5\)"),
        (last_convolution, (x, layer, narrow), ValueError, r"maps\.bias is non-contiguous torch\.float32 \(3, 1\)"),
    ):
        with pytest.raises(error, match=message):
            operation(*arguments)
