"""ONNX files that `ckd-fast export` wrote: what they say about themselves, and the checks before one is run.

A model is two files. The first finds targets; it names the second, which embeds templates, and that one's digest. Every
file is untrusted: ONNX Runtime gets only what passes here. A file holds all its tensors itself, uses only operators
that an export has, takes and gives exactly what its metadata announce, and computes no more than such a network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ckd_fast import __version__
from ckd_fast.errors import (
    CorruptWeightsError,
    EngineError,
    InputError,
    MissingModelError,
    WeightsMismatchError,
    some_names,
)
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.preprocess import PIXEL_MEAN, PIXEL_STD

from .files import check_name, metadata_json
from .load import LoadedModel, Provenance, is_threshold, load_model, resolve_config

if TYPE_CHECKING:
    import onnx

Crops = Literal["uint8", "normalised"]
Part = Literal["search", "template"]

SUFFIX = ".onnx"
FORMAT = "1"
PRECISIONS = {"float32": torch.float32, "float16": torch.float16}
DYNAMIC = "dynamic"  # as a number of targets
TARGETS = "targets"  # name of the axis that may have any length
MOST_TARGETS = 64  # in one call
MAX_BYTES = (1 << 31) - 1  # of one protobuf message
MAX_SIDE = 4096  # of a crop, in pixels: a file's word is enough for a tracker to make crops of that size
MAX_DEPTH = 64
MAX_AXES = 8  # exports have 6
MOST_ELEMENTS = 1 << 29  # of the largest value of one call, as `_largest_value` estimates it; base with 64 targets: 3e8
MOST_VALUES = 1 << 31  # elements of all values together, for one target; base: 4e8
SMALL_BYTES = 1 << 10  # of a tensor that may be a shape
OPERATORS = frozenset(
    {"Add", "ArgMax", "Cast", "Clip", "Concat", "ConstantOfShape", "Conv", "Div", "Erf", "Expand", "Floor",
     "GatherElements", "LayerNormalization", "MatMul", "Mod", "Mul", "ReduceMax", "ReduceMean", "ReduceSum", "Relu",
     "Reshape", "ScatterElements", "Shape", "Sigmoid", "Slice", "Softmax", "Squeeze", "Sub", "TopK", "Transpose",
     "Unsqueeze", "Where"}
)  # fmt: skip
SHAPED_BY = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}  # which input is a shape
MAX_NODES = 100_000  # base has 1,300
MAX_METADATA = 64
MAX_METADATA_CHARACTERS = 1 << 16
# Element types that exported tensors have, and the bytes of one element, by their number in ONNX.
ITEM_BYTES = {1: 4, 2: 1, 6: 4, 7: 8, 9: 1, 10: 2}  # float, uint8, int32, int64, bool, float16
ELEMENTS = {"float32": 1, "uint8": 2, "int64": 7, "bool": 9}


@dataclass(frozen=True)
class Port:
    """An input or output of a graph; `TARGETS` stands for an axis of any length."""

    name: str
    element: Literal["float32", "uint8", "int64", "bool"]
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Ports:
    """All inputs and outputs of a graph, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def search_ports(config: ModelConfig, crops: Crops, targets: int | None) -> Ports:
    """Of the graph that finds B targets; None: any number."""
    count: int | str = TARGETS if targets is None else targets
    grid, tokens = config.search_grid, config.template_tokens
    return Ports(
        inputs=(
            Port("template", "float32", (2, count, tokens, config.dim)),
            _crops("search", crops, count, config.search_size),
            Port("deciding", "bool", (count, tokens)),
            Port("present", "bool", (2, count)),
        ),
        outputs=(
            Port("score_map", "float32", (count, 1, grid, grid)),
            Port("size_map", "float32", (count, 2, grid, grid)),
            Port("offset_map", "float32", (count, 2, grid, grid)),
            Port("box", "float32", (count, 4)),
            Port("score", "float32", (count,)),
            Port("cell", "int64", (count,)),
        ),
    )


def template_ports(config: ModelConfig, crops: Crops) -> Ports:
    """Of the graph that embeds the template of one target."""
    tokens = Port("template", "float32", (2, 1, config.template_tokens, config.dim))
    return Ports((_crops("crops", crops, 1, config.template_size),), (tokens,))


