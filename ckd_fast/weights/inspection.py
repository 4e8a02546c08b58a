"""`ckd-fast weights inspect`: what a file holds, without building the model."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

from ckd_fast.reference.config import ModelConfig, preset_name

from .calibration import Agreement
from .files import open_weights
from .load import LoadedModel, Provenance, model_from_file, resolve_config


@dataclass(frozen=True)
class Inspection:
    container: str  # "safetensors" or "checkpoint"
    # how many tensors and values are in the file
    tensors: int
    parameters: int
    dtypes: dict[str, int]  # tensors per type
    sha256: str
    not_loaded: tuple[str, ...]  # pickled classes, replaced by placeholders
    preset: str | None  # its name, if a preset has these sizes
    config: ModelConfig
    provenance: Provenance
    teachers: bool  # whether the file holds them
    lost_threshold: float | None  # calibrated for these weights; None: not calibrated
    int8: Agreement | None  # with float32, of weights that `ckd-fast quantize` wrote
    in_float: tuple[str, ...]  # layers that stay in higher precision then


def inspect_weights(
    path: str | os.PathLike[str], model: str | ModelConfig | None = None, seed: int | None = None
) -> Inspection:
    """Open, check and describe a file. Arguments and errors are those of `load_model`."""
    file = open_weights(path)
    loaded: LoadedModel = model_from_file(file, resolve_config(model), seed)
    return Inspection(
        container=file.container,
        tensors=len(file.tensors),
        parameters=sum(tensor.numel() for tensor in file.tensors.values()),
        dtypes=dict(Counter(str(t.dtype).removeprefix("torch.") for t in file.tensors.values())),
        sha256=file.sha256,
        not_loaded=file.placeholders,
        preset=preset_name(loaded.config),
        config=loaded.config,
        provenance=loaded.provenance,
        teachers=bool(loaded.teachers),
        lost_threshold=loaded.lost_threshold,
        int8=loaded.calibration.agreement if loaded.calibration else None,
        in_float=loaded.calibration.in_float if loaded.calibration else (),
    )
