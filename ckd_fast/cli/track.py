"""`ckd-fast track`: follow targets through folders, videos or cameras."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_fast.errors import InputError
from ckd_fast.files import refuse_overwrite

from .parsing import EXIT_INTERRUPTED, add_command, add_model_options, box, new_tracker, not_negative, positive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckd_fast.config import Homography, TrackerConfig
    from ckd_fast.types import Box
    from ckd_fast.video import Pair, PairSource
    from ckd_fast.video.session import FirstBoxes, SessionOptions, SessionSummary

    from .parsing import Commands

PROBLEMS_SHOWN = 20


def add_track(commands: Commands) -> None:
    parser = add_command(
        commands,
        "track",
        "follow targets through paired visible and thermal frames",
        "  ckd-fast track visible/ infrared/ --init 120,80,40,90 --weights ckd.safetensors --out run/\n"
        "  ckd-fast track rgb.mp4 thermal.mp4 --select --weights ckd.safetensors --out run/\n"
        "  ckd-fast track both.mp4 --side-by-side rgb-left --init 120,80,40,90 --weights ckd.safetensors --out run/\n"
        "  ckd-fast track 0 rtsp://camera/thermal --select --weights ckd.safetensors --out run/ --limit 1000\n"
        "  ckd-fast track clip/visible clip/infrared --ground-truth clip/groundtruth.txt --out run/",
    )
    parser.add_argument("rgb", metavar="RGB", help="folder, video file, camera number or stream address")
    parser.add_argument("tir", metavar="TIR", nargs="?", help="the same for thermal; omit it for a side-by-side video")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    start = parser.add_argument_group("targets")
    start.add_argument("--init", type=box, action="append", metavar="x,y,w,h", help="a target; repeat for several")
    start.add_argument("--select", action="store_true", help="draw the targets in a window")
    start.add_argument(
        "--ground-truth", type=Path, metavar="FILE",
        help="true boxes x,y,w,h, one per frame: drawn and compared; the first is the target unless --init names it",
    )  # fmt: skip
    frames = parser.add_argument_group("frames")
    frames.add_argument("--pair", choices=("order", "stem"), default="order", help="pair folders by order or file stem")
    frames.add_argument(
        "--side-by-side", choices=("rgb-left", "tir-left", "rgb-top", "tir-top"), default="rgb-left", metavar="LAYOUT",
        help="halves of a side-by-side video: rgb-left (default), tir-left, rgb-top, tir-top",
    )  # fmt: skip
    frames.add_argument("--tir-to-rgb", type=Path, metavar="FILE", help="3x3 homography from thermal to visible pixels")
    frames.add_argument(
        "--tir-range", type=not_negative, nargs=2, metavar=("LOW", "HIGH"), help="16-bit thermal: values for 0 and 255"
    )
    frames.add_argument("--allow-resize", action="store_true", help="let frames change size; the box is scaled too")
    frames.add_argument(
        "--max-unreadable", type=not_negative, default=10, metavar="N",
        help="fail if more frames than this cannot be read (default: 10)",
    )  # fmt: skip
    frames.add_argument(
        "--live-tolerance", type=float, default=0.05, metavar="S", help="cameras: largest gap, seconds (default: 0.05)"
    )
    frames.add_argument("--limit", type=positive, metavar="N", help="stop after N frames")
    add_model_options(parser)
    behaviour = parser.add_argument_group("behaviour")
    behaviour.add_argument(
        "--lost-threshold", type=float, metavar="S",
        help="scores below it count as lost (default: what the weights say, else 0.2)",
    )  # fmt: skip
    behaviour.add_argument(
        "--lost-search-scale", type=float, default=1.0, metavar="F", help="once lost, search F times wider (default: 1)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--no-video", action="store_false", dest="video", help="write no annotated video")
    output.add_argument("--plot", action="store_true", help="plot score and overlap (needs matplotlib)")
    output.add_argument(
        "--authors-format", action="store_true", help="write boxes as whole numbers (truncated), separated by tabs"
    )
    output.add_argument("--fps", type=float, metavar="F", help="rate of the annotated video (default: the source's)")
    output.add_argument("--json", action="store_true", help="print the summary as JSON")
    output.add_argument("--quiet", action="store_true", help="no progress bar")
    output.add_argument("--force", action="store_true", help="overwrite the results of an earlier run")
    parser.set_defaults(run=run_track)


def read_homography(path: Path) -> Homography:
    """Three rows of three numbers, separated by spaces or commas; or a .npy file."""
    import numpy as np

    from ckd_fast.datasets.tables import read_table

    try:
        values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else read_table(path).values
        rows = np.asarray(values, np.float64)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a 3x3 matrix of numbers ({error})") from error
    if rows.shape != (3, 3):
        raise InputError(f"{path}: expected a 3x3 matrix, got {' x '.join(map(str, rows.shape))} numbers")
    return tuple(map(tuple, rows.tolist()))  # type: ignore[return-value]


def read_boxes(path: Path) -> list[Box | None]:
    """x,y,w,h per line; None for an empty line, NaN or no area: the target is not in view."""
    from ckd_fast.datasets.tables import read_text

    lines = read_text(path).rstrip().splitlines()
    if not lines:
        raise InputError(f"{path}: no boxes")
    boxes: list[Box | None] = []
    for number, line in enumerate(lines, 1):
        try:
            x, y, w, h = (float(value) for value in line.replace(",", " ").split() or ["nan"] * 4)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: expected x,y,w,h, got {line[:60]!r}") from error
        visible = all(map(math.isfinite, (x, y, w, h))) and w > 0 and h > 0
        boxes.append((x, y, w, h) if visible else None)
    return boxes


def refuse_own_input(options: argparse.Namespace) -> None:
    """Raise if a result would replace an input or lie among the input's frames, even with --force."""
    from ckd_fast.video.results import FILE_PATTERNS

    names = (options.rgb, options.tir, options.ground_truth, options.weights, options.tir_to_rgb)
    inputs = {Path(name).resolve() for name in names if name}
    folder = options.out.resolve()
    if folder in inputs:
        raise InputError(f"--out {options.out} is an input folder: results would be taken for frames")
    for path in inputs:
        if path.parent == folder and any(map(path.match, FILE_PATTERNS)):
            raise InputError(f"{path.name} in {options.out} is an input of this run: choose another --out")


