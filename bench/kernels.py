"""Every launch of a frame on this GPU: its time, its floor, and the vendor's library on the same shapes.

    python bench/kernels.py --json out/kernels.json

First the whole frame in a graph, beside the library's chain: matrix products, attention and convolutions of all blocks
and the head in one graph, each over its own weights. Then the launches, the engine's own on random weights, in chains
that are captured as a frame is:

    warm   one launch again and again, which finds everything in the L2 cache
    cold   its namesakes in all blocks one after the other, if their weights overflow that cache; else each launch
           behind a kernel that fills the cache with other values
    floor  the larger of products at the matrix rate and bytes at the copy rate, both measured here first

The library's routines leave out the norm, activation and residual that our kernels do on the way, and in float8 the
rounding of inputs and the scale of each output. Last, `attend_score_gather` and the fused losses, each beside plain
PyTorch. Every row is written as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    ROOT,
    add_gpu_options,
    frame_config,
    frame_program,
    gpu_or_rehearsal,
    machine,
    save_json,
    used,
    write_json,
)
from library import library
from operations import Sides, distilling, eliminating
from plans import frame_planner, random_build
from stage import DEVICE, GPU, SMALL, dtype_of, settings_of
from timing import Call, chained_us, l2_bytes, matmul_ceiling_tflops, median_us, replayed_us, spoiled_us

from ckd_fast.kernels.launch import Launch, LaunchSettings, run_all
from ckd_fast.kernels.tiles import H200, Chip, chip_of, cost_of
from ckd_fast.reference.config import PRESETS

OVERFLOW = 1.3  # chained launches whose tensors are so many times the L2 cache find none of their weights in it


@dataclass(frozen=True)
class Whole:
    """A frame's launches, and the vendor's library on the same products, each in one graph."""

    targets: int
    ours_us: float
    library_us: float
    library_calls: int


@dataclass(frozen=True)
class Timed:
    """One launch. Times are microseconds."""

    targets: int
    launch: str
    count: int
    warm_us: float
    cold_us: float
    floor_us: float
    library_warm_us: float | None
    library_cold_us: float | None


@dataclass(frozen=True)
class Compared:
    """A fused operation and its twin."""

    what: str
    fused_us: float
    plain_us: float
    fused_peak_mb: float
    plain_peak_mb: float


def measured_chip() -> Chip:
    """This GPU with its matrix and copy rates as they are today."""
    source = torch.randn(2**30 if GPU else 2**10, device=DEVICE, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy_us = median_us(lambda: target.copy_(source), 50, 200)
    chip = chip_of(DEVICE) if GPU else H200
    return replace(chip, tensor_tflops=matmul_ceiling_tflops(), memory_tb=2 * source.nbytes / copy_us / 1e6)


def whole(launches: Sequence[Launch], targets: int) -> Whole:
    """The frame in one graph, and the library's routines for it in another."""
    routines = [routine for launch in launches if (routine := library(launch)) is not None]
    ours, theirs = replayed_us(partial(run_all, launches)), replayed_us(lambda: [routine() for routine in routines])
    return Whole(targets, ours, theirs, len(routines))


def time_launches(launches: Sequence[Launch], targets: int, chip: Chip, save: Callable[[Timed], None]) -> None:
    """Launches of equal size and variant once, with how often a frame has them."""
    groups: dict[tuple[str, str], list[Launch]] = {}
    for launch in launches:
        groups.setdefault((launch.kernel_name, launch.what), []).append(launch)
    for group in groups.values():
        runs, bytes_together = [launch.run for launch in group], sum(launch.bytes for launch in group)
        routines = [routine for launch in group if (routine := library(launch)) is not None]
        in_turns = chained_us if len(group) > 1 and bytes_together > OVERFLOW * l2_bytes() else spoiled_us
        beside = (chained_us(routines[:1]), in_turns(routines)) if routines else (None, None)
        label, floor = f"{group[0].name} {group[0].what}", cost_of(group[0], chip).floor_us
        save(Timed(targets, label, len(group), chained_us(runs[:1]), in_turns(runs), floor, *beside))
        del routines


