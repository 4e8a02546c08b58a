"""Frames and boxes as users pass them, checked; and registered: RGB order, 8 bits, thermal on the visible grid.

Every mistake in an input is found here, before any work is done. A `RawPair` is checked but unchanged; `register` turns
it into a `FramePair` on the host. Engines on a GPU take the raw pair and register it while they crop.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

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

MIN_SIDE_PX = 10  # of a frame: results are boxes inside it, at least this wide and high
CLIPPED_SHARE = 0.0005  # of a 16-bit frame's pixels, at either end of its range
SMALLEST_BOX_PX = 0.01
LARGEST_BOX = 1.5  # in multiples of the frame's sides

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class FramePair:
    """Registered frames of one moment, [H, W, 3] uint8 in RGB order; None where a modality is missing."""

    rgb: NDArray[np.uint8] | None
    tir: NDArray[np.uint8] | None
    size: Size


@dataclass(frozen=True)
class FrameForm:
    """What the frames of a track look like, settled by the first pair.

    Attributes:
        rgb_size: height and width of the visible frames.
        tir_size: height and width of the thermal frames, before registration.
        tir_range: the values of 16-bit thermal frames that become 0 and 255; None for 8-bit frames.
    """

    rgb_size: Size
    tir_size: Size
    tir_range: tuple[int, int] | None


@dataclass(frozen=True)
class RawPair:
    """Checked frames of one moment, as the user passed them; None where a modality is missing.

    Attributes:
        rgb: [H, W, 3] uint8.
        tir: [h, w, 1 or 3] uint8 or uint16.
        form: what these frames look like.
        config: says how to register them.
    """

    rgb: RawFrame | None
    tir: RawFrame | None
    form: FrameForm
    config: TrackerConfig


def _checked(frame: object, name: Literal["rgb", "tir"]) -> RawFrame:
    """A frame as [H, W, C], without copying it. Tensors on the CPU become arrays, those on a GPU stay there."""
    dtypes, channels = (("uint8",), (3,)) if name == "rgb" else (("uint8", "uint16"), (1, 3))
    torch = sys.modules.get("torch")
    array: RawFrame
    if torch is not None and isinstance(frame, torch.Tensor):
        # numpy has no bfloat16: look at the type before converting.
        dtype, floating = str(frame.dtype).removeprefix("torch."), frame.is_floating_point()
        if dtype in dtypes:
            try:
                array = frame.detach() if frame.is_cuda else frame.detach().cpu().numpy()
            except (RuntimeError, TypeError, NotImplementedError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"{name} frame is a tensor that holds no image ({reason})") from error
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


def first_pair(rgb: object, tir: object, config: TrackerConfig, form: FrameForm | None = None) -> RawPair:
    """Check the frames with which a track starts: both modalities must be there.

    `form` is what other tracks through the same frames have settled; without it, these frames settle it.
    """
    missing = [name for name, frame in (("rgb", rgb), ("tir", tir)) if frame is None]
    if missing:
        raise InputError(f"{' and '.join(missing)} frame is None: a track starts with both modalities")
    if form is not None:
        return check_pair(rgb, tir, form, config)
    visible, thermal = _checked(rgb, "rgb"), _checked(tir, "tir")
    tir_range = None
    if thermal.itemsize == 2:
        tir_range = config.tir_range or _range_of(_on_host(thermal))
    return RawPair(visible, thermal, FrameForm(_size(visible), _size(thermal), tir_range), config)


def _size(frame: RawFrame) -> Size:
    return frame.shape[0], frame.shape[1]


def _on_host(frame: RawFrame) -> NDArray[Any]:
    return frame if isinstance(frame, np.ndarray) else np.asarray(frame.cpu())


def _range_of(thermal: NDArray[Any]) -> tuple[int, int]:
    """The range of a frame without its darkest and brightest 0.05 %."""
    low, high = np.quantile(thermal, (CLIPPED_SHARE, 1 - CLIPPED_SHARE), method="nearest")
    floor = min(int(low), 65534)
    return floor, max(int(high), floor + 1)


def check_pair(rgb: object, tir: object, form: FrameForm, config: TrackerConfig) -> RawPair:
    """Check the frames of one moment against the track's form; sizes may differ from it only under `allow_resize`."""
    if rgb is None and tir is None:
        raise InputError("both frames are None: at least one modality must be there")
    visible = None if rgb is None else _checked(rgb, "rgb")
    thermal = None if tir is None else _checked(tir, "tir")
    rgb_size = form.rgb_size if visible is None else _size(visible)
    tir_size = form.tir_size if thermal is None else _size(thermal)
    for name, before, now in (("rgb", form.rgb_size, rgb_size), ("tir", form.tir_size, tir_size)):
        if now != before and not config.allow_resize:
            raise InputError(
                f"{name} frame is {now[1]}x{now[0]}, the track began with {before[1]}x{before[0]}: call init again, "
                "or set TrackerConfig(allow_resize=True)"
            )
    if thermal is not None and (thermal.itemsize == 2) != (form.tir_range is not None):
        was, is_now = ("uint8", "uint16") if form.tir_range is None else ("uint16", "uint8")
        raise InputError(f"tir frame is {is_now}, the track began with {was}")
    return RawPair(visible, thermal, FrameForm(rgb_size, tir_size, form.tir_range), config)


def register(pair: RawPair) -> FramePair:
    """Bring checked frames to RGB order, 8 bits and the visible grid, on the host."""
    form, config = pair.form, pair.config
    rgb = tir = None
    if pair.rgb is not None:
        rgb = _on_host(pair.rgb)
        rgb = rgb[:, :, ::-1] if config.color == "bgr" else rgb
    if pair.tir is not None:
        tir = _on_host(pair.tir)
        if form.tir_range is not None:
            tir = reduce_to_8_bits(tir, *form.tir_range)
        height, width = form.rgb_size
        if config.tir_to_rgb is not None:
            matrix = np.array(config.tir_to_rgb, np.float64)
            tir = cv2.warpPerspective(np.ascontiguousarray(tir), matrix, (width, height), flags=cv2.INTER_LINEAR)
        elif form.tir_size != form.rgb_size:
            tir = cv2.resize(np.ascontiguousarray(tir), (width, height), interpolation=cv2.INTER_LINEAR)
        # The order of three channels does not matter to trained weights; the authors swap both modalities alike.
        if tir.ndim == 2 or tir.shape[2] == 1:  # OpenCV drops a single channel
            tir = np.broadcast_to(tir.reshape(height, width, 1), (height, width, 3))
        elif config.color == "bgr":
            tir = tir[:, :, ::-1]
    return FramePair(rgb, tir, form.rgb_size)


def reduce_to_8_bits(frame: NDArray[Any], low: int, high: int) -> NDArray[np.uint8]:
    """16-bit values to 0..255, in integers: linear from `low` to `high`, rounded half up, clipped outside them."""
    clipped = np.clip(frame, low, high).astype(np.uint32) - low
    span = high - low
    reduced: NDArray[np.uint8] = ((clipped * 510 + span) // (2 * span)).astype(np.uint8)
    return reduced


def check_box(box: object, size: Size) -> Box:
    """A box (x, y, w, h) as four floats; it must overlap the frame and be of a sensible size."""
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
