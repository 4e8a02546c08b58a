"""Find the fastest tiles on this GPU and write them to kernels/tiles.json.

    python bench/tune.py                                  # base, one target, bfloat16
    python bench/tune.py --targets 1 8 32 --dtype bfloat16 float16 --seconds 300

Every request for tiles that a frame makes is tried with other tiles, and the whole frame is timed, captured in a graph
as the engine captures it: so each launch has its own epilogue, strides and neighbours, and finds in the L2 cache what
it finds there in use. Requests that take longest by the estimate come first. The table is written after every
request; rows of other GPUs stay as they are. Most of the time would go into compiling, so other processes compile
all candidates first (`--ahead`).
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
import triton
from common import add_gpu_options, frame_config, frame_program, gpu_or_rehearsal
from plans import FramePlanner, empty_build, frame_planner, random_build
from stage import DEVICE, GPU, SMALL, dtype_of, settings_of
from timing import replayed_us

from ckd_fast.engines.triton.plan import Plan
from ckd_fast.kernels.launch import Choice, Choose, TileRequest, first_line
from ckd_fast.kernels.requirements import launch_errors
from ckd_fast.kernels.tiles import (
    H200,
    PRODUCTS,
    TABLE,
    Chip,
    Measured,
    candidates,
    chip_of,
    chooser,
    cost_of,
    estimate_us,
    read_table,
    write_table,
)
from ckd_fast.reference.config import ModelConfig

MOST_TRIED = 14  # candidates per request, the most promising first
REPLAYS = 40
CLEARLY = 0.998  # of the time before: less of a gain may be noise

FrameTimer = Callable[[Plan], float]  # microseconds


def captured_us(plan: Plan) -> float:
    """A frame in a graph on this GPU: the median of replays that follow each other."""
    return replayed_us(plan.run, REPLAYS)


def requests_by_time(plan: Plan, chip: Chip) -> list[TileRequest]:
    """A plan's requests; those whose launches take longest on paper come first."""
    total: dict[TileRequest, float] = dict.fromkeys(plan.requests, 0.0)
    for launch in plan.launches:
        if launch.request is not None:
            total[launch.request] += cost_of(launch, chip).estimate_us
    return sorted(total, key=lambda request: -total[request])


def tried(request: TileRequest, chip: Chip) -> Iterator[Choice]:
    """Candidates, of products the most promising ones."""
    if request.kernel in PRODUCTS:
        ordered = sorted(candidates(request, chip), key=lambda choice: estimate_us(request, choice, chip))
        yield from ordered[:MOST_TRIED]
    else:
        yield from candidates(request, chip)


@dataclasses.dataclass
class Tuning:
    """Choices that get better."""

    planner: FramePlanner  # of the frame
    chip: Chip  # the GPU
    table: list[Measured]  # what is known; changed
    frame_us: FrameTimer = captured_us  # how a plan is timed

    def time(self, request: TileRequest, choice: Choice) -> float | None:
        """A frame with these tiles for one request; None where they do not work."""
        known = chooser(self.chip, self.table)
        try:
            return self.frame_us(self.planner.plan(lambda asked: choice if asked == request else known(asked)))
        except Exception as error:
            reason = first_line(error)
            if gpu_is_lost():  # every later candidate would fail as well
                raise RuntimeError(f"the GPU does not answer after {choice} for {request}: {reason}") from error
            print(f"    {choice}: {reason}", flush=True)
            return None

    def improve(self, request: TileRequest, deadline: float) -> Measured | None:
        """Try a request's candidates, as long as there is time; a row for the table, None where nothing works."""
        choice = chooser(self.chip, self.table)(request)
        best = self.time(request, choice)
        for candidate in tried(request, self.chip):
            if time.monotonic() > deadline:
                break
            if candidate == choice:
                continue
            found = self.time(request, candidate)
            if found is None or (best is not None and found > CLEARLY * best):
                continue
            # Both once more, in turns: the clock may have changed, or the first time was luck.
            best, found = self.time(request, choice), self.time(request, candidate)
            if found is not None and (best is None or found < CLEARLY * best):
                choice, best = candidate, found
        if best is None:
            return None
        row = Measured(self.chip.name, request, choice, round(best, 2), triton.__version__)
        self.table = [old for old in self.table if (old.gpu, old.request) != (row.gpu, request)] + [row]
        return row


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What a process compiles: a part of the choices to be tried in frames of one model."""

    config: ModelConfig
    dtype: str
    targets: int
    table: Path | None  # of tiles known before
    choices: tuple[tuple[TileRequest, Choice], ...]

    def compile(self) -> int:
        """Compile all launches of frames with these choices into Triton's cache; the number of frames."""
        settings = settings_of(self.table)
        planner = frame_planner(empty_build(self.config, getattr(torch, self.dtype), settings), self.targets)
        for request, choice in self.choices:
            answer = partial(_answer, request, choice, settings.choose)
            for launch in planner.plan(answer).launches:
                try:
                    launch.kernel.warmup(**launch.arguments, **launch.options, grid=launch.grid)
                except launch_errors():
                    break  # it fails again, and says why, when its turn to be timed comes
        return len(self.choices)