def compare(what: str, sides: Sides) -> Compared:
    """Times and peak memory of both."""

    def peak(call: Call) -> float:
        if not GPU:
            return 0.0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    return Compared(what, *map(median_us, sides), *map(peak, sides))


def comparisons(dtype: torch.dtype, settings: LaunchSettings) -> dict[str, Callable[[], Sides]]:
    """Fused operations by size; their tensors are made when they are measured."""
    like, found = torch.empty(1, device=DEVICE, dtype=dtype), dict[str, Callable[[], Sides]]()
    for count in (1, 8) if GPU else (1,):
        what = f"attend_score_gather, {count} target(s), {dtype}"
        found[what] = partial(eliminating, PRESETS["base"] if GPU else SMALL, like, count, settings)
    for width, depth in ((768, 12), (192, 6)) if GPU else ((32, 1),):
        for batch in (16, 40) if GPU else (1,):
            what = f"style and content losses, batch {batch}, {depth} blocks of {width}"
            found[what] = partial(distilling, batch, 320 if GPU else 20, width, depth, DEVICE)
    return found


def main() -> None:
    parser = frame_program(__doc__)
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "kernels.json", metavar="FILE")
    add_gpu_options(parser)
    options = parser.parse_args()
    gpu_or_rehearsal(options)
    if options.rehearse:
        options.targets = [1]
    chip = measured_chip()
    print(f"{chip.name}: products at {chip.tensor_tflops:.0f} TFLOP/s, memory at {chip.memory_tb:.2f} TB/s, measured")
    settings, dtype = settings_of(options.tiles), dtype_of(options.dtype)
    build = random_build(SMALL if options.rehearse else frame_config(options), dtype, settings, DEVICE)
    about = {"machine": machine(DEVICE.type), "arguments": used(options), "chip": asdict(chip)}
    frames: list[Whole] = []
    rows: list[Timed] = []
    compared: list[Compared] = []

    def written() -> dict[str, Any]:
        tables: dict[str, list[Any]] = {"frames": frames, "launches": rows, "fused": compared}
        return {**about, **{name: [asdict(row) for row in table] for name, table in tables.items()}}

    def save(row: Timed) -> None:
        rows.append(row)
        save_json(options.json, written())
        beside = "" if row.library_warm_us is None else f"{row.library_warm_us:>14.2f}{row.library_cold_us:>14.2f}"
        ours = f"{row.count:>6}{row.warm_us:>10.2f}{row.cold_us:>10.2f}{row.floor_us:>10.2f}"
        print(f"{row.launch:<62}{ours}{beside}", flush=True)

    for targets in options.targets:
        planned = frame_planner(build, targets).plan()
        planned.run()  # every launch finds its input
        frames.append(whole(planned.launches, targets))
        save_json(options.json, written())
        found = frames[-1]
        print(f"\n{targets} target(s): a frame {found.ours_us:.1f} us; {found.library_calls} routines of the library "
              f"{found.library_us:.1f} us")  # fmt: skip
        columns = f"{'times':>6}{'warm us':>10}{'cold us':>10}{'floor us':>10}{'library warm':>14}{'library cold':>14}"
        print(f"{'launch':<62}{columns}")
        time_launches(planned.launches, targets, chip, save)
        here = [row for row in rows if row.targets == targets]
        warm, cold, floor = (sum(row.count * getattr(row, f"{name}_us") for row in here) for name in
                             ("warm", "cold", "floor"))  # fmt: skip
        print(f"{'sum over a frame':<68}{warm:>10.2f}{cold:>10.2f}{floor:>10.2f}")
    print(f"\n{'fused against plain torch':<58}{'us':>10}{'plain us':>10}{'MB':>8}{'plain MB':>10}")
    for what, sides in comparisons(build.dtype, settings).items():
        compared.append(pair := compare(what, sides()))
        save_json(options.json, written())
        times = f"{pair.fused_us:>10.1f}{pair.plain_us:>10.1f}"
        print(f"{pair.what:<58}{times}{pair.fused_peak_mb:>8.1f}{pair.plain_peak_mb:>10.1f}", flush=True)
    write_json(options.json, written())


if __name__ == "__main__":
    main()
