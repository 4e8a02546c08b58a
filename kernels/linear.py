"""A linear layer of both branches in one launch, with norm, bias, GELU and residual.

For branch s, target b, token n, with W [S, F, K]:

    y = a @ W[s]^T + bias[s]              a = x[s, b, index[n]]   (index: optional, into x's tokens)
    y = gelu(y)                           optional; erf in float32, for 16 bits a polynomial below their rounding
    y = y + residual[s, b, index[n]]      optional; or residual[s, n], the same for all targets
    out[s, b, out_offset + n] = y

LayerNorm in front of the layer costs no pass of its own. With gamma folded into W and beta into bias by `fold_norm`,
and c = the row sums of the folded W,

    LN(a) @ W^T + bias = rstd * (a @ W'^T - mean * c) + bias'

so the kernel multiplies the raw a and corrects the result. mean and rstd come from statistics that the launch before
wrote: (mean, M2) of every row over every tile of columns, merged here in a fixed order. c is summed from the rounded
W'. So a large constant along a row of a cancels up to the rounding of float32, far below that of 16-bit factors. With
float32 factors this is not enough: there the mean is subtracted from a before the product.

A `Float8Layer` multiplies in float8 (e4m3): y = scale * (round8(a / input_scale) @ round8(W / weight_scale)^T) + bias,
with one input scale per branch and one weight scale per output. Behind a norm, a is normed and rounded as it is loaded.
Elsewhere the kernel in front has rounded it already, which halves the traffic of both factors.

Narrow layers do not fill a GPU. With `split_k`, each part of K has its own programs, which write float32 partial sums.
They count themselves; the one that arrives last adds all parts and does the rest. It adds them in a fixed order,
whichever it is, so two runs are bit-identical. It leaves the count at zero for the next launch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .float8 import FLOAT8_LARGEST, to_float8
from .launch import (
    ARRIVALS,
    MOST_OFFSET,
    SETTINGS,
    KernelName,
    Launch,
    LaunchSettings,
    Operation,
    Room,
    TileRequest,
    Tiles,
    check,
    dtype_name,
    fresh_room,
)
from .overlap import await_producer, prefetch_to_l2

SMALLEST_SCALE = 1e-6  # times the largest of float8, of inputs that are all zero


@dataclass(frozen=True)
class RowStatistics:
    """Mean and M2 (sum of squared deviations) of rows over tiles of columns."""

    values: Tensor  # [S, B, N, tiles, 2] float32
    tile: int  # columns per tile; the last may have fewer


@dataclass(frozen=True)
class Rows:
    """Tokens [S, B, N, C], and the statistics of their rows if a norm comes next."""

    tokens: Tensor
    statistics: RowStatistics | None = None

    @property
    def moments(self) -> Tensor:
        """The values of the statistics [S, B, N, tiles, 2]; an error if there are none."""
        if self.statistics is None:
            raise ValueError(f"rows {tuple(self.tokens.shape)} have no statistics: a norm needs them")
        return self.statistics.values


@dataclass(frozen=True)
class PlainLayer:
    """A linear layer: weight [S, F, K] in the kernel's precision, bias [S, F] float32. With S = 1 branches share it."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class FoldedLayer(PlainLayer):
    """A linear layer with the LayerNorm before it folded in: gamma * weight, bias + weight beta."""

    column_sum: Tensor  # sums of the rounded weight over K, [S, F] float32
    eps: float  # of the LayerNorm


@dataclass(frozen=True)
class Float8Layer:
    """A linear layer that multiplies in float8 (e4m3); with `eps` the LayerNorm before it is folded in."""

    weight: Tensor  # [S, F, K] float8_e4m3fn, divided by the scale of its row
    bias: Tensor  # [S, F] float32
    scale: Tensor  # of a product of the rounded factors: weight's scale times the input's [S, F] float32
    input_scale: Tensor  # what the layer's input is divided by before it is rounded [S] float32
    eps: float | None = None


Layer = PlainLayer | Float8Layer


