"""A launch as a value: the kernel, its programs and arguments, the tiles it asked for, what it reads, writes and costs.

The functions of a kernel file check their tensors and return an `Operation`: where the result will be, and the launches
that put it there. Nothing runs before `run`. An engine lists all launches of a frame this way. Running the frame,
capturing it in a graph, watching its steps, tuning, costing and compiling are loops over this list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from .requirements import launch_errors

KernelName = Literal["crop", "patch", "linear", "attention", "tap_sum", "convolution", "last_convolution"]
MOST_OFFSET = 2**31 - 1  # of 32 bits; offsets that may be larger are computed in 64
# Buffers of this name count programs. They hold zeros before a launch, and each launch leaves them so.
ARRIVALS = "arrivals"
T = TypeVar("T")


class LaunchError(RuntimeError):
    """A launch could not be compiled or sent to the device."""


@dataclass(frozen=True)
class Tiles:
    """One program's share of a launch."""

    # of the result; in attention queries and keys, in the head cells and features, in the crop pixels
    rows: int = 64
    columns: int = 64
    depth: int = 64  # how much of the sums one step takes
    warps: int = 4  # of the program
    stages: int = 3  # of its pipeline of loads


@dataclass(frozen=True)
class TileRequest:
    """What a launch says about itself when it asks for tiles."""

    kernel: KernelName  # its name
    dtype: (
        str  # "float32", "float16", "bfloat16"; "bfloat16 as float8_e4m3fn" where the input is rounded as it is loaded
    )
    # independent products side by side: one per branch; or per tower and target; or per branch, target, head
    groups: int
    rows: int  # of the result: tokens or cells of all targets; in attention, queries
    columns: int  # of the result: features; in attention, keys
    depth: int  # length of the sums
    statistics: bool = False  # statistics of the result's rows are computed with it

    @property
    def products(self) -> float:
        """Multiplications and additions of the matrix product."""
        return 2.0 * self.groups * self.rows * self.columns * self.depth


@dataclass(frozen=True)
class Choice:
    """Tiles, and how many programs share the sum of one tile."""

    tiles: Tiles
    split_k: int = 1

    def __str__(self) -> str:
        tiles, split = self.tiles, f", sums in {self.split_k} parts" if self.split_k > 1 else ""
        return f"{tiles.rows}x{tiles.columns}x{tiles.depth}, {tiles.warps} warps, {tiles.stages} stages{split}"


Choose = Callable[[TileRequest], Choice]
Room = Callable[[str, "tuple[int, ...]", torch.dtype], Tensor]  # a buffer by its name in the operation, shape and type


def usual_tiles(request: TileRequest) -> Choice:
    """Tiles that fit every GPU. `tiles.chooser` finds faster ones."""
    if request.kernel == "attention":
        return Choice(Tiles(stages=3))
    rows = {"crop": 8, "tap_sum": 16, "last_convolution": 32}.get(request.kernel, 64)
    columns = {"tap_sum": 128, "convolution": 32}.get(request.kernel, 64)
    # Its steps are so short that loads need a long start.
    return Choice(Tiles(rows, columns, stages=6 if request.kernel == "last_convolution" else 3))


@dataclass(frozen=True)
class LaunchSettings:
    """Settings of all launches of an engine."""

    choose: Choose = usual_tiles  # answers requests for tiles
    tf32: bool = False  # float32 products may round their factors to tf32
    overlap: bool = False  # a launch may begin before the one in front of it has ended, see overlap.py

    @property
    def precision(self) -> str:
        """Of `tl.dot`."""
        return "tf32" if self.tf32 else "ieee"

    @property
    def options(self) -> Mapping[str, bool]:
        """For Triton. Empty without overlap, because the interpreter does not know this option."""
        return {"launch_pdl": True} if self.overlap else {}


SETTINGS = LaunchSettings()


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch."""

    name: str  # its place in a frame, such as "block3.qkv"; outside a frame, the kernel's name
    what: str  # its size and variant, for tables
    kernel: Any  # the jit function
    grid: tuple[int, ...]  # number of programs along each axis
    arguments: Mapping[str, Any]  # of the kernel, by name
    options: Mapping[str, Any]  # of the compiler: warps, stages, overlap
    # tensors it touches
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    flops: float  # multiplications and additions
    # the tiles it asked for and got; None if there is nothing to choose
    request: TileRequest | None = None
    choice: Choice | None = None
    round_trips: int = 1  # loads behind the first that wait for one another, where the estimate counts them
    moved: float | None = None  # bytes, where they are not all that `reads` and `writes` hold

    @property
    def bytes(self) -> float:
        """That it reads from and writes to memory, each value once."""
        return bytes_of(*self.reads, *self.writes) if self.moved is None else self.moved

    @property
    def kernel_name(self) -> str:
        """Of the jit function."""
        name: str = self.kernel.fn.__name__
        return name.strip("_").removesuffix("_kernel")

    @property
    def programs(self) -> int:
        """Number of programs."""
        return math.prod(self.grid)

    def run(self) -> None:
        """Send it to the current stream. An error of an older launch may show here too."""
        try:
            self.kernel[self.grid](**self.arguments, **self.options)
        except launch_errors() as error:
            raise LaunchError(f"{self} on {device_name(self.writes)}: {first_line(error)}") from error

    def __str__(self) -> str:
        tiles = "" if self.choice is None else f" in tiles of {self.choice}"
        return f"launch {self.name} ({self.what}){tiles}"


@dataclass(frozen=True)
class Operation(Generic[T]):
    """A result's place, and the launches that compute it, in order."""

    out: T
    launches: tuple[Launch, ...] = field(repr=False)

    def run(self) -> T:
        """Compute it now."""
        run_all(self.launches)
        return self.out


def run_all(launches: Iterable[Launch]) -> None:
    """Send launches to the current stream, one after the other."""
    for launch in launches:
        launch.run()


def device_name(tensors: Iterable[Tensor]) -> str:
    """The GPU that the first tensor lies on, in the driver's words; "cpu" in the interpreter."""
    device = next(iter(tensors)).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def first_line(error: Exception) -> str:
    """What an error says first; its kind if it says nothing."""
    said = getattr(error, "error_message", None) or str(error)  # Triton's own begins with the place in the source
    return (said.strip().splitlines() or [type(error).__name__])[0]


def fresh_room(device: torch.device) -> Room:
    """New memory for every buffer."""
    return lambda name, shape, dtype: (torch.zeros if name == ARRIVALS else torch.empty)(
        shape, dtype=dtype, device=device
    )


def dtype_name(dtype: torch.dtype) -> str:
    """A tensor's type as requests name it."""
    return str(dtype).removeprefix("torch.")


def bytes_of(*tensors: Tensor) -> float:
    """Bytes of all values of some tensors."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raise a ValueError if a tensor has not the type and shape that a kernel takes for granted."""
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
        layout = "" if tensor.is_contiguous() else "non-contiguous "
        raise ValueError(
            f"{name} is {layout}{tensor.dtype} {tuple(tensor.shape)}: expected contiguous {dtype} {tuple(shape)}"
        )
