"""What several test files need: the golden numbers and how closely two results must agree."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ckd_fast.kernels.launch import ARRIVALS, Choice, LaunchSettings, TileRequest, Tiles
from ckd_fast.kernels.layout import GEOMETRY, FrameKind, Uploaded
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.model import Student
from ckd_fast.weights.keys import from_authors

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("CKD_FAST_SHARED", ROOT.parent / "shared"))
GOLDEN_CONFIG = ModelConfig(dim=64, depth=12, heads=4, head_channels=32)


class Golden(Mapping[str, NDArray]):
    """One file of the authors' numbers: the full one of the shared folder, else the part that is committed."""

    def __init__(self, name: str) -> None:
        full, part = SHARED / "golden" / name, ROOT / "tests" / "golden" / name
        if not full.exists() and not part.exists():
            pytest.skip(f"{name} is only in the shared folder (CKD_FAST_SHARED={SHARED}), which is absent")
        self.arrays = np.load(full if full.exists() else part)
        self.complete = full.exists()

    def __getitem__(self, key: str) -> NDArray:
        if key not in self.arrays.files and not self.complete:
            pytest.skip(f"{key} is only in the shared folder (CKD_FAST_SHARED={SHARED}), which is absent")
        return self.arrays[key]

    def __contains__(self, key: object) -> bool:
        return key in self.arrays.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays.files)

    def __len__(self) -> int:
        return len(self.arrays.files)

    def tensor(self, key: str) -> Tensor:
        array = self[key]
        return torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)

    def authors_weights(self) -> dict[str, Tensor]:
        """The recorded weights under the authors' names."""
        return {key.removeprefix("sd/"): self.tensor(key) for key in self if key.startswith("sd/")}

    def state_dict(self) -> dict[str, Tensor]:
        """The recorded weights under our names."""
        named = {from_authors(name): value for name, value in self.authors_weights().items()}
        return {name: value for name, value in named.items() if name is not None}


def shared_data(*parts: str) -> Path:
    """A path of the shared data; skips the test, saying so, where it is absent."""
    path = SHARED.joinpath("data", *parts)
    if not path.exists():
        pytest.skip(f"{path} is absent (CKD_FAST_SHARED)")
    return path


def lay_out(root: Path, files: Mapping[str, str]) -> Path:
    """Write text files by their paths in a folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program's output and exit code; without a GPU, unless `environment` says otherwise."""
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=variables)


# torch.compile needs one on a CPU; a bare machine has none.
HAS_COMPILER = shutil.which(os.environ.get("CXX", "g++")) is not None


# Relative error that a GPU's float32 instructions add to one softmax, sigmoid or the like, over those of plain PyTorch:
# `tl.exp` is ex2.approx, whose error is at most 2^-22.5 by the instruction set's manual, and `/` is div.full, at most
# 2 ulp = 2^-22. Numerator and denominator each have an exponential. The argument's product with log2(e), rounded to
# 2^-24 of x, moves exp(x) for x <= 0 by at most 2^-24 |x| exp(x) <= 2^-25 of the largest value.
APPROXIMATE = 2 * (2**-22.5 + 2**-25) + 2**-22


def max_error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact.double()).abs().max())


def assert_as_exact(value: Tensor, twin: Tensor, exact: Tensor, *, rounding: float = 0.0) -> None:
    """`value` is as close to the float64 result as plain PyTorch in the same precision is, within a factor of two.

    Args:
        value: what is tested.
        twin: plain PyTorch in the precision of `value`.
        exact: plain PyTorch in float64.
        rounding: relative precision to which `value` was recorded.
    """
    assert value.shape == exact.shape
    assert torch.isfinite(value).all()
    scale = float(exact.abs().max())
    if value.is_cuda and value.dtype == torch.float32:
        rounding += APPROXIMATE
    bound = 2 * max_error(twin, exact) + rounding * scale + 1e-7 * scale
    error = max_error(value, exact)
    assert error <= bound, f"error {error:.3g} against float64, plain PyTorch makes {max_error(twin, exact):.3g}"


