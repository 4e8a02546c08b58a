"""Where the programs of bench/gpu.py run: on a GPU at full size, or in a rehearsal on the CPU at a small one.

A rehearsal runs the same code: kernels in Triton's interpreter, in float32 only, since it gets bf16 wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import clip

from ckd_fast.engines import Engine, build_engine
from ckd_fast.engines.registry import launch_settings, left_out
from ckd_fast.kernels.launch import Choice, LaunchSettings, TileRequest, Tiles
from ckd_fast.reference.config import ModelConfig, preset
from ckd_fast.weights import LoadedModel

SMALL = ModelConfig(
    dim=32, depth=2, heads=2, head_channels=16, eliminate_at=(1,), template_size=32, search_size=64
)  # fmt: skip
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")


def config_of(name: str) -> ModelConfig:
    """A preset; in a rehearsal a smaller model, whatever its name."""
    return preset(name) if GPU else SMALL


def dtype_of(name: str) -> torch.dtype:
    """A precision by its name; in a rehearsal float32."""
    found: torch.dtype = getattr(torch, name)
    return found if GPU else torch.float32


def few_programs(request: TileRequest) -> Choice:
    """Tiles for the interpreter, in which a program costs the same whatever its size; long sums are split."""
    return Choice(Tiles(), split_k=2 if request.kernel == "linear" and request.depth > 100 else 1)


def settings_of(tiles: Path | None) -> LaunchSettings:
    """Of launches outside an engine, the same as inside."""
    return launch_settings(DEVICE, left_out(), tiles) if GPU else LaunchSettings(few_programs)


def engine_of(
    name: str,
    model: LoadedModel,
    dtype: str | None,
    tiles: Path | None,
    without: Sequence[str] = (),
    compile_mode: str = "default",
) -> Engine:
    """An engine as users build it; in a rehearsal `triton` in the interpreter."""
    if GPU or name != "triton":
        where = dtype if GPU else "float32"
        return build_engine(name, model, DEVICE, where, compile_mode=compile_mode, without=without, tiles=tiles)
    from ckd_fast.engines.triton import TritonEngine

    return TritonEngine(model, DEVICE, torch.float32, settings=settings_of(None))


def pairs(frames: int) -> list[tuple[Any, Any]]:
    """Frames of the clip; in a rehearsal three."""
    return clip(frames if GPU else 3)
