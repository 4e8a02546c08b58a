"""The interface of ViPT, BAT and SDSTrack: both modalities in one six-channel image, RGB before thermal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ckd_fast.errors import InputError
from ckd_fast.tracker import Tracker

if TYPE_CHECKING:
    from ckd_fast.frames import Frame


class SixChannelTracker:
    """Calls a `Tracker` with the halves of images [height, width, 6]."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def initialize(self, image: Frame, info: Mapping[str, object]) -> dict[str, object]:
        """Start on the target in `info["init_bbox"]` (x, y, w, h)."""
        return self.tracker.initialize(*split_six_channels(image), info)

    def track(self, image: Frame, info: object = None) -> dict[str, object]:
        """Find the target: {"target_bbox": [x, y, w, h], "best_score": s}."""
        return self.tracker.track(*split_six_channels(image), info)


def split_six_channels(image: Frame) -> tuple[Frame, Frame]:
    """The RGB and the thermal half of an image, as views."""
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) != 3 or shape[2] != 6:
        raise InputError(f"image: expected [height, width, 6], RGB then thermal, got {shape or type(image).__name__}")
    return image[:, :, :3], image[:, :, 3:]
