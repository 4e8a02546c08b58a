"""Writes a model as ONNX: one file that finds targets, and beside it one that embeds templates."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from ckd_fast.errors import EngineError, InputError, OutputError, some_names
from ckd_fast.files import refuse_overwrite, refuse_place, writing
from ckd_fast.reference.model import Student
from ckd_fast.weights import LoadedModel
from ckd_fast.weights.exported import (
    DYNAMIC,
    MAX_BYTES,
    MOST_TARGETS,
    PRECISIONS,
    SUFFIX,
    Crops,
    Ports,
    describe,
    is_exported,
    most_targets,
    naming_template,
    search_ports,
    template_ports,
)

from .graphs import PlainGraph, SearchGraph, TemplateGraph, trace

log = logging.getLogger(__name__)

ROOM_BYTES = 1 << 24  # for everything in a file but its weights


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    template_path: Path
    bytes: int  # of both files
    error: float  # how far the maps were from the reference in float32: the largest difference, in float16 the mean
    seconds: float


def export_model(
    model: LoadedModel,
    path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    targets: int | Literal["dynamic"] = 1,
    crops: Crops = "uint8",
    force: bool = False,
    on_progress: Callable[[str], object] = log.info,
) -> Exported:
    """Write `path`, which finds targets, and beside it NAME.template.onnx, which embeds templates.

    Both are checked by ONNX's checker, read back as an untrusted file is, and run beside the reference before they get
    their names.

    Args:
        model: what to export.
        path: a name that ends in .onnx, in a folder that exists.
        dtype: "float32" or "float16": weights and arithmetic. Inputs and outputs are float32 in both.
        targets: in one call: a number, or "dynamic" for any.
        crops: what the graphs take: "uint8" pixels [2, B, H, W, 3], RGB, or "normalised" float32 [2, B, 3, H, W].
        force: overwrite.
        on_progress: called with a line of text when a step begins.
    """
    begin = time.perf_counter()
    check_export(path, dtype, targets, crops, force=force)
    path, count = Path(path), None if targets == DYNAMIC else int(targets)
    names = (path.name, _template_path(path).name)
    from .verify import verified

    student = _student(model, dtype)
    config, precision = model.config, PRECISIONS[dtype]
    most = most_targets(config)
    if (count or 1) > most:
        raise InputError(f"targets={targets!r}: a network of these sizes takes at most {most} in one call")
    on_progress("translating the network to ONNX; this takes up to half a minute, for model base a minute or two")
    # Under their own names in a folder of their own: what is checked there is what is moved.
    with writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        search, template = (Path(folder) / name for name in names)
        program = trace(TemplateGraph(student, crops, precision), template_ports(config, crops))
        _write(program, template, describe(model, "template", dtype, count, crops))
        program = trace(SearchGraph(student, crops, precision), search_ports(config, crops, count))
        _write(program, search, describe(model, "search", dtype, count, crops) | naming_template(template))
        del program
        on_progress("checking both files, and running them beside the reference")
        error = verified(model, student, search)
        written = [file.replace(path.with_name(file.name)) for file in (template, search)]
    size = sum(file.stat().st_size for file in written)
    return Exported(written[1], written[0], size, error, time.perf_counter() - begin)


def export_network(model: LoadedModel, path: str | os.PathLike[str]) -> None:
    """Write the network alone, in float32 for one target, as a user of torch.onnx.export would: to measure runtimes.

    It takes template tokens [2, 1, T, C], normalised crops [2, 1, 3, H, W] and deciding tokens [1, T] bool, and gives
    the maps for score, size and offset. Nothing is checked or described; an existing file is replaced.
    """
    student = _student(model, "float32")
    ports = search_ports(model.config, "normalised", 1)
    ports = Ports(ports.inputs[:3], ports.outputs[:3])
    _write(trace(PlainGraph(student), ports), Path(path), {})


def check_export(path: str | os.PathLike[str], dtype: str, targets: int | str, crops: str, *, force: bool) -> None:
    """Raise for wrong arguments of `export_model`, before weights are read or packages imported."""
    path = Path(path)
    if not is_exported(path):
        raise InputError(f"{path}: expected a name that ends in {SUFFIX}")
    refuse_place(path)
    if dtype == "bfloat16":
        raise InputError(
            "dtype='bfloat16': ONNX Runtime's CPU provider has no products or convolutions in bfloat16, so the export "
            "could not be run; use float16 or float32"
        )
    if dtype not in PRECISIONS:
        raise InputError(f"dtype={dtype!r}: known are {', '.join(PRECISIONS)}")
    if crops not in ("uint8", "normalised"):
        raise InputError(f"crops={crops!r}: known are uint8, normalised")
    known = isinstance(targets, int) and not isinstance(targets, bool) and 1 <= targets <= MOST_TARGETS
    if targets != DYNAMIC and not known:
        raise InputError(f"targets={targets!r}: expected 1 to {MOST_TARGETS}, or {DYNAMIC!r}")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise EngineError(f"export needs {', '.join(missing)}, not installed: pip install 'ckd_fast[export]'")
    refuse_overwrite([path, _template_path(path)], force=force)


def _template_path(path: Path) -> Path:
    """NAME.template.onnx beside NAME.onnx."""
    return path.with_name(f"{path.name[: -len(SUFFIX)]}.template{SUFFIX}")


def _student(model: LoadedModel, dtype: str) -> Student:
    """The network in this precision, if it fits into a file and has only finite weights."""
    student = model.student().to(PRECISIONS[dtype])
    weights = dict(student.named_parameters()) | dict(student.named_buffers())  # a shared backbone once
    size = sum(value.numel() * value.element_size() for value in weights.values())
    if size + ROOM_BYTES > MAX_BYTES:
        half = "; dtype='float16' needs half of it" if dtype == "float32" else ""
        raise OutputError(f"the weights need {size} bytes in {dtype}, and an ONNX file holds at most {MAX_BYTES}{half}")
    overflow = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if overflow:
        raise OutputError(f"{some_names(overflow)}: beyond the range of {dtype}; use dtype='float32'")
    return student


def _write(program: torch.onnx.ONNXProgram, file: Path, about: Mapping[str, str]) -> None:
    program.model.metadata_props.update(about)
    program.save(file, external_data=False)
