"""`ckd-fast sample`: a synthetic RGBT clip with ground truth."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_fast.errors import InputError, OutputError

from .parsing import add_command, not_negative, positive, size

if TYPE_CHECKING:
    from .parsing import Commands

VIDEO_FPS = 25.0


def add_sample(commands: Commands) -> None:
    """Declare the subcommand."""
    parser = add_command(
        commands,
        "sample",
        "write a seeded synthetic RGBT clip with ground truth, as frames or as video",
        "  ckd-fast sample clip/\n"
        "  ckd-fast sample clip/ --frames 300 --size 320x256 --seed 7\n"
        "  ckd-fast sample clip/ --video --no-dark --no-occlusion",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write: visible, infrared, groundtruth.txt")
    parser.add_argument("--frames", type=positive, default=120, help="length (default: 120)")
    parser.add_argument("--size", type=size, default=(640, 480), metavar="WxH", help="default: 640x480")
    parser.add_argument("--seed", type=not_negative, default=0, help="equal seeds give equal clips (default: 0)")
    parser.add_argument("--distractors", type=not_negative, default=4, help="objects like the target (default: 4)")
    parser.add_argument("--video", action="store_true", help="visible.mp4 and infrared.mp4 instead of images")
    for name, what in (
        ("dark", "stretch in which only thermal sees the target"),
        ("crossover", "stretch in which only RGB sees the target"),
        ("occlusion", "occluder"),
    ):
        parser.add_argument(f"--no-{name}", action="store_false", dest=name, help=f"without the {what}")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.add_argument("--force", action="store_true", help="overwrite a clip that is there")
    parser.set_defaults(run=run_sample)


def run_sample(options: argparse.Namespace) -> int:
    """`ckd-fast sample`."""
    import cv2
    import numpy as np
    from tqdm import tqdm

    from ckd_fast.datasets import ClipConfig, SyntheticClip
    from ckd_fast.files import refuse_overwrite, writing
    from ckd_fast.video import AnnotatedVideo

    width, height = options.size
    if options.video and (width % 2 or height % 2):
        raise InputError(f"--size {width}x{height}: a video needs even sides")
    config = ClipConfig(
        width=width,
        height=height,
        frames=options.frames,
        seed=options.seed,
        distractors=options.distractors,
        dark=options.dark,
        crossover=options.crossover,
        occlusion=options.occlusion,
    )
    out: Path = options.out
    folders = [out / "visible", out / "infrared"]
    outputs = (*folders, *(f.with_suffix(".mp4") for f in folders), out / "groundtruth.txt")
    refuse_overwrite(outputs, force=options.force)
    with writing(out):
        for folder in folders:
            # Frames of a longer clip must not stay behind a shorter one.
            for old in folder.glob("[0-9][0-9][0-9][0-9][0-9][0-9].jpg"):
                old.unlink()
            (out if options.video else folder).mkdir(parents=True, exist_ok=True)
        videos = [AnnotatedVideo(f.with_suffix(".mp4"), VIDEO_FPS) for f in folders] if options.video else []
        clip = SyntheticClip(config)
        rows, notes = [], []
        for index, frame in enumerate(tqdm(clip, unit="frame", disable=None)):
            for number, (folder, image) in enumerate(zip(folders, (frame.rgb, frame.tir), strict=True)):
                bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
                if options.video:
                    videos[number].write(image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2))
                elif not cv2.imwrite(str(folder / f"{index + 1:06d}.jpg"), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95]):
                    raise OutputError(f"{folder}: frame {index + 1} cannot be written")
            rows.append(",".join(f"{value:.2f}" for value in frame.box))
            notes.append({"dark": frame.dark, "crossover": frame.crossover, "occluded": frame.occluded})
        for video in videos:
            video.close()
        (out / "groundtruth.txt").write_text("\n".join(rows) + "\n")
        about = {"generator": dataclasses.asdict(config), "frames": notes}
        (out / "clip.json").write_text(json.dumps(about) + "\n")
    if options.json:
        print(json.dumps({"out": str(out), "frames": len(rows), "size": [width, height], "first_box": clip.boxes()[0]}))
        return 0
    what = "visible.mp4, infrared.mp4" if options.video else "visible/, infrared/"
    print(f"{out}: {len(rows)} frames of {width}x{height} in {what}, groundtruth.txt; first box {rows[0]}")
    return 0
