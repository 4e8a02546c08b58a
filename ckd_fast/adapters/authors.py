"""The authors' evaluation loop: `get_tracker_class()`, its parameter object, its result and time files.

    tracker = get_tracker_class()(params, dataset_name)
    tracker.initialize(rgb, tir, {"init_bbox": [x, y, w, h]})
    tracker.track(rgb, tir, {"gt_bbox": ..., "previous_output": ...})["target_bbox"]

`params` is any object with attributes. Read are `checkpoint` (a file; required) and, if there, `model`, `engine`,
`device`, `dtype` and `config` as `Tracker` takes them; everything else that the authors set by hand is ignored,
because sizes and crop factors come with the weights.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from ckd_fast.boxes import box_row
from ckd_fast.errors import InputError, OutputError
from ckd_fast.tracker import Tracker

OPTIONS = ("model", "engine", "device", "dtype", "config")


class AuthorsTracker(Tracker):
    """A `Tracker` built from the authors' parameter object."""

    def __init__(self, params: object, dataset_name: str) -> None:
        checkpoint = getattr(params, "checkpoint", None)
        if checkpoint is None:
            raise InputError("params has no 'checkpoint': expected the path of the weights")
        options = {name: getattr(params, name) for name in OPTIONS if getattr(params, name, None) is not None}
        super().__init__(checkpoint, **options)
        self.params = params
        self.dataset_name = dataset_name


def get_tracker_class() -> type[AuthorsTracker]:
    """What the authors' loop imports a tracker module for."""
    return AuthorsTracker


def save_results(path: str | os.PathLike[str], boxes: Sequence[Sequence[float]], times: Sequence[float]) -> None:
    """Write a sequence's results as the authors do.

    `PATH.txt`: one row per frame, the initial box first, whole numbers truncated towards zero, tab separated.
    `PATH_time.txt`: seconds per frame, the first is the initialisation. They write `%d` of truncated values, which
    toolkits read as they are; `ckd-fast track` writes full precision by default.

    Args:
        path: without suffix; an existing file is replaced.
        boxes: (x, y, w, h) per frame.
        times: seconds per frame.
    """
    if len(boxes) != len(times):
        raise InputError(f"{len(boxes)} boxes and {len(times)} times: expected one of each per frame")
    rows = [tuple(map(float, box)) for box in boxes]
    if any(len(row) != 4 or not all(map(math.isfinite, row)) for row in rows):
        raise InputError("boxes: expected four finite numbers (x, y, w, h) per frame")
    base = Path(path)
    try:
        base.with_name(base.name + ".txt").write_text("".join(box_row(row, "authors") for row in rows))
        base.with_name(base.name + "_time.txt").write_text("".join(f"{seconds:f}\n" for seconds in times))
    except OSError as error:
        raise OutputError(f"{base}: results cannot be written ({error})") from error