def _answer(request: TileRequest, choice: Choice, known: Choose, asked: TileRequest) -> Choice:
    return choice if asked == request else known(asked)


def compile_ahead(tuning: Tuning, table: Path | None, processes: int) -> None:
    """Compile every candidate of a frame in several processes, which share Triton's cache of compiled kernels."""
    planner, chip = tuning.planner, tuning.chip
    frame = planner.plan()
    frame.run()  # what all of them share is compiled once, here
    choices = [(request, choice) for request in requests_by_time(frame, chip) for choice in tried(request, chip)]
    build, begin = planner.build, time.monotonic()
    name = str(build.dtype).removeprefix("torch.")
    parts = [
        Candidates(build.config, name, planner.memory.targets, table, tuple(choices[start::processes]))
        for start in range(processes)
    ]
    # Not a fork, which would share this process's GPU.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        done = sum(pool.map(Candidates.compile, parts))
    print(f"{done} candidates compiled in {time.monotonic() - begin:.0f} s by {processes} processes", flush=True)


def gpu_is_lost() -> bool:
    """Whether an earlier error has made this process's GPU unusable."""
    try:
        return torch.cuda.is_available() and torch.ones(1, device="cuda").item() != 1
    except RuntimeError:
        return True


def tune(tuning: Tuning, path: Path, deadline: float) -> bool:
    """Go through all requests of the frame; whether there was time for all of them."""
    write_table(tuning.table, path)
    requests = requests_by_time(tuning.planner.plan(chooser(tuning.chip, tuning.table)), tuning.chip)
    for number, request in enumerate(requests, 1):
        if time.monotonic() > deadline:
            print(f"out of time after {number - 1} of {len(requests)} requests")
            return False
        row = tuning.improve(request, deadline)
        shape = f"{request.kernel} {request.groups} x {request.rows} x {request.columns} x {request.depth}"
        result = "nothing works" if row is None else f"{row.choice!s:<46}{row.frame_us:>9.2f} us a frame"
        print(f"{number:>3}/{len(requests)} {shape:<48}{request.dtype:<10}{result}", flush=True)
        write_table(tuning.table, path)
    return True


def build_parser() -> argparse.ArgumentParser:
    parser = frame_program(__doc__, dtypes=True)
    parser.add_argument("--targets", nargs="+", type=int, choices=(1, 2, 4, 8, 16, 32), default=[1])
    parser.add_argument("--seconds", type=float, default=600, help="stop after so long (default: 600)")
    parser.add_argument(
        "--table", type=Path, default=TABLE, metavar="FILE", help="to write (default: kernels/tiles.json)"
    )
    most = min(12, max(1, (os.cpu_count() or 1) - 1))
    parser.add_argument("--ahead", type=int, default=most, help=f"processes that compile, 0: none (default: {most})")
    add_gpu_options(parser)
    return parser


def main() -> None:
    options = build_parser().parse_args()
    gpu_or_rehearsal(options)
    if options.rehearse:
        options.targets, options.seconds = [1], 8.0
    config = SMALL if options.rehearse else frame_config(options)
    chip = chip_of(DEVICE) if GPU else dataclasses.replace(H200, name="rehearsal")  # no rows for a real GPU
    deadline = time.monotonic() + options.seconds
    table = read_table(TABLE if options.tiles is None else options.tiles)
    for dtype in options.dtype:
        build = random_build(config, dtype_of(dtype), settings_of(options.tiles), DEVICE)
        for targets in options.targets:
            print(f"{options.model}, {targets} target(s), {dtype}")
            tuning = Tuning(frame_planner(build, targets), chip, table)
            if options.ahead and GPU:
                compile_ahead(tuning, options.tiles, options.ahead)
            in_time = tune(tuning, options.table, deadline)
            table = tuning.table
            if not in_time:
                return
    print(f"{len(table)} rows in {options.table}")


if __name__ == "__main__":
    main()
