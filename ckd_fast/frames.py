"""Frames and boxes as people have them, checked and brought to one form: [H, W, 3] uint8, RGB, thermal on RGB's grid.

Everything that can be wrong with an input is found here, before any work is done. A `RawPair` is checked and as given;
`register` makes the `FramePair` of it on the host. Engines on a GPU take the raw pair and register while they crop.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from .config import TrackerConfig
from .errors import InputError
from .types import Box

if TYPE_CHECKING:
    import torch

    Frame: TypeAlias = NDArray[Any] | torch.Tensor
    RawFrame: TypeAlias = NDArray[Any] | torch.Tensor  # a tensor only where it lies on a GPU

MIN_SIDE_PX = 10  # a box is never smaller, and never leaves the frame
CLIPPED_SHARE = 0.0005  # of a 16-bit frame's darkest and brightest pixels
SMALLEST_BOX_PX = 0.01
LARGEST_BOX = 1.5  # in multiples of the frame's sides

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class FramePair:
    """Checked frames of one moment, [H, W, 3] uint8 in RGB order; None where a modality is missing."""

    rgb: NDArray[np.uint8] | None
    tir: NDArray[np.uint8] | None
    size: Size


@dataclass(frozen=True)
class FrameForm:
    """What frames of one track have in common, settled at `init`.

    Attributes:
        rgb_size: height and width of the visible frames.
        tir_size: of the thermal frames, before they are brought to the visible grid.
        tir_range: values of 16-bit thermal frames that become 0 and 255; None for 8-bit ones.
    """

    rgb_size: Size
    tir_size: Size
    tir_range: tuple[int, int] | None


@dataclass(frozen=True)
class RawPair:
    """Checked frames of one moment as they were given; None where a modality is missing.

    Attributes:
        rgb: [H, W, 3] uint8.
        tir: [h, w, 1 or 3] uint8 or uint16.
        form: of this moment.
        config: order of channels, homography.
    """

    rgb: RawFrame | None
    tir: RawFrame | None
    form: FrameForm
    config: TrackerConfig


def _checked(frame: object, name: str, dtypes: Sequence[str], channels: Sequence[int]) -> RawFrame:
    """A frame as [H, W, C] without copying; tensors of the host become arrays, those of a GPU stay."""
    torch = sys.modules.get("torch")
    array: RawFrame
    if torch is not None and isinstance(frame, torch.Tensor):
        # bf16 and the like have no numpy counterpart, so the type is looked at first.
        dtype, floating = str(frame.dtype).removeprefix("torch."), frame.is_floating_point()
        if dtype in dtypes:
            try:
                array = frame.detach() if frame.is_cuda else frame.detach().cpu().numpy()
            except (RuntimeError, TypeError, NotImplementedError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"{name} frame: a tensor that holds no image ({reason})") from error
    elif isinstance(frame, np.ndarray):
        array = np.asarray(frame)  # a masked array or matrix becomes a plain one
        dtype, floating = str(array.dtype), array.dtype.kind == "f"
    else:
        raise InputError(
            f"{name} frame is a {type(frame).__name__}: expected a numpy array or torch tensor [H, W, C] "
            "(for a PIL image: numpy.asarray(image); for a file: cv2.imread)"
        )
    if dtype not in dtypes:
        hint = "; scale values of 0..1 by 255 and convert" if floating else ""
        raise InputError(f"{name} frame is {dtype}: expected {' or '.join(dtypes)}{hint}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3:
        raise InputError(f"{name} frame has shape {array.shape}: expected [height, width, channels]")
    height, width, depth = array.shape
    if depth not in channels:
        hint = " (channels come last)" if height in channels else ""
        raise InputError(
            f"{name} frame has shape {array.shape}: expected {' or '.join(map(str, channels))} channels{hint}"
        )
    if height < MIN_SIDE_PX or width < MIN_SIDE_PX:
        raise InputError(f"{name} frame is {width}x{height}: expected at least {MIN_SIDE_PX}x{MIN_SIDE_PX} pixels")
    return array


def _checked_rgb(frame: object) -> RawFrame:
    return _checked(frame, "rgb", ("uint8",), (3,))


def _checked_tir(frame: object) -> RawFrame:
    return _checked(frame, "tir", ("uint8", "uint16"), (1, 3))


def _is_wide(thermal: RawFrame) -> bool:
    """16 bits."""
    return thermal.itemsize == 2


def _on_host(frame: RawFrame) -> NDArray[Any]:
    if isinstance(frame, np.ndarray):
        return frame
    array: NDArray[Any] = frame.cpu().numpy()
    return array


def settle_form(rgb: object, tir: object, config: TrackerConfig) -> FrameForm:
    """Check the frames at `init` and settle what the track's frames look like."""
    if rgb is None or tir is None:
        missing = (
            "both frames are" if rgb is None and tir is None else f"the {'rgb' if rgb is None else 'tir'} frame is"
        )
        raise InputError(f"{missing} None: a track starts with both modalities")
    visible, thermal = _checked_rgb(rgb), _checked_tir(tir)
    tir_range = None
    if _is_wide(thermal):
        tir_range = config.tir_range or _range_of(_on_host(thermal))
    return FrameForm(_size(visible), _size(thermal), tir_range)


