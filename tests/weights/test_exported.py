"""Bad and hostile ONNX files are errors of ours, before ONNX Runtime gets them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import ANY_NUMBER, PLAIN, THREE, Case, Made, changed, copied, describe_again, put

from ckd_fast import CorruptWeightsError, MissingModelError, Tracker, WeightsMismatchError
from ckd_fast.weights import open_model

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'ckd_fast[onnx]'")
helper = onnx.helper
EXPAND = helper.make_node("Expand", ["a", "shape"], ["b"])
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


@pytest.fixture
def made(exported: Callable[[Case], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A copy to spoil; ONNX Runtime cannot be called."""
    files = copied(exported(PLAIN), tmp_path)
    assert open_model(files.path).config == PLAIN.config
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "ckd_fast.engines.onnx.engine", raising=False)
    monkeypatch.delitem(sys.modules, "ckd_fast.engines.onnx.session", raising=False)
    return files


@pytest.mark.parametrize(("content", "message"), [
    (b"", "0 nodes"),
    (b"\x08\x0a", "0 nodes"),
    (b"not a model, but text", "not a readable ONNX file"),
    (b"\xff" * 1000, "not a readable ONNX file"),
    (b"\x3a\xff\xff\xff\xff\x7f", "not a readable ONNX file"),  # a graph of 32 GiB
    (b"\x3a\x80\x80\x80\x80\x00" * 3, "0 nodes"),
], ids=["empty", "no graph", "text", "noise", "length", "graphs"])  # fmt: skip
def test_not_onnx(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(CorruptWeightsError, match=message):
        Tracker(path)


def test_files_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingModelError, match="no such file"):
        Tracker(tmp_path / "none.onnx")
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "pipe.onnx")
    for name in ("folder", "pipe"):
        with pytest.raises(CorruptWeightsError, match="not a regular file"):
            Tracker(tmp_path / f"{name}.onnx")
    monkeypatch.setattr("ckd_fast.weights.exported.MAX_BYTES", 99)
    (tmp_path / "large.onnx").write_bytes(bytes(100))
    with pytest.raises(CorruptWeightsError, match="has 100 bytes; an ONNX file has at most 99"):
        Tracker(tmp_path / "large.onnx")


def test_cut_short(made: Made) -> None:
    whole = made.path.read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 1):
        made.path.write_bytes(whole[:length])
        with pytest.raises((CorruptWeightsError, WeightsMismatchError)):
            Tracker(made.path)


def nested(depth: int) -> Any:
    """A node that holds a graph that holds a node, and so on."""
    node = helper.make_node("Relu", ["a"], ["b"])
    for _ in range(depth):
        node = helper.make_node("If", ["a"], ["b"], then_branch=helper.make_graph([node], "g", [], []))
    return node


def tensor(proto: Any, index: int = 0) -> Any:
    return proto.graph.initializer[index]


def outside(proto: Any, location: str) -> None:
    each = tensor(proto)
    each.ClearField("raw_data")
    each.data_location = onnx.TensorProto.EXTERNAL
    each.external_data.add(key="location", value=location)


def reshaped(proto: Any, *shape: int) -> None:
    tensor(proto).dims[:] = shape


def add(proto: Any, *nodes: Any, **constants: list[int]) -> None:
    """More nodes, with small constants by name."""
    for name, values in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
    proto.graph.node.extend(nodes)


def as_attribute(proto: Any, **fields: Any) -> None:
    attribute = proto.graph.node[0].attribute.add(name="hidden", **fields)
    attribute.type = onnx.AttributeProto.UNDEFINED


