"""The tracker behind the interfaces of other trackers and toolkits.

Not imported here, because they are started as programs: `ckd_fast.adapters.vot` and `ckd_fast.adapters.trax`.
"""

from .authors import get_tracker_class, save_results
from .opencv import OpenCVTracker
from .six_channel import SixChannelTracker

__all__ = ["OpenCVTracker", "SixChannelTracker", "get_tracker_class", "save_results"]
