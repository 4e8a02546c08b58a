"""From raw frames to the patches of all crops: both modalities and all targets in one launch.

For modality s, target b and a crop's pixel (i, j):

    window  = a square of side ceil(sqrt(w h) factor) around the centre of the target's box
    u       = the visible frame, or the thermal one laid on its grid, [H, W, 3] of 8 bits
    v[i, j] = u cut to the window, zero outside the frame, resized bilinearly to size x size, 8 bits
    out[s, b, token of (i, j), place of (i, j) in the patch] = (v[i, j] - 128) / 128

u is never in memory: each pixel of it is computed from the raw frame where a crop needs it. The values of a patch are
in the order of a convolution's flattened weight [C, 3, patch, patch], so the patch embedding is a plain product. The
values (v - 128) / 128 are exact in 16 bits too; mean and deviation of the normalisation are folded into the weights.

Every v equals the host's. OpenCV resizes 8 bits in integers: along each axis, output d of D from n pixels lies at

    t = float32((d + 0.5) * (1 / (D / n)) - 0.5),   pixels floor(t) and floor(t) + 1,   weights in units of 1 / 2048

and the vertical sum drops four bits before its product, sixteen after it, then two with rounding. A homography is
applied in float32 with fused multiply-adds, as OpenCV 5 does on processors that have them. There the thermal values are
bit-identical too, except in the last (W mod vector length) columns of the visible grid, which OpenCV computes in
another order. Those, and the values of other processors, differ by at most one of 255 levels, in about one pixel of a
thousand.

Positions are computed in float64 in the order of the host's operations, without contraction (`enable_fp_fusion=False`),
because one other rounding could move a whole window by a pixel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import SETTINGS, Launch, LaunchSettings, Operation, Room, TileRequest, check, dtype_name, fresh_room
from .layout import (
    CARRY,
    COLUMNS,
    FACTOR,
    GEOMETRY,
    HEIGHT,
    HIGH,
    INVERSE,
    LOW,
    ORIGIN_COLUMN,
    ORIGIN_ROW,
    POOL_ROW,
    REQUEST,
    ROWS,
    STATE,
    WIDTH,
    H,
    Uploaded,
    W,
    X,
    Y,
)

# A missing modality shows the mean colour, which becomes zero when the input is normalised.
_RED, _GREEN, _BLUE = (tl.constexpr((255 * mean - 128) / 128) for mean in (0.485, 0.456, 0.406))


@triton.jit
def _half_even(value):
    """The nearest whole number; the even one if two are equally near."""
    whole = tl.floor(value)
    rest = value - whole
    odd = whole - 2 * tl.floor(whole * 0.5)
    return tl.where((rest > 0.5) | ((rest == 0.5) & (odd == 1)), whole + 1, whole)


@triton.jit
def target_state(requests_ptr, state_ptr, target):
    """Box x, y, w, h and factor of a target (float64): from its last search on the device, or from the host."""
    request = requests_ptr + target * REQUEST
    pool_row = tl.load(request + POOL_ROW).to(tl.int32)
    carried = (tl.load(request + CARRY) != 0) & (pool_row >= 0)
    state = state_ptr + pool_row * STATE
    x = tl.where(carried, tl.load(state + X, mask=carried, other=0.0), tl.load(request + X))
    y = tl.where(carried, tl.load(state + Y, mask=carried, other=0.0), tl.load(request + Y))
    w = tl.where(carried, tl.load(state + W, mask=carried, other=0.0), tl.load(request + W))
    h = tl.where(carried, tl.load(state + H, mask=carried, other=0.0), tl.load(request + H))
    factor = tl.where(carried, tl.load(state + FACTOR, mask=carried, other=0.0), tl.load(request + FACTOR))
    return x, y, w, h, factor


@triton.jit
def window_of(x, y, w, h, factor):
    """The square around a box: left, top, side (int32); side 1 where the box is empty or not finite."""
    area = w * h
    side = tl.ceil(tl.sqrt(tl.where(area > 0, area, 0.0)) * factor)
    # A box that is not finite must not become an undefined integer. Frames are far smaller than the bounds.
    side = tl.where((side >= 1.0) & (side < 1e9), side, 1.0)
    left, top = x + 0.5 * w - 0.5 * side, y + 0.5 * h - 0.5 * side
    left = _half_even(tl.where((left > -1e9) & (left < 1e9), left, -1e9))
    top = _half_even(tl.where((top > -1e9) & (top < 1e9), top, -1e9))
    return left.to(tl.int32), top.to(tl.int32), side.to(tl.int32)


@triton.jit
def _taps(position, size, source, HORIZONTAL: tl.constexpr):
    """Along an axis: the two pixels of `source` that the output at `position` of `size` mixes, and their weights."""
    scale = 1.0 / (size.to(tl.float64) / source.to(tl.float64))
    at = ((position.to(tl.float64) + 0.5) * scale - 0.5).to(tl.float32)
    whole = tl.floor(at)
    part = at - whole
    low = whole.to(tl.int32)
    if HORIZONTAL:
        # Beyond the first and last column OpenCV takes one pixel; beyond the first and last row, the same one twice.
        part = tl.where((low < 0) | (low >= source - 1), 0.0, part)
    weight_low = _half_even((1.0 - part) * 2048.0).to(tl.int32)
    weight_high = _half_even(part * 2048.0).to(tl.int32)
    high = tl.minimum(tl.maximum(low + 1, 0), source - 1)
    return tl.minimum(tl.maximum(low, 0), source - 1), high, weight_low, weight_high


@triton.jit
def _window_taps(position, size, start, side, length, HORIZONTAL: tl.constexpr):
    """Along an axis: the two pixels of the visible grid that a crop's row or column mixes, -1 for black; weights."""
    end = start + side
    before = tl.maximum(-start, 0)
    after = tl.maximum(end - length + 1, 0)  # the authors drop the last pixel once the window reaches past it
    first = tl.maximum(start, 0)
    stop = end - after
    stop = tl.where(stop < 0, tl.maximum(stop + length, 0), stop)  # as a negative end of a slice does in Python
    count = tl.maximum(stop - first, 0)
    low, high, weight_low, weight_high = _taps(position, size, before + count + after, HORIZONTAL)
    low, high = low - before, high - before
    low = tl.where((low >= 0) & (low < count), first + low, -1)
    high = tl.where((high >= 0) & (high < count), first + high, -1)
    return low, high, weight_low, weight_high


