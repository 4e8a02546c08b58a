"""Linear layers of both branches in one launch, with everything around them.

For branch s, target b, token n, with W [S, F, K]:

    y = a @ W[s]^T + bias[s]              a = x[s, b, rows[n]]   (rows: optional index into x's tokens)
    y = gelu(y)                           optional, exact (erf)
    y = y + residual[s, b, rows[n]]       optional; or residual[s, n], the same for all targets
    out[s, b, out_offset + n] = y

LayerNorm in front of the layer costs no pass of its own. With gamma folded into W and beta into bias by `fold_norm`,
and c = the row sums of the folded W,

    LN(a) @ W^T + bias = rstd * (a @ W'^T - mean * c) + bias'

so the kernel multiplies the raw a and corrects the result. mean and rstd come from statistics that the kernel before
wrote in its epilogue: (mean, M2) of every row over every tile of columns, merged here in a fixed order. c is summed
from the rounded W', so what is large in a and constant along a row cancels but for float32's own rounding, far below
that of 16-bit factors. Factors of float32 have no such room: there the mean is subtracted from a before the product.

Narrow layers do not fill a GPU: `split_k` gives each part of K its own programs, which write float32 partial sums; a
second launch adds them in a fixed order and runs the epilogue. No atomics: two runs are bit-identical.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .overlap import await_producer, launch_options

JOINED_ROWS = 16


@dataclass(frozen=True)
class Tiles:
    """Sizes of one program's work: rows, columns and depth of a step, warps and pipeline stages."""

    rows: int = 64
    columns: int = 64
    depth: int = 64
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class RowStatistics:
    """Mean and M2 (sum of squared deviations) of rows over tiles of columns.

    Attributes:
        values: [S, B, N, tiles, 2] float32.
        tile: columns per tile; the last may have fewer.
    """

    values: Tensor
    tile: int


@dataclass(frozen=True)
class FoldedLinear:
    """A linear layer with the LayerNorm before it folded in.

    Attributes:
        weight: gamma * W, [S, F, K], in the precision of the kernel.
        bias: bias + W beta, [S, F] float32.
        column_sum: sums of the rounded weight over K, [S, F] float32.
        eps: of the LayerNorm.
    """

    weight: Tensor
    bias: Tensor
    column_sum: Tensor
    eps: float


def fold_norm(
    weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float, dtype: torch.dtype
) -> FoldedLinear:
    """Fold a LayerNorm into the layer behind it, in float64 from the weight as it will be rounded.

    Args:
        weight: [S, F, K].
        bias: [S, F].
        gamma, beta: of the norm [S, K].
        eps: of the norm.
        dtype: precision in which the kernel multiplies.
    """
    exact = weight.double()
    rounded = (exact * gamma.double()[:, None, :]).to(dtype)
    folded_bias = bias.double() + (exact @ beta.double()[:, :, None])[..., 0]
    return FoldedLinear(rounded.contiguous(), folded_bias.float(), rounded.double().sum(-1).float(), eps)


@triton.jit
def _merged_statistics(stats_ptr, row, ok, K, TILE: tl.constexpr, TILES: tl.constexpr):
    """Mean and M2 of whole rows from their tiles, in the order of the tiles."""
    mean = tl.load(stats_ptr + row * (TILES * 2), mask=ok, other=0.0)
    m2 = tl.load(stats_ptr + row * (TILES * 2) + 1, mask=ok, other=0.0)
    count = tl.minimum(TILE, K).to(tl.float32)
    for tile in tl.static_range(1, TILES):
        other = tl.load(stats_ptr + row * (TILES * 2) + 2 * tile, mask=ok, other=0.0)
        other_m2 = tl.load(stats_ptr + row * (TILES * 2) + 2 * tile + 1, mask=ok, other=0.0)
        more = tl.minimum(TILE, K - tile * TILE).to(tl.float32)
        delta = other - mean
        total = count + more
        mean += delta * (more / total)
        m2 += other_m2 + delta * delta * (count * more / total)
        count = total
    return mean, m2


