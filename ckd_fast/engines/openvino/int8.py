"""Layers in int8: which grids their inputs and weights are rounded to, and what the processor needs for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset15 as op

from ckd_fast.weights import Calibration

from .compiling import DEVICE, telling

Node: TypeAlias = openvino.Node
Values = NDArray[np.float64]
STEPS = 255  # from the lowest to the highest value of eight bits
LARGEST_WEIGHT = 127  # as an integer
LARGEST_NARROW = 64  # two products of it with an unsigned byte sum to 32,640, which 16 bits hold
SMALLEST = 1e-6  # of a range; channels that were always zero have none
PRODUCT_LAYERS = ("FullyConnected", "MatMul")  # what OpenVINO makes of a product
SMOOTHING = 0.5  # how much of the difficulty moves from inputs to weights


@dataclass(frozen=True, eq=False)
class Int8:
    """How to run layers in int8.

    Attributes:
        calibration: which layers, and what their inputs look like.
        narrow: weights have seven bits instead of eight, for processors on which sums of two products saturate.
    """

    calibration: Calibration
    narrow: bool

    def __str__(self) -> str:
        """Names everything that a graph depends on."""
        weights = "narrow" if self.narrow else "wide"
        return f"int8, {weights} weights, calibration {self.calibration.sha256()[:32]}"

    def takes(self, layer: str) -> bool:
        return layer in self.calibration.inputs and layer not in self.calibration.in_float

    def rounded(self, layer: str, x: Node, weight: Values) -> tuple[Node, Node]:
        """Input [..., C] and weight [F, C] of a layer as OpenVINO's FakeQuantize, from which it makes an int8 product.

        Channels of the input that vary much are divided by what their weights are multiplied with (SmoothQuant, arXiv
        2211.10438): the whole input has one grid, but each output of the weights has its own.
        """
        low, high = self.calibration.inputs[layer].double().numpy()
        if layer.rpartition(".")[2] not in ("proj", "fc2"):  # behind a norm, where one more factor costs nothing
            spread = np.maximum(np.maximum(-low, high), SMALLEST)
            heavy = np.maximum(np.abs(weight).max(axis=0), SMALLEST)
            smooth = spread**SMOOTHING / heavy ** (1 - SMOOTHING)
            low, high, weight = low / smooth, high / smooth, weight * smooth
            x = op.multiply(x, _constant(1 / smooth))
        bottom, top = grid(float(low.min()), float(high.max()))
        largest = np.maximum(np.abs(weight).max(axis=1, keepdims=True), SMALLEST)
        if self.narrow:
            largest *= LARGEST_WEIGHT / LARGEST_NARROW
        return _fake(x, np.array(bottom), np.array(top), STEPS + 1), _fake(_constant(weight), -largest, largest, STEPS)


def grid(low: float, high: float) -> tuple[float, float]:
    """The ends of 256 values that hold this range and have zero among them."""
    low, high = min(low, -SMALLEST), max(high, SMALLEST)
    if -low > 0.8 * high:  # about balanced: signed values, without a zero point
        top = max(high, -low * LARGEST_WEIGHT / (LARGEST_WEIGHT + 1))
        return -top * (LARGEST_WEIGHT + 1) / LARGEST_WEIGHT, top
    zero = np.ceil(-low / (high - low) * STEPS)
    step = max(high / (STEPS - zero), -low / zero)
    return -zero * step, (STEPS - zero) * step


@dataclass(frozen=True)
class Support:
    """What this processor makes of int8 products."""

    native: bool  # they are computed in int8, not in floats
    saturating: bool  # sums beyond 16 bits are lost, as on x86 without VNNI

    @property
    def obstacle(self) -> str:
        """Why int8 is slower here than floats; empty if it is not."""
        if not self.native:
            return "OpenVINO computes int8 in floats on this processor"
        return "this processor has no VNNI" if self.saturating else ""


def support(core: openvino.Core) -> Support:
    """Tried on the largest product: OpenVINO tells which processors have int8, but not how."""
    inputs, outputs = 64, 32
    x = op.parameter([32, inputs], np.float32)
    weight = np.ones((outputs, inputs))
    ones = np.ones((outputs, 1))
    product = op.matmul(
        _fake(x, np.array(0.0), np.array(1.0), STEPS + 1), _fake(_constant(weight), -ones, ones, STEPS),
        transpose_a=False, transpose_b=True,
    )  # fmt: skip
    with telling("compile a product in int8"):
        compiled = core.compile_model(openvino.Model([op.result(product)], [x], "support"), DEVICE)
        found = compiled([np.ones((32, inputs), np.float32)])[0]
    executed = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    precisions = {
        info["runtimePrecision"].astype(str) for info in executed if info["layerType"].astype(str) in PRODUCT_LAYERS
    }
    return Support(native=bool(precisions & {"i8", "u8"}), saturating=bool(np.abs(found - inputs).max() > 1))


def _fake(x: Node, low: Values, high: Values, levels: int) -> Node:
    ends = _constant(low), _constant(high)
    return op.fake_quantize(x, *ends, *ends, levels)


def _constant(values: Values) -> Node:
    return op.constant(values.astype(np.float32))
