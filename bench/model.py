"""What a frame costs on paper: every launch's products, bytes, tiles, waves, floor and estimate.

    python bench/model.py                          # base, one target, bfloat16, H200
    python bench/model.py --targets 32 --elimination none

The launches are the engine's own, collected without a GPU; the chip is a handful of numbers (`kernels/tiles.py`), so
this says where time must go, not what it is. `floor` is the larger of products at the chip's measured matrix rate and
bytes at its measured memory rate; `estimate` adds tiles, waves, traffic from L2 and the start of a launch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from common import ROOT, commit, write_json
from launches import Launch, frame_launches, hollow_build

from ckd_fast.kernels.linear import Tiles
from ckd_fast.kernels.tiles import H200, Chip, Choice, Work, estimate
from ckd_fast.reference.config import ModelConfig, preset

TARGET_MS = 0.40
OVERLAPPED_START_US = 0.7  # what is left of a launch's start when it begins before the one in front has ended


@dataclass(frozen=True)
class Row:
    """One launch on paper."""

    launch: str
    programs: int
    waves: float
    tiles: str
    gflop: float
    megabytes: float
    floor_us: float
    estimate_us: float


def row_of(launch: Launch, dtype: str, chip: Chip) -> Row:
    """Products, bytes and times of one launch."""
    a, size = launch.arguments, 4 if dtype == "float32" else 2
    tiles, matrix = "", None
    if launch.kernel == "linear":
        tiles = f"{a['ROWS']}x{a['COLUMNS']}x{a['DEPTH']}" + (f" /{a['SPLITS']}" if a["SPLITS"] > 1 else "")
        matrix = Work("linear", dtype, launch.grid[1], a["rows_out"], a["F"], a["K"])
        choice = Choice(Tiles(a["ROWS"], a["COLUMNS"], a["DEPTH"]), a["SPLITS"])
    elif launch.kernel == "convolution":
        tiles = f"{a['CELLS']}x{a['COLUMNS']}x{a['DEPTH']}"
        groups, cells = launch.grid[1] * launch.grid[2], a["grid"] ** 2
        matrix = Work("convolution", dtype, groups, cells, a["F"], 9 * a["C"])
        choice = Choice(Tiles(a["CELLS"], a["COLUMNS"], a["DEPTH"]))
    if matrix is not None:
        found = estimate(matrix, choice, chip)
        flops, bytes_, floor = found.flops, found.bytes, found.floor_us
        time = found.microseconds - found.join_us
    else:
        flops, bytes_ = _other(launch, size)
        rate = chip.tensor_tflops if launch.kernel == "attention" and size == 2 else chip.float_tflops
        floor = max(flops / (rate * 1e6), bytes_ / (chip.memory_tb * 1e6))
        # Attention runs at about half the matrix rate: exponentials and sums stand between its two products.
        time = chip.start_us + 2 * floor
    waves = launch.programs / chip.multiprocessors
    return Row(launch.label, launch.programs, waves, tiles, flops / 1e9, bytes_ / 1e6, floor, time)


def _other(launch: Launch, size: int) -> tuple[float, float]:
    """Operations and bytes of launches that are no plain product."""
    a = launch.arguments
    if launch.kernel == "attention":
        lanes, tokens, width = launch.grid[1], a["tokens"], a["D"]
        extra = a["template"] if a["PROBABILITIES"] else 0
        return (
            4.0 * lanes * tokens * tokens * width + 2.0 * lanes * extra * tokens * width,
            4.0 * lanes * tokens * width * size,
        )
    if launch.kernel == "join":
        values = float(launch.grid[1] * a["rows_out"] * a["F"])
        return values * a["SPLITS"], values * (4 * a["SPLITS"] + 2 * size)
    if launch.kernel == "gather_taps":
        cells = float(a["grid"] ** 2 * a["targets"])
        products = float(2 * a["targets"] * a["live"] * 9 * a["F"])
        return cells * a["F"] * 18, products * size + cells * a["F"] * size
    if launch.kernel == "crop":
        pixels = float(launch.grid[1] * a["SIZE"] ** 2 * 3)
        return pixels * 12, pixels * (4 + size)
    if launch.kernel == "rank":
        return float(a["search"] ** 2), 2.0 * a["heads"] * a["most"] * a["search"] * 4
    return 0.0, float(a["grid"] ** 2 * 6 * 4) if "grid" in a else 0.0


def frame(config: ModelConfig, dtype: str, targets: int, chip: Chip) -> list[Row]:
    """Every launch of a frame."""
    build = hollow_build(config, getattr(torch, dtype), chip)
    return [row_of(launch, dtype, chip) for launch in frame_launches(build, targets)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", help="preset (default: base)")
    parser.add_argument("--elimination", choices=("mce", "ce", "none"), default="mce")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--targets", type=int, default=1, choices=(1, 2, 4, 8, 16, 32))
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "model.json", metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        config = replace(preset(options.model), elimination=options.elimination)
    except ValueError as error:
        print(f"model.py: {error}", file=sys.stderr)
        return 2
    plain = frame(config, options.dtype, options.targets, H200)
    print(
        f"{options.model} {options.elimination}, {options.targets} target(s), {options.dtype}, on paper for {H200.name}"
    )
    print(
        f"{'launch':<46}{'tiles':>16}{'programs':>10}{'waves':>7}{'GFLOP':>8}{'MB':>8}{'floor us':>10}{'estimate':>10}"
    )
    for row in plain:
        numbers = f"{row.programs:>10}{row.waves:>7.2f}{row.gflop:>8.2f}{row.megabytes:>8.2f}"
        print(f"{row.launch:<46}{row.tiles:>16}{numbers}{row.floor_us:>10.2f}{row.estimate_us:>10.2f}")
    saved = len(plain) * (H200.start_us - OVERLAPPED_START_US)
    floor, total = sum(row.floor_us for row in plain) / 1e3, sum(row.estimate_us for row in plain) / 1e3
    gflop, megabytes = sum(row.gflop for row in plain), sum(row.megabytes for row in plain)
    print(f"\n{len(plain)} launches, {gflop:.1f} GFLOP, {megabytes:.0f} MB")
    print(f"floor {floor:.3f} ms, estimate {total:.3f} ms, with launches that overlap {total - saved / 1e3:.3f} ms")
    if options.model == "base" and options.targets == 1:
        print(f"aim for the network at one target: {TARGET_MS:.2f} ms")
    summary = {"floor_ms": floor, "estimate_ms": total, "overlapped_ms": total - saved / 1e3, "launches": len(plain)}
    about = {"chip": asdict(H200), "commit": commit()}
    arguments_used = {name: str(value) for name, value in vars(options).items() if name != "json"}
    rows = [asdict(row) for row in plain]
    write_json(options.json, {"machine": about, "arguments": arguments_used, "summary": summary, "launches": rows})
    print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
