"""The network in OpenVINO, on the CPU; crops and boxes on the host, as in `reference/track.py`."""

from __future__ import annotations

from dataclasses import replace

import openvino
import torch
from torch import Tensor

from ckd_fast.engines.host import HostEngine
from ckd_fast.errors import EngineError, InputError
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import OnStep
from ckd_fast.weights import LoadedModel

from .graph import frame_graph, template_graph

MOST_TARGETS = 32
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def native_precision(core: openvino.Core) -> torch.dtype:
    """bfloat16 where the processor multiplies it by itself, else float32."""
    return torch.bfloat16 if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else torch.float32


class OpenVinoEngine(HostEngine):
    """OpenVINO on the CPU.

    Args:
        model: weights.
        dtype: float32 or bfloat16; None takes what the processor has natively. Inputs and outputs are float32.
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
        super().__init__(model, torch.device("cpu"), dtype, note)
        self._model = model
        self._properties: dict[str, str | int] = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        }  # fmt: skip
        if threads is not None:
            self._properties["INFERENCE_NUM_THREADS"] = threads
        self._template = self._compiled(template_graph(model.student()))
        self._frames: dict[tuple[ModelConfig, int, bool], openvino.InferRequest] = {}
        self._frame(self.config, 1, observed=False)

    def _compiled(self, graph: openvino.Model) -> openvino.InferRequest:
        try:
            return self._core.compile_model(graph, "CPU", self._properties).create_infer_request()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise EngineError(f"engine 'openvino' cannot compile the network: {reason}") from error

    def _frame(self, config: ModelConfig, targets: int, *, observed: bool) -> openvino.InferRequest:
        """The graph for so many targets; compiled when it is first asked for."""
        key = (config, targets, observed)
        if key not in self._frames:
            self._frames[key] = self._compiled(frame_graph(self._model.student(), config, targets, observed=observed))
        return self._frames[key]

    @torch.inference_mode()
    def run_network(self, template_images: Tensor, search_images: Tensor) -> HeadMaps:
        everyone = replace(self.config, template_range="ALL")  # in use, tokens that never decide are not in the graph
        deciding = torch.ones(template_images.shape[1], self.config.template_tokens)
        with self._lock:
            return self._run(everyone, self._embed(template_images), search_images, deciding, None, None)

    def _embed(self, images: Tensor) -> Tensor:
        outputs = self._template.infer([images.float().numpy()], share_inputs=True)
        return torch.from_numpy(outputs[0].copy())

    def _maps(
        self, template: Tensor, search: Tensor, deciding: Tensor, present: Tensor | None, on_step: OnStep | None
    ) -> HeadMaps:
        return self._run(self.config, template, search, deciding, present, on_step)

    def _run(
        self,
        config: ModelConfig,
        template: Tensor,
        search: Tensor,
        deciding: Tensor,
        present: Tensor | None,
        on_step: OnStep | None,
    ) -> HeadMaps:
        count = template.shape[1]
        if present is None:
            present = torch.ones(2, count)
        # Every number of targets is a graph of its own: fill up to a power of two with copies of the last target.
        filled = torch.arange(1 << (count - 1).bit_length()).clamp(max=count - 1)
        if len(filled) > count:
            template, search, present = (value[:, filled] for value in (template, search, present))
            deciding = deciding[filled]
        request = self._frame(config, len(filled), observed=on_step is not None)
        inputs = [value.float().contiguous().numpy() for value in (template, search, deciding, present)]
        outputs = request.infer(inputs, share_inputs=True)
        if on_step is not None:
            for port, value in outputs.items():
                name = port.get_any_name()
                if name != "maps":
                    on_step(name, torch.from_numpy(value[:, :count]))
        grid = self.config.search_grid
        maps = torch.from_numpy(outputs[0][:count]).unflatten(-1, (grid, grid))
        maps = HeadMaps(score=maps[:, :1], size=maps[:, 3:], offset=maps[:, 1:3])
        if on_step is not None:
            for name, value in (("score", maps.score), ("size", maps.size), ("offset", maps.offset)):
                on_step(f"head.{name}", value)
        return maps
