"""The network in OpenVINO, on the CPU; crops and boxes on the host, as in `reference/track.py`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from torch import Tensor

from ckd_fast.cache import Cache, user_cache
from ckd_fast.engines.host import HostEngine, NetworkRun
from ckd_fast.errors import EngineError, InputError
from ckd_fast.pending import Pending
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import OnStep
from ckd_fast.reference.track import View
from ckd_fast.weights import LoadedModel

from .compiling import Compiler, telling
from .graph import frame_graph, template_graph
from .int8 import Int8, support
from .runtime import openvino_core

log = logging.getLogger(__name__)

MOST_TARGETS = 32
ANY_NUMBER = -1
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def native_precision(core: openvino.Core) -> torch.dtype:
    """bfloat16 where the processor multiplies it by itself, else float32."""
    return torch.bfloat16 if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else torch.float32


def int8_obstacle() -> str:
    """Why int8 is slower on this processor than floats; empty if it is not."""
    return support(openvino_core()).obstacle


def _floating(core: openvino.Core, dtype: torch.dtype) -> torch.dtype:
    """The precision of what does not run in int8."""
    return native_precision(core) if dtype == torch.int8 else dtype


def _resolved(
    core: openvino.Core, model: LoadedModel, dtype: torch.dtype | None, note: str
) -> tuple[torch.dtype, Int8 | None, str]:
    """The precision, how to run int8 layers, and the note on both."""
    notes = [note] if note else []
    native, calibration = native_precision(core), model.calibration
    in_int8 = support(core) if calibration is not None and dtype in (None, torch.int8) else None
    if dtype is None and in_int8 is not None:
        dtype = native if in_int8.obstacle else torch.int8
        if in_int8.obstacle:
            notes.append(f"not int8, because {in_int8.obstacle}")
            log.warning("engine 'openvino' runs weights that are calibrated for int8 in %s: %s", native, notes[-1])
    dtype = dtype or native
    if dtype == torch.int8:
        if calibration is None or in_int8 is None:
            raise InputError(
                "dtype=int8: these weights carry no calibration; ckd-fast quantize --weights FILE --out OUT adds it"
            )
        rest = str(native).removeprefix("torch.")
        notes.append(f"{len(calibration.in_int8)} of {len(calibration.inputs)} layers, the rest {rest}")
        if in_int8.saturating:
            notes.append("weights in seven bits, because this processor's sums of int8 products saturate")
        if not in_int8.native:
            notes.append(in_int8.obstacle)
        return dtype, Int8(calibration, in_int8.saturating), "; ".join(notes)
    if dtype not in PRECISIONS:
        given = str(dtype).removeprefix("torch.")
        raise InputError(f"dtype={given!r}: engine 'openvino' runs float32, bfloat16 and int8")
    if dtype == torch.bfloat16 and native != dtype:
        processor = core.get_property("CPU", "FULL_DEVICE_NAME")
        raise EngineError(  # OpenVINO would run float32 without a word
            f"dtype='bfloat16': this processor ({processor}) does not multiply bfloat16 by itself, which takes "
            "AVX512_BF16 or AMX; use dtype='float32'"
        )
    return dtype, None, "; ".join(notes)


@dataclass(frozen=True)
class FrameKind:
    """Which graph a frame needs."""

    config: ModelConfig
    targets: int  # 1 or ANY_NUMBER
    normalised: bool = False  # whether its crops are
    observed: bool = False  # whether its steps are outputs

    def __str__(self) -> str:
        """All but the configuration."""
        return (
            ("frame, 1 target" if self.targets == 1 else "frame, any targets")
            + (", normalised" if self.normalised else "")
            + (", observed" if self.observed else "")
        )


class Requests:
    """A compiled graph and its requests that are not at work: each runs one frame at a time."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self.compiled = compiled
        self._idle: list[openvino.InferRequest] = []

    def take(self) -> openvino.InferRequest:
        # Another thread may take the last one in between; a request too many does no harm.
        try:
            return self._idle.pop()
        except IndexError:
            return self.compiled.create_infer_request()

    def give_back(self, request: openvino.InferRequest) -> None:
        self._idle.append(request)


class Running:
    """A request at work. What it reads lives until it is done, even if nobody asks for the result: OpenVINO itself
    keeps neither the inputs, which it takes without copying, nor the mapped weights.
    """

    def __init__(self, requests: Requests, inputs: Sequence[NDArray[np.generic]]) -> None:
        self._requests, self._inputs = requests, inputs
        self.request = requests.take()
        with telling("run the network"):
            self.request.start_async(list(inputs), share_inputs=True)

    def wait(self) -> openvino.InferRequest:
        with telling("run the network"):
            self.request.wait()
        return self.request

    def give_back(self) -> None:
        self._requests.give_back(self.request)

    def __del__(self) -> None:
        with suppress(RuntimeError):
            self.request.wait()