@triton.jit
def _finish(
    acc,
    branch,
    row,
    ok_row,
    source,
    token,
    column,
    ok_column,
    column_tile,
    bias_ptr,
    sum_ptr,
    stats_ptr,
    residual_ptr,
    out_ptr,
    out_stats_ptr,
    rows_in,
    tokens_out,
    out_tokens,
    out_offset,
    rows_out_all,
    residual_rows,
    K,
    F,
    eps,
    ONE_WEIGHT: tl.constexpr,
    NORM: tl.constexpr,
    CENTRED: tl.constexpr,
    STATS_TILE: tl.constexpr,
    STATS_TILES: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SHARED_RESIDUAL: tl.constexpr,
    WRITE_STATS: tl.constexpr,
    COLUMN_TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The epilogue on a float32 tile [rows, columns]."""
    ok = ok_row[:, None] & ok_column[None, :]
    weights = 0 if ONE_WEIGHT else branch
    if NORM:
        mean, m2 = _merged_statistics(
            stats_ptr, branch.to(tl.int64) * rows_in + source, ok_row, K, STATS_TILE, STATS_TILES
        )
        rstd = tl.math.rsqrt(m2 / K + eps)
        if not CENTRED:
            column_sum = tl.load(sum_ptr + weights * F + column, mask=ok_column, other=0.0)
            acc -= mean[:, None] * column_sum[None, :]
        acc *= rstd[:, None]
    acc += tl.load(bias_ptr + weights * F + column, mask=ok_column, other=0.0)[None, :]
    if GELU:
        acc = 0.5 * acc * (1.0 + tl.math.erf(acc * 0.7071067811865476))
    if RESIDUAL:
        place = token if SHARED_RESIDUAL else source
        at = (branch.to(tl.int64) * residual_rows + place)[:, None] * F + column[None, :]
        acc += tl.load(residual_ptr + at, mask=ok, other=0.0).to(tl.float32)
    rounded = acc.to(out_ptr.dtype.element_ty)
    target = row // tokens_out
    out_row = branch.to(tl.int64) * rows_out_all + target * out_tokens + out_offset + token
    tl.store(out_ptr + out_row[:, None] * F + column[None, :], rounded, mask=ok)
    if WRITE_STATS:
        # Of the rounded values: the next kernel reads those.
        seen = tl.where(ok, rounded.to(tl.float32), 0.0)
        count = tl.minimum(COLUMNS, F - column_tile * COLUMNS).to(tl.float32)
        mean_here = tl.sum(seen, 1) / count
        centred = tl.where(ok, seen - mean_here[:, None], 0.0)
        at_stats = (out_row * COLUMN_TILES + column_tile) * 2
        tl.store(out_stats_ptr + at_stats, mean_here, mask=ok_row)
        tl.store(out_stats_ptr + at_stats + 1, tl.sum(centred * centred, 1), mask=ok_row)


@triton.jit
def _linear_kernel(
    x_ptr,  # [S, rows_in, K]; rows of all targets, one after the other
    weight_ptr,  # [S, F, K]
    bias_ptr,  # [S, F] float32
    sum_ptr,  # [S, F] float32: column sums, with NORM
    stats_ptr,  # [S, rows_in, STATS_TILES, 2] float32, with NORM
    residual_ptr,  # [S, residual_rows, F], with RESIDUAL
    index_ptr,  # [S, rows_out] int32: token of x for each token of the result, with INDEX
    out_ptr,  # [S, rows_out_all, F]
    out_stats_ptr,  # [S, rows_out_all, COLUMN_TILES, 2] float32, with WRITE_STATS
    partial_ptr,  # [SPLITS, S, rows_out, F] float32, with SPLITS > 1
    rows_in,
    rows_out,
    tokens_in,
    tokens_out,
    out_tokens,
    out_offset,
    rows_out_all,
    residual_rows,
    K,
    F,
    eps,
    ONE_WEIGHT: tl.constexpr,
    NORM: tl.constexpr,
    CENTRED: tl.constexpr,
    STATS_TILE: tl.constexpr,
    STATS_TILES: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SHARED_RESIDUAL: tl.constexpr,
    INDEX: tl.constexpr,
    WRITE_STATS: tl.constexpr,
    COLUMN_TILES: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One tile of the result [ROWS, COLUMNS] of one branch, or one part of its sum over K."""
    await_producer(OVERLAP)
    tile, branch, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    # Neighbouring programs share rows of x: a tile of x is small, the weights stream.
    row_tile, column_tile = tile // COLUMN_TILES, tile % COLUMN_TILES
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    ok_row, ok_column = row < rows_out, column < F
    token = row % tokens_out
    if INDEX:
        chosen = tl.load(index_ptr + branch * rows_out + row, mask=ok_row, other=0)
    else:
        chosen = token
    source = row // tokens_out * tokens_in + chosen
    x_row = (branch.to(tl.int64) * rows_in + source)[:, None] * K
    if ONE_WEIGHT:
        w_row = column.to(tl.int64)[None, :] * K
    else:
        w_row = (branch.to(tl.int64) * F + column)[None, :] * K
    if CENTRED:
        mean, _ = _merged_statistics(
            stats_ptr, branch.to(tl.int64) * rows_in + source, ok_row, K, STATS_TILE, STATS_TILES
        )
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    steps = tl.cdiv(K, DEPTH * SPLITS)
    for step in range(steps):
        k = (split * steps + step) * DEPTH + tl.arange(0, DEPTH)
        ok_k = k < K
        a = tl.load(x_ptr + x_row + k[None, :], mask=ok_row[:, None] & ok_k[None, :], other=0.0)
        if CENTRED:
            a = tl.where(ok_k[None, :], a - mean[:, None], 0.0)
        w = tl.load(weight_ptr + w_row + k[:, None], mask=ok_column[None, :] & ok_k[:, None], other=0.0)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    if SPLITS > 1:
        at = ((split * tl.num_programs(1) + branch).to(tl.int64) * rows_out + row)[:, None] * F + column[None, :]
        tl.store(partial_ptr + at, acc, mask=ok_row[:, None] & ok_column[None, :])
    else:
        _finish(
            acc, branch, row, ok_row, source, token, column, ok_column, column_tile,
            bias_ptr, sum_ptr, stats_ptr, residual_ptr, out_ptr, out_stats_ptr,
            rows_in, tokens_out, out_tokens, out_offset, rows_out_all, residual_rows, K, F, eps,
            ONE_WEIGHT, NORM, CENTRED, STATS_TILE, STATS_TILES, GELU, RESIDUAL, SHARED_RESIDUAL, WRITE_STATS,
            COLUMN_TILES, COLUMNS,
        )  # fmt: skip


@triton.jit
def _join_kernel(
    bias_ptr,
    sum_ptr,
    stats_ptr,
    residual_ptr,
    index_ptr,
    out_ptr,
    out_stats_ptr,
    partial_ptr,
    rows_in,
    rows_out,
    tokens_in,
    tokens_out,
    out_tokens,
    out_offset,
    rows_out_all,
    residual_rows,
    K,
    F,
    eps,
    ONE_WEIGHT: tl.constexpr,
    NORM: tl.constexpr,
    CENTRED: tl.constexpr,
    STATS_TILE: tl.constexpr,
    STATS_TILES: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SHARED_RESIDUAL: tl.constexpr,
    INDEX: tl.constexpr,
    WRITE_STATS: tl.constexpr,
    COLUMN_TILES: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Add the parts of one tile in order, then the epilogue; arguments as above."""
    await_producer(OVERLAP)
    tile, branch = tl.program_id(0), tl.program_id(1)
    row_tile, column_tile = tile // COLUMN_TILES, tile % COLUMN_TILES
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    ok_row, ok_column = row < rows_out, column < F
    token = row % tokens_out
    if INDEX:
        chosen = tl.load(index_ptr + branch * rows_out + row, mask=ok_row, other=0)
    else:
        chosen = token
    source = row // tokens_out * tokens_in + chosen
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for split in tl.static_range(SPLITS):
        at = ((split * tl.num_programs(1) + branch).to(tl.int64) * rows_out + row)[:, None] * F + column[None, :]
        acc += tl.load(partial_ptr + at, mask=ok_row[:, None] & ok_column[None, :], other=0.0)
    _finish(
        acc, branch, row, ok_row, source, token, column, ok_column, column_tile,
        bias_ptr, sum_ptr, stats_ptr, residual_ptr, out_ptr, out_stats_ptr,
        rows_in, tokens_out, out_tokens, out_offset, rows_out_all, residual_rows, K, F, eps,
        ONE_WEIGHT, NORM, CENTRED, STATS_TILE, STATS_TILES, GELU, RESIDUAL, SHARED_RESIDUAL, WRITE_STATS,
        COLUMN_TILES, COLUMNS,
    )  # fmt: skip


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    norm: FoldedLinear | None = None,
    statistics: RowStatistics | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
    rows: Tensor | None = None,
    out: Tensor | None = None,
    out_offset: int = 0,
    out_statistics: RowStatistics | None = None,
    split_k: int = 1,
    partial: Tensor | None = None,
    tiles: Tiles | None = None,
    tf32: bool = False,
    overlap: bool = False,
) -> Tensor:
    """Apply one layer of S branches to B targets.

    Args:
        x: [S, B, N, K], contiguous.
        weight: [S, F, K] in the type of x, [1, F, K] where the branches share it; `norm.weight` where a norm is folded
            in.
        bias: [S, F] or [1, F] float32; `norm.bias` where a norm is folded in.
        norm: the folded norm; needs `statistics`.
        statistics: of the rows of x.
        gelu: apply it.
        residual: added last, [S, B, N, F]; or [S, M, F], the same for all targets, by token of the result.
        rows: [S, B, M] int32, tokens of x (and of a residual per target) to take; None: all N.
        out: written to, [S, B, at least out_offset + M, F]; made if None.
        out_offset: token of `out` where the result begins.
        out_statistics: written to, of the rows of `out`, with tile = `tiles.columns`.
        split_k: programs that share a sum over K.
        partial: scratch for split_k > 1, [split_k, S, B * M, F] float32; made if None.
        tiles: sizes of one program's work.
        tf32: let float32 products round their factors to tf32.
        overlap: see overlap.py.

    Returns:
        `out`.
    """
    tiles = tiles or Tiles()
    branches, targets, tokens_in, depth = x.shape
    features = weight.shape[1]
    weights = weight.shape[0]
    if weights not in (1, branches) or weight.shape[2] != depth or bias.shape != (weights, features):
        raise ValueError(f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not fit x {tuple(x.shape)}")
    if weight.dtype != x.dtype or bias.dtype != torch.float32:
        raise TypeError(f"weight is {weight.dtype} and bias {bias.dtype}: expected {x.dtype} and float32")
    if not (x.is_contiguous() and weight.is_contiguous() and bias.is_contiguous()):
        raise ValueError("x, weight and bias must be contiguous")
    if (norm is None) != (statistics is None):
        raise ValueError("a folded norm and the statistics of its input come together")
    tokens_out = tokens_in if rows is None else rows.shape[2]
    if rows is not None and (rows.shape[:2] != (branches, targets) or rows.dtype != torch.int32):
        raise ValueError(f"rows is {rows.dtype} {tuple(rows.shape)}: expected int32 [{branches}, {targets}, M]")
    if out is None:
        out = torch.empty(branches, targets, out_offset + tokens_out, features, dtype=x.dtype, device=x.device)
    if out.shape[2] < out_offset + tokens_out or out.shape[3] != features or not out.is_contiguous():
        raise ValueError(f"out {tuple(out.shape)} has no room for {tokens_out} tokens of {features} at {out_offset}")
    shared = residual is not None and residual.dim() == 3
    if residual is not None:
        expected = (branches, tokens_out, features) if shared else (branches, targets, tokens_in, features)
        if residual.shape != expected or not residual.is_contiguous():
            raise ValueError(f"residual is {tuple(residual.shape)}: expected contiguous {expected}")
    column_tiles = triton.cdiv(features, tiles.columns)
    if out_statistics is not None and (
        out_statistics.tile != tiles.columns or out_statistics.values.shape != (*out.shape[:3], column_tiles, 2)
    ):
        raise ValueError(f"out_statistics must be {(*out.shape[:3], column_tiles, 2)} in tiles of {tiles.columns}")
    rows_out = targets * tokens_out
    if split_k > 1 and partial is None:
        partial = torch.empty(split_k, branches, rows_out, features, dtype=torch.float32, device=x.device)
    dummy = bias  # stands for pointers that the flags leave unread
    pointers = {
        "bias_ptr": bias,
        "sum_ptr": norm.column_sum if norm else dummy,
        "stats_ptr": statistics.values if statistics else dummy,
        "residual_ptr": residual if residual is not None else dummy,
        "index_ptr": rows if rows is not None else dummy,
        "out_ptr": out,
        "out_stats_ptr": out_statistics.values if out_statistics else dummy,
        "partial_ptr": partial if partial is not None else dummy,
        "rows_in": targets * tokens_in,
        "rows_out": rows_out,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "out_tokens": out.shape[2],
        "out_offset": out_offset,
        "rows_out_all": targets * out.shape[2],
        "residual_rows": tokens_out if shared else targets * tokens_in,
        "K": depth,
        "F": features,
        "eps": norm.eps if norm else 0.0,
        "ONE_WEIGHT": weights == 1,
        "NORM": norm is not None,
        "CENTRED": norm is not None and x.dtype == torch.float32,
        "STATS_TILE": statistics.tile if statistics else 1,
        "STATS_TILES": statistics.values.shape[3] if statistics else 1,
        "GELU": gelu,
        "RESIDUAL": residual is not None,
        "SHARED_RESIDUAL": shared,
        "INDEX": rows is not None,
        "WRITE_STATS": out_statistics is not None,
        "COLUMN_TILES": column_tiles,
        "SPLITS": split_k,
        "ROWS": tiles.rows,
        "COLUMNS": tiles.columns,
        "OVERLAP": overlap,
        "num_warps": tiles.warps,
        **launch_options(overlap=overlap),
    }
    programs = triton.cdiv(rows_out, tiles.rows) * column_tiles
    # One program per tile of the result, branch and part of K.
    _linear_kernel[(programs, branches, split_k)](
        x, weight, **pointers, DEPTH=tiles.depth, PRECISION="tf32" if tf32 else "ieee", num_stages=tiles.stages
    )
    if split_k > 1:
        # Adding is bound by memory: many programs of few rows.
        rows_joined = min(tiles.rows, JOINED_ROWS)
        programs = triton.cdiv(rows_out, rows_joined) * column_tiles
        _join_kernel[(programs, branches)](**{**pointers, "ROWS": rows_joined, "num_warps": 4})
    return out
