"""The launches of one frame, collected without a GPU and without weights: what is compiled, counted and estimated.

The engine's own `FrameNetwork` runs on empty tensors while a stand-in takes every launch, so that nothing here can
differ from what the engine does.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from triton.runtime.jit import JITFunction

from ckd_fast.engines.network import Build, FrameNetwork
from ckd_fast.engines.packing import PackedStudent, pack
from ckd_fast.engines.upload import FrameBuffer
from ckd_fast.kernels.crop import FrameKind
from ckd_fast.kernels.tiles import Chip, chooser
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.elimination import template_mask
from ckd_fast.reference.model import Student

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Launch:
    """One launch: which kernel, how many programs, with what."""

    kernel: str
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    run: Callable[[], Any]

    @property
    def programs(self) -> int:
        """In all."""
        count = 1
        for extent in self.grid:
            count *= extent
        return count

    @property
    def label(self) -> str:
        """What a reader of a table recognises."""
        a = self.arguments
        if self.kernel in ("linear", "join"):
            flags = [
                text
                for text, on in (
                    ("norm", a["NORM"]), ("gelu", a["GELU"]), ("residual", a["RESIDUAL"]), ("rows", a["INDEX"]),
                    (f"split {a['SPLITS']}", a["SPLITS"] > 1),
                )
                if on
            ]  # fmt: skip
            return f"{self.kernel} {a['rows_out']} x {a['F']} x {a['K']}" + (f": {', '.join(flags)}" if flags else "")
        if self.kernel == "attention":
            return f"attention of {a['tokens']}" + (", template rows" if a["PROBABILITIES"] else "")
        if self.kernel.startswith("rank"):
            return f"{self.kernel} {a['keep']} of {a['search']}"
        if self.kernel == "convolution":
            return f"convolution {a['C']} to {a['F']}" + (", maps" if a["LAST"] else "")
        if self.kernel == "crop":
            return f"crop, thermal {a['TIR_MAP']}" + (", 16 bits" if a["TIR_WIDE"] else "")
        if self.kernel in ("forward", "backward"):
            return f"distillation {self.kernel}"
        return self.kernel.replace("_", " ")


@contextmanager
def collected(*, compiling: bool = False, running: bool = False) -> Iterator[list[Launch]]:
    """Take every launch in the block.

    Args:
        compiling: keep what compiles it, for the driver that is active then.
        running: launch it too, and keep what launches it again.
    """
    launches: list[Launch] = []
    original = JITFunction.run

    def take(self: Any, *positional: Any, grid: Any, warmup: bool, **named: Any) -> None:  # noqa: ARG001
        arguments = dict(zip(self.arg_names, positional, strict=False)) | named
        name = self.fn.__name__.strip("_").removesuffix("_kernel")
        run: Callable[[], Any] = lambda: None  # noqa: E731
        if compiling:
            run = lambda: original(self, *positional, grid=grid, warmup=True, **named)  # noqa: E731
        if running:
            run = lambda: original(self, *positional, grid=grid, warmup=False, **named)  # noqa: E731
            run()
        launches.append(Launch(name, tuple(grid), arguments, run))

    with mock.patch.object(JITFunction, "run", take):
        yield launches


def hollow(packed: Any) -> Any:
    """The same nested dataclasses with empty tensors on the CPU in place of meta tensors."""
    if isinstance(packed, torch.Tensor):
        return torch.empty(packed.shape, dtype=packed.dtype)
    if isinstance(packed, tuple):
        return tuple(hollow(part) for part in packed)
    if dataclasses.is_dataclass(packed) and not isinstance(packed, type):
        values = {field.name: hollow(getattr(packed, field.name)) for field in dataclasses.fields(packed)}
        return type(packed)(**values)
    return packed


def hollow_build(config: ModelConfig, dtype: torch.dtype, chip: Chip, *, overlap: bool = False) -> Build:
    """What an engine on this chip would build, without weights."""
    with torch.device("meta"):
        student = Student(config).eval().requires_grad_(requires_grad=False)
        packed: PackedStudent = hollow(pack(student, torch.device("meta"), dtype))
    return Build(config, packed, CPU, dtype, chooser(chip), tf32=False, overlap=overlap)


def frame_launches(
    build: Build, targets: int = 1, kind: FrameKind | None = None, *, compiling: bool = False
) -> list[Launch]:
    """Every launch of one frame, in order."""
    config = build.config
    gt_box = config.template_range == "GT_BOX"
    most = config.template_tokens if gt_box else int(template_mask(config).sum())
    network = FrameNetwork(build, targets, most)
    buffer = FrameBuffer(640 * 480 * 3, 640 * 480 * 6, targets, CPU)
    with collected(compiling=compiling) as launches:
        network.run(buffer, kind or FrameKind())
    return launches
