"""Trackers that take both modalities as one six-channel image (ViPT, BAT, SDSTrack): RGB first, thermal behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ckd_fast.errors import InputError
from ckd_fast.tracker import Tracker

if TYPE_CHECKING:
    from ckd_fast.frames import Frame


class SixChannelTracker:
    """`initialize(image, {"init_bbox": ...})`, `track(image)` with images [height, width, 6].

    Args:
        tracker: does the work.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def initialize(self, image: Frame, info: Mapping[str, object]) -> dict[str, object]:
        """Start on a target."""
        return self.tracker.initialize(*split_six_channels(image), info)

    def track(self, image: Frame, info: object = None) -> dict[str, object]:
        """Find the target: {"target_bbox": [x, y, w, h], "best_score": s}."""
        return self.tracker.track(*split_six_channels(image), info)


def split_six_channels(image: Frame) -> tuple[Frame, Frame]:
    """The visible and the thermal half, as views."""
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) != 3 or shape[2] != 6:
        raise InputError(f"image: expected [height, width, 6], RGB then thermal, got {shape or type(image).__name__}")
    return image[:, :, :3], image[:, :, 3:]
