"""Linear layers of both branches against their twin."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from support import assert_as_exact, big
from torch import Tensor

from ckd_fast.kernels.linear import FoldedLinear, RowStatistics, Tiles, fold_norm, linear
from ckd_fast.reference import fused

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LARGE = big(128, 128, 128)


def ids(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclasses.dataclass(frozen=True)
class Layer:
    """Random inputs in one precision, and the same numbers for twin and exact result."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    gamma: Tensor
    beta: Tensor
    residual: Tensor

    def to(self, dtype: torch.dtype) -> Layer:
        return Layer(*(getattr(self, f.name).to(dtype) for f in dataclasses.fields(self)))


def layer(
    device: torch.device, dtype: torch.dtype, tokens: int = 53, k: int = 96, f: int = 160, seed: int = 0
) -> Layer:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(device)

    return Layer(
        x=draw(2, 3, tokens, k),
        weight=draw(2, f, k, scale=k**-0.5),
        bias=draw(2, f).float(),
        gamma=draw(2, k, scale=0.2) + 1,
        beta=draw(2, k, scale=0.2),
        residual=draw(2, 3, tokens, f),
    )


def poisoned(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


def statistics_of(x: Tensor, tile: int) -> RowStatistics:
    return RowStatistics(fused.row_statistics(x, tile).float().contiguous(), tile)


def folded(given: Layer, eps: float = 1e-6) -> FoldedLinear:
    return fold_norm(given.weight, given.bias, given.gamma, given.beta, eps, given.x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("split_k", [1, 3])
def test_bias_gelu_residual(device: torch.device, dtype: torch.dtype, split_k: int) -> None:
    given = layer(device, dtype)
    out = poisoned(2, 3, 53, 160, dtype=dtype, device=device)
    returned = linear(
        given.x, given.weight, given.bias, gelu=True, residual=given.residual, out=out, split_k=split_k, tiles=LARGE
    )
    assert returned is out
    twin, exact = (
        fused.linear(g.x, g.weight, g.bias, gelu=True, residual=g.residual) for g in (given, given.to(torch.float64))
    )
    assert_as_exact(out, twin, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("offset", [0.0, 30.0], ids=["centred", "mean-30-std"])
def test_folded_norm(device: torch.device, dtype: torch.dtype, offset: float) -> None:
    """With statistics in tiles of 40 of 96 columns; the mean may be 30 standard deviations."""
    given = layer(device, dtype)
    given = dataclasses.replace(given, x=(given.x.float() + offset).to(dtype))
    norm = folded(given)
    out = poisoned(2, 3, 53, 160, dtype=dtype, device=device)
    linear(given.x, norm.weight, norm.bias, norm=norm, statistics=statistics_of(given.x, 40), out=out, tiles=LARGE)
    twin, exact = (
        fused.linear(g.x, g.weight, g.bias, gamma=g.gamma, beta=g.beta, eps=1e-6)
        for g in (given, given.to(torch.float64))
    )
    assert_as_exact(out, twin, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_folded_norm_with_one_huge_channel(device: torch.device, dtype: torch.dtype) -> None:
    given = layer(device, dtype)
    x = given.x.clone()
    x[..., 7] *= 1000
    given = dataclasses.replace(given, x=x)
    norm = folded(given)
    out = linear(given.x, norm.weight, norm.bias, norm=norm, statistics=statistics_of(x, 96), tiles=LARGE)
    twin, exact = (
        fused.linear(g.x, g.weight, g.bias, gamma=g.gamma, beta=g.beta, eps=1e-6)
        for g in (given, given.to(torch.float64))
    )
    assert_as_exact(out, twin, exact)


@pytest.mark.parametrize("split_k", [1, 2])
def test_row_index_on_input_statistics_and_residual(device: torch.device, split_k: int) -> None:
    given = layer(device, torch.float32)
    norm = folded(given)
    chosen = torch.stack([torch.randperm(53)[:31] for _ in range(6)]).reshape(2, 3, 31).int().to(device)
    out = poisoned(2, 3, 31, 160, dtype=torch.float32, device=device)
    linear(
        given.x, norm.weight, norm.bias, norm=norm, statistics=statistics_of(given.x, 64), residual=given.residual,
        rows=chosen, out=out, split_k=split_k, tiles=LARGE,
    )  # fmt: skip
    twin, exact = (
        fused.linear(g.x, g.weight, g.bias, gamma=g.gamma, beta=g.beta, eps=1e-6, residual=g.residual, rows=chosen)
        for g in (given, given.to(torch.float64))
    )
    assert_as_exact(out, twin, exact)


@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_statistics_for_the_next_norm(device: torch.device, dtype: torch.dtype, split_k: int) -> None:
    """Of the rounded result, in tiles of 64 of 160 columns, even where the mean is large."""
    given = layer(device, dtype)
    given = dataclasses.replace(given, bias=given.bias + 50)
    out = poisoned(2, 3, 53, 160, dtype=dtype, device=device)
    stats = RowStatistics(poisoned(2, 3, 53, 3, 2, dtype=torch.float32, device=device), 64)
    tiles = dataclasses.replace(LARGE, columns=64)
    linear(given.x, given.weight, given.bias, out=out, out_statistics=stats, split_k=split_k, tiles=tiles)
    assert_as_exact(stats.values, fused.row_statistics(out, 64), fused.row_statistics(out.double(), 64))


def test_patch_embedding_into_the_middle(device: torch.device) -> None:
    """Positions as a residual for all targets, written behind the template tokens, which stay untouched."""
    given = layer(device, torch.float32)
    positions = torch.randn(2, 53, 160, device=device)
    out = torch.full((2, 3, 70, 160), 7.0, device=device)
    tile = LARGE.columns
    stats = RowStatistics(torch.full((2, 3, 70, -(-160 // tile), 2), 9.0, device=device), tile)
    linear(
        given.x, given.weight, given.bias, residual=positions, out=out, out_offset=17, out_statistics=stats, tiles=LARGE
    )
    exact = fused.linear(given.x.double(), given.weight.double(), given.bias.double(), residual=positions.double())
    twin = fused.linear(given.x, given.weight, given.bias, residual=positions)
    assert_as_exact(out[:, :, 17:], twin, exact)
    assert (out[:, :, :17] == 7).all()
    assert (stats.values[:, :, :17] == 9).all()
    assert_as_exact(stats.values[:, :, 17:], fused.row_statistics(out[:, :, 17:], tile),
                    fused.row_statistics(out[:, :, 17:].double(), tile))  # fmt: skip


def test_two_runs_are_bit_identical(device: torch.device) -> None:
    given = layer(device, torch.float32)
    first, second = (linear(given.x, given.weight, given.bias, split_k=3, tiles=LARGE) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("split_k", [1, 2])
def test_memory_accesses(device: torch.device, guard: contextlib.AbstractContextManager, split_k: int) -> None:
    """Small odd sizes under the guard; every option on."""
    given = layer(device, torch.float32, tokens=11, k=20, f=23)
    norm = folded(given)
    chosen = torch.tensor([[[3, 0, 10], [1, 2, 9], [5, 5, 5]]] * 2, dtype=torch.int32, device=device)
    stats = RowStatistics(torch.empty(2, 3, 5, 2, 2, device=device), 16)
    out = torch.empty(2, 3, 5, 23, device=device)
    with guard:
        linear(
            given.x, norm.weight, norm.bias, norm=norm, statistics=statistics_of(given.x, 16), gelu=True,
            residual=given.residual, rows=chosen, out=out, out_offset=2, out_statistics=stats, split_k=split_k,
            tiles=Tiles(16, 16, 16),
        )  # fmt: skip
    exact = fused.linear(
        given.x.double(), given.weight.double(), given.bias.double(), gamma=given.gamma.double(),
        beta=given.beta.double(), eps=1e-6, gelu=True, residual=given.residual.double(), rows=chosen,
    )  # fmt: skip
    assert torch.allclose(out[:, :, 2:].double(), exact, atol=1e-4)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    given = layer(device, torch.float32)
    norm = folded(given)
    for arguments, error, message in (
        ({"weight": given.weight[:, :, :-1]}, ValueError, "do not fit"),
        ({"weight": given.weight.half()}, TypeError, "expected torch.float32"),
        ({"x": given.x.transpose(1, 2)}, ValueError, "contiguous"),
        ({"norm": norm}, ValueError, "come together"),
        ({"rows": torch.zeros(2, 3, 4, device=device)}, ValueError, "expected int32"),
        ({"out": given.residual[:, :, :5]}, ValueError, "no room"),
        ({"residual": given.residual[:, :1]}, ValueError, "residual is"),
        ({"out_statistics": RowStatistics(given.bias, 64)}, ValueError, "out_statistics"),
    ):
        with pytest.raises(error, match=message):
            linear(**({"x": given.x, "weight": given.weight, "bias": given.bias} | arguments))


def test_branches_that_share_weights(device: torch.device) -> None:
    given = layer(device, torch.float32)
    one, both = given.weight[:1], given.weight[:1].expand_as(given.weight)
    out = linear(given.x, one.contiguous(), given.bias[:1], gelu=True, split_k=2, tiles=LARGE)
    exact = fused.linear(given.x.double(), both.double(), given.bias[:1].double().expand(2, -1), gelu=True)
    twin = fused.linear(given.x, both, given.bias[:1].expand(2, -1), gelu=True)
    assert_as_exact(out, twin, exact)
