"""`ckd-fast weights convert`: any readable file to safetensors that loads without saying the sizes."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from ckd_fast.errors import InputError
from ckd_fast.files import refuse_overwrite
from ckd_fast.reference.config import ModelConfig

from .load import HalfPrecision, LoadedModel, is_threshold, load_model, save_model


@dataclass(frozen=True)
class Conversion:
    """What was written."""

    model: LoadedModel
    path: Path
    bytes_written: int


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
) -> Conversion:
    """Load `source` with every check, write `target` atomically; see `load_model` and `save_model`.

    `lost_threshold` is stored as the calibration of these weights; None keeps what the source says.
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
    return Conversion(loaded, target, target.stat().st_size)
