"""VOT's TraX protocol for RGBT: the toolkit starts this program and talks to it frame by frame.

`trackers.ini` of a workspace (the interpreter by its full path, if it is not the toolkit's own):

    [ckd_fast]
    label = ckd_fast
    protocol = trax
    command = python -m ckd_fast.adapters.trax --weights FILE

Asked for are the channels color and ir, images by path, rectangles. Several objects are tracked at a time, and objects
may be added in later frames. Needs the extra `vot`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ckd_fast.errors import CkdFastError, EngineError, InputError
from ckd_fast.tracker import Tracker
from ckd_fast.video.sources import read_rgb, read_tir

if TYPE_CHECKING:
    from pathlib import Path

    from ckd_fast.types import Box

CHANNELS = ("color", "ir")


class TraxSession:
    """The targets of one conversation; they share the engine of `tracker`.

    Args:
        tracker: lends its engine and behaviour.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._lender = tracker
        self._trackers: list[Tracker] = []

    def start(self, color: Path, ir: Path, boxes: Sequence[Box]) -> list[tuple[Box, float]]:
        """Forget all targets and begin with these: boxes and scores, in the order of the targets."""
        self._trackers = []
        return self.follow(color, ir, boxes)

    def follow(self, color: Path, ir: Path, added: Sequence[Box] = ()) -> list[tuple[Box, float]]:
        """The next frame, in which targets may be added behind the others."""
        rgb, tir = read_rgb(color), read_tir(ir)
        if rgb is None or tir is None:
            raise InputError(f"{color if rgb is None else ir}: cannot be read")
        found = []
        for one in self._trackers:
            result = one.update(rgb, tir)
            found.append((result.box, result.score))
        for box in added:
            one = Tracker(engine=self._lender.engine, config=self._lender.config)
            one.init(rgb, tir, box)
            self._trackers.append(one)
            found.append((box, 1.0))
        return found


def _boxes(objects: Sequence[tuple[Any, object]] | None) -> list[Box]:
    boxes: list[Box] = []
    for region, _ in objects or ():
        x, y, width, height = region.bounds()  # of a polygon too
        boxes.append((float(x), float(y), float(width), float(height)))
    return boxes


def serve(tracker: Tracker) -> None:
    """Answer the toolkit until it quits."""
    from pathlib import Path

    try:
        from trax import TraxStatus
        from trax.image import Image
        from trax.region import Rectangle, Region
        from trax.server import Server
    except ImportError as error:
        raise EngineError("the TraX protocol needs vot-trax: pip install 'ckd_fast[vot]'") from error

    session = TraxSession(tracker)
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
                raise InputError(
                    f"the toolkit sent no {missing[0]} image: the sequence must have the channels color and ir"
                )
            color, ir = (Path(request.image[channel].path()) for channel in CHANNELS)
            step = session.start if request.type == TraxStatus.INITIALIZE else session.follow
            found = step(color, ir, _boxes(request.objects))
            server.status([(Rectangle.create(*box), {"confidence": score}) for box, score in found])


def main() -> int:
    """`python -m ckd_fast.adapters.trax`."""
    parser = argparse.ArgumentParser(prog="python -m ckd_fast.adapters.trax", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="file of weights, or 'random'")
    parser.add_argument("--model", help="preset, where the weights do not settle it")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    try:
        serve(Tracker(options.weights, options.model, options.engine, options.device))
    except CkdFastError as error:
        sys.stderr.write(f"ckd_fast: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
