"""Every launch of a frame on this GPU: its time, its floor, and the vendor's library on the same shapes.

    python bench/kernels.py --json out/kernels.json

The launches are the engine's own on random weights, each alone with the caches flushed before it, since most weights
come from memory in a frame. `floor` is the larger of products at the matrix rate and bytes at the copy rate, both
measured here first. The library is torch's matrix product or attention, without the norm, activation and residual that
the kernel does on the way. Then `attend_score_gather` and the fused losses, each beside plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from common import ROOT, frame_config, frame_program, machine, need_gpu, used, write_json
from operations import Sides, distilling, eliminating
from plans import frame_planner, random_build
from timing import matmul_ceiling_tflops, median_us

from ckd_fast.kernels.head import TOWERS
from ckd_fast.kernels.launch import Launch, LaunchSettings
from ckd_fast.kernels.requirements import can_overlap
from ckd_fast.kernels.tiles import Chip, chip_of, chooser, cost_of
from ckd_fast.reference.config import PRESETS


@dataclass(frozen=True)
class Timed:
    """One launch."""

    launch: str
    count: int
    measured_us: float
    floor_us: float
    library_us: float | None


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
    source = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy_us = median_us(lambda: target.copy_(source), 50, 200)
    chip = chip_of(torch.device("cuda"))
    return replace(chip, tensor_tflops=matmul_ceiling_tflops(), memory_tb=2 * source.nbytes / copy_us / 1e6)


def library(launch: Launch) -> Callable[[], object] | None:
    """The vendor's routine for the same product."""
    request = launch.request
    if request is None:
        return None
    dtype: torch.dtype = getattr(torch, request.dtype)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=dtype)

    if request.kernel in ("linear", "patch"):
        x, w = (random(request.groups, size, request.depth) for size in (request.rows, request.columns))
        return lambda: torch.bmm(x, w.mT)
    if request.kernel == "attention":
        q, k, v = random(3, 1, request.groups, request.rows, request.depth)
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)
    if request.kernel in ("convolution", "last_convolution"):
        grid, channels = round(request.rows**0.5), request.depth // 9
        x = random(request.groups // TOWERS, TOWERS * channels, grid, grid).to(memory_format=torch.channels_last)
        w = random(TOWERS * request.columns, channels, 3, 3).to(memory_format=torch.channels_last)
        return lambda: torch.nn.functional.conv2d(x, w, padding=1, groups=TOWERS)
    return None


def time_launches(launches: Sequence[Launch], chip: Chip) -> list[Timed]:
    """Launches of equal size and variant once, with how often a frame has them."""
    groups: dict[tuple[str, str], list[Launch]] = {}
    for launch in launches:
        groups.setdefault((launch.kernel_name, launch.what), []).append(launch)
    rows = []
    for group in groups.values():
        launch = group[0]
        routine = library(launch)
        beside = median_us(routine) if routine else None
        label = f"{launch.name} {launch.what}"
        rows.append(Timed(label, len(group), median_us(launch.run), cost_of(launch, chip).floor_us, beside))
        del routine
    return rows


def compare(what: str, sides: Sides) -> Compared:
    """Times and peak memory of both."""

    def peak(call: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    return Compared(what, *map(median_us, sides), *map(peak, sides))


def main() -> None:
    parser = frame_program(__doc__)
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "kernels.json", metavar="FILE")
    options = parser.parse_args()
    need_gpu()
    config, dtype = frame_config(options), getattr(torch, options.dtype)
    chip = measured_chip()
    print(f"{chip.name}: products at {chip.tensor_tflops:.0f} TFLOP/s, memory at {chip.memory_tb:.2f} TB/s, measured")
    device = torch.device("cuda")
    settings = LaunchSettings(chooser(chip_of(device)), overlap=can_overlap(device))
    build = random_build(config, dtype, settings, device)
    timed: dict[int, list[Timed]] = {}
    for targets in options.targets:
        timed[targets] = rows = time_launches(frame_planner(build, targets).plan().launches, chip)
        print(f"\n{targets} target(s)\n{'launch':<62}{'times':>6}{'us':>10}{'floor us':>10}{'library us':>12}")
        for row in rows:
            beside = f"{row.library_us:>12.2f}" if row.library_us is not None else f"{'':>12}"
            print(f"{row.launch:<62}{row.count:>6}{row.measured_us:>10.2f}{row.floor_us:>10.2f}{beside}")
        total = sum(row.count * row.measured_us for row in rows)
        floor = sum(row.count * row.floor_us for row in rows)
        print(f"{'sum over a frame':<68}{total:>10.2f}{floor:>10.2f}")
    like, compared = torch.empty(1, device=device, dtype=dtype), []
    for count in (1, 8):
        sides = eliminating(PRESETS["base"], like, count, LaunchSettings())
        compared.append(compare(f"attend_score_gather, {count} target(s), {options.dtype}", sides))
    for width, depth in ((768, 12), (192, 6)):
        for batch in (16, 40):
            what = f"style and content losses, batch {batch}, {depth} blocks of {width}"
            compared.append(compare(what, distilling(batch, 320, width, depth, device)))
    print(f"\n{'fused against plain torch':<58}{'us':>10}{'plain us':>10}{'MB':>8}{'plain MB':>10}")
    for pair in compared:
        times = f"{pair.fused_us:>10.1f}{pair.plain_us:>10.1f}"
        print(f"{pair.what:<58}{times}{pair.fused_peak_mb:>8.1f}{pair.plain_peak_mb:>10.1f}")
    write_json(options.json, {
        "machine": machine("cuda"), "arguments": used(options),
        "chip": asdict(chip), "launches": {count: [asdict(row) for row in rows] for count, rows in timed.items()},
        "fused": [asdict(pair) for pair in compared],
    })  # fmt: skip


if __name__ == "__main__":
    main()
