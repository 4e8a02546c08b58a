"""`ckd-fast track`: follow targets through folders, videos or cameras."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_fast.errors import InputError

from .parsing import EXIT_INTERRUPTED, add_command, add_model_options, box, not_negative, positive

if TYPE_CHECKING:
    from ckd_fast.config import Homography
    from ckd_fast.types import Box
    from ckd_fast.video import Pair

    from .parsing import Commands


def add_track(commands: Commands) -> None:
    """Declare the subcommand."""
    parser = add_command(
        commands,
        "track",
        "follow targets through paired visible and thermal frames",
        "  ckd-fast track visible/ infrared/ --init 120,80,40,90 --weights ckd.safetensors --out run/\n"
        "  ckd-fast track rgb.mp4 thermal.mp4 --select --weights ckd.safetensors --out run/\n"
        "  ckd-fast track both.mp4 --side-by-side rgb-left --init 120,80,40,90 --weights ckd.safetensors --out run/\n"
        "  ckd-fast track 0 rtsp://camera/thermal --select --weights ckd.safetensors --out run/ --limit 1000\n"
        "  ckd-fast track clip/visible clip/infrared --ground-truth clip/groundtruth.txt --weights random --out run/",
    )
    parser.add_argument("rgb", metavar="RGB", help="folder, video file, camera number or stream address")
    parser.add_argument("tir", metavar="TIR", nargs="?", help="the same for thermal; none for a side-by-side video")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    start = parser.add_argument_group("targets")
    start.add_argument("--init", type=box, action="append", metavar="x,y,w,h", help="a target; repeat for several")
    start.add_argument("--select", action="store_true", help="draw the targets in a window")
    start.add_argument(
        "--ground-truth", type=Path, metavar="FILE", help="x,y,w,h per frame: drawn, compared, first row as --init"
    )
    frames = parser.add_argument_group("frames")
    frames.add_argument("--pair", choices=("order", "stem"), default="order", help="how folders are paired")
    frames.add_argument(
        "--side-by-side", choices=("rgb-left", "tir-left", "rgb-top", "tir-top"), default="rgb-left", metavar="LAYOUT",
        help="rgb-left (default), tir-left, rgb-top, tir-top: halves of a single video",
    )  # fmt: skip
    frames.add_argument("--tir-to-rgb", type=Path, metavar="FILE", help="3x3 homography from thermal to visible pixels")
    frames.add_argument(
        "--tir-range", type=not_negative, nargs=2, metavar=("LOW", "HIGH"), help="16-bit thermal: values for 0 and 255"
    )
    frames.add_argument("--allow-resize", action="store_true", help="frames may change size; the box is scaled along")
    frames.add_argument("--max-unreadable", type=not_negative, default=10, metavar="N", help="give up beyond (10)")
    frames.add_argument("--live-tolerance", type=float, default=0.05, metavar="S", help="live: largest gap in a pair")
    frames.add_argument("--limit", type=positive, metavar="N", help="stop after N frames")
    parser_model = parser
    add_model_options(parser_model)
    behaviour = parser.add_argument_group("behaviour")
    behaviour.add_argument(
        "--lost-threshold", type=float, metavar="S", help="score that counts as lost (default: the weights', else 0.2)"
    )
    behaviour.add_argument("--lost-search-scale", type=float, default=1.0, metavar="F", help="search wider while lost")
    output = parser.add_argument_group("output")
    output.add_argument("--no-video", action="store_false", dest="video", help="no annotated video")
    output.add_argument("--plot", action="store_true", help="plot of score and overlap (needs matplotlib)")
    output.add_argument("--authors-format", action="store_true", help="boxes truncated to whole numbers, by tabs")
    output.add_argument("--fps", type=float, metavar="F", help="of the annotated video (default: the source's)")
    output.add_argument("--json", action="store_true", help="print the summary as JSON")
    output.add_argument("--quiet", action="store_true", help="no progress bar")
    output.add_argument("--force", action="store_true", help="overwrite results that are there")
    parser.set_defaults(run=run_track)


def read_homography(path: Path) -> Homography:
    """Nine numbers in three rows, by spaces or commas; or a .npy file."""
    import numpy as np

    try:
        if path.suffix == ".npy":
            matrix = np.load(path, allow_pickle=False)
        else:
            matrix = np.array(
                [line.replace(",", " ").split() for line in path.read_text().splitlines() if line.strip()]
            )
        rows = [[float(value) for value in row] for row in matrix]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: expected a 3x3 matrix of numbers ({error})") from error
    if [len(row) for row in rows] != [3, 3, 3]:
        raise InputError(f"{path}: expected a 3x3 matrix, got rows of {[len(row) for row in rows]}")
    return tuple(map(tuple, rows))  # type: ignore[return-value]


def read_boxes(path: Path) -> list[Box | None]:
    """x,y,w,h per line, by commas, tabs or spaces; a row of NaN or without area: the target is not in view."""
    boxes: list[Box | None] = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            boxes.append(None)  # dropping it would shift all that follow
            continue
        try:
            x, y, w, h = (float(value) for value in line.lstrip("\ufeff").replace(",", " ").split())
        except ValueError as error:
            raise InputError(f"{path}, line {number}: expected x,y,w,h, got {line[:60]!r}") from error
        visible = all(map(math.isfinite, (x, y, w, h))) and w > 0 and h > 0
        boxes.append((x, y, w, h) if visible else None)
    if not boxes:
        raise InputError(f"{path}: no boxes")
    return boxes


def refuse_own_input(options: argparse.Namespace) -> None:
    """Raise where a result would replace an input, or fall among the input's frames; not even --force does that."""
    names = (options.rgb, options.tir, options.ground_truth, options.weights, options.tir_to_rgb)
    inputs = {Path(name).resolve() for name in names if name}
    folder = options.out.resolve()
    if folder in inputs:
        raise InputError(f"--out {options.out} is an input folder: results would be taken for frames")
    results = {"results.jsonl", "video.mp4", "plot.png"}
    for path in inputs:
        if path.parent == folder and (path.name in results or path.name.startswith("boxes")):
            raise InputError(f"{path.name} in {options.out} is an input of this run: choose another --out")


