"""The network in OpenVINO, on the CPU; crops and boxes on the host, as in `reference/track.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from torch import Tensor

from ckd_fast.cache import user_cache
from ckd_fast.engines.host import HostEngine, NetworkRun
from ckd_fast.errors import EngineError, InputError
from ckd_fast.pending import Pending
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import OnStep
from ckd_fast.reference.track import View
from ckd_fast.weights import LoadedModel

from .compiling import Compiler
from .graph import frame_graph, template_graph

MOST_TARGETS = 32
ANY_NUMBER = -1
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def native_precision(core: openvino.Core) -> torch.dtype:
    """bfloat16 where the processor multiplies it by itself, else float32."""
    return torch.bfloat16 if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else torch.float32


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


class OpenVinoEngine(HostEngine):
    """OpenVINO on the CPU.

    Args:
        model: weights.
        dtype: float32 or bfloat16; None takes what the processor has natively. Results are float32.
        note: what a reader of `str(engine)` should know.
        threads: None leaves it to OpenVINO.
    """

    name = "openvino"
    most_targets = MOST_TARGETS

    def __init__(
        self, model: LoadedModel, dtype: torch.dtype | None = None, note: str = "", *, threads: int | None = None
    ) -> None:
        self._core = openvino.Core()
        dtype = dtype or native_precision(self._core)
        if dtype not in PRECISIONS:
            raise InputError(f"dtype={dtype}: engine 'openvino' runs float32 and bfloat16")
        if dtype == torch.bfloat16 and native_precision(self._core) != dtype:
            processor = self._core.get_property("CPU", "FULL_DEVICE_NAME")
            raise EngineError(  # OpenVINO would run float32 without a word
                f"dtype={dtype}: this processor ({processor}) does not multiply bfloat16 by itself (AVX512_BF16 or "
                "AMX); use dtype='float32', or engine 'reference'"
            )
        super().__init__(model, torch.device("cpu"), dtype, note)
        self._model = model
        self._properties: dict[str, str | int] = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        }  # fmt: skip
        if threads is not None:
            self._properties["INFERENCE_NUM_THREADS"] = threads
        self._compiled = Compiler(self._core, self._properties, model, user_cache())
        self._template = Requests(self._compiled("template", self.config, lambda: template_graph(model.student())))
        self._frames: dict[FrameKind, Requests] = {}
        self._requests(FrameKind(self.config, 1))

    def _requests(self, kind: FrameKind) -> Requests:
        """The graph of a kind of frame; compiled when it is first asked for."""
        with self._lock:
            if kind not in self._frames:
                self._frames[kind] = Requests(self._compiled(str(kind), kind.config, lambda: self._graph(kind)))
            return self._frames[kind]

    def _graph(self, kind: FrameKind) -> openvino.Model:
        student = self._model.student()
        return frame_graph(student, kind.config, kind.targets, normalised=kind.normalised, observed=kind.observed)

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
        request = self._template.take()
        tokens = torch.from_numpy(request.infer([images.float().numpy()], share_inputs=True)[0].copy())
        self._template.give_back(request)
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
        requests = self._requests(kind)
        request = requests.take()
        # Without copies: the arrays live until the request was waited for.
        request.start_async(list(inputs), share_inputs=True)

        def wait() -> NetworkRun:
            request.wait()
            _ = inputs
            run = NetworkRun(self._read(request, on_step), request.latency)
            requests.give_back(request)
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