HOSTILE: dict[str, tuple[Callable[[Any], object], str]] = {
    "external, outside": (lambda p: outside(p, "../../etc/passwd"), "lies in another file"),
    "external, absolute": (lambda p: outside(p, "/etc/passwd"), "lies in another file"),
    "external, beside": (lambda p: outside(p, "weights.bin"), "lies in another file"),
    "external, in a node": (
        lambda p: as_attribute(p, t=onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)), "lies in another file"
    ),
    "huge": (lambda p: reshaped(p, 1 << 40, 1 << 40), "bytes, expected 48"),
    "negative": (lambda p: reshaped(p, -1, 3), "expected -"),
    "overflow": (lambda p: reshaped(p, *[1 << 62] * 4), "bytes, expected"),
    "short": (lambda p: setattr(tensor(p), "raw_data", tensor(p).raw_data[:-1]), "bytes, expected"),
    "text": (lambda p: setattr(tensor(p), "data_type", onnx.TensorProto.STRING), "element type 8"),
    "expanding": (lambda p: tensor(p).ClearField("raw_data") or tensor(p).float_data.append(0), "holds 0 bytes"),
    "custom operator": (lambda p: setattr(p.graph.node[0], "domain", "evil"), "outside the ONNX standard .'evil'"),
    "custom set": (lambda p: p.opset_import.add(domain="com.microsoft", version=1), "outside the ONNX standard"),
    "unknown operator": (lambda p: setattr(p.graph.node[0], "op_type", "Evil"), "uses operator 'Evil', which"),
    "operator of the standard": (
        lambda p: add(p, helper.make_node("Tile", ["template", "n"], ["b"]), n=[1, 1, 1, 1]), "'Tile', which no export"
    ),
    "two versions": (lambda p: p.opset_import.add(domain="", version=9), "names 2 versions"),
    "same name": (
        lambda p: add(p, helper.make_node("Relu", ["template"], ["template"])), "two values .* name 'template'"
    ),
    "same tensor": (lambda p: p.graph.initializer.append(tensor(p)), "two values in its graph have the name"),
    "many inputs": (
        lambda p: add(p, helper.make_node("Concat", ["template"] * 150, ["many"], axis=5)), "wrong at 'Concat'"
    ),
    "many axes": (
        lambda p: add(p, helper.make_node("ConstantOfShape", ["ones"], ["many"]), ones=[1] * 9), "many' of shape"
    ),
    "many constants": (
        lambda p: add(p, *[helper.make_node("ConstantOfShape", ["side"], [f"v{i}"]) for i in range(6)], side=[30_000]),
        "'v5' of shape .30000., the values in its graph are larger",
    ),
    "many values": (  # each is smaller than the network's largest
        lambda p: add(
            p, helper.make_node("ReduceMax", ["template"], ["number"], keepdims=0),
            *[helper.make_node("Expand", ["number", "side"], [f"v{i}"]) for i in range(400)], side=[30_000]
        ),
        "larger than such models have",
    ),
    "function": (lambda p: p.functions.add(name="f"), "holds functions"),
    "training": (lambda p: p.training_info.add(), "holds functions, training"),
    "branch": (lambda p: p.graph.node.append(nested(1)), "uses operator 'If', which no export has"),
    "deep": (lambda p: p.graph.node.append(nested(20)), "uses operator 'If', which no export has"),
    "graph in a node": (lambda p: as_attribute(p, g=onnx.GraphProto()), "holds another graph"),
    "sparse": (lambda p: p.graph.sparse_initializer.add(), "sparse"),
    "sparse, in a node": (lambda p: as_attribute(p, sparse_tensor=onnx.SparseTensorProto()), "sparse"),
    "input missing": (lambda p: p.graph.input.pop(), "its graph takes template, search, deciding; expected"),
    "input more": (lambda p: p.graph.input.append(helper.make_tensor_value_info("x", FLOAT, [1])), "its graph takes"),
    "input type": (lambda p: setattr(p.graph.input[0].type.tensor_type, "elem_type", INT64), "with element type 7"),
    "output missing": (lambda p: p.graph.output.pop(), "its graph gives"),
    "output shape": (
        lambda p: setattr(p.graph.output[0].type.tensor_type.shape.dim[3], "dim_value", 7), "gives score_map with"
    ),
    "large value": (
        lambda p: add(p, helper.make_node("Expand", ["template", "big"], ["huge"]), big=[1 << 16, 2, 1, 1, 1]),
        "larger than such models have",
    ),
    "large constant": (
        lambda p: add(p, helper.make_node("ConstantOfShape", ["big"], ["huge"]), big=[1 << 30, 1 << 30]),
        "larger than such models have",
    ),
    "large shape": (  # as a shape, the next node would give a value of 2^40 axes
        lambda p: add(
            p, helper.make_node("Reshape", ["deciding", "big"], ["shape"]), EXPAND, big=[1 << 40],
        ),
        "larger than such models have",
    ),
    "unknown shape": (
        lambda p: add(
            p, helper.make_node("Cast", ["deciding"], ["shape"], to=INT64), EXPAND
        ),
        "the shape 'shape', a value in its graph, cannot be told",
    ),
    "unknown size": (
        lambda p: add(
            p, helper.make_node("ReduceMax", ["template"], ["number"], keepdims=0),
            helper.make_node("Cast", ["number"], ["whole"], to=INT64),
            helper.make_node("Unsqueeze", ["whole", "first"], ["end"], ),
            helper.make_node("Slice", ["template", "first", "end"], ["many"]), first=[0],
        ),
        "size of 'many', a value in its graph",
    ),
    "wrong order": (lambda p: p.graph.node.reverse(), "its graph is wrong at"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_graphs(made: Made, kind: str) -> None:
    change, message = HOSTILE[kind]
    changed(made.path, change)
    with pytest.raises(CorruptWeightsError, match=message):
        Tracker(made.path)


def powers(proto: Any) -> None:
    """A value of B^6 elements."""
    add(proto, helper.make_node("Shape", ["present"], ["b"], start=1, end=2),
        helper.make_node("Concat", ["b"] * 6, ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]))  # fmt: skip


