"""The call shapes of other trackers and toolkits, around the one `Tracker`."""

from .authors import get_tracker_class, save_results
from .opencv import OpenCVTracker
from .six_channel import SixChannelTracker
from .vot import VotFolder, track_vot_folder

__all__ = [
    "OpenCVTracker",
    "SixChannelTracker",
    "VotFolder",
    "get_tracker_class",
    "save_results",
    "track_vot_folder",
]
