"""Which tiles a launch uses: a table of what was measured, and a computed default for everything else.

The table is data, `tiles.json`, written by `bench/tune.py` for one GPU, kernel, shape and precision at a time. The
default is the candidate with the lowest estimate of a small model of the chip:

    time = start + max(products, traffic from L2, traffic into one multiprocessor, weights from memory) + join

each over whole waves of programs, since at one target no launch has more than a few. `bench/model.py` prints the same
numbers for a whole frame.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from .linear import Tiles

TABLE = Path(__file__).parent / "tiles.json"
KernelName = Literal["crop", "linear", "attention", "taps", "convolution", "last_convolution"]
SHARED_EVERYWHERE = 65536  # bytes that a program may use on every GPU of compute capability 7.5 and newer
WIDE_TILES_BYTES = 200_000  # chips with that much shared memory have the instructions for 256 columns
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Work:
    """One launch, as far as its tiles depend on it.

    Attributes:
        kernel: which one.
        dtype: "float32", "float16", "bfloat16".
        groups: independent products side by side: branches, or towers and targets, or branches, targets and heads.
        rows: of the result (tokens or cells of all targets; in attention, queries).
        columns: of the result (features; in attention, keys).
        depth: length of the sums.
    """

    kernel: KernelName
    dtype: str
    groups: int
    rows: int
    columns: int
    depth: int


@dataclass(frozen=True)
class Choice:
    """Tiles, and how many programs share a sum.

    Rows and columns of the tiles are queries and keys in attention, cells and features in the head, pixels in the crop.
    """

    tiles: Tiles
    split_k: int = 1


@dataclass(frozen=True)
class Chip:
    """What the estimate knows of a GPU; ratios matter more than values.

    Attributes:
        name: as the driver tells it.
        multiprocessors: how many.
        shared_bytes: that one program may use.
        tensor_tflops: dense 16-bit products.
        float_tflops: float32 products without tensor cores.
        memory_tb: bytes from device memory, in 1e12 per second.
        l2_tb: bytes from L2, all multiprocessors together.
        port_tb: bytes into one multiprocessor.
        start_us: of a launch inside a graph: draining the one before, filling the pipeline.
    """

    name: str
    multiprocessors: int
    shared_bytes: int
    tensor_tflops: float
    float_tflops: float
    memory_tb: float
    l2_tb: float
    port_tb: float
    start_us: float = 1.5


H200 = Chip(
    name="NVIDIA H200", multiprocessors=132, shared_bytes=232448, tensor_tflops=790.0, float_tflops=60.0, memory_tb=4.0,
    l2_tb=5.5, port_tb=0.1,
)  # fmt: skip


def scaled_chip(name: str, multiprocessors: int, shared_bytes: int) -> Chip:
    """A GPU of which little is known: an H200 with another number of multiprocessors."""
    share = multiprocessors / H200.multiprocessors
    return replace(
        H200, name=name, multiprocessors=multiprocessors, shared_bytes=shared_bytes,
        tensor_tflops=H200.tensor_tflops * share, float_tflops=H200.float_tflops * share,
        memory_tb=H200.memory_tb * share, l2_tb=H200.l2_tb * share,
    )  # fmt: skip


def chip_of(device: torch.device) -> Chip:
    """The GPU that is there."""
    about = torch.cuda.get_device_properties(device)
    # The name of the field for what a program may use, not what it may use unasked, is younger than torch 2.6.
    shared = int(getattr(about, "shared_memory_per_block_optin", SHARED_EVERYWHERE))
    return scaled_chip(about.name, about.multi_processor_count, shared)


@dataclass(frozen=True)
class Estimate:
    """What the model says of one launch (and its join).

    Attributes:
        microseconds: in all.
        join_us: of it, for adding the parts of split sums, a launch of its own.
        floor_us: the larger of products at the chip's rate and bytes at the memory's: nothing is faster.
        flops: products and additions.
        bytes: that must come from or go to device memory or L2 at least once.
        programs: of the launch.
        waves: programs per multiprocessor.
    """

    microseconds: float
    join_us: float
    floor_us: float
    flops: float
    bytes: float
    programs: int
    waves: float


def estimate(work: Work, choice: Choice, chip: Chip) -> Estimate:
    """Time of a product of matrices in tiles; for linear layers, taps and convolutions."""
    size = DTYPE_BYTES[work.dtype]
    tiles, split = choice.tiles, choice.split_k
    programs = math.ceil(work.rows / tiles.rows) * math.ceil(work.columns / tiles.columns) * work.groups * split
    steps = math.ceil(work.depth / (tiles.depth * split))
    busiest = math.ceil(programs / chip.multiprocessors)
    rate = (chip.float_tflops if work.dtype == "float32" else chip.tensor_tflops) * 1e6  # per microsecond
    tile_flops = 2.0 * tiles.rows * tiles.columns * tiles.depth * steps
    tile_bytes = float((tiles.rows + tiles.columns) * tiles.depth * size * steps)
    weights = float(work.groups * work.columns * work.depth * size)
    values = float(work.groups * work.rows * (work.depth + work.columns) * size)
    partial = float(split * work.groups * work.rows * work.columns * 4) if split > 1 else 0.0
    main = max(
        busiest * tile_flops / (rate / chip.multiprocessors),
        busiest * tile_bytes / (chip.port_tb * 1e6),
        programs * tile_bytes / (chip.l2_tb * 1e6),
        (weights + values) / (chip.memory_tb * 1e6),
    )
    join = chip.start_us + 2 * partial / (chip.l2_tb * 1e6) if split > 1 else 0.0
    flops = 2.0 * work.groups * work.rows * work.columns * work.depth
    return Estimate(
        microseconds=chip.start_us + main + join,
        join_us=join,
        floor_us=max(flops / rate, (weights + values) / (chip.memory_tb * 1e6)),
        flops=flops,
        bytes=weights + values,
        programs=programs,
        waves=programs / chip.multiprocessors,
    )


def candidates(work: Work, chip: Chip) -> Iterator[Choice]:
    """Tiles worth measuring for a product; all fit the chip's shared memory."""
    size = DTYPE_BYTES[work.dtype]
    depth = 64 if size == 2 else 16
    splits = (1, 2, 3, 4) if work.kernel == "linear" else (1,)
    for rows in (64, 128):
        for columns in (16, 32, 64, 128, 256):
            if columns == 256 and chip.shared_bytes < WIDE_TILES_BYTES:
                continue
            # Without tensor cores everything is in registers: larger tiles spill, and so do the many statistics of
            # narrower ones.
            if size == 4 and work.kernel == "linear" and (rows, columns) != (64, 64):
                continue
            if size == 4 and rows * columns > 64 * 64:
                continue
            if columns == 16 and work.kernel != "convolution":
                continue
            warps = 8 if rows * columns >= 128 * 128 or size == 4 else 4
            for stages in (4, 3):
                if stages * (rows + columns) * depth * size <= chip.shared_bytes:
                    for split in splits:
                        yield Choice(Tiles(rows, columns, depth, warps, stages), split)
                    break