def _crops(name: str, crops: Crops, count: int | str, side: int) -> Port:
    if crops == "uint8":
        return Port(name, "uint8", (2, count, side, side, 3))
    return Port(name, "float32", (2, count, 3, side, side))


@dataclass(frozen=True)
class ExportedModel:
    """A pair of ONNX files that passed all checks.

    Attributes:
        path, template_path: the files.
        config: sizes and choices of the network in them.
        provenance: the first file; its kind names the weights that were exported.
        lost_threshold: as of `LoadedModel`.
        dtype: precision of weights and arithmetic.
        targets: how many the graph finds in one call; None: any number.
        crops: what the graphs take.
    """

    path: Path
    template_path: Path
    config: ModelConfig
    provenance: Provenance
    lost_threshold: float | None
    dtype: torch.dtype
    targets: int | None
    crops: Crops


def is_exported(weights: object) -> bool:
    """Whether this names an ONNX file."""
    return isinstance(weights, str | os.PathLike) and os.fspath(weights).lower().endswith(SUFFIX)


def open_model(
    weights: str | os.PathLike[str] | None, model: str | ModelConfig | None = None, seed: int | None = None
) -> LoadedModel | ExportedModel:
    """What an engine is built of: weights as `load_model` takes them, or a file that was exported."""
    if weights is not None and is_exported(weights):
        return read_exported(weights, model)
    return load_model(weights, model, seed)


def describe(model: LoadedModel, part: Part, dtype: str, targets: int | None, crops: Crops) -> dict[str, str]:
    """The metadata of an exported file."""
    pixels = {"channels": "RGB", "divide_by": 255, "mean": PIXEL_MEAN, "std": PIXEL_STD}
    about = {
        "format": FORMAT,
        "graph": part,
        "written_by": f"ckd_fast {__version__}",
        "config": json.dumps(model.config.to_dict()),
        "provenance": json.dumps(dataclasses.asdict(model.provenance)),
        "dtype": dtype,
        "targets": DYNAMIC if targets is None else str(targets),
        "crops": crops,
        "pixels": json.dumps(pixels),
    }
    if model.lost_threshold is not None:
        about["lost_threshold"] = repr(float(model.lost_threshold))
    return {f"ckd_fast.{name}": value for name, value in about.items()}


def naming_template(template: Path) -> dict[str, str]:
    """The metadata with which the first file names the second."""
    digest = hashlib.sha256(template.read_bytes()).hexdigest()
    return {"ckd_fast.template_file": template.name, "ckd_fast.template_sha256": digest}


def read_exported(path: str | os.PathLike[str], model: str | ModelConfig | None = None) -> ExportedModel:
    """Check an ONNX file and the template file beside it.

    Args:
        path: the first file.
        model: sizes that it must have; None: any.

    Raises:
        InputError: `model` is wrong or another one.
        WeightsError: one of the files cannot be used.
        EngineError: the package onnx is not installed.
    """
    file = Path(path)
    data = _read(file)
    about = _checked(file, data, "search")
    config = _config(file, about)
    wanted = resolve_config(model)
    if wanted is not None and wanted != config:
        raise InputError(f"{file}: holds its sizes, and the model given has others: leave the model out")
    stored, threshold = _provenance(file, about), _threshold(file, about)
    template_path = file.parent / _template_name(file, about)
    template = _read(template_path, f"{file}: the template graph that it names, {template_path.name},")
    digest = hashlib.sha256(template).hexdigest()
    if digest != about.get("template_sha256"):
        raise WeightsMismatchError(
            f"{template_path}: not the template graph that was exported with {file.name} (its sha256 is {digest[:12]}, "
            f"expected {about.get('template_sha256', 'nothing')[:12]}): export again, or copy both files together"
        )
    if _checked(template_path, template, "template").items() - about.items() - {("graph", "template")}:
        raise WeightsMismatchError(f"{template_path}: its metadata differ from those of {file.name}")
    kind = f"exported in {about['dtype']} from {stored.source} ({stored.kind})"
    return ExportedModel(
        path=file,
        template_path=template_path,
        config=config,
        provenance=dataclasses.replace(stored, source=file.name, kind=kind, sha256=hashlib.sha256(data).hexdigest()),
        lost_threshold=threshold,
        dtype=PRECISIONS[about["dtype"]],
        targets=_targets(about),
        crops="uint8" if about["crops"] == "uint8" else "normalised",
    )


