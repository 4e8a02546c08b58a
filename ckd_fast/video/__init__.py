"""Frame pairs from folders, videos and cameras; tracking through them; the files that are written."""

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
