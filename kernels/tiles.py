"""Chooses the tiles of a launch: from a table of measurements, else by a small model of the chip.

`bench/tune.py` writes the table, `tiles.json`: a row per GPU, kernel, shape and precision. Without a row, a launch gets
the candidate that this model estimates as fastest:

    time = start + sum over waves of (first load + steps + epilogue) + join
    step = max(products, traffic from L2, traffic into one multiprocessor, latency that the pipeline does not hide)

A wave is as many programs as the chip holds at once; the last one may be nearly empty and still costs its steps and its
epilogue. At one target a launch has one or two waves, so this decides. `bench/model.py` prints these numbers for every
launch of a frame. Nothing of it is measured: the constants of `Chip` come from what others measured on such chips.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .launch import Choice, Choose, Launch, TileRequest, Tiles, usual_tiles

TABLE = Path(__file__).parent / "tiles.json"
SHARED_EVERYWHERE = 65536  # bytes that a program may use on every GPU of compute capability 7.5 and newer
WIDE_TILES_BYTES = 200_000  # chips with that much shared memory have the instructions for 256 columns
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
FLOAT8 = "float8_e4m3fn"
PRODUCTS = ("patch", "linear", "convolution")  # kernels whose time `estimate` models
MEMORY_SHARE = 0.88  # of the peak rate, in copies: 4.3 of 4.9 TB/s were measured on an H200, 3.0 of 3.35 on an H100
# Template tokens are embedded once and then read beside the search tokens of every frame, for any number of targets. So
# the statistics of both must be in tiles of the same width.
PATCH_COLUMNS = 64
REGISTERS, RESERVED_BYTES = 65536, 1024  # of a multiprocessor; of its shared memory, for each program
EPILOGUE = (
    20  # instructions for each value of a product's result: norm, bias, GELU or residual and statistics, rounding
)
SOFTMAX = 10  # instructions for each score; exp2 takes as long as eight others, beside them
ATTENTION_STEP_US = 0.4  # products and softmax of one tile of keys, which wait for one another


@dataclass(frozen=True)
class Chip:
    """What the estimate knows about a GPU. Ratios matter more than values."""

    name: str  # as the driver reports it
    multiprocessors: int  # how many there are
    shared_bytes: int  # shared memory that one program may use
    tensor_tflops: float  # dense 16-bit products
    float_tflops: float  # float32 products without tensor cores
    memory_tb: float  # rate of device memory, in 1e12 bytes per second
    l2_tb: float  # rate of L2, for all multiprocessors together
    port_tb: float  # rate into one multiprocessor
    start_us: float = 1.5  # from the end of a launch in a graph to the start of the next
    first_us: float = 1.0  # from a program's start to its first data: code, addresses, a load that nothing hides
    trip_us: float = 0.5  # a load from L2 that others wait for, while the chip is busy
    last_us: float = 0.4  # what an epilogue waits for: bias, statistics, residual, and its own stores
    lanes: float = 224e3  # instructions of single threads that one multiprocessor issues in a microsecond


H200 = Chip(
    name="NVIDIA H200", multiprocessors=132, shared_bytes=232448, tensor_tflops=790.0, float_tflops=60.0, memory_tb=4.0,
    l2_tb=5.5, port_tb=0.1,
)  # fmt: skip


def scaled_chip(name: str, multiprocessors: int, shared_bytes: int, memory_tb: float = 0.0) -> Chip:
    """A GPU about which little is known, taken as an H200 with another number of multiprocessors. `memory_tb` 0: the
    rate of its memory is not known either."""
    share = multiprocessors / H200.multiprocessors
    return replace(
        H200, name=name, multiprocessors=multiprocessors, shared_bytes=shared_bytes,
        tensor_tflops=H200.tensor_tflops * share, float_tflops=H200.float_tflops * share,
        memory_tb=memory_tb or H200.memory_tb * share, l2_tb=H200.l2_tb * share,
    )  # fmt: skip


def chip_of(device: torch.device) -> Chip:
    """The GPU at hand."""
    about = torch.cuda.get_device_properties(device)
    # What a program may use if it asks. torch 2.6 does not report it yet.
    shared = int(getattr(about, "shared_memory_per_block_optin", SHARED_EVERYWHERE))
    # In kHz and bits, two transfers a cycle; older torch does not report them, some virtual machines say 0.
    clock, width = (getattr(about, name, 0) for name in ("memory_clock_rate", "memory_bus_width"))
    memory_tb = MEMORY_SHARE * 2 * clock * 1e3 * width / 8 / 1e12
    return scaled_chip(about.name, about.multi_processor_count, shared, memory_tb)


def factor_bytes(dtype: str) -> tuple[int, int]:
    """Of a value of the input and of the weight, in a request's precision."""
    given, _, multiplied = dtype.partition(" as ")
    return DTYPE_BYTES[given], DTYPE_BYTES[multiplied or given]


