"""Where frame pairs come from: folders of images, video files, live cameras."""

from .sources import FolderPairs, LivePairs, Pair, PairSource, SideBySideVideo, VideoPairs, open_source
from .writers import AnnotatedVideo

__all__ = [
    "AnnotatedVideo",
    "FolderPairs",
    "LivePairs",
    "Pair",
    "PairSource",
    "SideBySideVideo",
    "VideoPairs",
    "open_source",
]