@torch.no_grad()
def enliven(student: Student, seed: int) -> None:
    """Let the norms, biases and positions of random weights do something, and attention be less than flat."""
    draw = partial(nn.init.uniform_, generator=torch.Generator().manual_seed(seed))
    for module in student.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            draw(module.weight, 0.7, 1.3)
            draw(module.bias, -0.3, 0.3)
        if isinstance(module, nn.BatchNorm2d):
            draw(module.running_mean, -0.2, 0.2)
            draw(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.Conv2d):
            draw(module.bias, -0.2, 0.2)
        if isinstance(module, nn.Linear):
            module.weight.mul_(3)
    for name, value in student.named_parameters():
        if "pos_embed" in name:
            draw(value, -0.5, 0.5)


INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
DTYPES = [pytest.param(getattr(torch, name), id=name) for name in ("float32", "float16", "bfloat16")]
UNWRITTEN = -77  # in integer buffers; no kernel writes it


def poison(*tensors: Tensor) -> None:
    """Fill memory with what no kernel writes: NaN, or UNWRITTEN where there are only integers."""
    for tensor in tensors:
        tensor.fill_(float("nan") if tensor.is_floating_point() else UNWRITTEN)


@dataclass(frozen=True)
class PoisonedRoom:
    """A room of poisoned buffers: what a launch leaves out shows in the result.

    Attributes:
        device: where they are.
        buffers: by name, all that were made.
    """

    device: torch.device
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if name == ARRIVALS:  # the launch counts on zeros, and leaves zeros
            return torch.zeros(shape, dtype=dtype, device=self.device)
        buffer = torch.empty(shape, dtype=dtype, device=self.device)
        poison(buffer)
        self.buffers[name] = buffer
        return buffer

    def unwritten(self) -> dict[str, int]:
        """How many values of each buffer are still poison; buffers that are fully written are left out."""
        counts = {
            name: int((buffer.float().isnan() if buffer.is_floating_point() else buffer == UNWRITTEN).sum())
            for name, buffer in self.buffers.items()
        }
        return {name: count for name, count in counts.items() if count}


def one_call(
    device: torch.device, size: tuple[int, int], requests: Sequence[Sequence[float]], frames: Sequence[Tensor] = ()
) -> Uploaded:
    """What kernels read of a call: frames of one size in 8 bits, perhaps empty ones, and one row per target."""
    rgb, tir = frames or (torch.empty(0, dtype=torch.uint8, device=device),) * 2
    geometry = torch.zeros(2, GEOMETRY.value, dtype=torch.float64, device=device)
    geometry[:, :8] = torch.tensor([*size, 0, 0, *size, 0, 255])
    rows = torch.tensor(requests, dtype=torch.float64, device=device)
    return Uploaded(rgb, tir, geometry, rows, torch.ones(2, len(rows), dtype=torch.int32, device=device), FrameKind())


def fixed(tiles: Tiles, split_k: int = 1) -> LaunchSettings:
    """The same tiles for every launch."""
    return LaunchSettings(choose=lambda _request: Choice(tiles, split_k))


def big(rows: int, columns: int, depth: int) -> Tiles:
    """Few, large programs for the interpreter, where a program costs the same whatever its size; what fits on a GPU."""
    return Tiles(rows, columns, depth) if INTERPRETED else Tiles(min(rows, 64), min(columns, 64), min(depth, 32))


def large_tiles(request: TileRequest) -> Choice:
    """An engine's tiles in tests."""
    if request.kernel == "crop":
        return Choice(Tiles(rows=32, columns=128) if INTERPRETED else Tiles(rows=8, columns=64))
    if request.kernel == "attention":
        return Choice(Tiles(rows=128, columns=128) if INTERPRETED else Tiles(rows=32, columns=32))
    return Choice(big(256, 256, 256), split_k=2 if request.depth >= 1024 else 1)
