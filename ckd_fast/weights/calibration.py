"""A calibration: what the inputs of a model's layers look like on real frames, so that engines can run them in int8.

It says what was observed, not how to round: ranges, smoothing and the rounding of weights are the engine's. Files keep
it beside the weights, as one tensor per layer and a line of metadata. As all of a file, it is untrusted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ckd_fast.errors import CorruptWeightsError, WeightsMismatchError, some_names
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.model import MODALITIES

from .files import WeightsFile, metadata_json

PREFIX = "calibration."  # of the tensors' names in a file
KEY = "int8"  # of the line in a file's metadata
LAYERS = ("qkv", "proj", "fc1", "fc2")  # of a block
HEAD = "head"  # the first convolutions of the three towers, on the tokens of one branch
LARGEST = 1e6  # of an input; int8 has no use for more, and products with it must stay finite in float32
LONGEST = 300  # characters of a source


@dataclass(frozen=True)
class Agreement:
    """How well int8 follows float32 on frames that calibrated nothing, each searched around float32's box."""

    frames: int
    kept: float  # share of the search tokens kept in float32 that int8 keeps too; 1 without elimination
    iou: float  # median over the frames, of the two boxes


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was observed of every layer that can run in int8, see `layer_inputs`.

    Attributes:
        inputs: lowest and highest value of each channel of the layer's input [2, C]. Behind a norm, that is before its
            scale and shift, which engines fold into the layer.
        in_float: layers that stay in higher precision, because int8 costs too much there.
        frames: how many were observed.
        source: what they show, in words.
        agreement: what came out.
    """

    inputs: Mapping[str, Tensor]
    in_float: tuple[str, ...]
    frames: int
    source: str
    agreement: Agreement

    def __post_init__(self) -> None:
        unknown = sorted(set(self.in_float) - set(self.inputs))
        if unknown:
            raise ValueError(f"layers to keep in higher precision that the model does not have: {some_names(unknown)}")

    @property
    def in_int8(self) -> tuple[str, ...]:
        """The layers that run in int8."""
        return tuple(name for name in self.inputs if name not in self.in_float)

    def sha256(self) -> str:
        """Of all that int8 depends on: ranges, and layers in higher precision."""
        digest = hashlib.sha256(json.dumps([list(self.inputs), sorted(self.in_float)]).encode())
        for value in self.inputs.values():
            digest.update(value.float().contiguous().numpy().tobytes())
        return digest.hexdigest()


def layer_inputs(config: ModelConfig) -> dict[str, int]:
    """Names of the layers that can run in int8, and the channels of their inputs.

    Most products of a frame are in them. The patch embedding, attention and the rest of the head stay as they are.
    """
    hidden = config.dim * config.mlp_ratio
    channels: dict[str, int] = {}
    for branch in MODALITIES[: config.branches]:
        for block in range(config.depth):
            for layer in LAYERS:
                channels[f"{branch}.blocks.{block}.{layer}"] = hidden if layer == "fc2" else config.dim
        channels[f"{branch}.{HEAD}"] = config.dim
    return channels


def calibration_tensors(calibration: Calibration) -> dict[str, Tensor]:
    """For a file: its tensors."""
    return {PREFIX + name: value for name, value in calibration.inputs.items()}


def calibration_line(calibration: Calibration) -> str:
    """For a file: its line of metadata."""
    agreement = calibration.agreement
    return json.dumps(
        {
            "in_float": calibration.in_float, "frames": calibration.frames, "source": calibration.source,
            "held_back": agreement.frames, "kept": agreement.kept, "iou": agreement.iou,
        }
    )  # fmt: skip


def stored_calibration(file: WeightsFile, tensors: Mapping[str, Tensor], config: ModelConfig) -> Calibration | None:
    """The calibration in a file; None if it has none.

    Args:
        file: what was read.
        tensors: those whose names begin with `PREFIX`.
        config: the model's sizes.
    """
    path = file.path
    if KEY not in file.metadata and not tensors:
        return None
    if KEY not in file.metadata:
        raise CorruptWeightsError(f"{path}: has tensors of a calibration, but no line {KEY!r} in its metadata")
    inputs = {name.removeprefix(PREFIX): value.float() for name, value in tensors.items()}
    expected = layer_inputs(config)
    missing, extra = expected.keys() - inputs.keys(), inputs.keys() - expected.keys()
    if missing or extra:
        kind, names = ("lacks", missing) if missing else ("has unknown", extra)
        raise WeightsMismatchError(
            f"{path}: its calibration does not fit the model: {kind} layers {some_names(sorted(names))}; "
            "calibrate again: ckd-fast quantize"
        )
    for name, channels in expected.items():
        _check_input(path, name, inputs[name], channels)
    return _described(path, metadata_json(file.metadata, KEY, path), {name: inputs[name] for name in expected})


def _check_input(path: Path, name: str, value: Tensor, channels: int) -> None:
    if tuple(value.shape) != (2, channels):
        raise WeightsMismatchError(f"{path}: {PREFIX}{name} is {tuple(value.shape)}, expected {(2, channels)}")
    if not torch.isfinite(value).all() or (value.abs() > LARGEST).any():
        raise CorruptWeightsError(f"{path}: {PREFIX}{name} has values that are not finite or beyond {LARGEST:g}")
    if (value[0] > value[1]).any():
        raise CorruptWeightsError(f"{path}: {PREFIX}{name} has a lowest value above the highest")


def _described(path: Path, line: Mapping[str, object], inputs: Mapping[str, Tensor]) -> Calibration:
    def bad(name: str, expected: str) -> CorruptWeightsError:
        return CorruptWeightsError(f"{path}: its calibration has {name}={line.get(name)!a:.60}; expected {expected}")

    in_float, source = line.get("in_float"), line.get("source")
    if not isinstance(in_float, list) or any(not isinstance(name, str) or name not in inputs for name in in_float):
        raise bad("in_float", "names of the model's layers")
    if not isinstance(source, str) or len(source) > LONGEST or not source.isprintable():
        raise bad("source", f"at most {LONGEST} characters of text")
    counts, shares = [], []
    for name in ("frames", "held_back"):
        count = line.get(name)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 < count < 2**31:
            raise bad(name, "a positive whole number")
        counts.append(count)
    for name in ("kept", "iou"):
        share = line.get(name)
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
            raise bad(name, "a number in [0, 1]")
        shares.append(float(share))
    agreement = Agreement(counts[1], *shares)
    return Calibration(inputs, tuple(dict.fromkeys(in_float)), counts[0], source, agreement)
