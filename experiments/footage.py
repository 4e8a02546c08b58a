"""Turn plain footage into training sequences: frames, and tracklets that two public trackers agree on.

    python experiments/footage.py --data DIR --teachers DIR --out DIR

DIR/train holds what docs/training.md lists. For every recording, OUT gets `NAME/infrared/` or `NAME/visible/` or both,
and `NAME/tracklets.json`: [[first frame, [[x, y, w, h], ...]], ...]. Stills with boxes are copied into the layout that
training reads. A run that was stopped goes on with the recordings that are left.

A tracklet starts on something that moves, on a blob that is warmer or colder than what is around it, or on any region
with texture. NanoTrack follows it forward, FEAR-XS forward and then backward. It is kept if all three agree; its boxes
are the mean of FEAR-XS's two. Targets that hardly move are kept for at most a third of the tracklets. Tracklets that
came with the footage (`tracklets.json` beside the videos) are taken as they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
from numpy.typing import NDArray
from public_trackers import Fear, Image, Nano, PublicTracker

from ckd_fast.boxes import iou
from ckd_fast.training.samples import textured_region
from ckd_fast.types import Box

Tracklet = tuple[int, list[Box]]  # number of the first frame, a box for each frame
LARGEST_WIDTH = 640  # of a stored frame
QUALITY = 92  # of its JPEG
LENGTH = 60  # frames of a tracklet, fewer where the recording is shorter
AGREE = 0.6  # least mean IoU of two trackers
RETURN = 0.5  # least IoU of the first box with what the way back finds there
CHUNK = 10  # frames after which a tracklet may be given up
MOTION_GAP = 6  # frames between two that are compared for motion
MOVES = 0.5  # centre's way in multiples of the box's side
STILL_SHARE = 1 / 3


@dataclass(frozen=True)
class Recording:
    """Footage of one or both cameras, each a video or a folder of images; and the tracklets that came with it."""

    name: str
    visible: Path | None
    infrared: Path | None
    tracklets: tuple[Tracklet, ...] = ()


def recordings(train: Path) -> list[Recording]:
    """What the folder `train` holds, without stills."""
    given = train / "m3svd_ir" / "tracklets.json"
    known = json.loads(given.read_text(encoding="utf-8")) if given.exists() else {}
    thermal = [
        Recording(path.stem, None, path, tuple((first, boxes) for first, boxes in known.get(path.stem, [])))
        for path in sorted((train / "m3svd_ir").glob("*.mp4"))
    ]
    visible = [Recording(path.stem, path, None) for path in sorted((train / "sam2_videos").glob("*.mp4"))]
    pairs = [
        Recording(f"{path.name}_pairs", path / "visible", path / "infrared")
        for path in sorted((train / "m3svd_val").iterdir())
        if path.is_dir()
    ]
    return thermal + visible + pairs


def frames_of(source: Path) -> Iterator[Image]:
    """Its frames in BGR order, at most `LARGEST_WIDTH` wide."""
    for image in _read(source):
        scale = LARGEST_WIDTH / image.shape[1]
        smaller = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
        yield smaller.astype(np.uint8, copy=False)


def scale_of(source: Path) -> float:
    """By what its frames are made smaller."""
    width: int = next(_read(source)).shape[1]
    return min(1.0, LARGEST_WIDTH / width)


def _read(source: Path) -> Iterator[Image]:
    return _images(source) if source.is_dir() else _video(source)


def _images(folder: Path) -> Iterator[Image]:
    for path in sorted(folder.glob("*.jpg")):
        image = cv2.imread(str(path))
        if image is None:
            raise ValueError(f"{path}: cannot be decoded")
        yield image.astype(np.uint8, copy=False)


def _video(path: Path) -> Iterator[Image]:
    video = cv2.VideoCapture(str(path))
    there, image = video.read()
    if not there:
        raise ValueError(f"{path}: cannot be decoded")
    while there:
        yield image.astype(np.uint8, copy=False)
        there, image = video.read()


def store(recording: Recording, folder: Path) -> list[Image]:
    """Write its frames; those of one camera for the trackers (thermal if there is one), in RGB order."""
    kept: list[Image] = []
    for name, source in (("visible", recording.visible), ("infrared", recording.infrared)):
        if source is None:
            continue
        (folder / name).mkdir(parents=True)
        kept = []
        for number, image in enumerate(frames_of(source)):
            gray = name == "infrared"
            stored = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if gray else image
            path = folder / name / f"{number:06d}.jpg"
            if not cv2.imwrite(str(path), stored, [cv2.IMWRITE_JPEG_QUALITY, QUALITY]):
                raise OSError(f"{path}: cannot be written")
            kept.append(np.ascontiguousarray(image[:, :, ::-1]))
    return kept


def blobs(image: Image) -> list[Box]:
    """Regions that are warmer or colder than what is around them."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    around = cv2.blur(gray, (81, 81))
    return [box for part in (cv2.subtract(gray, around), cv2.subtract(around, gray)) for box in _regions(part, 12.0)]


def movers(image: Image, later: Image) -> list[Box]:
    """Regions that differ between two frames of a camera that stands still."""
    gray, then = (cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (0, 0), 1.5) for frame in (image, later))
    return _regions(cv2.absdiff(gray, then), 10.0)


def _regions(strength: NDArray[Any], least: float) -> list[Box]:
    """Rectangles around what stands out in a map."""
    mask = (strength > max(least, float(np.percentile(strength, 93)))).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    return [
        (float(x), float(y), float(w), float(h))
        for x, y, w, h, area in stats[1:]
        if min(w, h) >= 10 and max(w, h) <= 220 and area > 0.3 * w * h and 0.2 < w / h < 4
    ]