def configured(options: argparse.Namespace) -> TrackerConfig:
    from ckd_fast.config import TrackerConfig

    return TrackerConfig(
        lost_threshold=options.lost_threshold,
        lost_search_scale=options.lost_search_scale,
        tir_to_rgb=read_homography(options.tir_to_rgb) if options.tir_to_rgb else None,
        tir_range=tuple(options.tir_range) if options.tir_range else None,
        allow_resize=options.allow_resize,
    )


def session_options(options: argparse.Namespace) -> SessionOptions:
    """What to write. Raises if it cannot be written, before anything expensive begins."""
    from ckd_fast.plotting import require_matplotlib
    from ckd_fast.video.results import results_in
    from ckd_fast.video.session import SessionOptions

    if options.fps is not None and not 0 < options.fps <= 1000:
        raise InputError(f"--fps {options.fps}: expected a number in (0, 1000]")
    if options.plot:
        require_matplotlib()
    refuse_overwrite(results_in(options.out), force=options.force)
    refuse_own_input(options)
    return SessionOptions(
        out=options.out,
        video=options.video,
        plot=options.plot,
        result_format="authors" if options.authors_format else "float",
        fps=options.fps,
        max_unreadable=options.max_unreadable,
        limit=options.limit,
        force=options.force,
    )


def first_boxes(options: argparse.Namespace, truth: Sequence[Box | None] | None, config: TrackerConfig) -> FirstBoxes:
    """How the targets are named: by --init, by --select, or by the first true box."""
    if (options.init and options.select) or not (options.init or options.select or truth):
        raise InputError("name the targets by --init x,y,w,h, or --select, or --ground-truth FILE")
    if options.init:
        return lambda _pair: options.init
    if not options.select:
        box = truth[0] if truth else None
        if box is None:
            raise InputError(f"{options.ground_truth}: the first row is no box; name the target by --init")
        return lambda _pair: [box]
    from ckd_fast.frames import first_pair, register
    from ckd_fast.video.select import require_display, select_boxes

    require_display()

    def ask(pair: Pair) -> Sequence[Box]:
        return select_boxes(register(first_pair(pair.rgb, pair.tir, config)))

    return ask


def remarks_on(source: PairSource, truth: Sequence[Box | None] | None, truth_file: Path) -> list[str]:
    """What the user should know about the frames before tracking begins."""
    remarks = list(source.remarks)
    if truth is not None and source.visible_length not in (None, len(truth)):
        remarks.append(
            f"{truth_file} has {len(truth)} rows for {source.visible_length} visible frames: "
            "row n belongs to frame n, and frames without a row are not compared"
        )
    return remarks


def run_track(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ckd_fast.multi import MultiTracker
    from ckd_fast.video import open_source
    from ckd_fast.video.session import run_session

    config = configured(options)
    truth = read_boxes(options.ground_truth) if options.ground_truth else None
    first = first_boxes(options, truth, config)
    session = session_options(options)
    problems = 0
    with open_source(
        options.rgb,
        options.tir,
        by=options.pair,
        layout=options.side_by_side,
        tolerance_s=options.live_tolerance,
    ) as source:
        for remark in remarks_on(source, truth, options.ground_truth):
            sys.stderr.write(f"ckd-fast: {remark}\n")
        tracker = new_tracker(MultiTracker, options, config)
        length = source.length if options.limit is None else min(options.limit, source.length or options.limit)
        with tqdm(total=length, unit="frame", disable=True if options.quiet else None) as bar:

            def show_problem(text: str) -> None:
                nonlocal problems
                problems += 1
                if problems <= PROBLEMS_SHOWN:
                    bar.write(f"ckd-fast: {text}", file=sys.stderr)

            summary = run_session(
                source, tracker, first, session,
                truth=truth, on_frame=lambda _pair: bar.update(), on_problem=show_problem,
            )  # fmt: skip
        dropped = getattr(source, "dropped", 0)
    report(summary, str(tracker.engine), dropped, options)
    return EXIT_INTERRUPTED if summary.interrupted else 0


def report(summary: SessionSummary, engine: str, dropped: int, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(dataclasses.asdict(summary) | {"engine": engine}))
    else:
        overlap = "" if summary.mean_iou is None else f", mean IoU {summary.mean_iou:.3f}"
        lost = ", ".join(map(str, summary.lost))
        speed = f"{summary.fps:.1f} frames/s ({engine})"
        print(f"{summary.frames} frames, {speed}, lost in {lost}{overlap}: {options.out}")
        if summary.unreadable:
            print(f"{len(summary.unreadable)} frames could not be read")
        if dropped:
            print(f"{dropped} live frames were dropped")
    if summary.interrupted:
        sys.stderr.write(f"ckd-fast: interrupted; {summary.frames} frames are in {options.out}\n")
