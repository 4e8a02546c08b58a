"""The tracker behind the interfaces of other trackers and toolkits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .authors import get_tracker_class, save_results
from .opencv import OpenCVTracker
from .six_channel import SixChannelTracker

if TYPE_CHECKING:
    from .vot import VotFolder, track_vot_folder

__all__ = [
    "OpenCVTracker",
    "SixChannelTracker",
    "VotFolder",
    "get_tracker_class",
    "save_results",
    "track_vot_folder",
]


def __getattr__(name: str) -> object:
    # On first use: `python -m ckd_fast.adapters.vot` warns if its module has been imported already.
    if name in ("VotFolder", "track_vot_folder"):
        from . import vot

        return getattr(vot, name)
    raise AttributeError(f"module 'ckd_fast.adapters' has no attribute {name!r}")
