"""Annotated video: both modalities side by side with boxes and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ckd_fast.errors import OutputError
from ckd_fast.frames import FramePair
from ckd_fast.types import Box

# RGB, one per target; distinct for colour-blind people too.
COLOURS = ((255, 176, 0), (100, 143, 255), (220, 38, 127), (120, 94, 240), (254, 97, 0), (0, 158, 115))
LOST_COLOUR = (160, 160, 160)


@dataclass(frozen=True)
class Mark:
    """What to draw for one target; lost targets are grey, the true box is white."""

    box: Box
    label: str
    lost: bool = False
    truth: Box | None = None


def annotate(pair: FramePair, marks: Sequence[Mark]) -> NDArray[np.uint8]:
    """Both frames side by side in RGB order, with marks; a missing frame is dark grey."""
    height, width = pair.size
    panels = []
    for name, frame in (("RGB", pair.rgb), ("TIR", pair.tir)):
        panel = np.full((height, width, 3), 40, np.uint8) if frame is None else np.array(frame, order="C")
        scale = max(0.4, height / 900)
        thick = max(1, round(height / 300))
        for number, mark in enumerate(marks):
            if mark.truth is not None:
                _rectangle(panel, mark.truth, (255, 255, 255), 1)
            colour = LOST_COLOUR if mark.lost else COLOURS[number % len(COLOURS)]
            _rectangle(panel, mark.box, colour, thick + 1)
            x, y = round(mark.box[0]), round(mark.box[1])
            corner = (x, y - 5) if y > 20 else (x + 4, y + round(26 * scale) + 4)  # above the box, else inside
            _text(panel, mark.label, corner, colour, scale, thick)
        label = name if frame is not None else f"{name} missing"
        _text(panel, label, (8, height - 10), (255, 255, 255), scale, thick)
        panels.append(panel)
    both: NDArray[np.uint8] = np.concatenate(panels, axis=1)
    return both


def _text(
    panel: NDArray[Any], text: str, corner: tuple[int, int], colour: tuple[int, int, int], scale: float, thick: int
) -> None:
    # The dark outline makes it readable on any background.
    for shade, width in (((0, 0, 0), thick + 2), (colour, thick)):
        cv2.putText(panel, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, shade, width, cv2.LINE_AA)


def _rectangle(panel: NDArray[Any], box: Box, colour: tuple[int, int, int], thick: int) -> None:
    x, y, w, h = box
    cv2.rectangle(panel, (round(x), round(y)), (round(x + w) - 1, round(y + h) - 1), colour, thick)


class AnnotatedVideo:
    """Writes an MP4 video (codec MPEG-4). The file is created with the first frame."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self._fps = fps
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, image: NDArray[Any]) -> None:
        """Append an image in RGB order; it is resized if the first one had another size."""
        # The codec needs even sides.
        image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        size = (image.shape[1], image.shape[0])
        if self._writer is None:
            self._size = size
            self._writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, size)
            if not self._writer.isOpened():
                raise OutputError(f"{self.path}: OpenCV cannot write this video")
        if size != self._size:
            image = cv2.resize(image, self._size)
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file; raise if that failed."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            # If the disk is full, OpenCV only prints a warning; the file then has no index and cannot be opened.
            if not cv2.VideoCapture(str(self.path)).isOpened():
                raise OutputError(f"{self.path}: the video could not be finished (is the disk full?)")
