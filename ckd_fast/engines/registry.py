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


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A precision by name or as torch's; None leaves it to the engine."""
    if dtype is None:
        return None
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
        dtype: "float32", "float16", "bfloat16" or torch's; None is bfloat16 on engine "triton", else float32.
        compile_mode: torch.compile's mode for "compiled".
    """
    if name not in ENGINES:
        raise InputError(f"engine={name!r}: known are {', '.join(ENGINES)}")
    target, precision = resolve_device(device), resolve_dtype(dtype)
    if name == "auto":
        return _fastest(model, target, precision)
    if name == "triton":
        return _triton(model, target, precision)
    if name == "compiled":
        from .compiled import CompiledEngine

        return CompiledEngine(model, target, precision or torch.float32, mode=compile_mode)
    return _reference(model, target, precision)


def _reference(model: LoadedModel, target: torch.device, precision: torch.dtype | None, note: str = "") -> Engine:
    from .reference import ReferenceEngine

    return ReferenceEngine(model, target, precision or torch.float32, note)


def _fastest(model: LoadedModel, target: torch.device, precision: torch.dtype | None) -> Engine:
    """The triton engine on a GPU, else the reference; what stands against the first is said once."""
    if target.type == "cpu":
        reason = "no usable GPU"
    else:
        try:
            return _triton(model, target, precision)
        except EngineError as error:
            reason = str(error)
    log.warning("engine 'auto' runs the reference network on %s (%s)", target, reason)
    return _reference(model, target, precision, f"auto: {reason}")


def _tf32_asked() -> bool:
    """Whether the user let float32 products be rounded, by either of torch's switches."""
    newer = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if newer is not None:  # the older switch sets it too, and cannot be asked once this one was used
        return bool(newer == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def _triton(model: LoadedModel, target: torch.device, precision: torch.dtype | None) -> Engine:
    if target.type != "cuda":
        raise EngineError("engine 'triton' needs a usable NVIDIA GPU and found none: use 'reference' or 'compiled'")
    from ckd_fast.kernels.requirements import missing

    reason = missing(target)
    if reason is not None:
        raise EngineError(f"engine 'triton' {reason}; engines 'reference' and 'compiled' do without")
    from ckd_fast.kernels.tiles import chip_of, chooser

    from .runners import GraphRunner
    from .triton import TritonEngine

    properties = torch.cuda.get_device_properties(target)
    capability = (properties.major, properties.minor)
    notes = []
    overlap = capability >= (9, 0)
    precision = precision or torch.bfloat16
    if not overlap:
        notes.append("launches do not overlap, which needs sm_90")
    tf32 = precision == torch.float32 and _tf32_asked()
    if tf32:
        notes.append("float32 products in tf32, as torch's settings ask")
    index = torch.cuda.current_device() if target.index is None else target.index
    where = torch.device("cuda", index)
    return TritonEngine(
        model, where, precision, "; ".join(notes), runner=GraphRunner(where), choose=chooser(chip_of(where)), tf32=tf32,
        overlap=overlap,
    )  # fmt: skip
