"""Writes a model as safetensors with its sizes and provenance inside; converts other files to it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ckd_fast import __version__
from ckd_fast.errors import InputError, OutputError
from ckd_fast.files import refuse_overwrite
from ckd_fast.reference.config import ModelConfig, preset_name

from .calibration import KEY, calibration_line, calibration_tensors
from .files import write_safetensors
from .load import FORMAT, FORMAT_VERSION, LoadedModel, is_threshold, load_model

HalfPrecision = Literal["float16", "bfloat16"]


def save_model(
    model: LoadedModel, path: str | os.PathLike[str], *, half: HalfPrecision | None = None, teachers: bool = False
) -> None:
    """Write a model as safetensors with its sizes and provenance inside.

    Args:
        model: what to write.
        path: an existing file is replaced atomically.
        half: type of the stored weights; batch-norm statistics stay float32.
        teachers: keep the teachers too, to go on training.
    """
    tensors = dict(model.weights) | (dict(model.teachers) if teachers else {})
    if half is not None:
        tensors = {name: _rounded(name, value, half) for name, value in tensors.items()}
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "preset": preset_name(model.config) or "",
        "config": json.dumps(model.config.to_dict()),
        "provenance": json.dumps(dataclasses.asdict(model.provenance)),
        "written_by": f"ckd_fast {__version__}",
    }
    if model.lost_threshold is not None:
        metadata["calibration"] = json.dumps({"lost_threshold": model.lost_threshold})
    if model.calibration is not None:
        tensors |= calibration_tensors(model.calibration)
        metadata[KEY] = calibration_line(model.calibration)
    write_safetensors(path, tensors, metadata)


def _rounded(name: str, value: Tensor, half: HalfPrecision) -> Tensor:
    if half not in ("float16", "bfloat16"):
        raise InputError(f"half={half!r}: known are float16, bfloat16")
    if "running_" in name:
        return value
    rounded = value.to(torch.float16 if half == "float16" else torch.bfloat16)
    if not torch.isfinite(rounded).all():
        raise OutputError(f"{name} has values beyond the range of float16: use bfloat16")
    return rounded


def convert_weights(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    model: str | ModelConfig | None = None,
    seed: int | None = None,
    half: HalfPrecision | None = None,
    teachers: bool = False,
    lost_threshold: float | None = None,
    force: bool = False,
) -> LoadedModel:
    """Load `source` with every check, write it to `target` and return it; see also `load_model` and `save_model`.

    Args:
        lost_threshold: stored as the calibration of these weights; None keeps the source's.
        force: overwrite `target`.
    """
    if lost_threshold is not None and not is_threshold(lost_threshold):
        raise InputError(f"lost_threshold={lost_threshold!r}: expected a number in [0, 1]")
    target = Path(target)
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: expected a name that ends in .safetensors")
    refuse_overwrite([target], force=force)
    loaded = load_model(source, model, seed)
    if teachers and not loaded.teachers:
        raise InputError(f"{source}: holds no teachers to keep")
    if lost_threshold is not None:
        loaded = dataclasses.replace(loaded, lost_threshold=lost_threshold)
    save_model(loaded, target, half=half, teachers=teachers)
    return loaded
