"""The centre head: three towers of convolutions on the search tokens of both branches.

With x[s, b, n] the tokens after the last block, LN the branch's final norm, and [r, c] a cell of the search grid:

    y1[b, r, c] = relu(bias + sum over s, tap of live(s, b, cell) * LN(x[s, b, token(s, b, cell)]) @ W[s, tap]^T)
    y2 .. y4    = relu(bias + sum over tap of y[b, cell] @ W[tower, tap]^T)                         cell = (r, c) + tap
    maps        = y4 @ W5[tower]^T + bias      clamp(sigmoid(.), 1e-4, 1 - 1e-4) for score and size

The first convolutions of the three towers read the same input, so they are one. It is turned around: a linear layer
(linear.py, with the final norm folded in) multiplies each live token once with the weights of all nine taps; then
`sum_taps` adds, for each cell, the products of its live neighbours. A dropped token, zero in the restored map, costs
nothing: with 89 of 256 tokens a third of the products is left. Restoring is a look-up in `token_of_cell`.
Batch norms are folded into the convolutions by `fold_batch_norm`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import (
    SETTINGS,
    KernelName,
    Launch,
    LaunchSettings,
    Operation,
    Room,
    TileRequest,
    check,
    dtype_name,
    fresh_room,
)
from .layout import OFFSET_TOWER
from .linear import PlainLayer
from .overlap import await_producer

TOWERS = 3  # score, offset, size
TAPS = 9
WIDEST_MAP = 2  # outputs of a tower; the score tower does not use its second one
SCORE_MARGIN = 1e-4


def fold_batch_norm(
    weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """A convolution [F, C, 3, 3] and the batch norm after it as one convolution, in float64."""
    scale = gamma.double() / (variance.double() + eps).sqrt()
    return weight.double() * scale[:, None, None, None], (bias.double() - mean.double()) * scale + beta.double()


@triton.jit
def _relu(value):
    """relu that lets NaN through: an overflow must not look like a quiet cell."""
    return tl.where(value <= 0.0, 0.0, value)


@triton.jit
def _sum_taps_kernel(
    products_ptr,  # [S, B, live, 9 * F]
    token_of_cell_ptr,  # [S, B, grid_side * grid_side] int32: a cell's token in its sequence, -1 where it was dropped
    bias_ptr,  # [F] float32
    out_ptr,  # [B, grid_side * grid_side, F]
    targets,  # B
    live,  # search tokens that were not dropped
    template,  # tokens of the sequence that `products` leaves out
    grid_side,  # cells along a side
    F,  # features of all towers
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
    ok_cell, ok_feature = cell < grid_side * grid_side, feature < F
    row, column = cell // grid_side, cell % grid_side
    acc = tl.zeros((CELLS, WIDTH), tl.float32) + tl.load(bias_ptr + feature, mask=ok_feature, other=0.0)[None, :]
    for branch in tl.static_range(BRANCHES):
        sequence = branch * targets + target
        for tap in tl.static_range(9):
            r, c = row + (tap // 3 - 1), column + (tap % 3 - 1)
            inside = ok_cell & (r >= 0) & (r < grid_side) & (c >= 0) & (c < grid_side)
            token = tl.load(
                token_of_cell_ptr + sequence * grid_side * grid_side + r * grid_side + c, mask=inside, other=-1
            )
            alive = inside & (token >= 0)
            at = (sequence.to(tl.int64) * live + (token - template)) * (9 * F) + tap * F
            mask = alive[:, None] & ok_feature[None, :]
            acc += tl.load(products_ptr + at[:, None] + feature[None, :], mask=mask, other=0.0).to(tl.float32)
    out_at = (target.to(tl.int64) * grid_side * grid_side + cell)[:, None] * F + feature[None, :]
    tl.store(out_ptr + out_at, _relu(acc).to(out_ptr.dtype.element_ty), mask=ok_cell[:, None] & ok_feature[None, :])


def sum_taps(
    products: Tensor,
    token_of_cell: Tensor,
    bias: Tensor,
    *,
    template_tokens: int,
    room: Room | None = None,
    settings: LaunchSettings = SETTINGS,
) -> Operation[Tensor]:
    """The first convolution's sum over taps and branches, its bias and relu: [B, cells, F].

    Args:
        products: each live search token times the weights of each tap [S, B, live, 9 * F].
        token_of_cell: for each cell its token in the sequence, template included; -1 if dropped [S, B, cells] int32.
        bias: [F] float32.
        template_tokens: tokens of the sequence that `products` leaves out.
        room: for "cells".
        settings: of all launches.
    """
    branches, targets, live, columns = products.shape
    cells, features = token_of_cell.shape[2], columns // TAPS
    grid = round(cells**0.5)
    check("token_of_cell", token_of_cell, torch.int32, (branches, targets, grid * grid))
    if columns != TAPS * features or bias.shape != (features,):
        raise ValueError(f"products have {columns} columns and bias {tuple(bias.shape)}: expected 9 F and F")
    out = (room or fresh_room(products.device))("cells", (targets, cells, features), products.dtype)
    request = TileRequest("tap_sum", dtype_name(products.dtype), targets, cells, features, branches * TAPS)
    choice = settings.choose(request)
    tiles = choice.tiles
    launch = Launch(
        name="tap_sum",
        what=f"{live} tokens to {cells} cells of {features}",
        kernel=_sum_taps_kernel,
        # One program per tile of cells and features of a target.
        grid=(triton.cdiv(cells, tiles.rows), triton.cdiv(features, tiles.columns), targets),
        arguments={
            "products_ptr": products, "token_of_cell_ptr": token_of_cell, "bias_ptr": bias, "out_ptr": out,
            "targets": targets, "live": live, "template": template_tokens, "grid_side": grid, "F": features,
            "BRANCHES": branches, "CELLS": tiles.rows, "WIDTH": tiles.columns, "OVERLAP": settings.overlap,
        },
        options={"num_warps": tiles.warps, **settings.options},
        reads=(products, token_of_cell, bias),
        writes=(out,),
        flops=float(targets * cells * features * branches * TAPS),
        request=request,
        choice=choice,
    )  # fmt: skip
    return Operation(out, (launch,))


@triton.jit
def _convolution_kernel(
    x_ptr,  # [B, grid_side * grid_side, TOWERS * C]
    weight_ptr,  # [TOWERS, F, 9, C]
    bias_ptr,  # [TOWERS, F] float32
    out_ptr,  # [B, grid_side * grid_side, TOWERS * F], without LAST
    last_weight_ptr,  # [TOWERS, 2, F] float32, with LAST
    last_bias_ptr,  # [TOWERS, 2] float32, with LAST
    maps_ptr,  # [B, TOWERS, 2, grid_side * grid_side] float32, with LAST
    grid_side,  # cells along a side
    C,  # channels in, of one tower
    F,  # channels out, of one tower
    margin,  # that score and size keep from 0 and 1
    LAST: tl.constexpr,  # the maps' 1x1 convolution follows in the epilogue
    TOWERS: tl.constexpr,
    COLUMN_TILES: tl.constexpr,  # tiles across F
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
    cells = grid_side * grid_side
    ok_cell, ok_feature = cell < cells, feature < F
    row, column = cell // grid_side, cell % grid_side
    image = target.to(tl.int64) * cells
    acc = tl.zeros((CELLS, COLUMNS), tl.float32)
    parts = tl.cdiv(C, DEPTH)
    for step in range(9 * parts):
        tap, part = step // parts, step % parts
        r, c = row + (tap // 3 - 1), column + (tap % 3 - 1)
        inside = ok_cell & (r >= 0) & (r < grid_side) & (c >= 0) & (c < grid_side)
        channel = part * DEPTH + tl.arange(0, DEPTH)
        ok_channel = channel < C
        x_at = (image + r * grid_side + c)[:, None] * (TOWERS * C) + tower * C + channel[None, :]
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
            if tower != OFFSET_TOWER:  # an offset is as it is
                chance = 1.0 / (1.0 + tl.exp(-answer))
                bounded = tl.minimum(tl.maximum(chance, margin), 1.0 - margin)
                answer = tl.where(chance != chance, chance, bounded)  # NaN stays NaN
            tl.store(
                maps_ptr + ((target.to(tl.int64) * TOWERS + tower) * 2 + output) * cells + cell, answer, mask=ok_cell
            )
    else:
        out_at = (image + cell)[:, None] * (TOWERS * F) + tower * F + feature[None, :]
        tl.store(out_ptr + out_at, value.to(out_ptr.dtype.element_ty), mask=ok_cell[:, None] & ok_feature[None, :])


def _plan_convolution(
    kernel: KernelName, x: Tensor, layer: PlainLayer, out: Tensor, maps: PlainLayer | None, settings: LaunchSettings
) -> Launch:
    """A launch of the kernel; with `maps` it ends in the maps."""
    weight, bias = layer.weight, layer.bias
    targets, cells, _ = x.shape
    _, features, _, channels = weight.shape
    request = TileRequest(kernel, dtype_name(x.dtype), TOWERS * targets, cells, features, TAPS * channels)
    choice = settings.choose(request)
    tiles = choice.tiles
    columns = tiles.columns if maps is None else max(16, triton.next_power_of_2(features))
    column_tiles = triton.cdiv(features, columns)
    more = () if maps is None else (maps.weight, maps.bias)
    return Launch(
        name=kernel,
        what=f"{channels} to {features}" + (", maps" if maps else ""),
        kernel=_convolution_kernel,
        # One program per tile of cells and features, tower and target.
        grid=(triton.cdiv(cells, tiles.rows) * column_tiles, TOWERS, targets),
        arguments={
            "x_ptr": x,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "out_ptr": x if maps else out,
            "last_weight_ptr": maps.weight if maps else bias,
            "last_bias_ptr": maps.bias if maps else bias,
            "maps_ptr": out if maps else bias,
            "grid_side": round(cells**0.5),
            "C": channels,
            "F": features,
            "margin": SCORE_MARGIN,
            "LAST": maps is not None,
            "TOWERS": TOWERS,
            "COLUMN_TILES": column_tiles,
            "CELLS": tiles.rows,
            "COLUMNS": columns,
            "DEPTH": tiles.depth,
            "PRECISION": settings.precision,
            "OVERLAP": settings.overlap,
        },
        options={"num_warps": tiles.warps, "num_stages": tiles.stages, **settings.options},
        reads=(x, weight, bias, *more),
        writes=(out,),
        flops=request.products,
        request=request,
        choice=choice,
    )


def _check_convolution(x: Tensor, layer: PlainLayer) -> None:
    weight, bias = layer.weight, layer.bias
    towers, features, taps, channels = weight.shape
    if x.dim() != 3 or x.shape[2] != towers * channels or taps != TAPS or towers != TOWERS:
        raise ValueError(
            f"x is {tuple(x.shape)} and weight {tuple(weight.shape)}: expected [B, cells, 3 C], [3, F, 9, C]"
        )
    if weight.dtype != x.dtype:
        raise TypeError(f"weight is {weight.dtype}: expected {x.dtype}, the type of x")
    check("bias", bias, torch.float32, (towers, features))
    if not (x.is_contiguous() and weight.is_contiguous()):
        raise ValueError("x and weight must be contiguous")


def convolution(
    x: Tensor, layer: PlainLayer, *, room: Room | None = None, settings: LaunchSettings = SETTINGS
) -> Operation[Tensor]:
    """A 3x3 convolution with relu in each of the three towers: [B, cells, 3 * F].

    Args:
        x: channels of the towers side by side [B, cells, 3 * C].
        layer: weight [3, F, 9, C] in the type of x, taps row by row; bias [3, F] float32.
        room: for "cells".
        settings: of all launches.
    """
    _check_convolution(x, layer)
    out = (room or fresh_room(x.device))("cells", (*x.shape[:2], TOWERS * layer.weight.shape[1]), x.dtype)
    return Operation(out, (_plan_convolution("convolution", x, layer, out, None, settings),))


def last_convolution(
    x: Tensor, layer: PlainLayer, maps: PlainLayer, *, room: Room | None = None, settings: LaunchSettings = SETTINGS
) -> Operation[Tensor]:
    """The last 3x3 convolution of each tower and, in its epilogue, the 1x1 convolution to the maps.

    Args:
        x, layer: as for `convolution`.
        maps: weight [3, 2, F] and bias [3, 2] float32, towers score (second output zero), offset, size.
        room: for "maps".
        settings: of all launches; in the tiles rows are cells, and all features are in one tile.

    Returns:
        Maps [B, 3, 2, cells] float32; score and size clamped to [1e-4, 1 - 1e-4].
    """
    _check_convolution(x, layer)
    check("maps.weight", maps.weight, torch.float32, (TOWERS, WIDEST_MAP, layer.weight.shape[1]))
    check("maps.bias", maps.bias, torch.float32, (TOWERS, WIDEST_MAP))
    out = (room or fresh_room(x.device))("maps", (x.shape[0], TOWERS, WIDEST_MAP, x.shape[1]), torch.float32)
    return Operation(out, (_plan_convolution("last_convolution", x, layer, out, maps, settings),))