class OpenVinoEngine(HostEngine):
    """OpenVINO on the CPU.

    Args:
        model: weights.
        dtype: float32, bfloat16, or int8 for weights with a calibration. None takes int8 for such weights where the
            processor is fast at it, else what it has natively. Results are float32.
        note: what a reader of `str(engine)` should know.
        threads: None leaves it to OpenVINO.
        cache: where compiled graphs are kept; None: the user's.
    """

    name = "openvino"
    most_targets = MOST_TARGETS

    def __init__(
        self,
        model: LoadedModel,
        dtype: torch.dtype | None = None,
        note: str = "",
        *,
        threads: int | None = None,
        cache: Cache | None = None,
    ) -> None:
        self._core = openvino_core()
        dtype, self._int8, note = _resolved(self._core, model, dtype, note)
        super().__init__(model, torch.device("cpu"), dtype, note)
        self._model = model
        self._properties: dict[str, str | int] = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": PRECISIONS[_floating(self._core, dtype)],
        }  # fmt: skip
        if threads is not None:
            self._properties["INFERENCE_NUM_THREADS"] = threads
        self._compiled = Compiler(self._core, self._properties, model, cache or user_cache())
        self._template = Requests(self._compiled("template", self.config, lambda: template_graph(model.student())))
        self._frames: dict[FrameKind, Requests] = {}
        self._compiling = threading.Lock()
        self._requests(FrameKind(self.config, 1))

    def _requests(self, kind: FrameKind) -> Requests:
        """The graph of a kind of frame; compiled when it is first asked for."""
        if kind not in self._frames:
            with self._compiling:
                if kind not in self._frames:
                    compiled = self._compiled(self._name(kind), kind.config, lambda: self._graph(kind))
                    self._frames[kind] = Requests(compiled)
        return self._frames[kind]

    def _name(self, kind: FrameKind) -> str:
        """What the graph depends on, beside the weights."""
        return str(kind) if self._int8 is None else f"{kind}, {self._int8}"

    def _graph(self, kind: FrameKind) -> openvino.Model:
        student = self._model.student()
        return frame_graph(
            student, kind.config, kind.targets, normalised=kind.normalised, observed=kind.observed, int8=self._int8
        )

    @torch.inference_mode()
    def run_network(self, template_images: Tensor, search_images: Tensor) -> HeadMaps:
        count = template_images.shape[1]
        # In use, tokens that never decide are not in the graph.
        everyone = replace(self.config, template_range="ALL")
        kind = FrameKind(everyone, 1 if count == 1 else ANY_NUMBER, normalised=True)
        inputs = [
            self._embed(template_images).numpy(),
            search_images.float().numpy(),
            np.ones((count, self.config.template_tokens), np.float32),
            np.ones((2, count), np.float32),
        ]
        return self._started(kind, inputs, None).result().maps

    def _embed(self, images: Tensor) -> Tensor:
        running = Running(self._template, [images.float().numpy()])
        tokens = torch.from_numpy(running.wait().get_output_tensor(0).data.copy())
        running.give_back()
        return tokens

    def _begin(self, view: View, on_step: OnStep | None) -> Pending[NetworkRun]:
        count = len(view.boxes)
        kind = FrameKind(self.config, 1 if count == 1 else ANY_NUMBER, observed=on_step is not None)
        present = np.ones((2, count), np.float32) if view.present is None else view.present.float().numpy()
        inputs = [view.template.numpy(), view.crops.numpy(), view.deciding.float().numpy(), present]
        return self._started(kind, inputs, on_step)

    def _started(
        self, kind: FrameKind, inputs: Sequence[NDArray[np.generic]], on_step: OnStep | None
    ) -> Pending[NetworkRun]:
        running = Running(self._requests(kind), inputs)

        def wait() -> NetworkRun:
            request = running.wait()
            run = NetworkRun(self._read(request, on_step), request.latency)
            running.give_back()
            return run

        return Pending(wait)

    def _read(self, request: openvino.InferRequest, on_step: OnStep | None) -> HeadMaps:
        """The results of a request, copied: the next frame overwrites them."""
        values = {port.get_any_name(): torch.from_numpy(value.copy()) for port, value in request.results.items()}
        grid = self.config.search_grid
        maps = values.pop("maps").unflatten(-1, (grid, grid))
        maps = HeadMaps(score=maps[:, :1], size=maps[:, 3:], offset=maps[:, 1:3])
        if on_step is not None:
            heads = {"head.score": maps.score, "head.size": maps.size, "head.offset": maps.offset}
            for name, value in (values | heads).items():
                on_step(name, value)
        return maps
