"""Runs exported files in ONNX Runtime beside the reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from ckd_fast.engines.onnx.session import choose_providers, first_line, open_session, run_session
from ckd_fast.errors import OutputError
from ckd_fast.reference.boxes import find_peak, hann_window
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import Student
from ckd_fast.reference.preprocess import normalise
from ckd_fast.weights import ExportedModel, LoadedModel
from ckd_fast.weights.exported import read_exported, search_ports

from .graphs import EXAMPLE_TARGETS

BOX_BOUND = 1e-6  # how far a decoded box, in units of the crop, may lie from the reference's of the same maps
FLOAT32_BOUND = 1e-4  # how far maps may lie from the reference's; scores, sizes and offsets are of order 1
TRIES = 3  # inputs; two equal scores in an elimination may fall either way, which a second input does not repeat


def verified(model: LoadedModel, student: Student, file: Path) -> float:
    """Check both files and run them beside the reference in float32; how far the maps differ, if that is good enough.

    In float32 it is the largest difference, at most `FLOAT32_BOUND`. In float16 it is the mean, at most twice that of
    plain PyTorch in float16, and the bound.
    """
    found = read_exported(file)
    try:
        for path in (found.path, found.template_path):
            onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise OutputError(f"the exported graph does not pass ONNX's checker: {first_line(error)}") from error
    runner, plain = _Runner(found), model.student()
    differences = []
    for seed in range(TRIES):
        trial = _trial(found, seed)
        both_there = torch.ones(2, trial.count, dtype=torch.bool)
        shown = (both_there, trial.present)
        exact = torch.cat([_reference(plain, trial, present) for present in shown])
        ours = torch.cat([runner.maps(trial, present) for present in shown])
        if found.dtype == torch.float32:
            difference, bound = float((ours - exact).abs().max()), FLOAT32_BOUND
        else:
            half = torch.cat([_reference(student, trial, present) for present in shown])
            difference = float((ours - exact).abs().mean())
            bound = 2 * float((half - exact).abs().mean()) + FLOAT32_BOUND
        if difference <= bound:
            return difference
        differences.append(difference)
    raise OutputError(
        f"the exported graph differs from the reference by {min(differences):.2g} in ONNX Runtime: it was not written. "
        "Please report this with the versions of torch and onnxruntime"
    )


@dataclass(frozen=True)
class _Trial:
    """Random inputs for B targets."""

    count: int
    template: Tensor  # crops, uint8 [2, B, h, w, 3]
    search: Tensor  # the same of the search
    deciding: Tensor  # [B, T]
    present: Tensor  # [2, B]; the first target lacks a modality


def _trial(found: ExportedModel, seed: int) -> _Trial:
    generator = torch.Generator().manual_seed(seed)
    config, count = found.config, found.targets or EXAMPLE_TARGETS
    template, search = (
        torch.randint(256, (2, count, side, side, 3), dtype=torch.uint8, generator=generator)
        for side in (config.template_size, config.search_size)
    )
    deciding = torch.rand(count, config.template_tokens, generator=generator) < 0.5
    deciding[:, 0] = True
    present = torch.ones(2, count, dtype=torch.bool)
    present[seed % 2, 0] = False
    return _Trial(count, template, search, deciding, present)


def _reference(student: Student, trial: _Trial, present: Tensor) -> Tensor:
    """All maps side by side [B, 5, g, g]."""
    dtype = next(student.parameters()).dtype
    with torch.inference_mode():
        tokens = student.embed_template(normalise(trial.template).to(dtype))
        search = normalise(trial.search, present).to(dtype)
        maps = student(tokens, search, trial.deciding, present).maps
        return torch.cat([maps.score, maps.size, maps.offset], dim=1).float()


class _Runner:
    """Both files in ONNX Runtime on the CPU."""

    def __init__(self, found: ExportedModel) -> None:
        self._found = found
        providers, threads = choose_providers("cpu"), torch.get_num_threads()
        self._search = open_session(found.path, providers, threads)
        self._template = open_session(found.template_path, providers, threads)

    def maps(self, trial: _Trial, present: Tensor) -> Tensor:
        """All maps side by side [B, 5, g, g], if the box beside them is theirs."""
        taken = trial.template if self._found.crops == "uint8" else normalise(trial.template)
        each = taken.split(1, dim=1)
        tokens = [run_session(self._template, ["template"], {"crops": crops.numpy()})[0] for crops in each]
        search = trial.search if self._found.crops == "uint8" else normalise(trial.search)
        inputs = {
            "template": np.concatenate(tokens, axis=1),
            "search": search.numpy(),
            "deciding": trial.deciding.numpy(),
            "present": present.numpy(),
        }
        ports = search_ports(self._found.config, self._found.crops, trial.count).outputs
        values = run_session(self._search, [port.name for port in ports], inputs)
        for port, value in zip(ports, values, strict=True):
            if value.shape != port.shape or not np.isfinite(value).all():
                raise OutputError(
                    f"the exported graph gives {port.name} in shape {value.shape}, expected {port.shape}, or values "
                    "that are not finite: try dtype='float32'"
                )
        score, size, offset, box, best, cell = (torch.from_numpy(value) for value in values)
        peak = find_peak(HeadMaps(score, size, offset), hann_window(self._found.config.search_grid))
        right = torch.equal(peak.cell, cell) and torch.allclose(peak.score, best, rtol=0, atol=BOX_BOUND)
        if not right or not torch.allclose(peak.boxes_cxcywh, box, rtol=0, atol=BOX_BOUND):
            raise OutputError("the exported graph decodes another box than the reference from the same maps")
        return torch.cat([score, size, offset], dim=1)
