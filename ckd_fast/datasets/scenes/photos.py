"""Real frames as backdrops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ckd_fast.errors import InputError

from .canvas import View
from .figures import Bytes
from .tiles import Tiles

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp")
SPARE = 0.86  # share of a frame that a camera at rest sees


@dataclass(frozen=True)
class Photo:
    """A real frame, warmth included."""

    pixels: Bytes  # [h, w, 4]
    width: float  # of the scene's frame
    height: float
    horizon: float
    camera_height: float

    def paint(self, pixels: Bytes, view: View, tiles: Tiles) -> None:
        del tiles
        # A camera that moves sees more; beyond, the frame is mirrored.
        step = SPARE * min(self.pixels.shape[1] / self.width, self.pixels.shape[0] / self.height)
        x = 0.5 * self.pixels.shape[1] + step * (view.left + 0.5 * view.pixel - 0.5 * self.width)
        y = 0.5 * self.pixels.shape[0] + step * (view.top + 0.5 * view.pixel - 0.5 * self.height)
        onto = np.array([[step * view.pixel, 0, x - 0.5], [0, step * view.pixel, y - 0.5]])
        cv2.warpAffine(
            self.pixels, onto, (pixels.shape[1], pixels.shape[0]), dst=pixels,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT,
        )  # fmt: skip


def photo_backdrop(random: np.random.Generator, folder: Path, width: float, height: float) -> Photo:
    """A frame of a folder's `visible/`, with its twin of the same name in `infrared/`; without one, warmth is grey."""
    visible = sorted(path for path in (folder / "visible").glob("*") if path.suffix.lower() in ENDINGS)
    if not visible:
        raise InputError(f"{folder}: no frames in visible/; expected images, and their thermal twins in infrared/")
    path = visible[random.integers(len(visible))]
    twins = [folder / "infrared" / (path.stem + ending) for ending in ENDINGS]
    twin = next((each for each in twins if each.exists()), None)
    rgb = _read(path, cv2.IMREAD_COLOR)[..., ::-1]
    if twin is None:
        warmth = cv2.addWeighted(
            cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), 0.4, np.full(rgb.shape[:2], 50, np.uint8), 1.0, 0
        )
    else:
        warmth = cv2.resize(_read(twin, cv2.IMREAD_GRAYSCALE), (rgb.shape[1], rgb.shape[0]))
    pixels = np.ascontiguousarray(np.dstack([rgb, warmth]))
    horizon = height * random.uniform(0.2, 0.4)
    camera_height = (0.65 * height - horizon) / (height * random.uniform(0.08, 0.14))
    return Photo(pixels, width, height, horizon, camera_height)


def _read(path: Path, flags: int) -> Bytes:
    image = cv2.imread(str(path), flags)
    if image is None:
        raise InputError(f"{path}: not an image that can be read")
    return image.astype(np.uint8)