def _read(file: Path, what: str = "") -> bytes:
    """The whole file."""
    try:
        if not file.exists():
            raise MissingModelError(f"{what} does not exist in {file.parent}" if what else f"{file}: no such file")
        if not file.is_file():
            raise CorruptWeightsError(f"{file}: not a regular file; expected an ONNX file")
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise CorruptWeightsError(f"{file}: has {size} bytes; an ONNX file has at most {MAX_BYTES}")
        return file.read_bytes()
    except OSError as error:
        if isinstance(error, MissingModelError):
            raise
        raise CorruptWeightsError(f"{file}: cannot be read ({error.strerror or error})") from error


def _checked(file: Path, data: bytes, part: Part) -> dict[str, str]:
    """The metadata of one file, after all checks of its graph."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise EngineError(
            "ONNX files are checked with the package onnx, which is not installed: pip install 'ckd_fast[onnx]'"
        ) from error
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise CorruptWeightsError(f"{file}: not a readable ONNX file (cut short, or another kind of file)") from error
    if not 0 < len(proto.graph.node) <= MAX_NODES:
        raise CorruptWeightsError(f"{file}: its graph has {len(proto.graph.node)} nodes; expected 1 to {MAX_NODES}")
    about = _metadata(file, proto)
    if about["graph"] != part:
        raise WeightsMismatchError(
            f"{file}: the {about['graph']} graph of an export, where its {part} graph is expected: pass the file that "
            "was named to ckd-fast export"
        )
    _check_operators(file, proto)
    _check_tensors(file, proto)
    config = _config(file, about)
    targets = _targets(about)
    crops: Crops = "uint8" if about["crops"] == "uint8" else "normalised"
    ports = search_ports(config, crops, targets) if part == "search" else template_ports(config, crops)
    _check_ports(file, "takes", proto.graph.input, ports.inputs)
    _check_ports(file, "gives", proto.graph.output, ports.outputs)
    if part == "search":
        _check_weights(file, proto, config)
    if part == "template" or targets is not None:
        count = 1 if part == "template" or targets is None else targets
        _sizes(file, proto, count, config)
    else:
        _check_growth(file, proto, config)
    return about


def _targets(about: Mapping[str, str]) -> int | None:
    return None if about["targets"] == DYNAMIC else int(about["targets"])


def _metadata(file: Path, proto: onnx.ModelProto) -> dict[str, str]:
    """Our entries, without their prefix; the values that have few choices are checked."""
    if len(proto.metadata_props) > MAX_METADATA:
        raise CorruptWeightsError(f"{file}: has {len(proto.metadata_props)} metadata entries, at most {MAX_METADATA}")
    about: dict[str, str] = {}
    for entry in proto.metadata_props:
        check_name(file, entry.key, "name of metadata")
        if len(entry.value) > MAX_METADATA_CHARACTERS:
            raise CorruptWeightsError(f"{file}: its metadata {entry.key} have {len(entry.value)} characters")
        name = entry.key.removeprefix("ckd_fast.")
        if name != entry.key:
            if name in about:
                raise CorruptWeightsError(f"{file}: its metadata name {entry.key} twice")
            about[name] = entry.value
    if "format" not in about:
        raise WeightsMismatchError(
            f"{file}: an ONNX file that `ckd-fast export` did not write: it does not say its sizes. Export the weights "
            "with ckd-fast export"
        )
    if about["format"] != FORMAT:
        raise WeightsMismatchError(
            f"{file}: written in format {about['format'][:20]!a}; this ckd_fast ({__version__}) reads format {FORMAT}: "
            "update ckd_fast or export again"
        )
    choices = {"graph": ("search", "template"), "dtype": tuple(PRECISIONS), "crops": ("uint8", "normalised")}
    for name, known in choices.items():
        if about.get(name) not in known:
            raise CorruptWeightsError(
                f"{file}: its metadata say {name}={about.get(name, '')[:40]!a}; known are {', '.join(known)}"
            )
    targets = about.get("targets", "")
    if targets != DYNAMIC and targets not in map(str, range(1, MOST_TARGETS + 1)):
        raise CorruptWeightsError(f"{file}: its metadata say targets={targets[:40]!a}; expected 1 to {MOST_TARGETS}")
    return about


def _check_operators(file: Path, proto: onnx.ModelProto) -> None:
    """Only the operators that an export has: nothing that loads code, loops or branches."""
    domains = {opset.domain for opset in proto.opset_import} | {node.domain for node in proto.graph.node}
    foreign = sorted(domains - {""})
    if foreign:
        raise CorruptWeightsError(
            f"{file}: uses operators outside the ONNX standard ({some_names([ascii(name[:40]) for name in foreign])})"
        )
    if len(proto.opset_import) != 1:
        raise CorruptWeightsError(f"{file}: names {len(proto.opset_import)} versions of the ONNX standard, not one")
    if proto.functions or proto.training_info or proto.graph.sparse_initializer:
        raise CorruptWeightsError(f"{file}: holds functions, training graphs or sparse tensors; an export has none")
    for node in proto.graph.node:
        if node.op_type not in OPERATORS:
            raise CorruptWeightsError(f"{file}: uses operator {node.op_type[:40]!a}, which no export has")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise CorruptWeightsError(
                    f"{file}: operator {node.op_type!a} holds another graph; an export has no loops or branches"
                )


def _check_tensors(file: Path, proto: onnx.ModelProto) -> None:
    """Every tensor is stored in the file, with exactly the bytes that its shape needs."""
    tensors = list(proto.graph.initializer)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise CorruptWeightsError(f"{file}: holds a sparse tensor; an export has none")
            tensors += [attribute.t] if attribute.HasField("t") else []
            tensors += attribute.tensors
    for tensor in tensors:
        name = ascii(tensor.name[:40])
        if tensor.data_location or tensor.external_data:
            raise CorruptWeightsError(f"{file}: tensor {name} lies in another file; an export holds all its tensors")
        if tensor.data_type not in ITEM_BYTES:
            raise CorruptWeightsError(f"{file}: tensor {name} has element type {tensor.data_type}, which no export has")
        # Python's integers do not overflow.
        expected = math.prod(tensor.dims) * ITEM_BYTES[tensor.data_type]
        if any(side < 0 for side in tensor.dims) or len(tensor.raw_data) != expected:
            shape = ascii(list(tensor.dims[:8]))
            raise CorruptWeightsError(
                f"{file}: tensor {name} of shape {shape} holds {len(tensor.raw_data)} bytes, expected {expected}"
            )


def _check_ports(file: Path, verb: str, found: Iterable[onnx.ValueInfoProto], expected: tuple[Port, ...]) -> None:
    values = list(found)
    if [value.name for value in values] != [port.name for port in expected]:
        names = some_names([ascii(value.name[:40])[1:-1] for value in values]) or "nothing"
        raise CorruptWeightsError(
            f"{file}: its graph {verb} {names}; expected {', '.join(port.name for port in expected)}"
        )
    for value, port in zip(values, expected, strict=True):
        tensor = value.type.tensor_type
        shape = [side.dim_value if side.HasField("dim_value") else TARGETS for side in tensor.shape.dim]
        if tensor.elem_type != ELEMENTS[port.element] or tuple(shape) != port.shape:
            raise CorruptWeightsError(
                f"{file}: its graph {verb} {port.name} with element type {tensor.elem_type} and shape {shape[:8]}; "
                f"by its metadata, expected {port.element} {list(port.shape)}"
            )


def _largest_value(config: ModelConfig) -> int:
    """More elements than any value of a network of these sizes has, for one target."""
    tokens = config.template_tokens + config.search_tokens
    widths = (config.heads * tokens, config.dim * max(config.mlp_ratio, 4), config.head_channels * 9)
    return 4 * max(tokens * max(widths), 2 * 3 * max(config.search_size, config.template_size) ** 2)


def _all_values(config: ModelConfig) -> int:
    """More elements than all values of such a network have together, for one target; base has 45 percent of it."""
    return min(12 * (config.depth + 4) * _largest_value(config), MOST_VALUES)


def most_targets(config: ModelConfig) -> int:
    """In one call of an exported network of these sizes; 0: it is too large for any."""
    return min(MOST_TARGETS, MOST_ELEMENTS // _largest_value(config))


def _check_weights(file: Path, proto: onnx.ModelProto, config: ModelConfig) -> None:
    """The sizes in the metadata are those of a network whose weights the file has: the other bounds rest on them."""
    held = sum(math.prod(tensor.dims) for tensor in proto.graph.initializer)
    block = 2 * config.dim**2 * config.mlp_ratio
    patches = config.dim * (3 * config.patch_size**2 + config.search_tokens)
    if patches + config.depth * block + 9 * config.dim * config.head_channels > held:
        raise CorruptWeightsError(f"{file}: its metadata describe a larger network than its {held} weights make")


def _sizes(file: Path, proto: onnx.ModelProto, count: int, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of all values for `count` targets, if together they are no larger than in such a network.

    Those that depend on no input have a narrower bound: ONNX Runtime computes them when it loads a file and keeps them.
    A few bytes of a graph can ask for any amount of memory. The sizes are inferred node by node: inference over the
    whole graph would take that memory itself.
    """
    import onnx
    from onnx.shape_inference import infer_node_outputs

    (opset,) = proto.opset_import
    types: dict[str, onnx.TypeProto] = {}
    known: dict[str, onnx.TensorProto] = {}  # small whole numbers: among them shapes, axes, and ends of slices
    for value in proto.graph.input:
        types[value.name] = onnx.TypeProto()
        types[value.name].CopyFrom(value.type)
        for side in types[value.name].tensor_type.shape.dim:
            if not side.HasField("dim_value"):
                side.dim_value = count
    for tensor in proto.graph.initializer:
        _check_new(file, tensor.name, types)
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        if tensor.data_type == ELEMENTS["int64"] and len(tensor.raw_data) <= SMALL_BYTES:
            known[tensor.name] = tensor
    constants = dict(known)
    fixed = {tensor.name for tensor in proto.graph.initializer}  # values that depend on no input
    total = kept = 0
    most, most_kept = _all_values(config) * count, _largest_value(config) * count
    for node in proto.graph.node:
        inputs = [name for name in node.input if name]
        place = SHAPED_BY.get(node.op_type)
        shaped_by = node.input[place] if place is not None and place < len(node.input) else None
        if shaped_by is not None and shaped_by not in known:
            raise CorruptWeightsError(f"{file}: the shape {shaped_by[:40]!a}, a value in its graph, cannot be told")
        told_by = known if shaped_by is not None else constants
        try:
            schema = onnx.defs.get_schema(node.op_type, opset.version, opset.domain)
            taken = {name: types[name] for name in inputs}
            values = {name: told_by[name] for name in inputs if name in told_by}
            given = infer_node_outputs(schema, node, taken, values, opset_imports=[opset], ir_version=proto.ir_version)
        except Exception as error:
            # Of the library's own classes, and of many others.
            reason = ascii(str(error).strip().partition("\n")[0][:200])[1:-1]
            raise CorruptWeightsError(f"{file}: its graph is wrong at {node.op_type!a} ({reason})") from error
        for name in filter(None, node.output):
            _check_new(file, name, types)
            told = name in given and given[name].tensor_type.HasField("shape")
            shape = _shape(given[name]) if told else (-1,)
            if min(shape, default=0) < 0:
                raise CorruptWeightsError(f"{file}: the size of {name[:40]!a}, a value in its graph, cannot be told")
            total += math.prod(shape)
            if node.op_type == "Shape" or fixed.issuperset(inputs):
                fixed.add(name)
                kept += math.prod(shape)
            if total > most or kept > most_kept or len(shape) > MAX_AXES:
                raise CorruptWeightsError(
                    f"{file}: with {name[:40]!a} of shape {list(shape[:8])}, the values in its graph are larger than "
                    "such models have"
                )
            types[name] = given[name]
        result = _shape_numbers(file, node, types, known, constants)
        if result is not None:
            known[node.output[0]] = result
    return {name: _shape(kind) for name, kind in types.items()}


