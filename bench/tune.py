"""Measure tiles on this GPU and write the best ones to kernels/tiles.json.

    python bench/tune.py                                  # base, one target, bfloat16
    python bench/tune.py --targets 1 8 32 --dtype bfloat16 float16 --seconds 300

For every product of a frame each candidate is run on random numbers, weights coming from memory as they do in a frame.
What is in the table for this GPU stays unless something faster is found; rows of other GPUs are never touched.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import triton

from ckd_fast.kernels.attention import attention
from ckd_fast.kernels.head import TOWERS, convolution
from ckd_fast.kernels.linear import Tiles, linear
from ckd_fast.kernels.tiles import (
    TABLE,
    Chip,
    Choice,
    Measured,
    Work,
    candidates,
    chip_of,
    chooser,
    estimate,
    read_table,
    write_table,
)
from ckd_fast.reference.config import ModelConfig, preset

MOST_TRIED = 14  # candidates per shape, the most promising first


def works(config: ModelConfig, dtype: str, targets: int) -> list[Work]:
    """Every shape of a frame whose tiles can be chosen, once."""
    dim, found = config.dim, []
    template, tokens = config.template_tokens, config.template_tokens + config.search_tokens
    for block in range(config.depth):
        after = template + config.search_tokens_after(block)
        found.append(Work("linear", dtype, 2, targets * tokens, 3 * dim, dim))
        found.append(Work("attention", dtype, 2 * targets * config.heads, tokens, tokens, config.head_dim))
        tokens = after
        found.append(Work("linear", dtype, 2, targets * tokens, dim, dim))
        found.append(Work("linear", dtype, 2, targets * tokens, config.mlp_ratio * dim, dim))
        found.append(Work("linear", dtype, 2, targets * tokens, dim, config.mlp_ratio * dim))
    channels, cells = config.head_channels, config.search_tokens
    found.append(Work("linear", dtype, 2, targets * (tokens - template), 27 * channels, dim))
    found += [
        Work("convolution", dtype, TOWERS * targets, cells, channels // out, 9 * channels // source)
        for source, out in ((1, 2), (2, 4))
    ]
    return list(dict.fromkeys(found))


def tried(work: Work, chip: Chip) -> Iterator[Choice]:
    """Candidates by their estimate, best first."""
    if work.kernel == "attention":
        for rows in (32, 64, 128):
            for keys in (32, 64, 128):
                for warps in (4, 8):
                    yield Choice(Tiles(rows, keys, 64, warps, 2))
        return
    ordered = sorted(candidates(work, chip), key=lambda choice: estimate(work, choice, chip).microseconds)
    yield from ordered[:MOST_TRIED]


def launcher(work: Work, choice: Choice) -> Callable[[], object]:
    """A launch of this work on random numbers."""
    dtype = getattr(torch, work.dtype)
    tiles = choice.tiles

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=dtype)

    if work.kernel == "linear":
        x, weight = random(work.groups, 1, work.rows, work.depth), random(work.groups, work.columns, work.depth)
        bias = torch.randn(work.groups, work.columns, device="cuda")
        out = torch.empty(work.groups, 1, work.rows, work.columns, device="cuda", dtype=dtype)
        split = choice.split_k
        room = split * work.groups * work.rows * work.columns if split > 1 else 1
        partial = torch.empty(room, device="cuda")
        return lambda: linear(x, weight, bias, out=out, split_k=split, partial=partial, tiles=tiles)
    if work.kernel == "attention":
        q, k, v = random(3, 1, 1, work.groups, work.rows, work.depth)
        return lambda: attention(
            q, k, v, tile_rows=tiles.rows, tile_keys=tiles.columns, warps=tiles.warps, stages=tiles.stages
        )
    targets, channels = work.groups // TOWERS, work.depth // 9
    x = random(targets, work.rows, TOWERS * channels)
    weight, bias = random(TOWERS, work.columns, 9, channels), torch.randn(TOWERS, work.columns, device="cuda")
    return lambda: convolution(x, weight, bias, tiles=tiles)


def best_of(work: Work, chip: Chip, deadline: float) -> Measured | None:
    """The fastest candidate for one shape; None where time ran out before the first."""
    from timing import median_us

    best: Measured | None = None
    start = chooser(chip)(work)
    for choice in dict.fromkeys([start, *tried(work, chip)]):
        if time.monotonic() > deadline:
            break
        try:
            microseconds = median_us(launcher(work, choice), 2, 8)
        except (triton.runtime.errors.OutOfResources, triton.CompilationError) as error:
            print(f"    {choice}: {str(error).splitlines()[0]}")
            continue
        if best is None or microseconds < best.microseconds:
            best = Measured(chip.name, work, choice, round(microseconds, 2), triton.__version__)
    return best


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure until done or out of time; the table is written after every shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", help="preset (default: base)")
    parser.add_argument("--elimination", choices=("mce", "ce", "none"), default="mce")
    parser.add_argument("--dtype", nargs="+", choices=("bfloat16", "float16", "float32"), default=["bfloat16"])
    parser.add_argument("--targets", nargs="+", type=int, choices=(1, 2, 4, 8, 16, 32), default=[1])
    parser.add_argument("--seconds", type=float, default=600, help="stop after so long (default: 600)")
    parser.add_argument("--table", type=Path, default=TABLE, metavar="FILE", help="default: kernels/tiles.json")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("tune.py: measures tiles on a GPU, and torch sees none", file=sys.stderr)
        return 2
    try:
        config = dataclasses.replace(preset(options.model), elimination=options.elimination)
    except ValueError as error:
        print(f"tune.py: {error}", file=sys.stderr)
        return 2
    chip = chip_of(torch.device("cuda"))
    deadline = time.monotonic() + options.seconds
    table = read_table(options.table) if options.table.exists() else []
    todo = [w for dtype in options.dtype for count in options.targets for w in works(config, dtype, count)]
    for number, work in enumerate(dict.fromkeys(todo), 1):
        measured = best_of(work, chip, deadline)
        if measured is None:
            print(f"out of time after {number - 1} of {len(todo)} shapes")
            break
        known = next((row for row in table if row.gpu == chip.name and row.work == work), None)
        if known is None or measured.microseconds < known.microseconds:
            table = [row for row in table if row is not known] + [measured]
            write_table(table, options.table)
        tiles = measured.choice.tiles
        told = f"{tiles.rows}x{tiles.columns}x{tiles.depth} w{tiles.warps} s{tiles.stages} /{measured.choice.split_k}"
        shape = f"{work.kernel} {work.groups} x {work.rows} x {work.columns} x {work.depth} {work.dtype}"
        print(f"{number:>3}/{len(todo)} {shape:<52}{told:<26}{measured.microseconds:>9.2f} us", flush=True)
    print(f"{len(table)} rows in {options.table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
