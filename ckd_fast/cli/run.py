"""`ckd-fast run`: track a whole data set, one pass per sequence."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .parsing import add_command, add_dataset_options, add_model_options, chosen_dataset, not_negative, positive, say

if TYPE_CHECKING:
    from ckd_fast.evaluation.running import Outcome

    from .parsing import Commands

EXIT_FAILURES = 1


def add_run(commands: Commands) -> None:
    parser = add_command(
        commands,
        "run",
        "track every sequence of a data set and write result and time files",
        "  ckd-fast run --dataset lasher --root LasHeR --weights ckd.safetensors --out results/CKD --workers 4\n"
        "  ckd-fast run --dataset gtot --root GTOT --weights ckd.safetensors --out results/CKD-blur --corrupt blur:3\n"
        "  ckd-fast run --dataset folder --root clip/ --weights random --model tiny --out results/random\n"
        "If a run is interrupted, the same command continues it.",
    )
    add_dataset_options(parser)
    add_model_options(parser, threads=1)
    running = parser.add_argument_group("running")
    running.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    running.add_argument(
        "--workers", type=positive, metavar="N", help="worker processes (default: one per GPU, or one)"
    )
    running.add_argument("--ray", metavar="ADDRESS", help="use a Ray cluster: auto, HOST:PORT or local (extra cluster)")
    running.add_argument(
        "--corrupt",
        metavar="NAME:LEVEL",
        help="damage the frames, for example blur:3 (docs/evaluation.md lists names and levels)",
    )
    running.add_argument("--corrupt-seed", type=not_negative, default=0, metavar="N", help="damage seed (default: 0)")
    running.add_argument("--authors-format", action="store_true", help="whole numbers (truncated), separated by tabs")
    running.add_argument("--force", action="store_true", help="replace the results of another run")
    running.add_argument("--json", action="store_true", help="print the summary as JSON")
    running.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run_run)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """End workers and keep finished sequences on SIGTERM too."""

    def end(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_run(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ckd_fast.evaluation.corruptions import parse_corruption
    from ckd_fast.evaluation.running import RunPlan, TrackerSetup, run_dataset
    from ckd_fast.evaluation.workers import default_workers, devices, local

    setup = TrackerSetup(
        options.weights,
        options.model,
        options.engine,
        options.dtype,
        options.seed,
        threads=options.threads,
        without=tuple(options.without),
    )
    corruption = parse_corruption(options.corrupt, options.corrupt_seed) if options.corrupt else None
    plan = RunPlan(setup, corruption, "authors" if options.authors_format else "float")
    dataset = chosen_dataset(options)
    if options.ray:
        from ckd_fast.evaluation.cluster import on_ray

        backend = on_ray(options.ray, options.device, options.workers)
    else:
        workers = options.workers or default_workers(options.device, options.weights)
        backend = local(devices(options.device, workers, options.weights))
    with _sigterm_as_ctrl_c(), tqdm(unit="frame", disable=True if options.quiet else None, smoothing=0.05) as bar:

        def show_total(frames: int, kept: int) -> None:
            bar.reset(frames)
            if kept:
                bar.write(f"ckd-fast: {kept} sequences are already finished", file=sys.stderr)

        def show(outcome: Outcome) -> None:
            bar.set_postfix_str(outcome.sequence)
            if outcome.failure:
                bar.write(f"ckd-fast: {outcome.sequence} failed: {outcome.failure}", file=sys.stderr)
            for note in outcome.notes:
                bar.write(f"ckd-fast: {outcome.sequence}: {note}", file=sys.stderr)

        summary = run_dataset(
            dataset, plan, options.out, backend, force=options.force, on_total=show_total,
            on_progress=bar.update, on_outcome=show,
        )  # fmt: skip
    if options.json:
        say(json.dumps(dataclasses.asdict(summary)))
    else:
        rate = f", {summary.frames / summary.seconds:.1f} frames/s in all" if summary.frames else ""
        done = f"{len(summary.finished)} sequences finished, {len(summary.kept)} kept, {len(summary.failed)} failed"
        say(f"{done}: {options.out}")
        what = "; ".join(summary.engines) or "nothing to do"
        say(f"{summary.frames} frames in {summary.seconds:.1f} s{rate} ({what})")
        if summary.failed:
            say(f"see {options.out / 'failures.json'} for the reasons; the same command tries these sequences again")
    return EXIT_FAILURES if summary.failed else 0
