"""A launch as a value: the kernel, its programs and arguments, the tiles it asked for, what it reads, writes and costs.

Every kernel file has functions that check their tensors and return an `Operation`: where the result will be, and the
launches that put it there. Nothing runs before `run`. An engine lists the launches of a whole frame this way; running
the frame, capturing it in a graph, watching its steps, tuning, costing and compiling are loops over that one list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

KernelName = Literal["crop", "patch", "linear", "attention", "taps", "convolution", "last_convolution"]
T = TypeVar("T")


@dataclass(frozen=True)
class Tiles:
    """One program's share of a launch.

    Attributes:
        rows, columns: of the result. In attention queries and keys, in the head cells and features, in the crop pixels.
        depth: of one step of the sums.
        warps, stages: of the program, and of its pipeline of loads.
    """

    rows: int = 64
    columns: int = 64
    depth: int = 64
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class TileRequest:
    """What a launch tells whoever chooses its tiles.

    Attributes:
        kernel: which one.
        dtype: "float32", "float16", "bfloat16".
        groups: independent products side by side: branches; or towers and targets; or branches, targets and heads.
        rows: of the result: tokens or cells of all targets; in attention queries.
        columns: of the result: features; in attention keys.
        depth: length of the sums.
    """

    kernel: KernelName
    dtype: str
    groups: int
    rows: int
    columns: int
    depth: int

    @property
    def products(self) -> float:
        """Multiplications and additions of the matrix product."""
        return 2.0 * self.groups * self.rows * self.columns * self.depth


@dataclass(frozen=True)
class Choice:
    """Tiles, and how many programs share the sum of one tile."""

    tiles: Tiles
    split_k: int = 1


Choose = Callable[[TileRequest], Choice]
Room = Callable[[str, "tuple[int, ...]", torch.dtype], Tensor]  # a buffer by its name in the operation, shape and type


def usual_tiles(request: TileRequest) -> Choice:
    """Tiles that fit every GPU; `tiles.chooser` knows better ones."""
    if request.kernel == "attention":
        return Choice(Tiles(stages=2))
    rows = {"crop": 8, "taps": 16, "last_convolution": 32}.get(request.kernel, 64)
    columns = {"taps": 128, "convolution": 32}.get(request.kernel, 64)
    return Choice(Tiles(rows, columns))


@dataclass(frozen=True)
class LaunchSettings:
    """What all launches of an engine have in common.

    Attributes:
        choose: tiles for every request.
        tf32: let float32 products round their factors to tf32.
        overlap: launches begin before the one in front has ended, see overlap.py.
    """

    choose: Choose = usual_tiles
    tf32: bool = False
    overlap: bool = False

    @property
    def precision(self) -> str:
        """Of `tl.dot`."""
        return "tf32" if self.tf32 else "ieee"

    @property
    def options(self) -> Mapping[str, bool]:
        """For Triton; the interpreter does not know the option."""
        return {"launch_pdl": True} if self.overlap else {}


SETTINGS = LaunchSettings()


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch.

    Attributes:
        name: in a frame its place, such as "block3.qkv"; elsewhere the kernel's.
        what: its size and variant, for tables.
        kernel: the jit function.
        grid: how many programs.
        arguments: by the names of the kernel's parameters.
        options: of the compiler: warps, stages, overlap.
        reads, writes: memory it touches.
        flops: multiplications and additions.
        bytes: that come from or go to memory at least once.
        request, choice: the tiles it asked for and got; None where there is nothing to choose.
    """

    name: str
    what: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    flops: float
    bytes: float
    request: TileRequest | None = None
    choice: Choice | None = None

    @property
    def programs(self) -> int:
        """In all."""
        return math.prod(self.grid)

    def run(self) -> None:
        """Send it to the current stream."""
        self.kernel[self.grid](**self.arguments, **self.options)


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


def fresh_room(device: torch.device) -> Room:
    """New memory for every buffer."""
    return lambda _name, shape, dtype: torch.empty(shape, dtype=dtype, device=device)


def dtype_name(tensor: Tensor) -> str:
    """As in requests."""
    return str(tensor.dtype).removeprefix("torch.")


def bytes_of(*tensors: Tensor) -> float:
    """All of their values, each once."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """An error where a tensor is not what a kernel reads without asking."""
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
        layout = "" if tensor.is_contiguous() else "non-contiguous "
        raise ValueError(
            f"{name} is {layout}{tensor.dtype} {tuple(tensor.shape)}: expected contiguous {dtype} {tuple(shape)}"
        )
