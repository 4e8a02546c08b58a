"""Where the programs of bench/gpu.py run: on a GPU at full size, or in a rehearsal on the CPU at a small one.

A rehearsal runs the same code: kernels in Triton's interpreter, in float32 only, since it gets bf16 wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import clip

from ckd_fast.engines import Engine, build_engine
from ckd_fast.engines.host import ReferenceEngine
from ckd_fast.engines.registry import DTYPES, FLOAT8_CAPABILITY, launch_settings, left_out
from ckd_fast.kernels.launch import Choice, LaunchSettings, TileRequest, Tiles
from ckd_fast.quantization import Clip, generated_clip, observe, track
from ckd_fast.reference.config import ModelConfig, preset
from ckd_fast.weights import Agreement, Calibration, LoadedModel

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
    return DTYPES[name] if GPU else torch.float32


def has_float8() -> bool:
    """Whether engine `triton` runs in float8 here; in a rehearsal float32 stands in for it."""
    return not GPU or torch.cuda.get_device_capability() >= FLOAT8_CAPABILITY


def calibrated(model: LoadedModel, clips: Sequence[Clip]) -> LoadedModel:
    """The model with the ranges of its layers' inputs on clips, which float8 needs; all layers are in it."""
    plain = ReferenceEngine(model, DEVICE, torch.float32)
    tracked = [(clip, track(plain, clip)) for clip in clips]
    frames = sum(len(seen) for _, seen in tracked)
    none_measured = Agreement(frames, 0.0, 0.0)
    ranges = Calibration(observe(model, tracked), (), frames, "generated clips", none_measured)
    return dataclasses.replace(model, calibration=ranges)


def clips_to_calibrate() -> list[Clip]:
    """Generated clips that no program measures on; in a rehearsal a small one."""
    return [generated_clip(seed, 9) for seed in (30_000, 30_001)] if GPU else [generated_clip(30_000, 3, 320, 240)]


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
