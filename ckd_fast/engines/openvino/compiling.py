"""Compiles graphs, or takes them compiled from the cache.

A compiled graph that OpenVINO writes holds all weights and the graph as it is after OpenVINO's passes; reading it skips
building, folding and these passes. What remains is to pack the weights for the processor.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

import numpy as np
import openvino
import torch
from torch import Tensor

from ckd_fast import __version__
from ckd_fast.cache import MOST_THREADS, Cache
from ckd_fast.errors import CkdFastError, EngineError
from ckd_fast.reference.config import ModelConfig, preset_name
from ckd_fast.weights import LoadedModel

log = logging.getLogger(__name__)

DEVICE = "CPU"
CHUNK = 1 << 24
# Whose source decides what a graph is, beside the weights and the configuration.
PACKAGES = ("ckd_fast.engines.openvino", "ckd_fast.reference")


@dataclass(frozen=True)
class Compiler:
    """Compiles graphs of one model.

    Attributes:
        core: OpenVINO.
        properties: for every graph.
        model: whose weights the graphs have.
        cache: where compiled graphs are kept.
    """

    core: openvino.Core
    properties: Mapping[str, str | int]
    model: LoadedModel
    cache: Cache

    def __call__(self, graph: str, config: ModelConfig, build: Callable[[], openvino.Model]) -> openvino.CompiledModel:
        """A compiled graph.

        Args:
            graph: names what `build` depends on beside `model` and `config`, such as "frame, 2 targets".
            config: the configuration of the graph.
            build: makes the graph; called only if the cache does not have it.
        """
        key = self._key(graph, config) if self.cache.folder else ""
        data = self.cache.load(key) if key else None
        if data is not None:
            blob = openvino.Tensor(np.frombuffer(data, np.uint8), shared_memory=True)
            try:
                return MappedModel(self.core.import_model(blob, DEVICE, self.properties), data)
            except RuntimeError as error:  # OpenVINO sees a processor or a version that the key does not tell apart
                log.warning("OpenVINO refuses a compiled graph of the cache (%s): it is compiled anew", _reason(error))
        with telling("compile the network"):
            compiled = self.core.compile_model(build(), DEVICE, self.properties)
        if key:
            name = preset_name(config) or f"{config.dim} channels, {config.depth} blocks"
            precision = self.properties.get("INFERENCE_PRECISION_HINT", "default precision")
            version = openvino.get_version().partition("-")[0]
            threads = self.properties.get("INFERENCE_NUM_THREADS", "all")
            about = (
                f"{name}, {precision}, {graph}, threads: {threads}, openvino {version}, "
                f"weights {self.model.provenance.source}"
            )
            try:
                self.cache.store(key, about, compiled.export_model)
            except RuntimeError as error:
                log.warning("OpenVINO cannot write a compiled graph (%s): each start compiles it", _reason(error))
        return compiled

    def _key(self, graph: str, config: ModelConfig) -> str:
        parts = [graph, config.to_dict(), sorted(self.properties.items()), self._fixed]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def _fixed(self) -> list[object]:
        """What is the same for all graphs of this model on this machine."""
        about_processor = ("FULL_DEVICE_NAME", "DEVICE_ARCHITECTURE", "OPTIMIZATION_CAPABILITIES")
        return [
            weights_digest(self.model.weights),
            __version__,
            _source(),
            openvino.get_version(),
            [self.core.get_property(DEVICE, name) for name in about_processor],
            torch.backends.cpu.get_cpu_capability(),
        ]


class MappedModel(openvino.CompiledModel):  # type: ignore[misc]
    """A compiled model that reads its weights from mapped memory. OpenVINO does not keep that memory: this object and
    the requests that it creates do.
    """

    def __init__(self, model: openvino.CompiledModel, memory: memoryview) -> None:
        super().__init__(model)
        self.memory = memory

    def create_infer_request(self) -> openvino.InferRequest:
        request = super().create_infer_request()
        request.memory = self.memory
        return request


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 of names, shapes and values; chunks of the values are hashed by several threads."""
    ordered = sorted(weights.items())
    about = [(name, str(value.dtype), list(value.shape)) for name, value in ordered]
    chunks = [memoryview(json.dumps(about).encode())]
    for _, value in ordered:
        data = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        chunks += [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    with ThreadPoolExecutor(MOST_THREADS) as threads:
        digests = list(threads.map(lambda chunk: hashlib.sha256(chunk).digest(), chunks))
    return hashlib.sha256(b"".join(digests)).hexdigest()


@contextmanager
def telling(what: str) -> Iterator[None]:
    """OpenVINO's errors in our words."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, CkdFastError):
            raise
        raise EngineError(f"engine 'openvino' cannot {what}: {_reason(error)}") from error


def _source() -> str:
    """sha256 of the source that makes graphs. Where only bytecode is installed, the version stands for it."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for file in sorted(resources.files(package).iterdir(), key=lambda file: file.name):
            if file.name.endswith(".py"):
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _reason(error: RuntimeError) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()
