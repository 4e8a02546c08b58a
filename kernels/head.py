"""The centre head: three towers of convolutions on the search tokens of both branches.

With x[s, b, n] the tokens after the last block, LN the branch's final norm, and [r, c] a cell of the search grid:

    y1[b, r, c] = relu(bias + sum over s, tap of live(s, b, cell) * LN(x[s, b, place(s, b, cell)]) @ W[s, tap]^T)
    y2 .. y4    = relu(bias + sum over tap of y[b, cell] @ W[tower, tap]^T)                         cell = (r, c) + tap
    maps        = y4 @ W5[tower]^T + bias      clamp(sigmoid(.), 1e-4, 1 - 1e-4) for score and size

The first convolutions of the three towers are one, since they read the same input, and it is turned around: a linear
layer (linear.py, with the final norm folded in) multiplies every live token once with the weights of all nine taps,
and `gather_taps` adds for each cell what its live neighbours have for it. A dropped token, zero in the restored map,
costs nothing: at 89 of 256 tokens that is a third of the products, and restoring is a table look-up (`place`).
Batch norms are folded into the convolutions by `fold_batch_norm`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .linear import Tiles
from .overlap import await_producer, launch_options

TOWERS = 3  # score, offset, size
TAPS = 9
WIDEST_MAP = 2  # outputs of a tower; the score tower leaves its second one unused
SCORE_MARGIN = 1e-4


def fold_batch_norm(
    weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """A convolution [F, C, 3, 3] and the batch norm behind it as one convolution, in float64."""
    scale = gamma.double() / (variance.double() + eps).sqrt()
    return weight.double() * scale[:, None, None, None], (bias.double() - mean.double()) * scale + beta.double()


@triton.jit
def _relu(value):
    """relu that lets NaN through: an overflow must not look like a quiet cell."""
    return tl.where(value <= 0.0, 0.0, value)


@triton.jit
def _gather_taps_kernel(
    products_ptr,  # [S, B, live, 9 * F]
    place_ptr,  # [S, B, grid * grid] int32: row of a cell's token in its sequence, -1 where it was dropped
    bias_ptr,  # [F] float32
    out_ptr,  # [B, grid * grid, F]
    targets,
    live,
    template,
    grid,
    F,
    BRANCHES: tl.constexpr,
    CELLS: tl.constexpr,
    WIDTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Some cells and features of one target."""
    await_producer(OVERLAP)
    tile, part, target = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    cell = tile * CELLS + tl.arange(0, CELLS)
    feature = part * WIDTH + tl.arange(0, WIDTH)
    ok_cell, ok_feature = cell < grid * grid, feature < F
    row, column = cell // grid, cell % grid
    acc = tl.zeros((CELLS, WIDTH), tl.float32) + tl.load(bias_ptr + feature, mask=ok_feature, other=0.0)[None, :]
    for branch in tl.static_range(BRANCHES):
        sequence = branch * targets + target
        for tap in tl.static_range(9):
            r, c = row + (tap // 3 - 1), column + (tap % 3 - 1)
            inside = ok_cell & (r >= 0) & (r < grid) & (c >= 0) & (c < grid)
            place = tl.load(place_ptr + sequence * grid * grid + r * grid + c, mask=inside, other=-1)
            alive = inside & (place >= 0)
            at = (sequence.to(tl.int64) * live + (place - template)) * (9 * F) + tap * F
            mask = alive[:, None] & ok_feature[None, :]
            acc += tl.load(products_ptr + at[:, None] + feature[None, :], mask=mask, other=0.0).to(tl.float32)
    out_at = (target.to(tl.int64) * grid * grid + cell)[:, None] * F + feature[None, :]
    tl.store(out_ptr + out_at, _relu(acc).to(out_ptr.dtype.element_ty), mask=ok_cell[:, None] & ok_feature[None, :])


def gather_taps(
    products: Tensor,
    place: Tensor,
    bias: Tensor,
    *,
    template_tokens: int,
    out: Tensor | None = None,
    tile_cells: int = 16,
    tile_features: int = 128,
    warps: int = 4,
    overlap: bool = False,
) -> Tensor:
    """The first convolution's sum over taps and branches, its bias and relu.

    Args:
        products: every live search token times the weights of every tap [S, B, live, 9 * F].
        place: row of every cell's token in its sequence, template rows counted; -1 where dropped [S, B, cells] int32.
        bias: [F] float32.
        template_tokens: rows of the sequence that `products` leaves out.
        out: written to, [B, cells, F]; made if None.
        tile_cells, tile_features, warps: size of one program's work.
        overlap: see overlap.py.
    """
    branches, targets, live, columns = products.shape
    cells, features = place.shape[2], columns // TAPS
    grid = round(cells**0.5)
    if place.shape != (branches, targets, grid * grid) or place.dtype != torch.int32:
        raise ValueError(f"place is {place.dtype} {tuple(place.shape)}: expected int32 {(branches, targets, 'g * g')}")
    if columns != TAPS * features or bias.shape != (features,):
        raise ValueError(f"products have {columns} columns and bias {tuple(bias.shape)}: expected 9 F and F")
    if out is None:
        out = torch.empty(targets, cells, features, dtype=products.dtype, device=products.device)
    if out.shape != (targets, cells, features) or not out.is_contiguous():
        raise ValueError(f"out is {tuple(out.shape)}: expected contiguous {(targets, cells, features)}")
    # One program per tile of cells and features of a target.
    _gather_taps_kernel[(triton.cdiv(cells, tile_cells), triton.cdiv(features, tile_features), targets)](
        products,
        place,
        bias,
        out,
        targets,
        live,
        template_tokens,
        grid,
        features,
        BRANCHES=branches,
        CELLS=tile_cells,
        WIDTH=tile_features,
        OVERLAP=overlap,
        num_warps=warps,
        **launch_options(overlap=overlap),
    )
    return out


@triton.jit
def _convolution_kernel(
    x_ptr,  # [B, grid * grid, TOWERS * C]
    weight_ptr,  # [TOWERS, F, 9, C]
    bias_ptr,  # [TOWERS, F] float32
    out_ptr,  # [B, grid * grid, TOWERS * F], without LAST
    last_weight_ptr,  # [TOWERS, 2, F] float32, with LAST
    last_bias_ptr,  # [TOWERS, 2] float32, with LAST
    maps_ptr,  # [B, TOWERS, 2, grid * grid] float32, with LAST
    grid,
    C,
    F,
    margin,
    LAST: tl.constexpr,
    TOWERS: tl.constexpr,
    COLUMN_TILES: tl.constexpr,
    CELLS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Some cells and features of one tower and target."""
    await_producer(OVERLAP)
    tile, tower, target = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    cell = tile // COLUMN_TILES * CELLS + tl.arange(0, CELLS)
    feature = tile % COLUMN_TILES * COLUMNS + tl.arange(0, COLUMNS)
    cells = grid * grid
    ok_cell, ok_feature = cell < cells, feature < F
    row, column = cell // grid, cell % grid
    image = target.to(tl.int64) * cells
    acc = tl.zeros((CELLS, COLUMNS), tl.float32)
    parts = tl.cdiv(C, DEPTH)
    for step in range(9 * parts):
        tap, part = step // parts, step % parts
        r, c = row + (tap // 3 - 1), column + (tap % 3 - 1)
        inside = ok_cell & (r >= 0) & (r < grid) & (c >= 0) & (c < grid)
        channel = part * DEPTH + tl.arange(0, DEPTH)
        ok_channel = channel < C
        x_at = (image + r * grid + c)[:, None] * (TOWERS * C) + tower * C + channel[None, :]
        a = tl.load(x_ptr + x_at, mask=inside[:, None] & ok_channel[None, :], other=0.0)
        w_at = ((tower * F + feature[None, :]) * 9 + tap) * C + channel[:, None]
        w = tl.load(weight_ptr + w_at, mask=ok_feature[None, :] & ok_channel[:, None], other=0.0)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    acc += tl.load(bias_ptr + tower * F + feature, mask=ok_feature, other=0.0)[None, :]
    value = _relu(acc)
    if LAST:
        for output in tl.static_range(2):
            at = tower * 2 + output
            last = tl.load(last_weight_ptr + at * F + feature, mask=ok_feature, other=0.0)
            answer = tl.sum(tl.where(ok_feature[None, :], value * last[None, :], 0.0), 1)
            answer += tl.load(last_bias_ptr + at)
            if tower != 1:  # score and size; an offset is as it is
                chance = 1.0 / (1.0 + tl.exp(-answer))
                bounded = tl.minimum(tl.maximum(chance, margin), 1.0 - margin)
                answer = tl.where(chance != chance, chance, bounded)  # NaN stays visible
            tl.store(
                maps_ptr + ((target.to(tl.int64) * TOWERS + tower) * 2 + output) * cells + cell, answer, mask=ok_cell
            )
    else:
        out_at = (image + cell)[:, None] * (TOWERS * F) + tower * F + feature[None, :]
        tl.store(out_ptr + out_at, value.to(out_ptr.dtype.element_ty), mask=ok_cell[:, None] & ok_feature[None, :])


def _check_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    towers, features, taps, channels = weight.shape
    if x.dim() != 3 or x.shape[2] != towers * channels or taps != TAPS or towers != TOWERS:
        raise ValueError(
            f"x is {tuple(x.shape)} and weight {tuple(weight.shape)}: expected [B, cells, 3 C], [3, F, 9, C]"
        )
    if bias.shape != (towers, features) or weight.dtype != x.dtype or bias.dtype != torch.float32:
        raise ValueError(f"bias is {bias.dtype} {tuple(bias.shape)}: expected float32 {(towers, features)}")
    if not (x.is_contiguous() and weight.is_contiguous()):
        raise ValueError("x and weight must be contiguous")


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    out: Tensor | None = None,
    tiles: Tiles | None = None,
    tf32: bool = False,
    overlap: bool = False,
) -> Tensor:
    """A 3x3 convolution with relu in each of the three towers.

    Args:
        x: channels of the towers side by side [B, cells, 3 * C].
        weight: [3, F, 9, C] in the type of x; taps row by row.
        bias: [3, F] float32.
        out: written to, [B, cells, 3 * F]; made if None.
        tiles: sizes of one program's work; rows are cells.
        tf32: let float32 products round their factors to tf32.
        overlap: see overlap.py.
    """
    tiles = tiles or Tiles(columns=32)
    _check_convolution(x, weight, bias)
    targets, cells, _ = x.shape
    _, features, _, channels = weight.shape
    if out is None:
        out = torch.empty(targets, cells, TOWERS * features, dtype=x.dtype, device=x.device)
    if out.shape != (targets, cells, TOWERS * features) or not out.is_contiguous():
        raise ValueError(f"out is {tuple(out.shape)}: expected contiguous {(targets, cells, TOWERS * features)}")
    column_tiles = triton.cdiv(features, tiles.columns)
    # One program per tile of cells and features, tower and target.
    _convolution_kernel[(triton.cdiv(cells, tiles.rows) * column_tiles, TOWERS, targets)](
        x, weight, bias, out, bias, bias, bias, round(cells**0.5), channels, features, SCORE_MARGIN,
        LAST=False, TOWERS=TOWERS, COLUMN_TILES=column_tiles, CELLS=tiles.rows, COLUMNS=tiles.columns,
        DEPTH=tiles.depth, PRECISION="tf32" if tf32 else "ieee", OVERLAP=overlap, num_warps=tiles.warps,
        num_stages=tiles.stages, **launch_options(overlap=overlap),
    )  # fmt: skip
    return out


def last_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    map_weight: Tensor,
    map_bias: Tensor,
    *,
    maps: Tensor | None = None,
    tiles: Tiles | None = None,
    tf32: bool = False,
    overlap: bool = False,
) -> Tensor:
    """The last 3x3 convolution of each tower and, in its epilogue, the 1x1 convolution to the maps.

    Args:
        x, weight, bias: as for `convolution`.
        map_weight: [3, 2, F] float32, towers score (second output zero), offset, size.
        map_bias: [3, 2] float32.
        maps: written to, [B, 3, 2, cells] float32; made if None.
        tiles: rows are cells; all features are in one tile.
        tf32: let float32 products round their factors to tf32.
        overlap: see overlap.py.

    Returns:
        `maps`; score and size clamped to [1e-4, 1 - 1e-4].
    """
    tiles = tiles or Tiles(rows=32)
    _check_convolution(x, weight, bias)
    targets, cells, _ = x.shape
    _, features, _, channels = weight.shape
    if map_weight.shape != (TOWERS, WIDEST_MAP, features) or map_bias.shape != (TOWERS, WIDEST_MAP):
        raise ValueError(f"map_weight is {tuple(map_weight.shape)}: expected {(TOWERS, WIDEST_MAP, features)}")
    if maps is None:
        maps = torch.empty(targets, TOWERS, WIDEST_MAP, cells, dtype=torch.float32, device=x.device)
    if maps.shape != (targets, TOWERS, WIDEST_MAP, cells) or not maps.is_contiguous() or maps.dtype != torch.float32:
        raise ValueError(f"maps is {tuple(maps.shape)}: expected float32 {(targets, TOWERS, WIDEST_MAP, cells)}")
    # One program per tile of cells, tower and target.
    _convolution_kernel[(triton.cdiv(cells, tiles.rows), TOWERS, targets)](
        x, weight, bias, x, map_weight, map_bias, maps, round(cells**0.5), channels, features, SCORE_MARGIN,
        LAST=True, TOWERS=TOWERS, COLUMN_TILES=1, CELLS=tiles.rows,
        COLUMNS=max(16, triton.next_power_of_2(features)), DEPTH=tiles.depth,
        PRECISION="tf32" if tf32 else "ieee", OVERLAP=overlap, num_warps=tiles.warps,
        num_stages=tiles.stages, **launch_options(overlap=overlap),
    )  # fmt: skip
    return maps
