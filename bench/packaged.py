"""What a model is worth: unseen synthetic clips, real clips, one modality alone, elimination, OpenCV's trackers.

    python bench/packaged.py --clips 8 --data SEQUENCES --sequences NAME ... --json FILE            the packaged model
    python bench/packaged.py --weights run/best.safetensors --clips 8                               another

A clip's figure is the mean IoU over all frames but the first. "still" is a box that never moves: what a tracker must
beat. The seeds of the clips begin at 10,000 (`--first-seed` has others, where those were looked at while training). The
threshold below which a result should count as lost is the score that separates frames with IoU above 0.5 from frames
with IoU below 0.1 best, over all clips.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
from common import machine, write_json
from numpy.typing import NDArray

from ckd_fast import LoadedModel, Tracker, load_model
from ckd_fast.boxes import iou
from ckd_fast.datasets import ClipConfig, SyntheticClip, open_dataset
from ckd_fast.reference.config import Elimination
from ckd_fast.training.samples import FrameCache
from ckd_fast.types import Box

FIRST_SEED = 10_000
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Clip:
    """Frames and their boxes."""

    name: str
    rgb: list[Image]
    tir: list[Image]
    boxes: list[Box]


@dataclass(frozen=True)
class Followed:
    """What one tracker made of one clip.

    Attributes:
        mean_iou: over all frames but the first.
        last_iou: mean over the last ten frames.
        frames_per_second: end to end.
        ious, scores: per frame.
    """

    mean_iou: float
    last_iou: float
    frames_per_second: float
    ious: tuple[float, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One clip and one tracker, as the table has it."""

    clip: str
    tracker: str
    mean_iou: float
    last_iou: float
    frames_per_second: float


Find = Callable[[Image, Image], tuple[Box, float]]


def follow(clip: Clip, start: Callable[[Image, Image, Box], Find]) -> Followed:
    """Run a tracker over a clip."""
    begin = time.perf_counter()
    find = start(clip.rgb[0], clip.tir[0], clip.boxes[0])
    found = [find(rgb, tir) for rgb, tir in zip(clip.rgb[1:], clip.tir[1:], strict=True)]
    seconds = time.perf_counter() - begin
    ious = tuple(iou([box for box, _ in found], clip.boxes[1:]).tolist())
    scores = tuple(score for _, score in found)
    return Followed(statistics.fmean(ious), statistics.fmean(ious[-10:]), len(ious) / seconds, ious, scores)


def ours(model: LoadedModel, *, rgb_seen: bool = True, tir_seen: bool = True) -> Callable[[Image, Image, Box], Find]:
    """Our tracker; a modality that is not seen is missing after the first frame."""

    def start(rgb: Image, tir: Image, box: Box) -> Find:
        tracker = Tracker(model)
        tracker.init(rgb, tir, box)

        def find(rgb: Image, tir: Image) -> tuple[Box, float]:
            result = tracker.update(rgb if rgb_seen else None, tir if tir_seen else None)
            return result.box, result.score

        return find

    return start


def still(_rgb: Image, _tir: Image, box: Box) -> Find:
    """A box that never moves."""
    return lambda _rgb, _tir: (box, 1.0)


def opencv(name: str) -> Callable[[Image, Image, Box], Find] | None:
    """A tracker of OpenCV on the visible frames; None where this OpenCV has none of that name."""
    create = getattr(cv2, f"Tracker{name}_create", None) or getattr(
        getattr(cv2, "legacy", None), f"Tracker{name}_create", None
    )
    if create is None:
        return None

    def start(rgb: Image, _tir: Image, box: Box) -> Find:
        tracker = create()
        tracker.init(rgb[..., ::-1].copy(), tuple(round(v) for v in box))
        last = box

        def find(rgb: Image, _tir: Image) -> tuple[Box, float]:
            nonlocal last
            found, place = tracker.update(rgb[..., ::-1].copy())
            if found:
                last = (float(place[0]), float(place[1]), float(place[2]), float(place[3]))
            return last, float(found)

        return find

    return start


def synthetic(count: int, frames: int, first_seed: int = FIRST_SEED) -> Iterator[Clip]:
    """Clips that no training run has seen."""
    for number in range(count):
        drawn = list(SyntheticClip(ClipConfig(seed=first_seed + number, frames=frames)))
        thermal = [np.repeat(frame.tir[:, :, None], 3, axis=2) for frame in drawn]
        yield Clip(f"synthetic-{number}", [frame.rgb for frame in drawn], thermal, [frame.box for frame in drawn])