def run_track(options: argparse.Namespace) -> int:
    """`ckd-fast track`."""
    chosen = [name for name, given in (("--init", options.init), ("--select", options.select)) if given]
    if len(chosen) == 2 or not (chosen or options.ground_truth):
        raise InputError("name the targets by --init x,y,w,h, or --select, or --ground-truth FILE")
    from tqdm import tqdm

    from ckd_fast.config import TrackerConfig
    from ckd_fast.frames import first_pair, register
    from ckd_fast.multi import MultiTracker
    from ckd_fast.video import open_source
    from ckd_fast.video.plot import require_matplotlib
    from ckd_fast.video.select import require_display, select_boxes
    from ckd_fast.video.session import PROBLEMS_SHOWN, SessionOptions, refuse_overwrite, run_session

    config = TrackerConfig(
        lost_threshold=options.lost_threshold,
        lost_search_scale=options.lost_search_scale,
        tir_to_rgb=read_homography(options.tir_to_rgb) if options.tir_to_rgb else None,
        tir_range=tuple(options.tir_range) if options.tir_range else None,
        allow_resize=options.allow_resize,
    )
    if options.fps is not None and not 0 < options.fps <= 1000:
        raise InputError(f"--fps {options.fps}: expected a number in (0, 1000]")
    truth = read_boxes(options.ground_truth) if options.ground_truth else None
    if options.plot:
        require_matplotlib()
    if options.select:
        require_display()
    session = SessionOptions(
        out=options.out,
        video=options.video,
        plot=options.plot,
        result_format="authors" if options.authors_format else "float",
        fps=options.fps,
        max_unreadable=options.max_unreadable,
        limit=options.limit,
        force=options.force,
    )

    refuse_overwrite(session)
    refuse_own_input(options)

    def first(pair: Pair) -> Sequence[Sequence[float]]:
        if options.select and pair.rgb is not None and pair.tir is not None:
            return select_boxes(register(first_pair(pair.rgb, pair.tir, config)))
        if options.init:
            return options.init  # type: ignore[no-any-return]
        if truth is None or truth[0] is None:
            raise InputError(f"{options.ground_truth}: the first row is no box; name the target by --init")
        return [truth[0]]

    with open_source(
        options.rgb,
        options.tir,
        by=options.pair,
        layout=options.side_by_side,
        tolerance_s=options.live_tolerance,
    ) as source:
        remarks = list(source.remarks)
        if truth is not None and source.visible_length not in (None, len(truth)):
            remarks.append(
                f"{options.ground_truth} has {len(truth)} rows for {source.visible_length} visible frames: "
                "row n belongs to frame n, the rest has no truth"
            )
        for remark in remarks:
            sys.stderr.write(f"ckd-fast: {remark}\n")
        tracker = MultiTracker(
            options.weights, options.model, options.engine, options.device, options.dtype, config, seed=options.seed
        )
        length = source.length if options.limit is None else min(options.limit, source.length or options.limit)
        shown = 0
        with tqdm(total=length, unit="frame", disable=True if options.quiet else None) as bar:

            def problem(text: str) -> None:
                nonlocal shown
                shown += 1
                if shown <= PROBLEMS_SHOWN:
                    bar.write(f"ckd-fast: {text}", file=sys.stderr)

            summary = run_session(
                source,
                tracker,
                first,
                session,
                truth=truth,
                on_frame=lambda _pair: bar.update(),
                on_problem=problem,
            )
        dropped = getattr(source, "dropped", 0)
    if options.json:
        print(json.dumps(dataclasses.asdict(summary) | {"engine": str(tracker.engine)}))
    else:
        overlap = "" if summary.mean_iou is None else f", mean IoU {summary.mean_iou:.3f}"
        lost = ", ".join(map(str, summary.lost))
        speed = f"{summary.fps:.1f} frames/s ({tracker.engine})"
        print(f"{summary.frames} frames, {speed}, lost in {lost}{overlap}: {options.out}")
        if summary.unreadable:
            print(f"{len(summary.unreadable)} frames could not be read")
        if dropped:
            print(f"{dropped} live frames were dropped")
    if summary.interrupted:
        sys.stderr.write(f"ckd-fast: interrupted; {summary.frames} frames are in {options.out}\n")
        return EXIT_INTERRUPTED
    return 0