def _size(array: RawFrame) -> Size:
    return array.shape[0], array.shape[1]


def _range_of(thermal: NDArray[Any]) -> tuple[int, int]:
    """The values between which all but the darkest and brightest 0.05 % lie."""
    low, high = np.quantile(thermal, (CLIPPED_SHARE, 1 - CLIPPED_SHARE), method="nearest")
    floor = min(int(low), 65534)
    return floor, max(int(high), floor + 1)


def check_pair(rgb: object, tir: object, form: FrameForm, config: TrackerConfig) -> RawPair:
    """Check the frames of one moment against the track's form; sizes may differ from it only under `allow_resize`."""
    if rgb is None and tir is None:
        raise InputError("both frames are None: at least one modality must be there")
    visible = None if rgb is None else _checked_rgb(rgb)
    thermal = None if tir is None else _checked_tir(tir)
    rgb_size = form.rgb_size if visible is None else _size(visible)
    tir_size = form.tir_size if thermal is None else _size(thermal)
    if (rgb_size, tir_size) != (form.rgb_size, form.tir_size):
        if not config.allow_resize:
            name, was, now = ("rgb", form.rgb_size, rgb_size) if rgb_size != form.rgb_size else (
                "tir", form.tir_size, tir_size
            )  # fmt: skip
            raise InputError(
                f"{name} frame is {now[1]}x{now[0]}, the track began with {was[1]}x{was[0]}: call init again, "
                "or set TrackerConfig(allow_resize=True)"
            )
        form = FrameForm(rgb_size, tir_size, form.tir_range)
    if thermal is not None and _is_wide(thermal) != (form.tir_range is not None):
        began, given = ("uint8", "uint16") if form.tir_range is None else ("uint16", "uint8")
        raise InputError(f"tir frame is {given}, the track began with {began}")
    return RawPair(visible, thermal, form, config)


def register(pair: RawPair) -> FramePair:
    """Bring checked frames to one form: RGB order, 8 bits, thermal on the visible grid, on the host."""
    return FramePair(
        rgb=None if pair.rgb is None else _visible(_on_host(pair.rgb), pair.config),
        tir=None if pair.tir is None else _thermal(_on_host(pair.tir), pair.form, pair.config),
        size=pair.form.rgb_size,
    )


def _visible(frame: NDArray[Any], config: TrackerConfig) -> NDArray[np.uint8]:
    return frame[:, :, ::-1] if config.color == "bgr" else frame


def reduce_to_8_bits(frame: NDArray[Any], low: int, high: int) -> NDArray[np.uint8]:
    """16-bit values to 0..255: linear from `low` to `high`, rounded half up, beyond them 0 and 255. In integers."""
    clipped = np.clip(frame, low, high).astype(np.uint32) - low
    span = high - low
    reduced: NDArray[np.uint8] = ((clipped * 510 + span) // (2 * span)).astype(np.uint8)
    return reduced


def _thermal(frame: NDArray[Any], form: FrameForm, config: TrackerConfig) -> NDArray[np.uint8]:
    """8 bits, on the visible frame's grid, three channels."""
    if form.tir_range is not None:
        frame = reduce_to_8_bits(frame, *form.tir_range)
    height, width = form.rgb_size
    if config.tir_to_rgb is not None:
        matrix = np.array(config.tir_to_rgb, np.float64)
        frame = cv2.warpPerspective(np.ascontiguousarray(frame), matrix, (width, height), flags=cv2.INTER_LINEAR)
    elif frame.shape[:2] != (height, width):
        frame = cv2.resize(np.ascontiguousarray(frame), (width, height), interpolation=cv2.INTER_LINEAR)
    if frame.ndim == 2:
        frame = frame[:, :, None]
    # The order of three channels does not matter to trained weights; the authors swap both modalities alike.
    if frame.shape[2] == 1:
        return np.broadcast_to(frame, (*frame.shape[:2], 3))
    return frame[:, :, ::-1] if config.color == "bgr" else frame


def check_box(box: object, size: Size) -> Box:
    """A box (x, y, w, h) as four floats that show something of a frame."""
    if isinstance(box, str | bytes | Mapping | AbstractSet):
        raise InputError(f"box {box!r}: expected four numbers (x, y, w, h)")
    try:
        values = [float(value) for value in box]  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"box {str(box)[:80]}: expected four numbers (x, y, w, h) ({error})") from error
    if len(values) != 4:
        raise InputError(f"box {box!r}: expected four numbers (x, y, w, h), got {len(values)}")
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"box {tuple(values)}: has values that are not finite")
    x, y, w, h = values
    height, width = size
    if w < SMALLEST_BOX_PX or h < SMALLEST_BOX_PX:
        raise InputError(
            f"box {tuple(values)}: width and height must be positive (x, y, w, h), at least {SMALLEST_BOX_PX} pixels"
        )
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise InputError(f"box {tuple(values)} lies wholly outside the {width}x{height} frame")
    if w > LARGEST_BOX * width or h > LARGEST_BOX * height:
        raise InputError(f"box {tuple(values)} is larger than the {width}x{height} frame: expected (x, y, w, h)")
    return x, y, w, h