def starts(frames: list[Image], first: int, kind: int, random: np.random.Generator) -> list[Box]:
    """Where a tracklet may start in a frame: on a mover, a blob or a region with texture, by `kind`."""
    if kind == 0:
        return movers(frames[first], frames[min(first + MOTION_GAP, len(frames) - 1)])
    if kind == 1:
        return blobs(frames[first])
    box = textured_region(frames[first], random)
    return [] if box is None else [box]


def follow(tracker: PublicTracker, frames: list[Image], box: Box) -> list[Box]:
    """Its box in every frame, the given one first."""
    tracker.init(frames[0], box)
    return [box, *(tracker.update(frame).box for frame in frames[1:])]


def agreed(
    fear: PublicTracker, nano: PublicTracker, frames: list[Image], box: Box, *, may_stay: bool
) -> list[Box] | None:
    """The target's boxes, if both trackers and the way back agree on them; and it moves or may stay."""
    first = follow(nano, frames, box)  # the faster one
    if not may_stay and not moves(first):
        return None
    fear.init(frames[0], box)
    forward = [box]
    for number, frame in enumerate(frames[1:], start=1):
        forward.append(fear.update(frame).box)
        if number % CHUNK == 0 and float(np.mean(iou(forward, first[: number + 1]))) < AGREE:
            return None  # most starts fail soon
    if float(np.mean(iou(forward, first))) < AGREE:
        return None
    backward = follow(fear, frames[::-1], forward[-1])[::-1]
    overlaps = iou(forward, backward)
    if float(overlaps[0]) < RETURN or float(overlaps.mean()) < AGREE:
        return None
    mean = (np.array(forward) + np.array(backward)) / 2
    centres, (height, width) = mean[:, :2] + mean[:, 2:] / 2, frames[0].shape[:2]
    if not ((centres > 0) & (centres < (width, height))).all():
        return None
    return [(float(x), float(y), float(w), float(h)) for x, y, w, h in mean.round(1)]


def moves(boxes: list[Box]) -> bool:
    """Whether the target leaves its place."""
    values = np.array(boxes)
    way = np.hypot(*np.ptp(values[:, :2] + values[:, 2:] / 2, axis=0))
    return bool(way > MOVES * np.sqrt(values[0, 2] * values[0, 3]))


def tracklets(frames: list[Image], teachers: Path, attempts: int, seed: int) -> list[Tracklet]:
    """Tracklets of one recording."""
    fear, nano, random = Fear(teachers), Nano(teachers), np.random.default_rng(seed)
    length = min(LENGTH, len(frames))
    found: list[Tracklet] = []
    still = 0
    for attempt in range(attempts):
        first = int(random.integers(len(frames) - length + 1))
        boxes = starts(frames, first, attempt % 3, random)
        if not boxes:
            continue
        box = boxes[int(random.integers(len(boxes)))]
        may_stay = still < STILL_SHARE * (len(found) + 3)
        tracklet = agreed(fear, nano, frames[first : first + length], box, may_stay=may_stay)
        if tracklet is not None:
            still += not moves(tracklet)
            found.append((first, tracklet))
    return found


def prepare(recording: Recording, out: Path, teachers: Path, attempts: int) -> str:
    """Frames and tracklets of one recording; a line that tells about it."""
    cv2.setNumThreads(1)
    folder, partial_folder = out / recording.name, out / f".{recording.name}"
    if folder.exists():
        return f"{recording.name}: there already"
    shutil.rmtree(partial_folder, ignore_errors=True)
    frames = store(recording, partial_folder)
    seed = int.from_bytes(recording.name.encode(), "little")
    source = recording.infrared or recording.visible
    scale = 1.0 if source is None else scale_of(source)
    given = [(first, (np.array(boxes) * scale).tolist()) for first, boxes in recording.tracklets]
    found = [*given, *tracklets(frames, teachers, attempts * len(frames) // 1000, seed)]
    text = json.dumps([[first, boxes] for first, boxes in found])
    (partial_folder / "tracklets.json").write_text(text, encoding="utf-8")
    partial_folder.rename(folder)
    moving = sum(moves(boxes) for _, boxes in found)
    return f"{recording.name}: {len(frames)} frames, {len(found)} tracklets, {moving} of them move"


def copy_stills(train: Path, out: Path) -> None:
    """HIT-UAV's thermal stills with boxes, in the layout of a source of stills."""
    folder, draft = out / "hit_uav", out / ".hit_uav"
    if folder.exists() or not (train / "hit_uav").is_dir():
        return
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "infrared").mkdir(parents=True)
    for path in (train / "hit_uav").glob("*.jpg"):
        shutil.copyfile(path, draft / "infrared" / path.name)
    shutil.copyfile(train / "hit_uav" / "boxes.json", draft / "boxes.json")
    draft.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="holds train/")
    parser.add_argument("--teachers", type=Path, required=True, metavar="DIR", help="holds fear_xs/ and nanotrack/")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets a folder for every recording")
    parser.add_argument("--attempts", type=int, default=120, metavar="N", help="per 1,000 frames (default: 120)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    work = partial(prepare, out=options.out, teachers=options.teachers, attempts=options.attempts)
    listed = recordings(options.data / "train")
    if not listed:
        raise SystemExit(f"footage.py: {options.data / 'train'}: holds no footage")
    copy_stills(options.data / "train", options.out)
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        jobs = [pool.submit(work, recording) for recording in listed]
        for number, job in enumerate(as_completed(jobs), start=1):
            print(f"{number}/{len(listed)} {job.result()}", flush=True)


if __name__ == "__main__":
    main()
