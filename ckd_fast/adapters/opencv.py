"""OpenCV's trackers: `init(image, roi)`, `update(image) -> (ok, box)`, `getTrackingScore()`, BGR images.

OpenCV has no tracker of two images; here an image is a pair (bgr, tir) or one array [height, width, 6].
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
    """As `cv2.TrackerVit`: below the score threshold `update` returns False and the last box that was trusted.

    Args:
        weights: as for `Tracker`.
        config: frames are BGR, whatever its `color`; its `lost_threshold`, or the weights', is the threshold.
        options: everything else that `Tracker` takes.
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
        """Start on a target (x, y, w, h)."""
        rgb, tir = _pair(image)
        self.tracker.init(rgb, tir, bounding_box)  # type: ignore[arg-type]  # None is refused there
        self._trusted = _whole(bounding_box)

    def update(self, image: Frame | Sequence[Frame | None]) -> tuple[bool, IntBox]:
        """Find the target: whether to trust it, and its box in whole pixels."""
        result = self.tracker.update(*_pair(image))
        if not result.lost:
            self._trusted = _whole(result.box)
        return not result.lost, self._trusted

    def getTrackingScore(self) -> float:  # noqa: N802
        """The score of the last `update`."""
        if self.tracker.last is None:
            raise NotInitialisedError("no frame was tracked yet: call update(image) first")
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
