"""Crops around a box, as the network sees them.

The crop is a square of side ceil(sqrt(w h) factor) around the box's centre, zero outside the frame, resized bilinearly
in uint8. Both modalities are cropped with the same box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .boxes import Box

# ImageNet's statistics, for both modalities.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

Frame = NDArray[np.uint8]  # [H, W, 3] RGB
Frames = tuple[Frame | None, Frame | None]  # visible and thermal, of the same size; None where one is missing


@dataclass(frozen=True)
class Window:
    """The square of a frame that a crop shows: rows top..top+side and columns left..left+side, in whole pixels."""

    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Crop:
    """A crop and where it came from."""

    image: NDArray[np.uint8]  # [size, size, 3] uint8
    window: Window  # the square of the frame
    resize_factor: float  # crop pixels per frame pixel


def crop_window(box: Box, factor: float) -> Window:
    """The square around a box; Python's rounding (half to even), as the authors have it."""
    x, y, w, h = box
    area = w * h
    side = math.ceil(math.sqrt(area) * factor) if area > 0 else 0
    if side < 1:
        raise ValueError(f"box (x, y, w, h) = {tuple(box)} is too small to crop: width and height must be positive")
    return Window(left=round(x + 0.5 * w - 0.5 * side), top=round(y + 0.5 * h - 0.5 * side), side=side)


def crop(frame: Frame, box: Box, factor: float, size: int) -> Crop:
    """Cut the square around a box out of a frame [H, W, 3] and resize it to `size`.

    Two habits of the authors' program are kept, because published numbers contain them. The last column (row) of the
    frame is dropped as soon as the square reaches past it. A square wholly left of or above the frame makes a Python
    slice with a negative end, which counts from the far side: such a crop shows unrelated content. The tracker never
    asks for one, since its box always stays inside the frame.
    """
    window = crop_window(box, factor)
    padded = _padded(frame, window, 0)
    image: NDArray[np.uint8] = cv2.resize(padded, (size, size)).astype(np.uint8, copy=False)
    return Crop(image=image, window=window, resize_factor=size / window.side)


def crop_targets(
    frames: Frames, boxes: Sequence[Box], factors: Sequence[float], size: int
) -> tuple[Tensor, list[float]]:
    """Crop both modalities around B boxes; a missing one is left black.

    Returns:
        Crops [2, B, size, size, 3] uint8, and for each box the crop pixels per frame pixel.
    """
    crops = np.zeros((2, len(boxes), size, size, 3), np.uint8)
    scales: list[float] = []
    for modality, frame in enumerate(frames):
        if frame is not None:
            cut = [crop(frame, box, factor, size) for box, factor in zip(boxes, factors, strict=True)]
            for target, each in enumerate(cut):
                crops[modality, target] = each.image
            scales = [each.resize_factor for each in cut]  # the same for both
    return torch.from_numpy(crops), scales


def padding(frame_size: tuple[int, int], window: Window, size: int) -> NDArray[np.bool_]:
    """Where a crop shows nothing of the frame (height, width), [size, size]; training samples are judged by it."""
    outside = _padded(np.zeros((*frame_size, 1), np.float64), window, 1)[:, :, 0]
    shown: NDArray[np.bool_] = cv2.resize(outside, (size, size)) != 0
    return shown


def _padded(frame: NDArray[Any], window: Window, fill: float) -> NDArray[Any]:
    """The window of a frame with `fill` outside it."""
    height, width = frame.shape[:2]
    right, bottom = window.left + window.side, window.top + window.side
    left_pad, right_pad = max(0, -window.left), max(right - width + 1, 0)
    top_pad, bottom_pad = max(0, -window.top), max(bottom - height + 1, 0)
    visible = frame[window.top + top_pad : bottom - bottom_pad, window.left + left_pad : right - right_pad]
    rows, columns = visible.shape[:2]
    full = (rows + top_pad + bottom_pad, columns + left_pad + right_pad, frame.shape[2])
    padded = np.full(full, fill, frame.dtype)
    padded[top_pad : top_pad + rows, left_pad : left_pad + columns] = visible
    return padded


def normalise(images: Tensor, present: Tensor | None = None) -> Tensor:
    """Crops with ImageNet's mean and standard deviation, [..., H, W, 3] uint8 -> [..., 3, H, W] float32.

    Args:
        images: crops.
        present: [...] bool, False where a modality is missing: it is shown as the mean image, zeros.
    """
    pixels = images.movedim(-1, -3).contiguous().float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    normalised = (pixels / 255.0 - mean) / std
    return normalised if present is None else normalised * present[..., None, None, None]


def box_in_crop(box: Box, around: Box, resize_factor: float, size: int) -> Box:
    """A box of the frame in units of the crop that was taken around another box.

    The crop's centre is (size - 1) / 2 here, whereas `to_frame` uses size / 2: half a pixel of the crop that training
    labels and tracking disagree about, inherited from OSTrack and kept.
    """
    centre = (size - 1) / 2
    cx = centre + (box[0] + 0.5 * box[2] - (around[0] + 0.5 * around[2])) * resize_factor
    cy = centre + (box[1] + 0.5 * box[3] - (around[1] + 0.5 * around[3])) * resize_factor
    w, h = box[2] * resize_factor, box[3] * resize_factor
    return (cx - 0.5 * w) / size, (cy - 0.5 * h) / size, w / size, h / size
