"""Sessions of ONNX Runtime that run where they were asked to, or say that they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ckd_fast.errors import CorruptWeightsError, EngineError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
ENDING = "ExecutionProvider"
SILENT = 4  # ONNX Runtime's own log: what it has to say of errors is raised
# These take their inputs from a numbered GPU, and hand to CUDA what they cannot do.
WITH_CUDA = ("TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


@dataclass(frozen=True)
class Providers:
    """Where a session shall run."""

    names: tuple[str, ...]  # the first is wanted; each hands what it cannot do to the next
    number: int | None  # of the GPU
    must: bool  # whether the first was asked for by name


def choose_providers(device: str) -> Providers:
    """Providers for a device: "auto", "cpu", "cuda", "cuda:N", or a provider's name with or without its ending.

    "auto" is CUDA where this onnxruntime has it, else the CPU.
    """
    here = onnxruntime.get_available_providers()
    if device == "auto":
        return Providers((CUDA, CPU) if CUDA in here else (CPU,), None, must=False)
    short, _, number = device.partition(":")
    short = short.lower().removesuffix(ENDING.lower())
    known = {name.removesuffix(ENDING).lower(): name for name in here}
    if short not in known or (number and not number.isdigit()):
        have = ", ".join(sorted(known))
        raise EngineError(
            f"device={device!r}: this onnxruntime ({onnxruntime.__version__}) has the providers {have}; others come "
            "with other packages, such as onnxruntime-gpu or onnxruntime-directml (docs/export.md)"
        )
    name = known[short]
    chain = (name, *((CUDA,) if name in WITH_CUDA and CUDA in here else ()), *((CPU,) if name != CPU else ()))
    return Providers(chain, int(number) if number else None, must=True)


def open_session(path: Path, providers: Providers, threads: int) -> onnxruntime.InferenceSession:
    """Load a file that was checked. Raises if the provider that was asked for by name does not load."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    # A number: without one, ONNX Runtime binds its threads to cores, and several processes fight for the same ones.
    options.intra_op_num_threads = threads
    settings = [{"device_id": str(providers.number)} if name != CPU and providers.number is not None else {}
                for name in providers.names]  # fmt: skip
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            options,
            list(providers.names),
            settings,
            enable_fallback=0,  # it would go on with other providers and only print that
            read_config_from_model=0,  # the file must not choose how it is run
        )
    except Exception as error:
        # ONNX Runtime's errors have no common class.
        if providers.names == (CPU,):
            raise CorruptWeightsError(f"{path}: ONNX Runtime cannot load it ({first_line(error)})") from error
        raise EngineError(f"engine 'onnx' cannot use {providers.names[0]} with {path}: {first_line(error)}") from error
    if providers.must and providers.names[0] not in session.get_providers():
        raise EngineError(
            f"engine 'onnx': {providers.names[0]} does not load on this machine, and ONNX Runtime would run on "
            f"{', '.join(session.get_providers())} instead: install what the provider needs, or use device='cpu'"
        )
    return session


def run_session(
    session: onnxruntime.InferenceSession, outputs: Sequence[str], inputs: Mapping[str, NDArray[np.generic]]
) -> list[NDArray[np.generic]]:
    """One run."""
    try:
        values: list[NDArray[np.generic]] = session.run(list(outputs), dict(inputs))
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot run the network: {first_line(error)}") from error
    return values


def first_line(error: Exception) -> str:
    """The first line of a message, or the error's name."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
