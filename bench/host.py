"""What a frame takes beside the network: checking the frames, cropping, decoding, and everything around.

    python bench/host.py --engine openvino --model base --json out/host.json

Frames are 640x480 and in host memory, as in the protocol end-to-end of fps.py.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from common import BOX, ROOT, Times, clip, machine, percentiles, program, refuse, used, write_json


@dataclass(frozen=True)
class Row:
    """A part of a frame's time."""

    part: str
    times: Times


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--engine", default="auto", help="(default: auto)")
    parser.add_argument("--model", default="packaged", help='preset, or "packaged" (default: packaged)')
    parser.add_argument("--frames", type=int, default=300, metavar="N", help="(default: 300)")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "host.json", metavar="FILE")
    options = parser.parse_args()
    if options.frames < 1:
        refuse("--frames must be at least 1")
    from ckd_fast import CkdFastError, Tracker, load_model

    first, *others = clip(8)
    try:
        model = load_model(None) if options.model == "packaged" else load_model("random", options.model)
        tracker = Tracker(model, engine=options.engine)
    except CkdFastError as error:
        refuse(error)
    tracker.init(*first, BOX)
    pairs, found = itertools.cycle([*others, first]), []
    for number in range(options.frames + min(20, options.frames)):
        tracker.box = BOX
        timings = tracker.update(*next(pairs)).timings
        if number >= min(20, options.frames):  # after a warm-up
            found.append(timings)
    parts = {
        "prepare": [each.prepare_ms for each in found],
        "crop": [each.crop_ms for each in found],
        "decode": [each.decode_ms for each in found],
        "all but the network": [each.total_ms - each.network_ms for each in found],
        "network": [each.network_ms for each in found],
    }
    about = machine("cpu" if tracker.engine.device.type == "cpu" else str(tracker.engine.device))
    print(f"{options.model} on {tracker.engine}; {about['device']}")
    rows = [Row(name, percentiles(values)) for name, values in parts.items()]
    for row in rows:
        print(f"{row.part:<20}{row.times.median_ms:8.3f} ms median{row.times.p90_ms:9.3f} ms p90")
    total = math.fsum(row.times.median_ms for row in rows[-2:])
    print(f"{'together':<20}{total:8.3f} ms")
    write_json(options.json, {"machine": about, "arguments": used(options), "engine": str(tracker.engine),
                              "rows": [asdict(row) for row in rows]})  # fmt: skip


if __name__ == "__main__":
    main()