@triton.jit
def _resized(p00, p01, p10, p11, left, right, upper, lower):
    """A pixel of a resized image from four pixels (int32) and the weights of its columns and rows."""
    above = (p00 * left + p01 * right) >> 4
    below = (p10 * left + p11 * right) >> 4
    return (((upper * above) >> 16) + ((lower * below) >> 16) + 2) >> 2


@triton.jit
def _store(out_ptr, at, value, ok):
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=ok)


@triton.jit
def _levels(value, span, WIDE: tl.constexpr):
    """A raw value in 8 bits (int32); `span` holds the 16-bit values that become 0 and 255."""
    value = value.to(tl.int32)
    if WIDE:
        low, high = span
        value = ((tl.minimum(tl.maximum(value, low), high) - low) * 510 + (high - low)) // (2 * (high - low))
    return value


@triton.jit
def _raw(
    frame_ptr, row, column, ok, rectangle, span, CHANNELS: tl.constexpr, FLIPPED: tl.constexpr, WIDE: tl.constexpr
):
    """Red, green and blue of the raw frame, zero where the rectangle has no pixel; rows and columns broadcast."""
    origin_row, origin_column, rows, columns = rectangle
    row, column = row - origin_row, column - origin_column
    ok = ok & ((row >= 0) & (row < rows)) & ((column >= 0) & (column < columns))
    at = frame_ptr + (row * (columns * CHANNELS) + column * CHANNELS)
    first = _levels(tl.load(at, mask=ok, other=0), span, WIDE)
    second, third = first, first
    if CHANNELS == 3:
        second = _levels(tl.load(at + 1, mask=ok, other=0), span, WIDE)
        third = _levels(tl.load(at + 2, mask=ok, other=0), span, WIDE)
    if FLIPPED:
        first, third = third, first
    return first, second, third


