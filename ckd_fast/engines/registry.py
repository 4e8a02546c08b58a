"""Engines by name, and what `auto` picks."""

from __future__ import annotations

import logging

import torch

from ckd_fast.errors import EngineError, InputError
from ckd_fast.weights import LoadedModel

from .base import Engine

log = logging.getLogger(__name__)

ENGINES = ("auto", "reference", "compiled", "triton")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_device(device: str | torch.device) -> torch.device:
    """A usable device; "auto" is CUDA where it works, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device={device!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if resolved.type not in ("cpu", "cuda"):
        raise InputError(f"device={device!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise EngineError(f"device={str(device)!r}: this torch ({torch.__version__}) sees no usable GPU")
        if resolved.index is not None and resolved.index >= torch.cuda.device_count():
            raise EngineError(f"device={str(device)!r}: there are {torch.cuda.device_count()} GPUs, from cuda:0")
    return resolved


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """A precision by name or as torch's; None is float32."""
    if dtype is None:
        return torch.float32
    resolved = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in DTYPES.values():
        raise InputError(f"dtype={dtype!r}: known are {', '.join(DTYPES)}")
    return resolved


def build_engine(
    name: str,
    model: LoadedModel,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    *,
    compile_mode: str = "default",
) -> Engine:
    """Build an engine for a model.

    Args:
        name: "reference", "compiled", "triton", or "auto": the fastest that works here. What "auto" chose, and why, is
            in `str(engine)` and in one log line.
        model: the weights.
        device: "auto", "cpu", "cuda", "cuda:N" or a torch device.
        dtype: "float32", "float16", "bfloat16" or torch's; None is float32.
        compile_mode: torch.compile's mode for "compiled".
    """
    if name not in ENGINES:
        raise InputError(f"engine={name!r}: known are {', '.join(ENGINES)}")
    target, precision = resolve_device(device), resolve_dtype(dtype)
    note = ""
    if name == "auto":
        name = "reference"
        note = "auto: no usable GPU" if target.type == "cpu" else "auto: this version has no triton engine"
        log.warning("engine 'auto' runs the reference network on %s (%s)", target, note.removeprefix("auto: "))
    if name == "triton":
        if target.type != "cuda":
            raise EngineError("engine 'triton' needs a usable NVIDIA GPU and found none: use 'reference' or 'compiled'")
        raise EngineError("this version of ckd_fast has no triton engine yet: use 'reference' or 'compiled'")
    if name == "compiled":
        from .compiled import CompiledEngine

        return CompiledEngine(model, target, precision, note, compile_mode)
    from .reference import ReferenceEngine

    return ReferenceEngine(model, target, precision, note)
