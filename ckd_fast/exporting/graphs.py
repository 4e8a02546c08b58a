"""What exported files compute, and its translation to ONNX by torch's exporter.

The network is that of `reference/`. Around it the graphs hold what a user of plain ONNX Runtime would otherwise have to
write: pixels are normalised, a missing modality is blanked, and the best cell of the score map under the window is
turned into a box. `weights/exported.py` says what goes in and out.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ckd_fast.errors import EngineError
from ckd_fast.reference.boxes import find_peak, hann_window
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import Student
from ckd_fast.reference.preprocess import normalise
from ckd_fast.weights.exported import MOST_TARGETS, TARGETS, Crops, Port, Ports

OPSET = 18  # the oldest that torch's exporter writes, so that older runtimes can read it
EXAMPLE_TARGETS = 2  # with which a graph for any number is traced and tried; torch takes one target for a constant
ELEMENTS = {"float32": torch.float32, "uint8": torch.uint8, "bool": torch.bool}


def _normalised(crops: Tensor, kind: Crops) -> Tensor:
    """Crops as an export takes them -> [2, B, 3, H, W]."""
    return normalise(crops) if kind == "uint8" else crops


class TemplateGraph(nn.Module):
    """Template crops of one target -> its tokens."""

    def __init__(self, student: Student, crops: Crops, dtype: torch.dtype) -> None:
        super().__init__()
        self.student, self.crops, self.dtype = student, crops, dtype

    def forward(self, crops: Tensor) -> Tensor:
        return self.student.embed_template(_normalised(crops, self.crops).to(self.dtype)).float()


class SearchGraph(nn.Module):
    """Search crops of B targets -> maps and boxes, see `exported.search_ports`."""

    window: Tensor

    def __init__(self, student: Student, crops: Crops, dtype: torch.dtype) -> None:
        super().__init__()
        self.student, self.crops, self.dtype = student, crops, dtype
        self.register_buffer("window", hann_window(student.config.search_grid))

    def forward(self, template: Tensor, search: Tensor, deciding: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        shown = _normalised(search, self.crops)
        # Zeros are the mean image. Chosen, not multiplied: a missing crop may hold anything, NaN too.
        shown = torch.where(present[:, :, None, None, None], shown, torch.zeros_like(shown))
        maps = self.student(template.to(self.dtype), shown.to(self.dtype), deciding, present).maps
        maps = HeadMaps(maps.score.float(), maps.size.float(), maps.offset.float())
        peak = find_peak(maps, self.window)
        return maps.score, maps.size, maps.offset, peak.boxes_cxcywh, peak.score, peak.cell


class PlainGraph(nn.Module):
    """The network alone: template tokens, normalised crops and deciding tokens -> maps."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, template: Tensor, search: Tensor, deciding: Tensor) -> tuple[Tensor, ...]:
        maps = self.student(template, search, deciding).maps
        return maps.score, maps.size, maps.offset


def trace(graph: nn.Module, ports: Ports) -> torch.onnx.ONNXProgram:
    """A graph as ONNX, with these names and axes."""
    examples = tuple(_example(port) for port in ports.inputs)
    count = torch.export.Dim(TARGETS, min=1, max=MOST_TARGETS)
    axes = tuple({axis: count for axis, side in enumerate(port.shape) if side == TARGETS} for port in ports.inputs)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph.eval(),
                examples,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=[port.name for port in ports.inputs],
                output_names=[port.name for port in ports.outputs],
                dynamic_shapes=axes if any(axes) else None,
                custom_translation_table={torch.ops.aten.sort.stable: _sort},
            )
    except Exception as error:
        # The exporter's own errors wrap any other; nothing of ours can go wrong once the network runs.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineError(f"torch {torch.__version__} cannot translate the network to ONNX: {reason}") from error
    if program is None:
        raise EngineError(f"torch {torch.__version__} returned no ONNX program")
    from onnx_ir import Shape

    for value, port in zip(
        (*program.model.graph.inputs, *program.model.graph.outputs), (*ports.inputs, *ports.outputs), strict=True
    ):
        value.shape = Shape(port.shape)  # the exporter names axes of any length as it likes
    # The exporter's notes hold stack traces, with the paths of this machine.
    traced = program.model.graph
    values = [*traced.inputs, *traced.initializers.values(), *(value for node in traced for value in node.outputs)]
    for notes in (traced.metadata_props, *(part.metadata_props for part in (*traced, *values))):
        notes.clear()
    return program


def _example(port: Port) -> Tensor:
    """An input to trace with: its values do not matter, only that no axis of any length is 1."""
    shape = [EXAMPLE_TARGETS if side == TARGETS else int(side) for side in port.shape]
    return torch.ones(shape, dtype=ELEMENTS[port.element])


def _sort(self: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:  # noqa: ANN401, ARG001
    """aten.sort.stable, which the exporter does not know; of equal scores TopK too has the lower index first."""
    from onnxscript import opset18

    count: Any = opset18.Constant(value_ints=[int(self.shape[dim])])
    return opset18.TopK(self, count, axis=dim, largest=descending, sorted=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks: on packages that we do not use, on torch's own use of old functions."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        registration.setLevel(level)
