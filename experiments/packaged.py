"""Measure how well a model tracks: generated clips, real clips, one modality only, and OpenCV's trackers beside it.

    python experiments/packaged.py --clips 8 --data SEQUENCES --sequences NAME ... --json FILE
    python experiments/packaged.py --weights run/best.safetensors --clips 8

The figure of a clip is the mean IoU over all frames but the first. Tracker "still" is a box that never moves: any
tracker must beat it. Seeds of generated clips start at 10,000; use --first-seed if you have looked at those clips while
training. The program also prints the `lost_threshold` that best separates frames with IoU above 0.5 from frames with
IoU below 0.1.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))  # for common.py, which finds ckd_fast

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
# The generated test clips, fixed before any training on scenes of this look. In each, something hides the target wholly
# for some frames and a thermal crossover passes, and a box that stays overlaps the target little.
TEST_SEEDS = (
    50_000, 50_002, 50_014, 50_036, 50_055, 50_063, 50_082, 50_102, 50_108, 50_114,
    50_117, 50_120, 50_147, 50_204, 50_209, 50_216, 50_257, 51_002, 51_023, 51_335,
)  # fmt: skip
TEST_FRAMES = 200
MOST_STILL_OVERLAP = 0.3
OURS = "ckd_fast"
Image = NDArray[np.uint8]
TrackFrame = Callable[[Image, Image], tuple[Box, float]]  # next frames -> box, score
StartTracker = Callable[[Image, Image, Box], TrackFrame]  # first frames, their box -> tracker


@dataclass(frozen=True)
class Clip:
    """Frames and their boxes."""

    name: str
    rgb: list[Image]
    tir: list[Image]
    boxes: list[Box]
    hidden: tuple[bool, ...] = ()  # whether nothing of the target is to be seen, by frame; empty: unknown


@dataclass(frozen=True)
class Tracked:
    """One tracker on one clip: IoU and score of all frames but the first, and speed end to end."""

    ious: tuple[float, ...]
    scores: tuple[float, ...]
    frames_per_second: float

    @property
    def mean_iou(self) -> float:
        return statistics.fmean(self.ious)

    @property
    def last_iou(self) -> float:
        """Mean over the last ten frames."""
        return statistics.fmean(self.ious[-10:])


def track_clip(clip: Clip, start: StartTracker) -> Tracked:
    begin = time.perf_counter()
    track = start(clip.rgb[0], clip.tir[0], clip.boxes[0])
    results = [track(rgb, tir) for rgb, tir in zip(clip.rgb[1:], clip.tir[1:], strict=True)]
    seconds = time.perf_counter() - begin
    ious = tuple(iou([box for box, _ in results], clip.boxes[1:]).tolist())
    return Tracked(ious, tuple(score for _, score in results), len(ious) / seconds)


def our_tracker(model: LoadedModel, *, rgb_seen: bool = True, tir_seen: bool = True) -> StartTracker:
    """Our tracker; it gets an unseen modality in the first frame only."""

    def start(rgb: Image, tir: Image, box: Box) -> TrackFrame:
        tracker = Tracker(model)
        tracker.init(rgb, tir, box)

        def track(rgb: Image, tir: Image) -> tuple[Box, float]:
            result = tracker.update(rgb if rgb_seen else None, tir if tir_seen else None)
            return result.box, result.score

        return track

    return start


def still(_rgb: Image, _tir: Image, box: Box) -> TrackFrame:
    """A box that never moves."""
    return lambda _rgb, _tir: (box, 1.0)


def opencv_tracker(name: str) -> StartTracker | None:
    """A tracker of OpenCV on the visible frames; None if this OpenCV does not have it."""
    factory = f"Tracker{name}_create"
    create = getattr(cv2, factory, None) or getattr(getattr(cv2, "legacy", None), factory, None)
    if create is None:
        return None

    def start(rgb: Image, _tir: Image, box: Box) -> TrackFrame:
        tracker = create()
        tracker.init(rgb[..., ::-1].copy(), tuple(round(value) for value in box))
        last = box

        def track(rgb: Image, _tir: Image) -> tuple[Box, float]:
            nonlocal last
            found, (x, y, w, h) = tracker.update(rgb[..., ::-1].copy())
            if found:
                last = (float(x), float(y), float(w), float(h))
            return last, float(found)

        return track

    return start


def generated_clip(name: str, config: ClipConfig) -> Clip:
    drawn = list(SyntheticClip(config))
    thermal = [np.repeat(frame.tir[:, :, None], 3, axis=2) for frame in drawn]
    hidden = tuple(frame.hidden for frame in drawn)
    return Clip(name, [frame.rgb for frame in drawn], thermal, [frame.box for frame in drawn], hidden)


def generated_clips(count: int, frames: int, first_seed: int = FIRST_SEED) -> Iterator[Clip]:
    for number in range(count):
        yield generated_clip(f"synthetic-{number}", ClipConfig(seed=first_seed + number, frames=frames))


def generated_test_clips() -> Iterator[Clip]:
    for number, seed in enumerate(TEST_SEEDS):
        yield generated_clip(f"synthetic-test-{number}", ClipConfig(seed=seed, frames=TEST_FRAMES))


def still_overlap(boxes: Sequence[Box]) -> float:
    """Mean IoU of a box that stays where it was in the first frame."""
    return float(iou([boxes[0]] * (len(boxes) - 1), boxes[1:]).mean())


def real_clips(root: Path, names: Sequence[str]) -> Iterator[Clip]:
    dataset, cache = open_dataset("folder", root), FrameCache(1)
    for name in names:
        sequence = dataset.sequence(name)
        files, boxes = sequence.frames(), sequence.boxes()
        count = min(len(files), len(boxes))
        yield Clip(
            name,
            [cache.read(path) for path in files.visible[:count]],
            [cache.read(path) for path in files.infrared[:count]],
            [(float(x), float(y), float(w), float(h)) for x, y, w, h in boxes[:count]],
        )


def lost_threshold(runs: Sequence[Tracked]) -> float:
    """The score with the best balanced accuracy between tracked and lost frames; NaN without either."""
    frames = [frame for run in runs for frame in zip(run.scores, run.ious, strict=True)]
    tracked = np.sort([score for score, overlap in frames if overlap > 0.5])
    lost = np.sort([score for score, overlap in frames if overlap < 0.1])
    if not len(tracked) or not len(lost):
        return float("nan")
    levels = np.linspace(0.01, 0.99, 99)
    kept = 1 - np.searchsorted(tracked, levels) / len(tracked)
    caught = np.searchsorted(lost, levels) / len(lost)
    return float(levels[np.argmax(kept + caught)])


def rivals(model: LoadedModel) -> dict[str, StartTracker]:
    """What the model is compared with, OpenCV aside."""
    other: Elimination = "mce" if model.config.elimination == "none" else "none"
    switched = dataclasses.replace(model, config=dataclasses.replace(model.config, elimination=other))
    return {
        f"elimination {other}": our_tracker(switched),
        "RGB alone": our_tracker(model, tir_seen=False),
        "TIR alone": our_tracker(model, rgb_seen=False),
        "still": still,
    }


def measure(clips: Iterable[Clip], trackers: Mapping[str, StartTracker]) -> dict[str, dict[str, Tracked]]:
    """Run every tracker on every clip and print tables; the results by clip and tracker."""
    table = {}
    print("| clip | " + " | ".join(trackers) + " |\n|---" + "|---" * len(trackers) + "|", flush=True)
    for clip in clips:
        runs = {name: track_clip(clip, start) for name, start in trackers.items()}
        table[clip.name] = runs
        cells = (f"{run.mean_iou:.3f} ({run.last_iou:.2f})" for run in runs.values())
        print(f"| {clip.name} | " + " | ".join(cells) + " |", flush=True)
    for name in trackers:
        generated = [runs[name].mean_iou for clip, runs in table.items() if clip.startswith("synthetic")]
        mean = f"mean IoU {statistics.fmean(generated):.3f} on {len(generated)} generated clips, " if generated else ""
        print(f"{name}: {mean}{statistics.median(r[name].frames_per_second for r in table.values()):.0f} frames/s")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", metavar="FILE", help="weights file (default: the packaged model)")
    parser.add_argument("--clips", type=int, default=8, metavar="N", help="generated clips (default: 8)")
    parser.add_argument("--frames", type=int, default=120, metavar="N", help="frames of each clip (default: 120)")
    parser.add_argument(
        "--first-seed", type=int, default=FIRST_SEED, metavar="N", help="seed of the first clip (default: 10000)"
    )
    parser.add_argument(
        "--test-clips", action="store_true", help=f"the {len(TEST_SEEDS)} generated test clips in place of --clips"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of your own sequences")
    parser.add_argument("--sequences", nargs="+", default=[], metavar="NAME", help="sequences of --data to track")
    parser.add_argument("--opencv", nargs="*", default=["CSRT", "KCF", "MIL"], metavar="NAME", help="OpenCV's trackers")
    parser.add_argument("--only-ours", action="store_true", help="no comparison with other trackers")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="result file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    model = load_model(options.weights)
    trackers: dict[str, StartTracker] = {OURS: our_tracker(model)}
    found = {} if options.only_ours else {name: opencv_tracker(name) for name in options.opencv}
    missing = [name for name, start in found.items() if start is None]
    if not options.only_ours:
        trackers |= rivals(model) | {f"OpenCV {name}": start for name, start in found.items() if start is not None}
    clips = (
        generated_test_clips()
        if options.test_clips
        else generated_clips(options.clips, options.frames, options.first_seed)
    )
    if options.data is not None:
        clips = itertools.chain(clips, real_clips(options.data, options.sequences))
    table = measure(clips, trackers)
    threshold = lost_threshold([runs[OURS] for runs in table.values()])
    print(f"lost_threshold from these clips: {threshold:.2f}")
    for name in missing:
        print(f"OpenCV {name}: missing in OpenCV {cv2.__version__}; opencv-contrib-python has it")
    if options.json:
        about = {name: getattr(model.provenance, name) for name in ("source", "sha256", "kind")}
        rows = [
            {"clip": clip, "tracker": name}
            | {field: getattr(run, field) for field in ("mean_iou", "last_iou", "frames_per_second")}
            for clip, runs in table.items()
            for name, run in runs.items()
        ]
        write_json(options.json, {
            "machine": machine("cpu"), "model": about, "frames": options.frames, "first_seed": options.first_seed,
            "lost_threshold": threshold, "not_in_this_opencv": missing, "rows": rows,
        })  # fmt: skip


if __name__ == "__main__":
    main()
