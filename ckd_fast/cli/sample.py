"""`ckd-fast sample`: a generated RGBT clip with ground truth."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_fast.errors import InputError, OutputError

from .parsing import add_command, not_negative, positive, size

if TYPE_CHECKING:
    from ckd_fast.datasets import SyntheticClip

    from .parsing import Commands

VIDEO_FPS = 25.0


def add_sample(commands: Commands) -> None:
    parser = add_command(
        commands,
        "sample",
        "write a generated RGBT clip with ground truth, as images or as video",
        "  ckd-fast sample clip/\n"
        "  ckd-fast sample clip/ --frames 300 --size 320x256 --seed 7\n"
        "  ckd-fast sample clip/ --video --no-dark --no-occlusion",
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder for visible, infrared, groundtruth.txt, clip.json"
    )
    parser.add_argument("--frames", type=positive, default=120, help="number of frames (default: 120)")
    parser.add_argument("--size", type=size, default=(640, 480), metavar="WxH", help="of the frames (default: 640x480)")
    parser.add_argument("--seed", type=not_negative, default=0, help="equal seeds give equal clips (default: 0)")
    parser.add_argument("--distractors", type=not_negative, default=4, help="others of the target's kind (default: 4)")
    parser.add_argument(
        "--backgrounds", default="", metavar="DIR", help="real frames (visible/, infrared/) to play in front of"
    )
    parser.add_argument("--video", action="store_true", help="write visible.mp4 and infrared.mp4 instead of images")
    for name, what in (
        ("dark", "stretch of darkness, smoke or glare, in which only thermal shows the target"),
        ("crossover", "thermal crossover, in which only RGB shows the target"),
        ("occlusion", "things in front of the target"),
    ):
        parser.add_argument(f"--no-{name}", action="store_false", dest=name, help=f"without the {what}")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.add_argument("--force", action="store_true", help="overwrite a clip in OUT")
    parser.set_defaults(run=run_sample)


def run_sample(options: argparse.Namespace) -> int:
    from ckd_fast.datasets import ClipConfig, SyntheticClip
    from ckd_fast.files import refuse_overwrite, writing

    width, height = options.size
    if options.video and (width % 2 or height % 2):
        raise InputError(f"--size {width}x{height}: a video needs even sides")
    config = ClipConfig(
        width, height, options.frames, options.seed, options.distractors,
        dark=options.dark, crossover=options.crossover, occlusion=options.occlusion, backgrounds=options.backgrounds,
    )  # fmt: skip
    out: Path = options.out
    names = ("visible", "infrared", "visible.mp4", "infrared.mp4", "groundtruth.txt")
    refuse_overwrite([out / name for name in names], force=options.force)
    clip = SyntheticClip(config)
    with writing(out):
        _write_clip(clip, out, video=options.video)
    first_box = clip.boxes()[0]
    if options.json:
        print(json.dumps({"out": str(out), "frames": len(clip), "size": [width, height], "first_box": first_box}))
        return 0
    what = "visible.mp4, infrared.mp4" if options.video else "visible/, infrared/"
    start = ",".join(f"{value:.2f}" for value in first_box)  # as `ckd-fast track --init` takes it
    print(f"{out}: {len(clip)} frames of {width}x{height} in {what}, groundtruth.txt; first box {start}")
    return 0


def _write_clip(clip: SyntheticClip, out: Path, *, video: bool) -> None:
    """Write images or videos, ground truth and clip.json."""
    import cv2
    import numpy as np
    from tqdm import tqdm

    from ckd_fast.video import AnnotatedVideo

    folders = [out / "visible", out / "infrared"]
    for folder in folders:
        # Frames of a longer clip must not stay behind a shorter one.
        for old in folder.glob("[0-9][0-9][0-9][0-9][0-9][0-9].jpg"):
            old.unlink()
        (out if video else folder).mkdir(parents=True, exist_ok=True)
    videos = [AnnotatedVideo(folder.with_suffix(".mp4"), VIDEO_FPS) for folder in folders] if video else []
    notes = []
    for index, frame in enumerate(tqdm(clip, unit="frame", disable=None)):
        if video:
            for writer, image in zip(videos, (frame.rgb, np.repeat(frame.tir[:, :, None], 3, axis=2)), strict=True):
                writer.write(image)
        else:
            for folder, picture in zip(folders, (cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR), frame.tir), strict=True):
                if not cv2.imwrite(str(folder / f"{index + 1:06d}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 95]):
                    raise OutputError(f"{folder}: frame {index + 1} cannot be written")
        notes.append({
            "dark": frame.dark, "crossover": frame.crossover, "occluded": frame.occluded, "hidden": frame.hidden,
            "visible_share": round(frame.visible_share, 3),
        })  # fmt: skip
    for writer in videos:
        writer.close()
    lines = [",".join(f"{value:.2f}" for value in box) + "\n" for box in clip.boxes()]
    (out / "groundtruth.txt").write_text("".join(lines))
    about = {"generator": dataclasses.asdict(clip.config), "frames": notes}
    (out / "clip.json").write_text(json.dumps(about) + "\n")
