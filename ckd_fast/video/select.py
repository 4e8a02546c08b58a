"""Let the user draw the first boxes in a window."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np

from ckd_fast.errors import EngineError, InputError
from ckd_fast.frames import FramePair
from ckd_fast.types import Box

from .writers import annotate

TITLE = "draw a box, SPACE to confirm it; ESC when done"


def require_display() -> None:
    """Raise if no window can be opened.

    OpenCV aborts the process if there is no display, so a child process tries it.
    """
    attempt = "import cv2; cv2.namedWindow('ckd_fast'); cv2.waitKey(1); cv2.destroyAllWindows()"
    command = [sys.executable, "-c", attempt]
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode != 0:
        raise EngineError("--select needs a display, and none can be opened here: name the target with --init x,y,w,h")


def select_boxes(pair: FramePair) -> list[Box]:
    """Show both frames side by side and let the user draw boxes in either."""
    require_display()
    width = pair.size[1]
    shown = cv2.cvtColor(annotate(pair, []), cv2.COLOR_RGB2BGR)
    drawn = np.asarray(cv2.selectROIs(TITLE, shown, showCrosshair=True)).reshape(-1, 4)
    cv2.destroyAllWindows()
    boxes = []
    for x, y, w, h in drawn.tolist():
        left = x - width if x >= width else x  # drawn in the thermal half
        if w > 0 and h > 0:
            boxes.append((float(left), float(y), float(w), float(h)))
    if not boxes:
        raise InputError("no box was drawn")
    return boxes