def real(root: Path, names: list[str]) -> Iterator[Clip]:
    """Own sequences."""
    dataset, cache = open_dataset("folder", root), FrameCache(1)
    for name in names:
        sequence = dataset.sequence(name)
        files, boxes = sequence.frames(), sequence.boxes()
        count = min(len(files), len(boxes))
        yield Clip(
            name,
            [cache.read(path) for path in files.visible[:count]],
            [cache.read(path) for path in files.infrared[:count]],
            [(float(b[0]), float(b[1]), float(b[2]), float(b[3])) for b in boxes[:count]],
        )


def lost_threshold(runs: list[Followed]) -> float:
    """The score with the best balanced accuracy between tracked and lost frames."""
    tracked = np.sort([s for run in runs for s, o in zip(run.scores, run.ious, strict=True) if o > 0.5])
    lost = np.sort([s for run in runs for s, o in zip(run.scores, run.ious, strict=True) if o < 0.1])
    if not len(tracked) or not len(lost):
        return float("nan")
    levels = np.linspace(0.01, 0.99, 99)
    kept = 1 - np.searchsorted(tracked, levels) / len(tracked)
    caught = np.searchsorted(lost, levels) / len(lost)
    return float(levels[np.argmax(kept + caught)])


def main() -> None:
    """Measure, print a table in Markdown, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="default: the packaged model")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, metavar="N", help="of the clips (10000)")
    parser.add_argument("--data", type=Path, help="folder of own sequences")
    parser.add_argument("--sequences", nargs="+", default=[])
    parser.add_argument("--opencv", nargs="*", default=["CSRT", "KCF", "MIL"])
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    model = load_model(options.weights)
    other: Elimination = "mce" if model.config.elimination == "none" else "none"
    switched = dataclasses.replace(model, config=dataclasses.replace(model.config, elimination=other))
    trackers: dict[str, Callable[[Image, Image, Box], Find]] = {"ckd_fast": ours(model)}
    missing = []
    if not options.only_ours:
        trackers |= {
            f"elimination {other}": ours(switched),
            "RGB alone": ours(model, tir_seen=False),
            "TIR alone": ours(model, rgb_seen=False),
            "still": still,
        }
        for name in options.opencv:
            start = opencv(name)
            if start is None:
                missing.append(name)
            else:
                trackers[f"OpenCV {name}"] = start
    rows, on_clips = [], []
    clips = [synthetic(options.clips, options.frames, options.first_seed)]
    if options.data is not None:
        clips.append(real(options.data, options.sequences))
    print("| clip | " + " | ".join(trackers) + " |\n|---" * 1 + "|---" * len(trackers) + "|", flush=True)
    for clip in (clip for some in clips for clip in some):
        cells = []
        for name, start in trackers.items():
            run = follow(clip, start)
            rows.append(Row(clip.name, name, run.mean_iou, run.last_iou, run.frames_per_second))
            cells.append(f"{run.mean_iou:.3f} ({run.last_iou:.2f})")
            if name == "ckd_fast":
                on_clips.append(run)
        print(f"| {clip.name} | " + " | ".join(cells) + " |", flush=True)
    for name in trackers:
        own = [row for row in rows if row.tracker == name]
        made = [row.mean_iou for row in own if row.clip.startswith("synthetic")]
        speed = statistics.median(row.frames_per_second for row in own)
        mean = f"mean IoU {statistics.fmean(made):.3f} on {len(made)} synthetic clips, " if made else ""
        print(f"{name}: {mean}{speed:.0f} frames/s")
    threshold = lost_threshold(on_clips)
    print(f"lost_threshold by these clips: {threshold:.2f}")
    for name in missing:
        print(f"OpenCV {name}: not in this OpenCV ({cv2.__version__}); opencv-contrib-python has it")
    if options.json:
        about = {"source": model.provenance.source, "sha256": model.provenance.sha256, "kind": model.provenance.kind}
        content = {
            "machine": machine("cpu"),
            "model": about,
            "frames": options.frames,
            "first_seed": options.first_seed,
            "lost_threshold": threshold,
            "not_in_this_opencv": missing,
            "rows": [asdict(row) for row in rows],
        }
        write_json(options.json, content)


if __name__ == "__main__":
    main()
