"""The interface of OpenCV's trackers: `init(image, box)`, `update(image) -> (ok, box)`, `getTrackingScore()`.

An image is a pair (bgr, tir), or one array [height, width, 6].
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ckd_fast.config import TrackerConfig
from ckd_fast.errors import InputError, NotInitialisedError
from ckd_fast.tracker import Tracker
from ckd_fast.weights import LoadedModel

from .six_channel import split_six_channels

if TYPE_CHECKING:
    from ckd_fast.frames import Frame

IntBox = tuple[int, int, int, int]


class OpenCVTracker:
    """Like `cv2.TrackerVit`: while the target is lost, `update` returns False and the last box before that.

    Args:
        weights: as for `Tracker`.
        config: as for `Tracker`, but frames are always BGR.
        options: other arguments of `Tracker`.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | LoadedModel | None = None,
        *,
        config: TrackerConfig | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        bgr = dataclasses.replace(config or TrackerConfig(), color="bgr")
        self.tracker = Tracker(weights, config=bgr, **options)
        self._trusted: IntBox = (0, 0, 0, 0)

    def init(self, image: Frame | Sequence[Frame], bounding_box: Sequence[float]) -> None:
        rgb, tir = _pair(image)
        self.tracker.init(rgb, tir, bounding_box)  # type: ignore[arg-type]  # init refuses None
        self._trusted = _whole(bounding_box)

    def update(self, image: Frame | Sequence[Frame | None]) -> tuple[bool, IntBox]:
        """Whether the target was found, and its box in whole pixels."""
        result = self.tracker.update(*_pair(image))
        if not result.lost:
            self._trusted = _whole(result.box)
        return not result.lost, self._trusted

    def getTrackingScore(self) -> float:  # noqa: N802
        if self.tracker.last is None:
            raise NotInitialisedError("there is no score before the first update(image)")
        return self.tracker.last.score


def _pair(image: Frame | Sequence[Frame | None]) -> tuple[Frame | None, Frame | None]:
    if isinstance(image, tuple | list):
        if len(image) != 2:
            raise InputError(f"image: expected a pair (bgr, tir), got {len(image)} items")
        return image[0], image[1]
    return split_six_channels(image)  # type: ignore[arg-type]  # checked there


def _whole(box: Sequence[float]) -> IntBox:
    x, y, w, h = (round(float(value)) for value in box)
    return x, y, w, h
