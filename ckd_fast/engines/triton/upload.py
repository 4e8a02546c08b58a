"""Brings frames and requests to the device: which part of the frames is needed, and the memory that it goes through.

Functions that choose a part may overestimate, never underestimate. `tests/engines/test_upload.py` compares crops from
the part with crops from the whole frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ckd_fast.config import Homography
from ckd_fast.engines.base import Search
from ckd_fast.frames import RawPair, Size
from ckd_fast.kernels.layout import (
    CARRY,
    FACTOR,
    GEOMETRY,
    HEIGHT,
    INVERSE,
    LOST_SCALE,
    LOST_THRESHOLD,
    LOW,
    ORIGIN_ROW,
    POOL_ROW,
    REQUEST,
    FrameKind,
    Uploaded,
    X,
)
from ckd_fast.reference.preprocess import Window, crop_window

if TYPE_CHECKING:
    from ckd_fast.frames import RawFrame

MARGIN_PX = 2  # for the neighbour in bilinear mixing, and for the rounding of positions
FLATTEST = 1e-3  # if a homography's denominator is below this share of its terms, take the whole frame


@dataclass(frozen=True)
class Rectangle:
    """A part of a frame: its first row and column, and how many of each; possibly none."""

    row: int
    column: int
    rows: int
    columns: int


NOTHING = Rectangle(0, 0, 0, 0)


def _whole(size: Size) -> Rectangle:
    return Rectangle(0, 0, *size)


def _between(row: int, column: int, end_row: int, end_column: int) -> Rectangle:
    """From the first row and column up to, but without, the end row and column."""
    if end_row <= row or end_column <= column:
        return NOTHING
    return Rectangle(row, column, end_row - row, end_column - column)


def rectangle_of(windows: Iterable[Window], size: Size) -> Rectangle:
    """The pixels of a visible frame (height, width) that crops of some windows show.

    A window entirely left of or above the frame shows content from the far side, see `reference.preprocess.crop`. Then
    the whole frame is needed.
    """
    height, width = size
    shown = []
    for window in windows:
        right, bottom = window.left + window.side, window.top + window.side
        if right < 0 or bottom < 0:
            return _whole(size)
        part = _between(max(window.top, 0), max(window.left, 0), min(bottom, height), min(right, width))
        if part != NOTHING:
            shown.append(part)
    if not shown:
        return NOTHING
    return _between(
        min(part.row for part in shown),
        min(part.column for part in shown),
        max(part.row + part.rows for part in shown),
        max(part.column + part.columns for part in shown),
    )


def scaled_rectangle(visible: Rectangle, visible_size: Size, thermal_size: Size) -> Rectangle:
    """The pixels of a thermal frame, scaled to the visible size, that a rectangle of the visible grid needs."""
    if visible == NOTHING:
        return NOTHING

    def span(start: int, count: int, length: int, source: int) -> tuple[int, int]:
        scale = source / length
        first = math.floor((start + 0.5) * scale - 0.5) - MARGIN_PX
        last = math.ceil((start + count - 0.5) * scale - 0.5) + MARGIN_PX
        return max(first, 0), min(last + 1, source)

    row, end_row = span(visible.row, visible.rows, visible_size[0], thermal_size[0])
    column, end_column = span(visible.column, visible.columns, visible_size[1], thermal_size[1])
    return _between(row, column, end_row, end_column)


def warped_rectangle(visible: Rectangle, inverse: NDArray[np.float64], thermal_size: Size) -> Rectangle:
    """The pixels of a warped thermal frame that a rectangle of the visible grid needs.

    A homography maps the rectangle into the hull of its mapped corners, unless a denominator comes close to zero.

    Args:
        visible: rectangle of the visible grid.
        inverse: from visible pixels (x, y, 1) to thermal ones [3, 3].
        thermal_size: height and width of the thermal frame.
    """
    if visible == NOTHING:
        return NOTHING
    columns = (visible.column, visible.column + visible.columns - 1)
    rows = (visible.row, visible.row + visible.rows - 1)
    corners = np.array([(x, y, 1.0) for x in columns for y in rows])
    x, y, depth = inverse @ corners.T
    if depth.min() * depth.max() <= 0 or abs(depth).min() < FLATTEST * (abs(inverse[2]) @ corners.T).max():
        return _whole(thermal_size)
    x, y = x / depth, y / depth
    height, width = thermal_size
    # Bounded before they become integers, because corners may lie anywhere.
    return _between(
        max(math.floor(max(y.min(), -1e6)) - MARGIN_PX, 0),
        max(math.floor(max(x.min(), -1e6)) - MARGIN_PX, 0),
        min(math.ceil(min(y.max(), 1e6)) + MARGIN_PX + 1, height),
        min(math.ceil(min(x.max(), 1e6)) + MARGIN_PX + 1, width),
    )


def kind_of(frames: RawPair, like: FrameKind) -> FrameKind:
    """The kind of a pair. A missing modality, which is not read, counts as in `like`."""
    flipped = frames.config.color == "bgr"
    kind = like
    if frames.rgb is not None:
        kind = replace(kind, rgb_flipped=flipped != _reversed(frames.rgb))
    if frames.tir is not None:
        channels = frames.tir.shape[2]
        if frames.config.tir_to_rgb is not None:
            tir_map: Literal["same", "scaled", "homography"] = "homography"
        else:
            tir_map = "same" if frames.form.tir_size == frames.form.rgb_size else "scaled"
        kind = FrameKind(
            rgb_flipped=kind.rgb_flipped,
            tir_channels=channels,
            tir_flipped=channels == 3 and flipped != _reversed(frames.tir),
            tir_wide=frames.form.tir_range is not None,
            tir_map=tir_map,
        )
    return kind


def _reversed(frame: RawFrame) -> bool:
    """A view with its channels turned around, as `frame[:, :, ::-1]` is: its memory is copied as it lies."""
    return isinstance(frame, np.ndarray) and frame.shape[2] == 3 and frame.strides[2] < 0


class FrameBuffer:
    """Host and device memory for the frames, requests and geometry of one call.

    On a GPU the host side is pinned, so that copies run beside computation. Tables and visible frame lie side by side
    and go up together.

    Args:
        rgb_bytes, tir_bytes: room for frames.
        targets: room for requests.
        device: where to.
    """

    def __init__(self, rgb_bytes: int, tir_bytes: int, targets: int, device: torch.device) -> None:
        self.capacity = (rgb_bytes, tir_bytes)
        columns, fields = REQUEST.value, GEOMETRY.value
        requests_at = 2 * fields * 8
        present_at = requests_at + targets * columns * 8
        present_end = present_at + 2 * targets * 4
        self._rgb_at = -(-present_end // 256) * 256
        self._tir_at = -(-(self._rgb_at + rgb_bytes) // 256) * 256
        total = self._tir_at + -(-tir_bytes // 16) * 16  # it may be read as 16-bit values
        self._host = torch.zeros(total, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.zeros(total, dtype=torch.uint8, device=device)
        self._bytes = self._host.numpy()
        self._geometry = self._bytes[:requests_at].view(np.float64).reshape(2, fields)
        self._requests = self._bytes[requests_at:present_at].view(np.float64).reshape(targets, columns)
        self._present = self._bytes[present_at:present_end].view(np.int32)
        self._device_geometry = self._device[:requests_at].view(torch.float64).view(2, fields)
        self._device_requests = self._device[requests_at:present_at].view(torch.float64).view(targets, columns)
        self._device_present = self._device[present_at:present_end].view(torch.int32)
        self._rgb = self._device[self._rgb_at : self._rgb_at + rgb_bytes]
        self._tir = self._device[self._tir_at :]
        self._inverse: tuple[object, NDArray[np.float64]] = (None, np.eye(3))
        self._rgb_used = self._tir_used = 0
        self._on_device: list[tuple[Tensor, Tensor]] = []

    @property
    def bytes(self) -> int:
        """Device memory."""
        return self._device.numel()

    def uploaded(self, targets: int, kind: FrameKind) -> Uploaded:
        """The device memory that kernels read, for a call with so many targets."""
        return Uploaded(
            rgb=self._rgb,
            tir=self._tir.view(torch.uint16) if kind.tir_wide else self._tir,
            geometry=self._device_geometry,
            requests=self._device_requests[:targets],
            present=self._device_present[: 2 * targets].view(2, targets),
            kind=kind,
        )

    def fill(self, frames: RawPair, searches: Sequence[Search], pool_rows: Sequence[int], targets: int) -> None:
        """Copy a call's requests, and the part of the frames that they need, into the host's memory.

        Args:
            frames: the pair.
            searches: where to look.
            pool_rows: rows of their targets in the pool.
            targets: rows of the batch; rows beyond the searches stay empty.
        """
        requests = self._requests[:targets]
        requests[:] = 0.0
        requests[:, POOL_ROW] = -1.0
        for row, search, pool_row in zip(requests, searches, pool_rows, strict=False):
            row[X:FACTOR] = search.box or 0.0
            row[FACTOR], row[CARRY] = search.factor, search.box is None
            row[LOST_THRESHOLD], row[LOST_SCALE] = search.lost_threshold, search.lost_scale
            row[POOL_ROW] = pool_row
        self._present[:targets] = frames.rgb is not None
        self._present[targets : 2 * targets] = frames.tir is not None
        size, thermal_size = frames.form.rgb_size, frames.form.tir_size
        windows = [crop_window(search.box, search.factor) for search in searches if search.box is not None]
        # If a box is carried over on the device, the host does not know where the crop will be.
        part = rectangle_of(windows, size) if len(windows) == len(searches) else _whole(size)
        thermal_part = part
        geometry = self._geometry
        geometry[0, HEIGHT:ORIGIN_ROW], geometry[0, ORIGIN_ROW:LOW] = size, astuple(part)
        if frames.config.tir_to_rgb is not None:
            inverse = self._inverse_of(frames.config.tir_to_rgb)
            thermal_part = warped_rectangle(part, inverse, thermal_size)
            geometry[1, INVERSE:] = inverse.ravel()
        elif thermal_size != size:
            thermal_part = scaled_rectangle(part, size, thermal_size)
        geometry[1, HEIGHT:ORIGIN_ROW], geometry[1, ORIGIN_ROW:LOW] = thermal_size, astuple(thermal_part)
        geometry[1, LOW:INVERSE] = frames.form.tir_range or (0, 255)
        self._on_device.clear()
        self._rgb_used = self._copy(frames.rgb, part, self._rgb_at)
        self._tir_used = self._copy(frames.tir, thermal_part, self._tir_at)

    def upload(self) -> None:
        """Send to the device what was filled in; on a GPU without waiting, on the current stream."""
        self._send(0, self._rgb_at + self._rgb_used)
        if self._tir_used:
            self._send(self._tir_at, self._tir_used)
        for target, source in self._on_device:
            target.copy_(source, non_blocking=True)

    @property
    def from_device(self) -> bool:
        """Whether a frame of this call lies on the device already, where the caller's stream may still write to it."""
        return bool(self._on_device)

    def _send(self, start: int, count: int) -> None:
        self._device[start : start + count].copy_(self._host[start : start + count], non_blocking=True)

    def _copy(self, frame: RawFrame | None, part: Rectangle, start: int) -> int:
        """Copy a part of a frame into the host's memory. Returns how many bytes to send."""
        if frame is None or part == NOTHING:
            return 0
        shown = frame[part.row : part.row + part.rows, part.column : part.column + part.columns]
        if isinstance(shown, Tensor):
            count = shown.numel() * shown.element_size()
            # A plain copy of bytes, because torch can do little with uint16.
            target = self._device[start : start + count].view(shown.dtype).view(shown.shape)
            self._on_device.append((target, shown))
            return 0
        if _reversed(shown):
            shown = shown[:, :, ::-1]
        room = self._bytes[start : start + shown.nbytes].view(shown.dtype).reshape(shown.shape)
        np.copyto(room, shown)
        return shown.nbytes

    def _inverse_of(self, homography: Homography) -> NDArray[np.float64]:
        """The inverse as OpenCV computes it when it warps; the last one is remembered."""
        if self._inverse[0] is not homography:
            self._inverse = (homography, np.asarray(cv2.invert(np.array(homography, np.float64))[1], np.float64))
        return self._inverse[1]