def float8_layer(weight: Tensor, bias: Tensor, largest: Tensor, eps: float | None = None) -> Float8Layer:
    """Round a layer's weight to float8, each output by its own scale.

    Args:
        weight: [S, F, K], the scale of a folded norm included.
        bias: [S, F], the shift of a folded norm included.
        largest: absolute value of the layer's input [S]; behind a norm, of the normed input. Larger ones are clamped.
        eps: of the norm in front.
    """
    exact = weight.double()
    weight_scale = exact.abs().amax(-1).clamp(min=SMALLEST_SCALE) / FLOAT8_LARGEST
    input_scale = largest.double().clamp(min=SMALLEST_SCALE) / FLOAT8_LARGEST
    rounded = (exact / weight_scale[..., None]).float().to(torch.float8_e4m3fn)
    scale = (weight_scale * input_scale[:, None]).float()
    return Float8Layer(rounded.contiguous(), bias.float().contiguous(), scale.contiguous(), input_scale.float(), eps)


def fold_norm(weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float, dtype: torch.dtype) -> FoldedLayer:
    """Fold a LayerNorm into the layer after it, in float64; `column_sum` is that of the rounded weight.

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
    return FoldedLayer(rounded.contiguous(), folded_bias.float(), rounded.double().sum(-1).float(), eps)


@triton.jit
def _merged_statistics(stats_ptr, row, K: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr):
    """Mean and M2 of whole rows from their tiles, in the order of the tiles."""
    mean = tl.load(stats_ptr + row * (TILES * 2))
    m2 = tl.load(stats_ptr + row * (TILES * 2) + 1)
    count = tl.minimum(TILE, K).to(tl.float32)
    for tile in tl.static_range(1, TILES):
        other = tl.load(stats_ptr + row * (TILES * 2) + 2 * tile)
        other_m2 = tl.load(stats_ptr + row * (TILES * 2) + 2 * tile + 1)
        more = tl.minimum(TILE, K - tile * TILE).to(tl.float32)
        delta = other - mean
        total = count + more
        mean += delta * (more / total)
        m2 += other_m2 + delta * delta * (count * more / total)
        count = total
    return mean, m2


@triton.jit
def _tile(
    tile, branch, index_ptr, targets, tokens_in, tokens_out,
    F: tl.constexpr, ONE_TARGET: tl.constexpr, INDEX: tl.constexpr, COLUMN_TILES: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Where a program's tile lies: rows and columns of the result, each row's target, token and source row in x.

    A tile may reach over the edge. What is read there is the last row or column once more, so that loads need no mask;
    `ok_row` and `ok_column` say what may be written.
    """
    # Neighbouring programs share rows of x. A tile of x is small, so it stays in the cache while the weights stream.
    row = tile // COLUMN_TILES * ROWS + tl.arange(0, ROWS)
    column = tile % COLUMN_TILES * COLUMNS + tl.arange(0, COLUMNS)
    rows_out = targets * tokens_out
    ok_row, ok_column = row < rows_out, column < F
    row = tl.minimum(row, rows_out - 1)
    if F % COLUMNS != 0:
        column = tl.minimum(column, F - 1)
    if ONE_TARGET:
        target, token = tl.zeros_like(row), row
    else:
        target, token = row // tokens_out, row % tokens_out
    if INDEX:
        taken = tl.load(index_ptr + branch * rows_out + row)
    else:
        taken = token
    return row, ok_row, column, ok_column, target, token, target * tokens_in + taken


@triton.jit
def _gelu(x, EXACT: tl.constexpr):
    """x Phi(x), with Phi the normal distribution. For 16 bits a polynomial, a third of the work of erf.

    Phi(x) = 1/2 + x P(x^2) is within 3.3e-5, far below the rounding of a result of 16 bits. Beyond 4, Phi is 0 or 1:
    there 4 P(16) = 1/2 holds exactly in this order of operations.
    """
    if EXACT:
        value = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    else:
        inner = tl.minimum(tl.maximum(x, -4.0), 4.0)
        square = inner * inner
        # the smallest largest error over [0, 4], found by linear programming
        p = tl.math.fma(square, -1.3433143486452082e-09, 1.0768562219709565e-07)
        p = tl.math.fma(p, square, -3.7707875435444294e-06)
        p = tl.math.fma(p, square, 7.673849904676899e-05)
        p = tl.math.fma(p, square, -0.0010234374785795808)
        p = tl.math.fma(p, square, 0.009586004540324211)
        p = tl.math.fma(p, square, -0.06606700271368027)
        p = tl.math.fma(p, square, 0.39880597591400146)
        value = x * tl.math.fma(inner, p, 0.5)
    return value