def _check_new(file: Path, name: str, types: Mapping[str, onnx.TypeProto]) -> None:
    if name in types:
        raise CorruptWeightsError(f"{file}: two values in its graph have the name {name[:40]!a}")


def _shape(value: onnx.TypeProto) -> tuple[int, ...]:
    """-1: a side that cannot be told."""
    return tuple(side.dim_value if side.HasField("dim_value") else -1 for side in value.tensor_type.shape.dim)


def _check_growth(file: Path, proto: onnx.ModelProto, config: ModelConfig) -> None:
    """The sizes of a graph for any number of targets, for one and for most.

    Every side is the same for both, or so many times larger; then no number between them makes larger values. A slice
    of a side that grows could rise and fall.
    """
    times = most_targets(config)
    few, many = (_sizes(file, proto, count, config) for count in (1, times))
    for node in proto.graph.node:
        for name in filter(None, node.output):
            wrong = [(a, b) for a, b in zip(few[name], many[name], strict=False) if b not in (a, a * times)]
            if node.op_type == "Slice":
                whole = zip(few[node.input[0]], many[node.input[0]], strict=True)
                part = zip(few[name], many[name], strict=True)
                wrong += [before for before, after in zip(whole, part, strict=True)
                          if before[0] != before[1] and after != before]  # fmt: skip
            if wrong or len(few[name]) != len(many[name]):
                raise CorruptWeightsError(
                    f"{file}: {name[:40]!a}, a value in its graph, does not grow with the number of targets as it must"
                )


