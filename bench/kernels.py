"""Every launch of a frame on this GPU: its time, its floor, and the vendor's library on the same shapes.

    python bench/kernels.py --json out/kernels.json

The launches are the engine's own on random weights, each alone with the caches flushed before it, since most weights
come from memory in a frame. `floor` is the larger of products at the matrix rate and bytes at the copy rate, both
measured here first. The library is torch's matrix product or attention, without the norm, activation and residual that
the kernel does on the way. Then `attend_score_gather` and the fused losses, each beside plain PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from common import ROOT, machine, write_json
from plans import frame_planner, random_build
from timing import matmul_ceiling_tflops, median_us

from ckd_fast.kernels.attention import deciding_tokens
from ckd_fast.kernels.distillation import Reading, distillation_backward, distillation_forward
from ckd_fast.kernels.elimination import attend_score_gather
from ckd_fast.kernels.head import TOWERS
from ckd_fast.kernels.launch import Launch, LaunchSettings
from ckd_fast.kernels.tiles import Chip, chip_of, chooser, cost_of
from ckd_fast.reference import elimination as plain
from ckd_fast.reference.config import preset
from ckd_fast.reference.losses import LossConfig, distillation
from ckd_fast.reference.vit import attention as plain_attention


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
        groups.setdefault((launch.kernel.fn.__name__, launch.what), []).append(launch)
    rows = []
    for group in groups.values():
        launch = group[0]
        routine = library(launch)
        beside = median_us(routine) if routine else None
        label = f"{launch.name} {launch.what}"
        rows.append(Timed(label, len(group), median_us(launch.run), cost_of(launch, chip).floor_us, beside))
        del routine
    return rows


def compare(what: str, fused: Callable[[], object], unfused: Callable[[], object]) -> Compared:
    """Times and peak memory of both."""

    def peak(call: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    times = [median_us(call) for call in (fused, unfused)]
    return Compared(what, times[0], times[1], peak(fused), peak(unfused))


def fused_elimination(dtype: torch.dtype, targets: int) -> Compared:
    """`attend_score_gather` against attention, softmax, scores, sort and gather in plain torch."""
    config = preset("base")
    template, tokens = config.template_tokens, config.template_tokens + config.search_tokens
    packed = torch.randn(2, targets, tokens, 3 * config.dim, device="cuda", dtype=dtype)
    q, k, v = packed.unflatten(-1, (3, config.heads, config.head_dim)).permute(3, 0, 1, 4, 2, 5)
    mask = plain.template_mask(config, batch=targets).cuda()
    deciding = deciding_tokens(mask)
    positions = torch.arange(config.search_tokens, device="cuda").expand(2, targets, -1).contiguous()
    keep = config.search_tokens_after(3)

    def unfused() -> object:
        attended = plain_attention(q, k, v).transpose(2, 3).flatten(3)
        probabilities = plain.template_probabilities(q, k, template)
        scores = plain.token_scores(probabilities, mask, config, slice(None))
        return plain.keep_tokens(attended, plain.eliminate(3, scores, positions, 0.7).kept_index, template)

    short = positions.int()
    return compare(
        f"attend_score_gather, {targets} target(s), {str(dtype).removeprefix('torch.')}",
        lambda: attend_score_gather(q, k, v, deciding=deciding, positions=short, keep=keep).run(), unfused,
    )  # fmt: skip


def fused_losses(batch: int, width: int, depth: int) -> Compared:
    """Style and content losses of one training step, forward and backward."""
    config = LossConfig()
    blocks = [torch.randn(4, batch, 320, width, device="cuda", requires_grad=True) for _ in range(depth)]
    upstream = torch.ones(3, device="cuda")
    reading = Reading()

    def ours() -> None:
        for block in blocks:
            statistics = distillation_forward(block.detach(), reading).run()
            distillation_backward(block.detach(), statistics.moments, upstream, reading).run()

    def theirs() -> None:
        for block in blocks:
            (found,) = distillation([block], config)
            torch.autograd.grad(found.style + found.content_rgb + found.content_tir, block)

    return compare(f"style and content losses, batch {batch}, {depth} blocks of {width}", ours, theirs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", help="preset (default: base)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "kernels.json", metavar="FILE")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("kernels.py: measures on a GPU, and torch sees none", file=sys.stderr)
        return 2
    chip = measured_chip()
    print(f"{chip.name}: products at {chip.tensor_tflops:.0f} TFLOP/s, memory at {chip.memory_tb:.2f} TB/s, measured")
    device = torch.device("cuda")
    settings = LaunchSettings(chooser(chip_of(device)), overlap=torch.cuda.get_device_capability() >= (9, 0))
    build = random_build(preset(options.model), getattr(torch, options.dtype), settings, device)
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
    dtype = getattr(torch, options.dtype)
    compared = [fused_elimination(dtype, count) for count in (1, 8)]
    compared += [fused_losses(batch, *sizes) for sizes in ((768, 12), (192, 6)) for batch in (16, 40)]
    print(f"\n{'fused against plain torch':<58}{'us':>10}{'plain us':>10}{'MB':>8}{'plain MB':>10}")
    for pair in compared:
        times = f"{pair.fused_us:>10.1f}{pair.plain_us:>10.1f}"
        print(f"{pair.what:<58}{times}{pair.fused_peak_mb:>8.1f}{pair.plain_peak_mb:>10.1f}")
    write_json(options.json, {
        "machine": machine("cuda"), "arguments": {"model": options.model, "dtype": options.dtype},
        "chip": asdict(chip), "launches": {count: [asdict(row) for row in rows] for count, rows in timed.items()},
        "fused": [asdict(pair) for pair in compared],
    })  # fmt: skip
    print(f"\nwritten to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
