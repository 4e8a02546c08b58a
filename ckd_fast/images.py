from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]


def read_rgb(path: Path) -> Image | None:
    """A visible image in RGB order; None if it cannot be read."""
    image = decode(path, cv2.IMREAD_COLOR)
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_tir(path: Path) -> Image | None:
    """A thermal image as stored: 8 or 16 bits, one channel or three in RGB order; None if it cannot be read."""
    # Not IMREAD_UNCHANGED: it ignores the rotation in the EXIF data, which read_rgb applies.
    image = decode(path, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image is not None and image.ndim == 3 else image


def decode(path: Path, flags: int) -> Image | None:
    """An image by OpenCV's flags, in its BGR order; None if it cannot be read."""
    try:
        data = np.fromfile(path, np.uint8)  # cv2.imread cannot open every file name on every system
        return cv2.imdecode(data, flags) if data.size else None
    except (OSError, cv2.error):
        return None