def product(proto: Any) -> None:
    """Numbers of a shape are calculated."""
    add(proto, helper.make_node("Shape", ["present"], ["b"], start=1, end=2),
        helper.make_node("Mul", ["b", "b"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]))  # fmt: skip


def hump(proto: Any) -> None:
    """One element for one target and for 64, and 32 in between."""
    add(proto, helper.make_node("Slice", ["present", "from", "to", "axis"], ["some"]),
        **{"from": [-33], "to": [32], "axis": [1]})  # fmt: skip


def apart(proto: Any) -> None:
    """One more than there are targets."""
    add(proto, helper.make_node("Concat", ["present", "one"], ["more"], axis=1))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 1), bool), "one"))


@pytest.mark.parametrize(("change", "message"), [
    (powers, "'huge' of shape .64, 64, 64, 64, 64, 64., the values in its graph are larger"),
    (product, "the shape 'shape', a value in its graph, cannot be told"),
    (hump, "'some', a value in its graph, does not grow with the number of targets as it must"),
    (apart, "'more', a value in its graph, does not grow with the number of targets as it must"),
])  # fmt: skip
def test_any_number_of_targets(
    exported: Callable[[Case], Made], tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    """What one target does not show."""
    made = copied(exported(ANY_NUMBER), tmp_path)
    changed(made.path, change)
    with pytest.raises(CorruptWeightsError, match=message):
        open_model(made.path)


HUGE = json.dumps(PLAIN.config.to_dict() | {"search_size": 16 * 10**6})
METADATA: dict[str, tuple[dict[str, str | None], str]] = {
    "foreign": ({"format": None}, "that `ckd-fast export` did not write"),
    "later": ({"format": "2"}, "written in format '2'.*update ckd_fast"),
    "no sizes": ({"config": None}, "describe no model"),
    "sizes of no kind": ({"config": "[]"}, "not a JSON object"),
    "sizes of no model": ({"config": '{"dim": "many"}'}, "describe no model"),
    "other sizes": ({"config": json.dumps(THREE.config.to_dict() | {"dim": 96})}, "takes template with element type"),
    "huge sizes": ({"config": HUGE}, "more than 4096 pixels a side"),
    "nested": ({"config": "[" * 60_000}, "not JSON|not a JSON object"),
    "long": ({"config": " " * 70_000}, "have 70000 characters"),
    "precision": ({"dtype": "float64"}, "dtype='float64'; known are float32, float16"),
    "no targets": ({"targets": "0"}, "targets='0'"),
    "too many targets": ({"targets": "65"}, "targets='65'; expected 1 to 64"),
    "many digits": ({"targets": "000000001" + "0" * 5000}, "expected 1 to 64"),
    "hidden digits": ({"targets": "0000000019999"}, "expected 1 to 64"),
    "wide": ({"config": json.dumps(PLAIN.config.to_dict() | {"mlp_ratio": 10**9})}, "larger network than can be run"),
    "wide head": (
        {"config": json.dumps(PLAIN.config.to_dict() | {"head_channels": 8 * 10**8})},
        "larger network than can be run",
    ),
    "deep": ({"config": json.dumps(PLAIN.config.to_dict() | {"depth": 65})}, "larger network than can be run"),
    "more than its weights": (
        {"config": json.dumps(PLAIN.config.to_dict() | {"mlp_ratio": 100})},
        "larger network than its [0-9]+ weights",
    ),
    "many large crops": (
        {"config": json.dumps(PLAIN.config.to_dict() | {"search_size": 640}), "targets": "64"},
        "targets=64; a network of these sizes takes at most",
    ),
    "targets of another script": ({"targets": "\u0663"}, "targets="),
    "other targets": ({"targets": "2"}, "takes template with element type"),
    "crops": ({"crops": "normalised"}, "takes search with element type"),
    "part": ({"graph": "template"}, "the template graph of an export"),
    "no weights": ({"provenance": None}, "do not say which weights"),
    "odd weights": ({"provenance": '{"source": "\\u001b[2J", "kind": "x"}'}, "do not say which weights"),
    "threshold": ({"lost_threshold": "nan"}, "lost_threshold='nan'"),
    "no template": ({"template_file": None}, "names '' as its template graph"),
    "template above": ({"template_file": "../model.template.onnx"}, "expected a file in the same folder"),
    "template elsewhere": ({"template_file": "/etc/passwd.onnx"}, "expected a file in the same folder"),
    "template of Windows": ({"template_file": "..\\x.onnx"}, "expected a file in the same folder"),
    "template of another kind": ({"template_file": "passwd"}, "expected a file in the same folder"),
    "template that is missing": ({"template_file": "other.onnx"}, "other.onnx, does not exist"),
    "digest": ({"template_sha256": "0" * 64}, "not the template graph that was exported with model.onnx"),
    "no digest": ({"template_sha256": None}, "not the template graph that was exported with model.onnx"),
}


@pytest.mark.parametrize("kind", METADATA)
def test_metadata(made: Made, kind: str) -> None:
    about, message = METADATA[kind]
    changed(made.path, lambda proto: put(proto, **about))
    with pytest.raises((CorruptWeightsError, WeightsMismatchError, MissingModelError), match=message):
        Tracker(made.path)


def test_names_on_terminals(made: Made) -> None:
    """Names of the file appear in messages as plain text only."""
    changed(made.path, lambda proto: proto.metadata_props.add(key="\x1b[2J", value="x"))
    with pytest.raises(CorruptWeightsError, match=r"'.x1b.2J' is no name of metadata") as caught:
        Tracker(made.path)
    assert str(caught.value).isprintable()


def test_metadata_twice(made: Made) -> None:
    changed(made.path, lambda proto: proto.metadata_props.add(key="ckd_fast.dtype", value="float16"))
    with pytest.raises(CorruptWeightsError, match=r"name ckd_fast\.dtype twice"):
        Tracker(made.path)
    changed(made.path, lambda proto: [proto.metadata_props.add(key=str(i), value="") for i in range(100)])
    with pytest.raises(CorruptWeightsError, match="metadata entries, at most 64"):
        Tracker(made.path)


def test_the_template_file(made: Made) -> None:
    """It is checked as the first one is, and belongs to it."""
    original = made.template.read_bytes()
    changed(made.template, lambda proto: outside(proto, "/etc/passwd"))
    describe_again(made)
    with pytest.raises(CorruptWeightsError, match=r"model\.template\.onnx: tensor .* lies in another file"):
        Tracker(made.path)
    made.template.write_bytes(original)
    describe_again(made, dtype="float16")
    changed(made.path, lambda proto: put(proto, dtype="float32"))
    with pytest.raises(WeightsMismatchError, match="its metadata differ from those of model"):
        Tracker(made.path)
    made.template.write_bytes(made.path.read_bytes())
    describe_again(made)
    with pytest.raises(WeightsMismatchError, match="the search graph of an export, where its template graph"):
        Tracker(made.path)
    made.template.unlink()
    with pytest.raises(MissingModelError, match=r"model\.template\.onnx, does not exist"):
        Tracker(made.path)


def test_what_only_onnx_runtime_finds(exported: Callable[[Case], Made], tmp_path: Path) -> None:
    """Its errors are ours too."""
    pytest.importorskip("onnxruntime")
    made = copied(exported(PLAIN), tmp_path)
    changed(made.path, lambda proto: setattr(proto, "ir_version", 99))
    with pytest.raises(CorruptWeightsError, match="ONNX Runtime cannot load it"):
        Tracker(made.path)