FIXED: Mapping[KernelName, Tiles] = {
    "crop": Tiles(rows=8, columns=64),
    "attention": Tiles(rows=64, columns=64, stages=2),
    "last_convolution": Tiles(rows=32),
}
GATHER_TILES = Tiles(rows=16, columns=128)  # cells and features of `gather_taps`


@lru_cache(maxsize=1024)
def default_choice(work: Work, chip: Chip) -> Choice:
    """The candidate with the lowest estimate; of equal ones the first."""
    if work.kernel in FIXED:
        tiles = FIXED[work.kernel]
        if work.dtype == "float32" and work.kernel != "crop":
            tiles = replace(tiles, rows=32, columns=min(tiles.columns, 32), depth=32, warps=8)
        return Choice(tiles)
    # Larger tiles may spill where an epilogue needs registers: only a measurement may choose them.
    safe = (c for c in candidates(work, chip) if c.tiles.rows * c.tiles.columns <= 128 * 128)
    return min(safe, key=lambda choice: estimate(work, choice, chip).microseconds)


@dataclass(frozen=True)
class Measured:
    """A row of the table: the fastest choice for some work on some GPU, and how it was found."""

    gpu: str
    work: Work
    choice: Choice
    microseconds: float
    triton: str


def read_table(path: Path = TABLE) -> list[Measured]:
    """What was measured so far."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())["measured"]
    return [
        Measured(
            gpu=row["gpu"],
            work=Work(**row["work"]),
            choice=Choice(Tiles(**row["choice"]["tiles"]), row["choice"]["split_k"]),
            microseconds=row["microseconds"],
            triton=row["triton"],
        )
        for row in rows
    ]


def write_table(rows: list[Measured], path: Path = TABLE) -> None:
    """Replace the table; of two rows for the same GPU and work the later one stays."""
    latest = {(row.gpu, row.work): row for row in rows}
    ordered = sorted(latest.values(), key=lambda row: (row.gpu, *map(str, asdict(row.work).values())))
    path.write_text(json.dumps({"measured": [asdict(row) for row in ordered]}, indent=1) + "\n")


def chooser(chip: Chip, table: list[Measured] | None = None) -> Callable[[Work], Choice]:
    """Choices for one GPU: measured where the table has the very work, else computed."""
    known = {row.work: row.choice for row in (read_table() if table is None else table) if row.gpu == chip.name}

    def choose(work: Work) -> Choice:
        return known.get(work) or default_choice(work, chip)

    return choose
