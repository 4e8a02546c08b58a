"""What else runs these weights on a CPU, as a user would have it without us; and how fast the processor can multiply.

A peer is the network as torch.onnx.export writes it, in ONNX Runtime or OpenVINO with their default settings. Crops and
boxes come from the same host code as everywhere, so that a whole frame can be compared.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ckd_fast.engines import Engine
from ckd_fast.engines.host import HostEngine, NetworkRun
from ckd_fast.errors import EngineError
from ckd_fast.exporting import export_network
from ckd_fast.pending import Pending
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import OnStep
from ckd_fast.reference.preprocess import PIXEL_MEAN, PIXEL_STD
from ckd_fast.reference.track import View
from ckd_fast.weights import LoadedModel

if TYPE_CHECKING:
    import openvino

PEERS = ("onnxruntime", "plain-openvino")
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
ENDS, STEPS = (np.float32(-4), np.float32(4)), 255  # of numbers in int8
SAMPLES = 4  # random ones for NNCF: time does not depend on them
RATE_SECONDS = 2.0  # a slow product is not measured for longer, except that it has three turns
LATENCY = {"PERFORMANCE_HINT": "LATENCY"}
Inputs = Sequence[NDArray[np.generic]]
# Shapes [M, K] x [K, N] whose product may be the fastest of the machine: the model's own, and square ones.
SHAPES = ((320, 768, 3072), (512, 768, 2304), (1024, 1024, 1024), (2048, 2048, 2048))


class Peer(HostEngine):
    """One of PEERS."""

    def __init__(self, name: str, model: LoadedModel, dtype: torch.dtype, file: Path) -> None:
        super().__init__(model, torch.device("cpu"), dtype, "as torch.onnx.export writes it")
        self.name = name
        self._student = model.student()
        self._run = _onnxruntime(file, self.dtype) if name == "onnxruntime" else _openvino(file, self.dtype)

    def _embed(self, images: Tensor) -> Tensor:
        return self._student.embed_template(images.float())

    def _maps(self, template: Tensor, search: Tensor, deciding: Tensor) -> HeadMaps:
        return HeadMaps(*map(torch.from_numpy, self._run([template.numpy(), search.numpy(), deciding.numpy()])))

    def _begin(self, view: View, on_step: OnStep | None) -> Pending[NetworkRun]:  # noqa: ARG002
        begin = time.perf_counter()
        # In numpy: threads of torch and of the runtime would wait for each other.
        mean, std = (np.array(values, np.float32) for values in (PIXEL_MEAN, PIXEL_STD))
        pixels = (view.crops.numpy().astype(np.float32) / 255 - mean) / std
        search = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 1, 4, 2, 3)))
        maps = self._maps(view.template, search, view.deciding)
        return Pending.of(NetworkRun(maps, (time.perf_counter() - begin) * 1e3))

    @torch.inference_mode()
    def run_network(self, template_images: Tensor, search_images: Tensor) -> HeadMaps:
        deciding = torch.ones(1, self.config.template_tokens, dtype=torch.bool)
        return self._maps(self._embed(template_images), search_images.float(), deciding)


def _onnxruntime(file: Path, dtype: torch.dtype) -> Callable[[Inputs], list[NDArray[Any]]]:
    import onnxruntime

    if dtype != torch.float32:
        raise EngineError(f"the peer 'onnxruntime' runs float32 on a CPU, not {dtype}")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def _openvino(file: Path, dtype: torch.dtype) -> Callable[[Inputs], list[NDArray[Any]]]:
    """In int8: quantised by NNCF with its default settings."""

    from ckd_fast.engines.openvino.runtime import openvino_core

    core = openvino_core()
    graph, hints = core.read_model(file), _hints(core, dtype)
    if dtype == torch.int8:
        import nncf

        draw = np.random.default_rng(0)
        shapes = [tuple(each.get_shape()) for each in graph.inputs]
        samples = [
            [*(draw.standard_normal(shape).astype(np.float32) for shape in shapes[:2]), np.ones(shapes[2], bool)]
            for _ in range(SAMPLES)
        ]
        graph = nncf.quantize(graph, nncf.Dataset(samples), subset_size=SAMPLES)
    compiled = core.compile_model(graph, "CPU", {**LATENCY, **hints})
    request = compiled.create_infer_request()
    return lambda inputs: [value.copy() for value in request.infer(list(inputs), share_inputs=True).values()]


def _hints(core: openvino.Core, dtype: torch.dtype) -> dict[str, str]:
    """What makes OpenVINO run a precision. It would run float32 instead of one that it lacks, without a word."""
    from ckd_fast.engines.openvino.engine import native_precision

    if dtype == torch.int8:
        return {}
    if dtype not in PRECISIONS or dtype not in (torch.float32, native_precision(core)):
        raise EngineError(f"OpenVINO does not run {dtype} on this processor")
    return {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype]}


def ceiling_gflops(dtype: torch.dtype, say: Callable[[str], object] = print) -> float:
    """The best matrix product in a precision that torch or OpenVINO reaches here."""
    products = [] if dtype == torch.int8 else [_torch_product]
    if find_spec("openvino") is not None:
        products.append(_openvino_product)
    best = 0.0
    for product, shape in itertools.product(products, SHAPES):
        try:
            best = max(best, product(shape, dtype))
        except EngineError as error:
            say(f"left out of the ceiling: {error}")
            break
    return best


def _rate(shape: tuple[int, int, int], call: Callable[[], object]) -> float:
    best, until = float("inf"), time.perf_counter() + RATE_SECONDS
    for turn in range(12):
        begin = time.perf_counter()
        if turn > 2 and begin > until:
            break
        call()
        best = min(best, time.perf_counter() - begin)
    return 2.0 * shape[0] * shape[1] * shape[2] / best / 1e9


def _torch_product(shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    with torch.inference_mode():
        return _rate(shape, lambda: torch.nn.functional.linear(a, b))


def _openvino_product(shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    import openvino
    from openvino import opset15 as op

    from ckd_fast.engines.openvino.runtime import openvino_core

    core = openvino_core()
    hints = _hints(core, dtype)
    rows, inner, columns = shape
    draw = np.random.default_rng(0)
    values = draw.standard_normal((rows, inner)).astype(np.float32)
    x = op.parameter([rows, inner], np.float32)
    left, right = x, op.constant(draw.standard_normal((columns, inner)).astype(np.float32))
    if dtype == torch.int8:
        left, right = (op.fake_quantize(each, *map(op.constant, ENDS * 2), STEPS) for each in (left, right))
    graph = openvino.Model([op.result(op.matmul(left, right, transpose_a=False, transpose_b=True))], [x])
    request = core.compile_model(graph, "CPU", {**LATENCY, **hints}).create_infer_request()
    return _rate(shape, lambda: request.infer([values], share_inputs=True))


def executed_gflop(model: LoadedModel) -> float:
    """Products that engine "openvino" computes for one frame: two operations per multiply-accumulate."""
    from ckd_fast.engines.openvino.graph import frame_graph

    def sides(port: Any) -> list[int]:
        return [int(side) for side in port.get_shape()]

    total = 0.0
    for node in frame_graph(model.student(), model.config).get_ordered_ops():
        kind, out = node.get_type_name(), sides(node.output(0)) if node.get_output_size() else []
        if kind == "MatMul":
            total += 2.0 * float(np.prod(out)) * sides(node.input(0))[-1]
        elif kind == "ScaledDotProductAttention":
            batch, heads, tokens, width = sides(node.input(0))
            total += 4.0 * batch * heads * tokens * tokens * width
        elif kind in ("Convolution", "GroupConvolution"):  # weights end in [channels in, height, width]
            total += 2.0 * float(np.prod(out)) * float(np.prod(sides(node.input(1))[-3:]))
    return total / 1e9


def peers(model: LoadedModel, wanted: Sequence[torch.dtype]) -> dict[str, Engine]:
    """Every peer that is installed, in each precision that it runs."""
    found: dict[str, Engine] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        export_network(model, file)
        for name, dtype in itertools.product(PEERS, wanted):
            precision = str(dtype).removeprefix("torch.")
            try:
                found[f"{name} {precision}"] = Peer(name, model, dtype, file)
            except ImportError as error:
                print(f"left out: {name} {precision}: {error}: pip install 'ckd_fast[peers]'")
            except EngineError as error:
                print(f"left out: {name} {precision}: {error}")
    return found