def step_bytes(tiles: Tiles, dtype: str) -> int:
    """What a step of a product loads."""
    inputs, weights = factor_bytes(dtype)
    return (tiles.rows * inputs + tiles.columns * weights) * tiles.depth


def programs_at_once(tiles: Tiles, dtype: str, chip: Chip) -> int:
    """How many programs of a product fit on a multiprocessor, by shared memory and registers."""
    shared = tiles.stages * step_bytes(tiles, dtype)
    # What the compiler needs for sums and everything around them; see bench/results/compile-base-sm90.json.
    registers = 36 + 1.2 * tiles.rows * tiles.columns / (32 * tiles.warps)
    by_registers = int(REGISTERS / (32 * tiles.warps * registers))
    return max(1, min(by_registers, (chip.shared_bytes + RESERVED_BYTES) // (shared + RESERVED_BYTES)))


@dataclass(frozen=True)
class _Program:
    """One program of a product on paper."""

    steps: int  # of its loop
    # of a step
    flops: float
    bytes: float
    values: int  # of its tile
    stages: int

    def loop_us(self, programs: int, rate: float, chip: Chip) -> float:
        """The steps of so many at once."""
        here = math.ceil(programs / chip.multiprocessors)
        step = max(
            here * self.flops * chip.multiprocessors / rate,
            here * self.bytes / (chip.port_tb * 1e6),
            programs * self.bytes / (chip.l2_tb * 1e6),
            chip.trip_us / (self.stages - 1),
        )
        return self.steps * step

    def around_us(self, programs: int, chip: Chip) -> float:
        """Before and after the steps, on the multiprocessor that has most of so many programs."""
        here = math.ceil(programs / chip.multiprocessors)
        return chip.first_us + chip.last_us + here * self.values * EPILOGUE / chip.lanes


def product_tflops(dtype: str, chip: Chip) -> float:
    """Of products in this precision."""
    if dtype == "float32":
        return chip.float_tflops
    return chip.tensor_tflops * (2 if dtype.endswith(FLOAT8) else 1)


def estimate_us(request: TileRequest, choice: Choice, chip: Chip) -> float:
    """Estimated microseconds of a matrix product in these tiles."""
    inputs, weight_size = factor_bytes(request.dtype)
    tiles, split = choice.tiles, choice.split_k
    programs = math.ceil(request.rows / tiles.rows) * math.ceil(request.columns / tiles.columns)
    programs *= request.groups * split
    rate = product_tflops(request.dtype, chip) * 1e6  # per microsecond
    program = _Program(
        steps=math.ceil(request.depth / (tiles.depth * split)),
        flops=2.0 * tiles.rows * tiles.columns * tiles.depth,
        bytes=float(step_bytes(tiles, request.dtype)),
        values=tiles.rows * tiles.columns,
        stages=tiles.stages,
    )
    at_once = programs_at_once(tiles, request.dtype, chip)
    full, rest = divmod(programs, chip.multiprocessors * at_once)
    waves = [chip.multiprocessors * at_once] * full + [rest] * (rest > 0)
    computed = sum(program.loop_us(wave, rate, chip) for wave in waves) + program.around_us(waves[-1], chip)
    # Where several programs share a multiprocessor, one computes while another starts or ends.
    computed += sum(program.around_us(wave, chip) for wave in waves[:-1]) / at_once
    weights = float(request.groups * request.columns * request.depth * weight_size)
    values = float(request.groups * request.rows * (request.depth + request.columns) * inputs)
    loaded = chip.first_us + (weights + values) / (chip.memory_tb * 1e6) + chip.last_us
    return chip.start_us + max(computed, loaded) + _join_us(tiles, split, chip)


def _attention_us(request: TileRequest, tiles: Tiles, chip: Chip) -> float:
    """Estimated microseconds of attention: a chain of tiles of keys, or what all multiprocessors can compute."""
    programs = math.ceil(request.rows / tiles.rows) * request.groups
    steps = math.ceil(request.columns / tiles.columns)
    here = math.ceil(programs / chip.multiprocessors)
    # Two products and the softmax of a tile wait for one another. Two stages leave the wait for the next keys too.
    chain = ATTENTION_STEP_US + (chip.trip_us / 2 if tiles.stages == 2 else 0.0)
    computed = max(
        tiles.rows * tiles.columns * SOFTMAX / chip.lanes,
        4.0 * tiles.rows * tiles.columns * request.depth * chip.multiprocessors / (chip.tensor_tflops * 1e6),
    )
    return chip.start_us + chip.first_us + steps * max(chain, here * computed) + chip.last_us


def _join_us(tiles: Tiles, split: int, chip: Chip) -> float:
    """Estimated microseconds until the last of a tile's programs has counted itself and added all parts."""
    if split == 1:
        return 0.0
    # its own part out, all parts in; it waits for the count, then for the parts
    return 2 * chip.trip_us + (1 + split) * tiles.rows * tiles.columns * 4 / (chip.port_tb * 1e6)


@dataclass(frozen=True)
class Cost:
    """One launch on paper."""

    # products at the chip's rate or bytes at the memory's, whichever takes longer; nothing can be faster
    floor_us: float
    estimate_us: float  # the same with tiles, waves, traffic from L2 and the start of the launch
    waves: float  # programs per multiprocessor


def cost_of(launch: Launch, chip: Chip) -> Cost:
    """Floor and estimate of a launch."""
    request, choice = launch.request, launch.choice
    matrix = request is not None and request.kernel in (*PRODUCTS, "attention", "last_convolution")
    rate = product_tflops(request.dtype, chip) if matrix and request is not None else chip.float_tflops
    floor = max(launch.flops / (rate * 1e6), launch.bytes / (chip.memory_tb * 1e6))
    # Other kernels take about twice their floor beside their chain of loads: between loads and products they compute.
    estimate = chip.start_us + chip.first_us + launch.round_trips * chip.trip_us + 2 * floor + chip.last_us
    if request is not None and choice is not None and request.kernel == "attention":
        estimate = _attention_us(request, choice.tiles, chip)
    elif request is not None and choice is not None and request.kernel in (*PRODUCTS, "last_convolution"):
        estimate = estimate_us(request, choice, chip)
    return Cost(floor, estimate, launch.programs / chip.multiprocessors)


def candidates(request: TileRequest, chip: Chip) -> Iterator[Choice]:
    """Tiles worth measuring, all within the chip's shared memory."""
    if request.kernel in PRODUCTS:
        yield from _product_candidates(request, chip)
        return
    if request.kernel == "attention":
        shapes = [(rows, keys) for rows in (32, 64, 128) for keys in (32, 64, 128)]
        variants = [(64, warps, stages) for warps in (4, 8) for stages in (2, 3, 4)]
    elif request.kernel == "last_convolution":
        shapes = [(rows, 64) for rows in (16, 32, 64, 128)]
        variants = [(depth, 4, stages) for depth in (32, 64) for stages in (2, 3, 4)]
    elif request.kernel == "crop":
        shapes = [(rows, columns) for rows in (4, 8, 16) for columns in (32, 64, 128)]
        variants = [(64, warps, 3) for warps in (2, 4, 8)]
    elif request.kernel == "tap_sum":
        shapes = [(rows, columns) for rows in (8, 16, 32) for columns in (64, 128, 256)]
        variants = [(64, warps, 3) for warps in (4, 8)]
    else:
        raise ValueError(f"no candidates for kernel {request.kernel!r}: add them here")
    for rows, columns in shapes:
        for depth, warps, stages in variants:
            yield Choice(Tiles(rows, columns, depth, warps, stages))


def _product_candidates(request: TileRequest, chip: Chip) -> Iterator[Choice]:
    _, size = factor_bytes(request.dtype)
    depth = {1: 128, 2: 64, 4: 16}[size]
    splits = (1, 2, 3, 4) if request.kernel == "linear" else (1,)
    for rows in (64, 128):
        for columns in (16, 32, 64, 128, 256):
            if columns == 256 and chip.shared_bytes < WIDE_TILES_BYTES:
                continue
            if request.kernel == "patch" and columns != PATCH_COLUMNS:
                continue
            # Without tensor cores everything is in registers: larger tiles spill. Narrower ones spill too, because they
            # have more statistics.
            if size == 4 and request.kernel != "convolution" and (rows, columns) != (64, 64):
                continue
            if size == 4 and rows * columns > 64 * 64:
                continue
            if columns == 16 and request.kernel != "convolution":
                continue
            if rows * columns > 128 * 128 and request.statistics:  # beside so many sums, statistics spill
                continue
            warps = 8 if rows * columns >= 128 * 128 or size == 4 else 4
            # Fewer stages first: of equal estimates, the one that leaves room for the next launch's programs.
            for stages in (3, 4, 6, 8) if request.kernel == "convolution" else (3, 4):
                tiles = Tiles(rows, columns, depth, warps, stages)
                if stages * step_bytes(tiles, request.dtype) <= chip.shared_bytes:
                    for split in splits:
                        yield Choice(tiles, split)


@lru_cache(maxsize=1024)
def default_choice(request: TileRequest, chip: Chip) -> Choice:
    """The candidate with the lowest estimate; the first of equal ones."""
    if request.kernel not in PRODUCTS:  # until they are measured, kernels without a model have the usual ones
        tiles = usual_tiles(request).tiles
        if request.dtype == "float32" and request.kernel in ("attention", "last_convolution"):
            tiles = replace(tiles, rows=32, columns=min(tiles.columns, 32), depth=32, warps=8)
        return Choice(tiles)
    return min(candidates(request, chip), key=lambda choice: estimate_us(request, choice, chip))


@dataclass(frozen=True)
class Measured:
    """A row of the table."""

    gpu: str  # as the driver names it
    request: TileRequest  # what launches asked for
    choice: Choice  # the fastest answer
    frame_us: float  # time of a whole frame with it, all other tiles being equal
    triton: str  # version of the compiler


def read_table(path: Path = TABLE) -> list[Measured]:
    """What was measured so far."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())["measured"]
    return [
        Measured(
            gpu=row["gpu"],
            request=TileRequest(**row["request"]),
            choice=Choice(Tiles(**row["choice"]["tiles"]), row["choice"]["split_k"]),
            frame_us=row["frame_us"],
            triton=row["triton"],
        )
        for row in rows
    ]


def write_table(rows: list[Measured], path: Path = TABLE) -> None:
    """Replace the table. Of two rows for the same GPU and request, keep the later one."""
    latest = {(row.gpu, row.request): row for row in rows}
    ordered = sorted(latest.values(), key=lambda row: (row.gpu, *map(str, asdict(row.request).values())))
    # Replaced as a whole: a tuning that is killed leaves a table.
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps({"measured": [asdict(row) for row in ordered]}, indent=1) + "\n")
    new.replace(path)


def chooser(chip: Chip, table: list[Measured] | None = None) -> Choose:
    """Chooses tiles for one GPU: measured ones if the table has this request, else computed ones."""
    known = {row.request: row.choice for row in (read_table() if table is None else table) if row.gpu == chip.name}

    def choose(request: TileRequest) -> Choice:
        return known.get(request) or default_choice(request, chip)

    return choose
