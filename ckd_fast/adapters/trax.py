"""VOT's TraX protocol for RGBT: the toolkit starts this program and sends it frame by frame.

`trackers.ini` of a workspace (write the interpreter's full path if it is not the toolkit's own):

    [ckd_fast]
    label = ckd_fast
    protocol = trax
    command = python -m ckd_fast.adapters.trax --weights FILE

The toolkit sends the channels color and ir as image files, and targets as rectangles: several at once, new ones in any
frame. Needs the extra `vot`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckd_fast.errors import EngineError, InputError

from .program import run_program, toolkit_parser
from .vot import advance, read_pair

if TYPE_CHECKING:
    from ckd_fast.multi import MultiTracker
    from ckd_fast.types import Box

CHANNELS = ("color", "ir")


def follow(
    tracker: MultiTracker, color: Path, ir: Path, added: Sequence[Box], *, restart: bool
) -> list[tuple[Box, float]]:
    """Boxes and scores in the next frame, in the order in which the targets were added.

    Targets `added` in this frame have a score of 1. `restart` forgets all others first.
    """
    if restart:
        tracker.reset()
    results = advance(tracker, *read_pair(color, ir, tracker.config.color), added)
    scores = [result.score for result in results.values()]
    return list(zip(tracker.boxes.values(), scores + [1.0] * len(added), strict=True))


def _boxes(objects: Sequence[tuple[Any, object]] | None) -> list[Box]:
    boxes: list[Box] = []
    for region, _ in objects or ():
        x, y, width, height = region.bounds()  # of a polygon too
        boxes.append((float(x), float(y), float(width), float(height)))
    return boxes


def serve(tracker: MultiTracker) -> None:
    """Answer the toolkit until it quits."""
    try:
        from trax import TraxStatus
        from trax.image import Image
        from trax.region import Rectangle, Region
        from trax.server import Server
    except ImportError as error:
        raise EngineError("the TraX protocol needs vot-trax: pip install 'ckd_fast[vot]'") from error

    with Server(
        [Region.RECTANGLE],
        [Image.PATH],
        list(CHANNELS),
        tracker_name="ckd_fast",
        tracker_description="RGB-thermal tracker",
        multiobject=True,
    ) as server:
        while True:
            request = server.wait()
            if request.type not in (TraxStatus.INITIALIZE, TraxStatus.FRAME):
                return
            missing = [channel for channel in CHANNELS if channel not in request.image]
            if missing:
                raise InputError(f"the toolkit sent no {missing[0]} image; sequences need the channels color and ir")
            color, ir = (Path(request.image[channel].path()) for channel in CHANNELS)
            restart = request.type == TraxStatus.INITIALIZE
            found = follow(tracker, color, ir, _boxes(request.objects), restart=restart)
            server.status([(Rectangle.create(*box), {"confidence": score}) for box, score in found])


def main() -> int:
    parser = toolkit_parser("ckd_fast.adapters.trax", "Track for the VOT toolkit, protocol TraX.")
    return run_program(parser, lambda tracker, _options: serve(tracker))


if __name__ == "__main__":
    sys.exit(main())
