"""Checkpoints of a run: folders of safetensors and JSON that appear only when they are complete.

    checkpoints/step-00001000/weights.safetensors    student and teachers; `load_model` reads it
                              ema.safetensors        their running mean, if the run keeps one
                              optimiser.safetensors  AdamW's moments; none between stages
                              state.json             where the run stands
    best.safetensors                                 the student that scored best on validation

Nothing is pickled, so nothing in a checkpoint from elsewhere can execute. No random state is stored: what a step draws
depends on the seed and the step's number.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ckd_fast.errors import CorruptWeightsError, InputError, OutputError
from ckd_fast.weights import LoadedModel, save_model
from ckd_fast.weights.files import open_weights, write_safetensors

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class RunState:
    stage: int = 0  # number of the stage that is next or under way
    step: int = 0  # steps done in that stage
    total: int = 0  # steps done in all stages
    best: float = -1.0  # best validation so far; -1 before the first
    bad_samples: int = 0  # samples that could not be read so far


@dataclass(frozen=True)
class Checkpoint:
    """Everything that resuming needs."""

    state: RunState
    weights: Mapping[str, Tensor]  # by the names of our files
    ema: Mapping[str, Tensor]  # the running mean, by the same names; empty if the run keeps none
    optimiser: Mapping[str, Tensor]  # AdamW's moments by `parameter number.name`, empty between stages


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's moments by `parameter number.name`."""
    state = optimiser.state_dict()["state"]
    return {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], where: str) -> None:
    """Give an optimiser these moments; they must fit its parameters."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, entry = name.partition(".")
        if not number.isdigit() or int(number) >= len(parameters):
            raise CorruptWeightsError(f"{where}: {name} belongs to no parameter of this run")
        if entry != "step" and value.shape != parameters[int(number)].shape:
            expected = tuple(parameters[int(number)].shape)
            raise CorruptWeightsError(f"{where}: {name} is {tuple(value.shape)}, expected {expected}")
        state.setdefault(int(number), {})[entry] = value
    if tensors and len(state) != len(parameters):
        raise CorruptWeightsError(f"{where}: moments of {len(state)} parameters, but this run trains {len(parameters)}")
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


class Checkpoints:
    """The checkpoints in a run's folder `out`; the newest `keep` stay."""

    def __init__(self, out: Path, keep: int) -> None:
        self._home, self._keep = out / FOLDER, keep

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        if not self._home.is_dir():
            return []
        return sorted(path for path in self._home.iterdir() if _NAME.fullmatch(path.name))

    def write(
        self, state: RunState, model: LoadedModel, ema: LoadedModel | None, moments: Mapping[str, Tensor]
    ) -> Path:
        """Add a checkpoint; when it is complete, delete those that are too old."""
        target = self._home / f"step-{state.total:08d}"
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            for stale in self._home.glob(".writing-*"):  # left by a run that was killed
                shutil.rmtree(stale, ignore_errors=True)
            draft = Path(tempfile.mkdtemp(prefix=".writing-", dir=self._home))
            save_model(model, draft / "weights.safetensors", teachers=True)
            if ema is not None:
                save_model(ema, draft / "ema.safetensors", teachers=True)
            if moments:  # a safetensors file cannot be empty
                write_safetensors(draft / "optimiser.safetensors", {n: v.cpu() for n, v in moments.items()}, {})
            with (draft / "state.json").open("w", encoding="utf-8") as handle:
                json.dump(dataclasses.asdict(state), handle)
                handle.flush()
                os.fsync(handle.fileno())
            if target.exists():
                shutil.rmtree(target)
            draft.replace(target)
        except OSError as error:
            raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from error
        for old in self.all()[: -self._keep]:
            shutil.rmtree(old)
        return target

    def newest(self) -> Path | None:
        """The folder of the last checkpoint."""
        found = self.all()
        return found[-1] if found else None

    def last(self) -> Checkpoint | None:
        newest = self.newest()
        return None if newest is None else read_checkpoint(newest)


def read_checkpoint(folder: Path) -> Checkpoint:
    try:
        values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        state = RunState(**values)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{folder / 'state.json'}: cannot be used ({error}); remove {folder} to resume from an older one"
        ) from error
    ema, optimiser = folder / "ema.safetensors", folder / "optimiser.safetensors"
    return Checkpoint(
        state,
        open_weights(folder / "weights.safetensors").tensors,
        open_weights(ema).tensors if ema.exists() else {},
        open_weights(optimiser).tensors if optimiser.exists() else {},
    )
