"""The interface of the CKD authors' evaluation loop: tracker class, parameter object, result and time files.

    tracker = get_tracker_class()(params, dataset_name)
    tracker.initialize(rgb, tir, {"init_bbox": [x, y, w, h]})
    tracker.track(rgb, tir, {"gt_bbox": ..., "previous_output": ...})["target_bbox"]

`params` is any object with the attribute `checkpoint` (a weights file) and, optionally, `model`, `engine`, `device`,
`dtype` and `config` as for `Tracker`. Other attributes, such as sizes and crop factors, are ignored: they come with the
weights.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from ckd_fast.boxes import box_row
from ckd_fast.errors import InputError
from ckd_fast.files import writing
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
    """The function that the authors' loop calls in a tracker module."""
    return AuthorsTracker


def save_results(path: str | os.PathLike[str], boxes: Sequence[Sequence[float]], times: Sequence[float]) -> None:
    """Write a sequence's results as the authors do.

    `PATH.txt` has one row per frame, the initial box first: whole numbers, truncated towards zero, separated by tabs.
    `PATH_time.txt` has the seconds of each frame; the first is the initialisation. Existing files are replaced.

    Args:
        path: of the files, without `.txt`.
        boxes: (x, y, w, h) per frame.
        times: seconds per frame.
    """
    if len(boxes) != len(times):
        raise InputError(f"{len(boxes)} boxes and {len(times)} times: expected one of each per frame")
    rows = [tuple(map(float, box)) for box in boxes]
    if any(len(row) != 4 or not all(map(math.isfinite, row)) for row in rows):
        raise InputError("boxes: expected four finite numbers (x, y, w, h) per frame")
    base = Path(path)
    with writing(base):
        base.with_name(base.name + ".txt").write_text("".join(box_row(row, "authors") for row in rows))
        base.with_name(base.name + "_time.txt").write_text("".join(f"{seconds:f}\n" for seconds in times))