def _shape_numbers(
    file: Path,
    node: onnx.NodeProto,
    types: Mapping[str, onnx.TypeProto],
    known: Mapping[str, onnx.TensorProto],
    constants: Mapping[str, onnx.TensorProto],
) -> onnx.TensorProto | None:
    """Sides of a value, or a choice of such numbers: a graph for any number of targets puts shapes together of them.

    It calculates nothing with them, and what it chooses does not depend on them.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    numbers = onnx.numpy_helper
    output = types[node.output[0]].tensor_type
    if output.elem_type != ELEMENTS["int64"] or math.prod(_shape(types[node.output[0]])) * 8 > SMALL_BYTES:
        return None
    if node.op_type == "Shape":
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        sides = _shape(types[node.input[0]])[ends.get("start", 0) : ends.get("end")]
        return numbers.from_array(np.array(sides, np.int64))
    chosen = node.op_type == "Slice" and all(name in constants for name in node.input[1:] if name)
    if not (chosen or node.op_type == "Concat") or any(name not in known for name in node.input if name):
        return None
    inputs = {name: numbers.to_array(known[name]) for name in node.input if name}
    value: Any
    try:
        (value,) = ReferenceEvaluator(node).run(None, inputs)
    except Exception as error:
        raise CorruptWeightsError(f"{file}: its graph is wrong at {node.op_type!a} ({type(error).__name__})") from error
    return numbers.from_array(value)


def _template_name(file: Path, about: Mapping[str, str]) -> str:
    """The name of a file in the same folder."""
    name = about.get("template_file", "")
    if not name.isprintable() or Path(name).name != name or "\\" in name or not is_exported(name) or len(name) > 255:
        raise CorruptWeightsError(
            f"{file}: names {name[:80]!a} as its template graph; expected a file in the same folder"
        )
    return name


def _config(file: Path, about: Mapping[str, str]) -> ModelConfig:
    try:
        config = ModelConfig.from_dict(metadata_json(about, "config", file))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        if isinstance(error, CorruptWeightsError):
            raise
        raise CorruptWeightsError(f"{file}: its metadata describe no model ({error})") from error
    if max(config.search_size, config.template_size) > MAX_SIDE:
        raise CorruptWeightsError(f"{file}: its metadata ask for crops of more than {MAX_SIDE} pixels a side")
    if config.depth > MAX_DEPTH or most_targets(config) < 1:
        raise CorruptWeightsError(f"{file}: its metadata describe a larger network than can be run safely")
    if (_targets(about) or 1) > most_targets(config):
        raise CorruptWeightsError(
            f"{file}: its metadata say targets={about['targets']}; a network of these sizes takes at most "
            f"{most_targets(config)} in one call"
        )
    return config


def _provenance(file: Path, about: Mapping[str, str]) -> Provenance:
    values = metadata_json(about, "provenance", file) if "provenance" in about else {}
    source, kind, seed = values.get("source"), values.get("kind"), values.get("seed")
    texts = [text[:300] for text in (source, kind) if isinstance(text, str) and text.isprintable()]
    if len(texts) != 2 or not (seed is None or type(seed) is int):
        raise CorruptWeightsError(f"{file}: its metadata do not say which weights were exported")
    return Provenance(texts[0], texts[1], seed=seed if isinstance(seed, int) else None)


def _threshold(file: Path, about: Mapping[str, str]) -> float | None:
    if "lost_threshold" not in about:
        return None
    try:
        value = float(about["lost_threshold"])
    except ValueError:
        value = math.nan
    if not is_threshold(value):
        raise CorruptWeightsError(
            f"{file}: its metadata say lost_threshold={about['lost_threshold'][:40]!a}; expected one in [0, 1]"
        )
    return value