@triton.jit
def _scaled(
    frame_ptr, row, column, visible, thermal, rectangle, span,
    CHANNELS: tl.constexpr, FLIPPED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Pixels of a frame that is resized to the visible grid, zero where row or column is -1."""
    ok = (row >= 0) & (column >= 0)
    top, bottom, upper, lower = _taps(row, visible[0], thermal[0], HORIZONTAL=False)
    west, east, left, right = _taps(column, visible[1], thermal[1], HORIZONTAL=True)
    r00, g00, b00 = _raw(frame_ptr, top, west, ok, rectangle, span, CHANNELS, FLIPPED, WIDE)
    r01, g01, b01 = _raw(frame_ptr, top, east, ok, rectangle, span, CHANNELS, FLIPPED, WIDE)
    r10, g10, b10 = _raw(frame_ptr, bottom, west, ok, rectangle, span, CHANNELS, FLIPPED, WIDE)
    r11, g11, b11 = _raw(frame_ptr, bottom, east, ok, rectangle, span, CHANNELS, FLIPPED, WIDE)
    return (
        _resized(r00, r01, r10, r11, left, right, upper, lower),
        _resized(g00, g01, g10, g11, left, right, upper, lower),
        _resized(b00, b01, b10, b11, left, right, upper, lower),
    )


@triton.jit
def _between(p00, p01, p10, p11, x, y):
    """A pixel between four pixels (int32), in float32."""
    p00, p10 = p00.to(tl.float32), p10.to(tl.float32)
    above = tl.math.fma(x, p01.to(tl.float32) - p00, p00)
    below = tl.math.fma(x, p11.to(tl.float32) - p10, p10)
    return _half_even(tl.math.fma(y, below - above, above)).to(tl.int32)


@triton.jit
def _warped(
    frame_ptr, row, column, thermal, inverse, rectangle, span,
    CHANNELS: tl.constexpr, FLIPPED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Pixels of a frame that is warped onto the visible grid, zero outside it and where row or column is -1."""
    x, y = column.to(tl.float32), row.to(tl.float32)
    depth = tl.math.fma(x, inverse[6], y * inverse[7] + inverse[8])
    seen = (row >= 0) & (column >= 0) & (depth != 0)
    depth = tl.where(seen, depth, 1.0)
    x, y = (
        tl.math.div_rn(tl.math.fma(x, inverse[0], y * inverse[1] + inverse[2]), depth),
        tl.math.div_rn(tl.math.fma(x, inverse[3], y * inverse[4] + inverse[5]), depth),
    )
    # Bounded while they are floats: far outside, they fit no integer.
    seen = seen & (y >= -1.0) & (y < thermal[0]) & (x >= -1.0) & (x < thermal[1])
    x, y = tl.where(seen, x, 0.0), tl.where(seen, y, 0.0)
    west, top = tl.floor(x), tl.floor(y)
    x, y = x - west, y - top
    c, r = west.to(tl.int32), top.to(tl.int32)
    r00, g00, b00 = _raw(frame_ptr, r, c, seen, rectangle, span, CHANNELS, FLIPPED, WIDE)
    r01, g01, b01 = _raw(frame_ptr, r, c + 1, seen, rectangle, span, CHANNELS, FLIPPED, WIDE)
    r10, g10, b10 = _raw(frame_ptr, r + 1, c, seen, rectangle, span, CHANNELS, FLIPPED, WIDE)
    r11, g11, b11 = _raw(frame_ptr, r + 1, c + 1, seen, rectangle, span, CHANNELS, FLIPPED, WIDE)
    return (
        _between(r00, r01, r10, r11, x, y),
        _between(g00, g01, g10, g11, x, y),
        _between(b00, b01, b10, b11, x, y),
    )


@triton.jit
def _registered(
    frame_ptr, row, column, visible, thermal, inverse, rectangle, span,
    CHANNELS: tl.constexpr, FLIPPED: tl.constexpr, WIDE: tl.constexpr, MAP: tl.constexpr,
):  # fmt: skip
    """Red, green and blue (int32, 0..255) at places of the visible grid, rows [R, 1] and columns [1, C], -1: black."""
    if MAP == "same":
        ok = (row >= 0) & (column >= 0)
        red, green, blue = _raw(frame_ptr, row, column, ok, rectangle, span, CHANNELS, FLIPPED, WIDE)
    elif MAP == "scaled":
        red, green, blue = _scaled(frame_ptr, row, column, visible, thermal, rectangle, span, CHANNELS, FLIPPED, WIDE)
    else:
        red, green, blue = _warped(frame_ptr, row, column, thermal, inverse, rectangle, span, CHANNELS, FLIPPED, WIDE)
    return red, green, blue


@triton.jit
def _crop_one(
    frame_ptr, geometry, visible, left, top, side, row, column, out_ptr, out_at, ok,
    SIZE: tl.constexpr, PATCH: tl.constexpr, CHANNELS: tl.constexpr, FLIPPED: tl.constexpr, WIDE: tl.constexpr,
    MAP: tl.constexpr,
):  # fmt: skip
    """A tile of one crop of one modality."""
    thermal = (tl.load(geometry + HEIGHT).to(tl.int32), tl.load(geometry + WIDTH).to(tl.int32))
    rectangle = (
        tl.load(geometry + ORIGIN_ROW).to(tl.int32),
        tl.load(geometry + ORIGIN_COLUMN).to(tl.int32),
        tl.load(geometry + ROWS).to(tl.int32),
        tl.load(geometry + COLUMNS).to(tl.int32),
    )
    span = (tl.load(geometry + LOW).to(tl.int32), tl.load(geometry + HIGH).to(tl.int32))
    inverse = (
        tl.load(geometry + INVERSE).to(tl.float32),
        tl.load(geometry + INVERSE + 1).to(tl.float32),
        tl.load(geometry + INVERSE + 2).to(tl.float32),
        tl.load(geometry + INVERSE + 3).to(tl.float32),
        tl.load(geometry + INVERSE + 4).to(tl.float32),
        tl.load(geometry + INVERSE + 5).to(tl.float32),
        tl.load(geometry + INVERSE + 6).to(tl.float32),
        tl.load(geometry + INVERSE + 7).to(tl.float32),
        tl.load(geometry + INVERSE + 8).to(tl.float32),
    )
    size = tl.full((), SIZE, tl.int32)
    r0, r1, upper, lower = _window_taps(row, size, top, side, visible[0], HORIZONTAL=False)
    c0, c1, west, east = _window_taps(column, size, left, side, visible[1], HORIZONTAL=True)
    r0, r1, upper, lower = r0[:, None], r1[:, None], upper[:, None], lower[:, None]
    c0, c1, west, east = c0[None, :], c1[None, :], west[None, :], east[None, :]
    zero = tl.zeros(ok.shape, tl.int32)
    red, green, blue = zero, zero, zero
    # One tap after the other, in loops that stay loops: all at once do not fit into the registers.
    for below in range(2):
        r, row_weight = tl.where(below == 0, r0, r1), tl.where(below == 0, upper, lower)
        row_red, row_green, row_blue = zero, zero, zero
        for beyond in range(2):
            c, weight = tl.where(beyond == 0, c0, c1), tl.where(beyond == 0, west, east)
            tap_red, tap_green, tap_blue = _registered(
                frame_ptr, r, c, visible, thermal, inverse, rectangle, span, CHANNELS, FLIPPED, WIDE, MAP
            )
            row_red += tap_red * weight
            row_green += tap_green * weight
            row_blue += tap_blue * weight
        red += (row_weight * (row_red >> 4)) >> 16
        green += (row_weight * (row_green >> 4)) >> 16
        blue += (row_weight * (row_blue >> 4)) >> 16
    red, green, blue = (red + 2) >> 2, (green + 2) >> 2, (blue + 2) >> 2
    _store(out_ptr, out_at, (red - 128).to(tl.float32) * 0.0078125, ok)
    _store(out_ptr, out_at + PATCH * PATCH, (green - 128).to(tl.float32) * 0.0078125, ok)
    _store(out_ptr, out_at + 2 * PATCH * PATCH, (blue - 128).to(tl.float32) * 0.0078125, ok)


@triton.jit
def _crop_kernel(
    rgb_ptr,  # [rows, columns, 3] uint8
    tir_ptr,  # [rows, columns, TIR_CHANNELS] uint8 or uint16
    geometry_ptr,  # [2, GEOMETRY] float64
    requests_ptr,  # [B, REQUEST] float64
    state_ptr,  # [targets in the pool, STATE] float64
    present_ptr,  # [2, B] int32
    out_ptr,  # [2, B, (SIZE / PATCH)^2, 3 * PATCH^2]
    targets,  # B
    SIZE: tl.constexpr,
    PATCH: tl.constexpr,
    RGB_FLIPPED: tl.constexpr,
    TIR_CHANNELS: tl.constexpr,
    TIR_FLIPPED: tl.constexpr,
    TIR_WIDE: tl.constexpr,
    TIR_MAP: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    COLUMN_TILES: tl.constexpr,
):
    """A tile of one crop [TILE_ROWS, TILE_COLUMNS] of one modality and target, all channels."""
    tile, which = tl.program_id(0), tl.program_id(1)
    modality, target = which // targets, which % targets
    row = tile // COLUMN_TILES * TILE_ROWS + tl.arange(0, TILE_ROWS)
    column = tile % COLUMN_TILES * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    ok = (row < SIZE)[:, None] & (column < SIZE)[None, :]
    token = (row // PATCH * (SIZE // PATCH))[:, None] + (column // PATCH)[None, :]
    inside = (row % PATCH * PATCH)[:, None] + (column % PATCH)[None, :]
    out_at = which.to(tl.int64) * (3 * SIZE * SIZE) + (token * (3 * PATCH * PATCH) + inside)
    if tl.load(present_ptr + which) == 0:
        blank = tl.zeros((TILE_ROWS, TILE_COLUMNS), tl.float32)
        _store(out_ptr, out_at, blank + _RED, ok)
        _store(out_ptr, out_at + PATCH * PATCH, blank + _GREEN, ok)
        _store(out_ptr, out_at + 2 * PATCH * PATCH, blank + _BLUE, ok)
    else:
        x, y, w, h, factor = target_state(requests_ptr, state_ptr, target)
        left, top, side = window_of(x, y, w, h, factor)
        visible = (tl.load(geometry_ptr + HEIGHT).to(tl.int32), tl.load(geometry_ptr + WIDTH).to(tl.int32))
        if modality == 0:
            _crop_one(
                rgb_ptr, geometry_ptr, visible, left, top, side, row, column, out_ptr, out_at, ok,
                SIZE, PATCH, CHANNELS=3, FLIPPED=RGB_FLIPPED, WIDE=False, MAP="same",
            )  # fmt: skip
        else:
            _crop_one(
                tir_ptr, geometry_ptr + GEOMETRY, visible, left, top, side, row, column, out_ptr, out_at, ok,
                SIZE, PATCH, CHANNELS=TIR_CHANNELS, FLIPPED=TIR_FLIPPED, WIDE=TIR_WIDE, MAP=TIR_MAP,
            )  # fmt: skip


def crop(
    uploaded: Uploaded,
    state: Tensor,
    *,
    size: int,
    patch: int,
    dtype: torch.dtype,
    room: Room | None = None,
    settings: LaunchSettings = SETTINGS,
) -> Operation[Tensor]:
    """Patches of the crops around all targets: [2, B, (size / patch)^2, 3 * patch^2].

    An empty box gives a crop of one pixel; a missing modality gives the mean image, up to rounding. Pixels outside the
    uploaded rectangle count as 0.

    Args:
        uploaded: frames and requests.
        state: of the pool [rows, STATE] float64, read by requests with CARRY.
        size: side of the crops in pixels.
        patch: side of a patch in pixels.
        dtype: of the patches, any floating type.
        room: for "patches".
        settings: of all launches; tiles are pixels, powers of two.
    """
    kind, targets = uploaded.kind, uploaded.requests.shape[0]
    if size % patch:
        raise ValueError(f"size={size}: expected a multiple of patch={patch}")
    if kind.tir_channels not in (1, 3) or kind.tir_map not in ("same", "scaled", "homography"):
        raise ValueError(f"{kind}: expected 1 or 3 channels and a map of same, scaled, homography")
    tir_dtype = torch.uint16 if kind.tir_wide else torch.uint8
    for name, frame, frame_dtype in (("rgb", uploaded.rgb, torch.uint8), ("tir", uploaded.tir, tir_dtype)):
        check(name, frame, frame_dtype, (frame.numel(),))
        if frame.numel() >= 2**31:
            raise ValueError(f"{name} has {frame.numel()} values: expected fewer than 2^31")
    check("geometry", uploaded.geometry, torch.float64, (2, GEOMETRY.value))
    check("requests", uploaded.requests, torch.float64, (targets, REQUEST.value))
    check("state", state, torch.float64, (state.shape[0], STATE.value))
    check("present", uploaded.present, torch.int32, (2, targets))
    room = room or fresh_room(state.device)
    out = room("patches", (2, targets, (size // patch) ** 2, 3 * patch * patch), dtype)
    name = dtype_name(dtype)
    request = TileRequest("crop", name, 2 * targets, size, size, kind.tir_channels)
    choice = settings.choose(request)
    tiles = choice.tiles
    column_tiles = triton.cdiv(size, tiles.columns)
    pixels = 2.0 * targets * size**2 * 3
    launch = Launch(
        name="crop",
        what=f"{size} x {size}, thermal {kind.tir_map}" + (", 16 bits" if kind.tir_wide else ""),
        kernel=_crop_kernel,
        # One program per tile of a crop and per (modality, target).
        grid=(triton.cdiv(size, tiles.rows) * column_tiles, 2 * targets),
        arguments={
            "rgb_ptr": uploaded.rgb,
            "tir_ptr": uploaded.tir,
            "geometry_ptr": uploaded.geometry,
            "requests_ptr": uploaded.requests,
            "state_ptr": state,
            "present_ptr": uploaded.present,
            "out_ptr": out,
            "targets": targets,
            "SIZE": size,
            "PATCH": patch,
            "RGB_FLIPPED": kind.rgb_flipped,
            "TIR_CHANNELS": kind.tir_channels,
            "TIR_FLIPPED": kind.tir_flipped,
            "TIR_WIDE": kind.tir_wide,
            "TIR_MAP": kind.tir_map,
            "TILE_ROWS": tiles.rows,
            "TILE_COLUMNS": tiles.columns,
            "COLUMN_TILES": column_tiles,
        },
        # The first launch of a frame waits for a copy, so there is no launch to overlap with.
        options={"num_warps": tiles.warps, "enable_fp_fusion": False},
        reads=(uploaded.rgb, uploaded.tir, uploaded.geometry, uploaded.requests, state, uploaded.present),
        writes=(out,),
        flops=pixels * 12,
        round_trips=5,  # request, state, geometry, and the arithmetic of addresses between them
        moved=pixels * (4 + out.element_size()),  # four pixels of the frame for one of a crop
        request=request,
        choice=choice,
    )
    return Operation(out, (launch,))
