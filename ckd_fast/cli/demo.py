"""`ckd-fast demo`: the packaged model tracks a generated clip."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_fast.errors import InputError

from .parsing import add_command, add_model_options, new_tracker, not_negative, positive

if TYPE_CHECKING:
    from .parsing import Commands

VIDEO_FPS = 25.0


def add_demo(commands: Commands) -> None:
    parser = add_command(
        commands,
        "demo",
        "track a generated clip with the packaged model; write an annotated video and a plot",
        "  ckd-fast demo\n"
        "  ckd-fast demo --clip 14 --frames 200 --out elsewhere/\n"
        "  ckd-fast demo --weights ckd.safetensors --engine triton",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("ckd-fast-demo"), metavar="DIR", help="folder (default: ckd-fast-demo/)"
    )
    parser.add_argument("--frames", type=positive, default=90, metavar="N", help="length of the clip (default: 90)")
    parser.add_argument("--clip", type=not_negative, default=7, metavar="SEED", help="seed of the clip (default: 7)")
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--force", action="store_true", help="overwrite a demo in DIR")
    parser.set_defaults(run=run_demo)


def run_demo(options: argparse.Namespace) -> int:
    import numpy as np
    from tqdm import tqdm

    from ckd_fast.boxes import iou
    from ckd_fast.datasets import ClipConfig, SyntheticClip
    from ckd_fast.files import make_folder, refuse_overwrite
    from ckd_fast.frames import FramePair
    from ckd_fast.plotting import require_matplotlib
    from ckd_fast.tracker import Tracker
    from ckd_fast.video import AnnotatedVideo
    from ckd_fast.video.plot import plot_track
    from ckd_fast.video.writers import Mark, annotate

    require_matplotlib()
    if options.frames < 2:
        raise InputError(f"--frames {options.frames}: expected at least 2; tracking starts from the first")
    video_path, plot_path = options.out / "video.mp4", options.out / "plot.png"
    refuse_overwrite((video_path, plot_path), force=options.force)
    tracker = new_tracker(Tracker, options)
    make_folder(options.out)
    clip = SyntheticClip(ClipConfig(frames=options.frames, seed=options.clip))
    video = AnnotatedVideo(video_path, VIDEO_FPS)
    scores: list[float | None] = [None]
    overlaps: list[float] = []
    seconds = 0.0
    for index, frame in enumerate(tqdm(clip, unit="frame", disable=None)):
        tir = np.repeat(frame.tir[:, :, None], 3, axis=2)
        mark = Mark(frame.box, "start", truth=frame.box)
        if index == 0:
            tracker.warmup(frame.rgb.shape[:2])
            tracker.init(frame.rgb, tir, frame.box)
        else:
            begin = time.perf_counter()
            result = tracker.update(frame.rgb, tir)
            seconds += time.perf_counter() - begin
            scores.append(result.score)
            overlaps.append(float(iou(result.box, frame.box)))
            mark = Mark(result.box, f"{result.score:.2f}", result.lost, frame.box)
        video.write(annotate(FramePair(frame.rgb, tir, frame.rgb.shape[:2]), [mark]))
    video.close()
    plot_track(plot_path, [scores], tracker.lost_threshold, [1.0, *overlaps])
    mean, speed = sum(overlaps) / len(overlaps), len(overlaps) / seconds
    if options.json:
        shown = {"mean_iou": mean, "frames_per_second": speed, "frames": len(overlaps), "engine": str(tracker.engine)}
        print(json.dumps({**shown, "video": str(video_path), "plot": str(plot_path)}))
        return 0
    print(f"mean IoU {mean:.3f} over {len(overlaps)} frames, {speed:.1f} frames/s ({tracker.engine})")
    print(f"look at {video_path} and {plot_path}")
    return 0
