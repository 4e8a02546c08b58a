"""The head's kernels against the reference's head on restored, normed tokens."""

from __future__ import annotations

import contextlib

import pytest
import torch
from support import assert_as_exact, big
from torch import Tensor, nn

from ckd_fast.engines.packing import PackedStudent, pack
from ckd_fast.kernels.head import convolution, gather_taps, last_convolution
from ckd_fast.kernels.linear import RowStatistics, Tiles, linear
from ckd_fast.reference import fused
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.elimination import restore
from ckd_fast.reference.head import HeadMaps, search_features
from ckd_fast.reference.model import Student, initialise

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LARGE = big(128, 256, 64)
CONFIG = ModelConfig(dim=48, depth=1, heads=2, eliminate_at=(0,), head_channels=40, template_size=32, search_size=112)
TARGETS, LIVE = 3, 19


def ids(value: object) -> str:
    return str(value).removeprefix("torch.")


def student(*, share: bool = False) -> Student:
    """Random weights, and norms that do something."""
    model = Student(ModelConfig(**{**vars(CONFIG), "share_students": share}))
    initialise(model, seed=5)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values, low, high in (
                    (module.running_mean, -0.3, 0.3), (module.running_var, 0.3, 2.0), (module.weight, 0.5, 1.5),
                    (module.bias, -0.3, 0.3),
                ):  # fmt: skip
                    values.uniform_(low, high, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.5, 0.5, generator=generator)
            elif isinstance(module, nn.Conv2d):
                module.bias.uniform_(-0.2, 0.2, generator=generator)
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


def fused_head(packed: PackedStudent, tokens: Tensor, positions: Tensor, tiles: Tiles) -> Tensor:
    device, template = tokens.device, CONFIG.template_tokens
    rows = torch.arange(template, template + LIVE, dtype=torch.int32, device=device).expand(2, TARGETS, LIVE)
    place = torch.full((2, TARGETS, CONFIG.search_tokens), -1, dtype=torch.int32, device=device)
    place.scatter_(2, positions, rows)
    statistics = RowStatistics(fused.row_statistics(tokens, 16).contiguous(), 16)
    products = linear(
        tokens, packed.taps.weight, packed.taps.bias, norm=packed.taps, statistics=statistics,
        rows=rows.contiguous(), tiles=tiles,
    )  # fmt: skip
    width = 3 * CONFIG.head_channels
    x = torch.full((TARGETS, CONFIG.search_tokens, width), float("nan"), dtype=tokens.dtype, device=device)
    gather_taps(products, place, packed.taps_bias, template_tokens=template, out=x, tile_cells=64)
    for layer in packed.convolutions[:2]:
        out = torch.full((*x.shape[:2], 3 * layer.weight.shape[1]), float("nan"), dtype=x.dtype, device=device)
        x = convolution(x, layer.weight, layer.bias, out=out, tiles=tiles)
    maps = torch.full((TARGETS, 3, 2, CONFIG.search_tokens), float("nan"), device=device)
    last = packed.convolutions[2]
    return last_convolution(x, last.weight, last.bias, packed.map_weight, packed.map_bias, maps=maps, tiles=tiles)


@pytest.mark.parametrize("share", [False, True], ids=["two", "shared"])
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_maps(device: torch.device, dtype: torch.dtype, *, share: bool) -> None:
    packed = pack(student(share=share), device, dtype)
    tokens, positions = tokens_and_positions(device, dtype)
    maps = fused_head(packed, tokens, positions, LARGE)
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
    place = torch.full((2, 1, CONFIG.search_tokens), -1, dtype=torch.int32, device=device)
    products = torch.full((2, 1, LIVE, 9 * features), float("nan"), device=device)
    out = gather_taps(products, place, packed.taps_bias, template_tokens=CONFIG.template_tokens)
    assert torch.equal(out, packed.taps_bias.clamp(min=0).expand_as(out))


def test_overflow_stays_visible(device: torch.device) -> None:
    """A NaN among the tokens reaches the maps: neither relu nor clamp hides it."""
    packed = pack(student(), device, torch.float32)
    tokens, positions = tokens_and_positions(device, torch.float32)
    tokens[0, 1, CONFIG.template_tokens + 3] = float("nan")
    maps = fused_head(packed, tokens, positions, LARGE)
    assert torch.isnan(maps[1, 0, 0]).any()
    assert torch.isnan(maps[1, 2]).any()
    assert torch.isfinite(maps[[0, 2]]).all()


def test_scores_are_clamped(device: torch.device) -> None:
    model = student()
    for tower, bias in ((model.head.score, 40.0), (model.head.size, -40.0), (model.head.offset, 40.0)):
        tower[-1].bias.fill_(bias)
    packed = pack(model, device, torch.float32)
    maps = fused_head(packed, *tokens_and_positions(device, torch.float32), LARGE)
    assert (maps[:, 0, 0] == torch.tensor(1 - 1e-4)).all()
    assert (maps[:, 2] == torch.tensor(1e-4)).all()
    assert (maps[:, 1] > 30).all()


def test_memory_accesses(device: torch.device, guard: contextlib.AbstractContextManager) -> None:
    packed = pack(student(), device, torch.float32)
    tokens, positions = tokens_and_positions(device, torch.float32)
    with guard:
        guarded_maps = fused_head(packed, tokens, positions, Tiles(16, 64, 32))
    assert torch.allclose(guarded_maps, fused_head(packed, tokens, positions, LARGE), atol=1e-5)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    packed = pack(student(), device, torch.float32)
    layer = packed.convolutions[0]
    x = torch.zeros(1, CONFIG.search_tokens, 3 * CONFIG.head_channels, device=device)
    place = torch.zeros(2, 1, CONFIG.search_tokens, dtype=torch.int32, device=device)
    products = torch.zeros(2, 1, LIVE, 9 * x.shape[2], device=device)
    with pytest.raises(ValueError, match="expected \\[B, cells, 3 C\\]"):
        convolution(x[..., :-1], layer.weight, layer.bias)
    with pytest.raises(ValueError, match="bias is"):
        convolution(x, layer.weight, layer.bias[0])
    with pytest.raises(ValueError, match="out is"):
        convolution(x, layer.weight, layer.bias, out=x)
    with pytest.raises(ValueError, match="place is"):
        gather_taps(products, place.long(), packed.taps_bias, template_tokens=4)
    with pytest.raises(ValueError, match="columns"):
        gather_taps(products[..., :-1], place, packed.taps_bias, template_tokens=4)
    with pytest.raises(ValueError, match="map_weight is"):
        last_convolution(x, layer.weight, layer.bias, packed.map_weight, packed.map_bias)