@triton.jit
def _finish(
    acc, branch, column_tile, place, pointers, sizes,
    K: tl.constexpr, F: tl.constexpr, ONE_WEIGHT: tl.constexpr, NORM: tl.constexpr, CENTRED: tl.constexpr,
    STATS_TILE: tl.constexpr, STATS_TILES: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr,
    SHARED_RESIDUAL: tl.constexpr, WRITE_STATS: tl.constexpr, FLOAT8: tl.constexpr, COLUMN_TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """After the product, on a float32 tile [rows, columns]: norm, bias, GELU, residual, statistics."""
    _, ok_row, column, ok_column, target, token, source = place
    bias_ptr, sum_ptr, stats_ptr, residual_ptr, out_ptr, out_stats_ptr, scale_ptr, out_scale_ptr = pointers
    targets, tokens_in, tokens_out, out_tokens, out_offset, eps = sizes
    ok = ok_row[:, None] & ok_column[None, :]
    weights = 0 if ONE_WEIGHT else branch
    wide = branch.to(tl.int64)
    if FLOAT8:  # a norm is in the rounded input already
        acc *= tl.load(scale_ptr + weights * F + column)[None, :]
    elif NORM:
        stats_ptr += wide * targets * tokens_in * (STATS_TILES * 2)
        mean, m2 = _merged_statistics(stats_ptr, source, K, STATS_TILE, STATS_TILES)
        rstd = tl.math.rsqrt(m2 / K + eps)
        if not CENTRED:
            column_sum = tl.load(sum_ptr + weights * F + column)
            acc -= mean[:, None] * column_sum[None, :]
        acc *= rstd[:, None]
    acc += tl.load(bias_ptr + weights * F + column)[None, :]
    if GELU:
        acc = _gelu(acc, EXACT=out_ptr.dtype.element_ty == tl.float32)
    if RESIDUAL:
        if SHARED_RESIDUAL:
            residual_ptr += wide * tokens_out * F
            added = token
        else:
            residual_ptr += wide * targets * tokens_in * F
            added = source
        acc += tl.load(residual_ptr + (added[:, None] * F + column[None, :])).to(tl.float32)
    if out_ptr.dtype.element_ty == tl.float8e4nv:
        rounded = to_float8(acc, tl.load(out_scale_ptr + weights))
    else:
        rounded = acc.to(out_ptr.dtype.element_ty)
    out_ptr += wide * targets * out_tokens * F
    out_row = target * out_tokens + out_offset + token
    tl.store(out_ptr + (out_row[:, None] * F + column[None, :]), rounded, mask=ok)
    if WRITE_STATS:
        # Statistics of the rounded values, because the next kernel reads those.
        seen = rounded.to(tl.float32)
        if F % COLUMNS != 0:
            seen = tl.where(ok_column[None, :], seen, 0.0)
        count = tl.minimum(COLUMNS, F - column_tile * COLUMNS).to(tl.float32)
        mean_here = tl.sum(seen, 1) / count
        centred = seen - mean_here[:, None]
        if F % COLUMNS != 0:
            centred = tl.where(ok_column[None, :], centred, 0.0)
        out_stats_ptr += wide * targets * out_tokens * (COLUMN_TILES * 2)
        at_stats = (out_row * COLUMN_TILES + column_tile) * 2
        tl.store(out_stats_ptr + at_stats, mean_here, mask=ok_row)
        tl.store(out_stats_ptr + at_stats + 1, tl.sum(centred * centred, 1), mask=ok_row)


@triton.jit
def _linear_kernel(
    x_ptr,  # [S, B, tokens_in, K]; with FLOAT8 and without NORM in float8
    weight_ptr,  # [S, F, K]; [1, F, K] with ONE_WEIGHT; in float8 with FLOAT8
    bias_ptr,  # [S, F] float32
    sum_ptr,  # [S, F] float32: sums of the weight over K, with NORM
    scale_ptr,  # [S, F] float32: of the products, with FLOAT8
    in_scale_ptr,  # [S] float32: of the input, with FLOAT8 and NORM
    out_scale_ptr,  # [S] float32: of a result in float8
    stats_ptr,  # [S, B, tokens_in, STATS_TILES, 2] float32, with NORM
    residual_ptr,  # [S, B, tokens_in, F], or [S, tokens_out, F] with SHARED_RESIDUAL; with RESIDUAL
    index_ptr,  # [S, B, tokens_out] int32: token of x for each token of the result, with INDEX
    out_ptr,  # [S, B, out_tokens, F]
    out_stats_ptr,  # [S, B, out_tokens, COLUMN_TILES, 2] float32, with WRITE_STATS
    partial_ptr,  # [S, tiles, SPLITS, ROWS, COLUMNS] float32, with SPLITS > 1
    arrivals_ptr,  # [S, tiles] int32: programs of a tile that are done, with SPLITS > 1; zero between launches
    targets,  # B
    tokens_in,  # of each target in x
    tokens_out,  # of each target that are computed
    out_tokens,  # of each target that `out` has room for
    out_offset,  # the first of them that is written
    eps,  # of the norm
    K: tl.constexpr,  # features in
    F: tl.constexpr,  # features out
    ONE_TARGET: tl.constexpr,  # B = 1
    ONE_WEIGHT: tl.constexpr,  # branches share the layer
    NORM: tl.constexpr,  # a norm is folded in
    CENTRED: tl.constexpr,  # the mean is subtracted before the product, not after it
    STATS_TILE: tl.constexpr,  # columns per tile of the statistics that are read
    STATS_TILES: tl.constexpr,  # how many such tiles
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SHARED_RESIDUAL: tl.constexpr,
    INDEX: tl.constexpr,
    WRITE_STATS: tl.constexpr,
    FLOAT8: tl.constexpr,  # products in float8
    COLUMN_TILES: tl.constexpr,  # tiles across F
    SPLITS: tl.constexpr,  # parts of K
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    PREFETCH: tl.constexpr,  # parts in which each row of the weight's tile is fetched to L2; 0: it is not
    WEIGHT_BYTES: tl.constexpr,  # of a value
    OVERLAP: tl.constexpr,
):
    """One tile of the result [ROWS, COLUMNS] of one branch, or one part of its sum over K."""
    tile, branch, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if PREFETCH > 0:
        # Programs of the same columns share a tile of weights: the first of them has it fetched.
        if tile < COLUMN_TILES:
            piece = tl.arange(0, COLUMNS * PREFETCH)
            column = tl.minimum(tile * COLUMNS + piece // PREFETCH, F - 1)
            length: tl.constexpr = K // SPLITS // PREFETCH
            here = weight_ptr
            if not ONE_WEIGHT:
                here += branch.to(tl.int64) * (F * K)
            prefetch_to_l2(here + column * K + split * (K // SPLITS) + piece % PREFETCH * length, length * WEIGHT_BYTES)
    await_producer(OVERLAP)
    place = _tile(
        tile, branch, index_ptr, targets, tokens_in, tokens_out, F, ONE_TARGET, INDEX, COLUMN_TILES, ROWS, COLUMNS
    )
    _, _, column, _, _, _, source = place
    # The branch is added to the pointers in 64 bits: inside one branch, offsets fit 32 bits.
    wide = branch.to(tl.int64)
    x_ptr += wide * targets * tokens_in * K
    if not ONE_WEIGHT:
        weight_ptr += wide * (F * K)
    x_row, w_row = source[:, None] * K, column[None, :] * K
    if CENTRED or (FLOAT8 and NORM):
        mean, m2 = _merged_statistics(
            stats_ptr + wide * targets * tokens_in * (STATS_TILES * 2), source, K, STATS_TILE, STATS_TILES
        )
    if FLOAT8 and NORM:
        in_scale = tl.load(in_scale_ptr + (0 if ONE_WEIGHT else branch))
        rstd = tl.math.rsqrt(m2 / K + eps)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    steps: tl.constexpr = (K + DEPTH * SPLITS - 1) // (DEPTH * SPLITS)
    for step in range(steps):
        k = (split * steps + step) * DEPTH + tl.arange(0, DEPTH)
        if K % (DEPTH * SPLITS) == 0:
            a = tl.load(x_ptr + (x_row + k[None, :]))
            w = tl.load(weight_ptr + (w_row + k[:, None]))
            if CENTRED:
                a -= mean[:, None]
        else:
            ok_k = k < K
            a = tl.load(x_ptr + (x_row + k[None, :]), mask=ok_k[None, :], other=0.0)
            w = tl.load(weight_ptr + (w_row + k[:, None]), mask=ok_k[:, None], other=0.0)
            if CENTRED:
                a = tl.where(ok_k[None, :], a - mean[:, None], 0.0)
        if FLOAT8 and NORM:  # where a row ends, weights are zero
            a = to_float8((a.to(tl.float32) - mean[:, None]) * rstd[:, None], in_scale)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    pointers = (bias_ptr, sum_ptr, stats_ptr, residual_ptr, out_ptr, out_stats_ptr, scale_ptr, out_scale_ptr)
    sizes = (targets, tokens_in, tokens_out, out_tokens, out_offset, eps)
    if SPLITS == 1:
        _finish(
            acc, branch, tile % COLUMN_TILES, place, pointers, sizes,
            K, F, ONE_WEIGHT, NORM, CENTRED, STATS_TILE, STATS_TILES, GELU, RESIDUAL, SHARED_RESIDUAL, WRITE_STATS,
            FLOAT8, COLUMN_TILES, COLUMNS,
        )  # fmt: skip
    else:
        this = branch * tl.num_programs(0) + tile
        partial_ptr += this.to(tl.int64) * (SPLITS * ROWS * COLUMNS)
        at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        tl.store(partial_ptr + split * (ROWS * COLUMNS) + at, acc)
        tl.debug_barrier()  # every thread has stored before one of them counts
        arrived = tl.atomic_add(arrivals_ptr + this, 1, sem="acq_rel", scope="gpu")
        if arrived == SPLITS - 1:
            whole = tl.zeros((ROWS, COLUMNS), tl.float32)
            for part in tl.static_range(SPLITS):
                # Past the multiprocessor's own cache, which does not see what others write.
                whole += tl.load(partial_ptr + part * (ROWS * COLUMNS) + at, cache_modifier=".cg")
            tl.store(arrivals_ptr + this, 0)
            _finish(
                whole, branch, tile % COLUMN_TILES, place, pointers, sizes,
                K, F, ONE_WEIGHT, NORM, CENTRED, STATS_TILE, STATS_TILES, GELU, RESIDUAL, SHARED_RESIDUAL, WRITE_STATS,
                FLOAT8, COLUMN_TILES, COLUMNS,
            )  # fmt: skip


def _prefetched_parts(tiles: Tiles, split: int, weight: Tensor) -> int:
    """Into how many parts a row of a weight's tile is divided, so that each thread fetches one; 0 if none fits."""
    parts = max(1, 32 * tiles.warps // tiles.columns)
    depth, size = weight.shape[2], weight.element_size()
    fits = depth * size % 16 == 0 and depth % (split * parts) == 0 and depth // (split * parts) * size % 16 == 0
    return parts if fits else 0


def linear(
    x: Rows,
    layer: Layer,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
    token_index: Tensor | None = None,
    into: Rows | None = None,
    out_offset: int = 0,
    write_statistics: bool = False,
    out_scale: Tensor | None = None,
    kernel: KernelName = "linear",
    room: Room | None = None,
    settings: LaunchSettings = SETTINGS,
) -> Operation[Rows]:
    """Apply one layer of S branches to B targets.

    Args:
        x: tokens [S, B, N, K], contiguous. A `FoldedLayer` needs their statistics too, as does a `Float8Layer` with a
            norm. One without a norm needs tokens in float8, divided by its `input_scale`.
        layer: its weights, in the type of x or in float8.
        gelu: apply GELU.
        residual: added last: [S, B, N, F]; or [S, M, F], the same for all targets.
        token_index: [S, B, M] int32, the tokens to take from x and from a residual per target; None: all N.
        into: where to write: tokens [S, B, at least out_offset + M, F], perhaps with statistics, whose tiles must be as
            wide as the kernel's. None: new memory.
        out_offset: first token of `into` that is written.
        out_scale: [S] float32, the input scale of the `Float8Layer` that reads the result: it is divided by it and
            rounded to float8. None: the result has the type of x, or if that is float8, of the residual.
        write_statistics: also write statistics of the result's rows; without `into`.
        kernel: name under which to ask for tiles.
        room: for "tokens", "statistics", "partial", and `ARRIVALS`.
        settings: of all launches.
    """
    branches, targets, tokens_in, depth = x.tokens.shape
    weights, features, layer_depth = layer.weight.shape
    weight, bias, dtype = layer.weight, layer.bias, x.tokens.dtype
    in_float8 = isinstance(layer, Float8Layer)
    result_dtype = dtype if residual is None or dtype != torch.float8_e4m3fn else residual.dtype
    if weights not in (1, branches) or layer_depth != depth or bias.shape != (weights, features):
        raise ValueError(
            f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not fit x {tuple(x.tokens.shape)}"
        )
    expected_dtype = torch.float8_e4m3fn if in_float8 else dtype
    if weight.dtype != expected_dtype or bias.dtype != torch.float32:
        raise TypeError(f"weight is {weight.dtype} and bias {bias.dtype}: expected {expected_dtype} and float32")
    if isinstance(layer, Float8Layer) and (layer.eps is None) != (dtype == torch.float8_e4m3fn):
        raise TypeError(f"x is {dtype}: a layer in float8 rounds its input itself behind a norm, and only there")
    if out_scale is not None:
        check("out_scale", out_scale, torch.float32, (weights,))
    if not (x.tokens.is_contiguous() and weight.is_contiguous() and bias.is_contiguous()):
        raise ValueError("x, weight and bias must be contiguous")
    eps = layer.eps if isinstance(layer, FoldedLayer | Float8Layer) else None
    statistics = None if eps is None else x.statistics
    if eps is not None and statistics is None:
        raise ValueError("a folded norm needs the statistics of its input's rows")
    if token_index is not None and (token_index.shape[:2] != (branches, targets) or token_index.dtype != torch.int32):
        raise ValueError(
            f"token_index is {token_index.dtype} {tuple(token_index.shape)}: expected int32 [{branches}, {targets}, M]"
        )
    tokens_out = tokens_in if token_index is None else token_index.shape[2]
    if max(targets * tokens_in * max(depth, features), features * depth) > MOST_OFFSET:
        raise ValueError(
            f"x {tuple(x.tokens.shape)} by weight {tuple(weight.shape)}: expected offsets below 2^31 inside a branch; "
            "use fewer targets at once"
        )
    with_statistics = write_statistics if into is None else into.statistics is not None
    precision = dtype_name(dtype) if weight.dtype == dtype else f"{dtype_name(dtype)} as {dtype_name(weight.dtype)}"
    request = TileRequest(kernel, precision, branches, targets * tokens_out, features, depth, with_statistics)
    choice = settings.choose(request)
    tiles, split = choice.tiles, choice.split_k
    column_tiles = triton.cdiv(features, tiles.columns)
    room = room or fresh_room(x.tokens.device)
    if into is None:
        shape = (branches, targets, out_offset + tokens_out, features)
        made = None
        if write_statistics:
            made = RowStatistics(room("statistics", (*shape[:3], column_tiles, 2), torch.float32), tiles.columns)
        into = Rows(room("tokens", shape, result_dtype if out_scale is None else torch.float8_e4m3fn), made)
    out, out_statistics = into.tokens, into.statistics
    if out.shape[2] < out_offset + tokens_out or out.shape[3] != features or not out.is_contiguous():
        raise ValueError(f"out {tuple(out.shape)} has no room for {tokens_out} tokens of {features} at {out_offset}")
    if out_statistics is not None and (
        out_statistics.tile != tiles.columns or out_statistics.values.shape != (*out.shape[:3], column_tiles, 2)
    ):
        raise ValueError(
            f"statistics are {tuple(out_statistics.values.shape)} in tiles of {out_statistics.tile}: expected "
            f"{(*out.shape[:3], column_tiles, 2)} in tiles of {tiles.columns}"
        )
    shared = residual is not None and residual.dim() == 3
    if residual is not None:
        expected = (branches, tokens_out, features) if shared else (branches, targets, tokens_in, features)
        if residual.shape != expected or not residual.is_contiguous():
            raise ValueError(f"residual is {tuple(residual.shape)}: expected contiguous {expected}")
    row_tiles = triton.cdiv(targets * tokens_out, tiles.rows)
    joined: tuple[Tensor, ...] = ()
    if split > 1:
        parts = (branches, row_tiles * column_tiles, split, tiles.rows, tiles.columns)
        joined = (room("partial", parts, torch.float32), room(ARRIVALS, parts[:2], torch.int32))
    centred = isinstance(layer, FoldedLayer) and dtype == torch.float32
    column_sum = layer.column_sum if isinstance(layer, FoldedLayer) and not centred else None
    scales = (layer.scale,) if isinstance(layer, Float8Layer) else ()
    in_scale = (layer.input_scale,) if isinstance(layer, Float8Layer) and eps is not None else ()
    unread = bias  # in place of pointers that the flags leave unread
    arguments = {
        "x_ptr": x.tokens,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "sum_ptr": unread if column_sum is None else column_sum,
        "scale_ptr": scales[0] if scales else unread,
        "in_scale_ptr": in_scale[0] if in_scale else unread,
        "out_scale_ptr": unread if out_scale is None else out_scale,
        "stats_ptr": statistics.values if statistics else unread,
        "residual_ptr": unread if residual is None else residual,
        "index_ptr": unread if token_index is None else token_index,
        "out_ptr": out,
        "out_stats_ptr": out_statistics.values if out_statistics else unread,
        "partial_ptr": joined[0] if joined else unread,
        "arrivals_ptr": joined[1] if joined else unread,
        "targets": targets,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "out_tokens": out.shape[2],
        "out_offset": out_offset,
        "eps": eps or 0.0,
        "K": depth,
        "F": features,
        "ONE_TARGET": targets == 1,
        "ONE_WEIGHT": weights == 1,
        "NORM": eps is not None,
        "CENTRED": centred,
        "STATS_TILE": statistics.tile if statistics else 1,
        "STATS_TILES": statistics.values.shape[3] if statistics else 1,
        "GELU": gelu,
        "RESIDUAL": residual is not None,
        "SHARED_RESIDUAL": shared,
        "INDEX": token_index is not None,
        "WRITE_STATS": out_statistics is not None,
        "FLOAT8": in_float8,
        "COLUMN_TILES": column_tiles,
        "SPLITS": split,
        "ROWS": tiles.rows,
        "COLUMNS": tiles.columns,
        "DEPTH": tiles.depth,
        "PRECISION": settings.precision,
        "PREFETCH": _prefetched_parts(tiles, split, weight) if settings.overlap else 0,
        "WEIGHT_BYTES": weight.element_size(),
        "OVERLAP": settings.overlap,
    }
    index = () if token_index is None else (token_index,)
    normed = (statistics.values,) if statistics else ()
    around = (bias, *normed, *(() if residual is None else (residual,)))
    around += (() if column_sum is None else (column_sum,)) + scales + in_scale
    around += () if out_scale is None else (out_scale,)
    written = (out, out_statistics.values) if out_statistics else (out,)
    variant = [
        text
        for text, there in (
            ("norm", eps is not None), ("gelu", gelu), ("residual", residual is not None),
            ("index", token_index is not None), ("statistics", out_statistics is not None),
            (f"split {split}", split > 1), ("float8", in_float8),
        )
        if there
    ]  # fmt: skip
    what = f"{targets * tokens_out} x {features} x {depth}" + "".join(f", {text}" for text in variant)
    launch = Launch(
        name=kernel,
        what=what,
        kernel=_linear_kernel,
        # One program per tile of the result, branch and part of K.
        grid=(row_tiles * column_tiles, branches, split),
        arguments=arguments,
        options={"num_warps": tiles.warps, "num_stages": tiles.stages, **settings.options},
        reads=(x.tokens, weight, *index, *around, *joined),
        writes=(*written, *joined),
        flops=request.products,
        request=request,
        choice=choice,
    )
    return Operation(into, (launch,))
