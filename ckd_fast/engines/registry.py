"""Engines by name, and what `auto` picks."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ckd_fast.errors import CkdFastError, EngineError, InputError
from ckd_fast.weights import ExportedModel, LoadedModel

from .base import Engine

if TYPE_CHECKING:
    from ckd_fast.kernels.launch import LaunchSettings

log = logging.getLogger(__name__)

ENGINES = ("auto", "reference", "compiled", "openvino", "onnx", "triton")
PARTS = ("graphs", "overlap")  # of engine "triton", which also works without them
VARIABLE = "CKD_FAST_WITHOUT"
FLOAT8_CAPABILITY = (8, 9)
DTYPES = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8,
    "float8": torch.float8_e4m3fn,
}  # fmt: skip


def resolve_device(device: str | torch.device) -> torch.device:
    """A device that can be used; "auto" is CUDA where it works, else the CPU."""
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
    """A torch dtype from a dtype or its name; None leaves the choice to the engine."""
    if dtype is None:
        return None
    resolved = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in DTYPES.values():
        raise InputError(f"dtype={dtype!r}: known are {', '.join(DTYPES)}")
    return resolved


def left_out(without: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The parts that engine "triton" does without: those given, and those that the environment variable names."""
    given = (without,) if isinstance(without, str) else tuple(without)
    named = tuple(name.strip() for name in environ.get(VARIABLE, "").split(",") if name.strip())
    for said, names in ((f"without={without!r}", given), (f"{VARIABLE}={environ.get(VARIABLE)}", named)):
        if not set(names) <= set(PARTS):
            raise InputError(f"{said}: known are {', '.join(PARTS)}")
    return frozenset(given + named)


def build_engine(
    name: str,
    model: LoadedModel | ExportedModel,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    *,
    threads: int | None = None,
    compile_mode: str = "default",
    without: Sequence[str] = (),
    tiles: str | os.PathLike[str] | None = None,
) -> Engine:
    """Build an engine for a model.

    Args:
        name: "reference", "compiled", "openvino", "onnx", "triton", or "auto": "triton" on a GPU; on a CPU "openvino"
            where it is installed; else "reference"; "onnx" for a file that was exported. `str(engine)` says which one
            "auto" chose, and why.
        model: the weights, or for "onnx" a file that was exported.
        device: "auto", "cpu", "cuda", "cuda:N" or a torch device; for "onnx" also the name of a provider of ONNX
            Runtime, such as "tensorrt".
        dtype: "float32", "float16", "bfloat16", "int8" (engine "openvino", weights with a calibration), "float8"
            (engine "triton", such weights too; by name only) or a torch dtype; None is bfloat16 on engine "triton",
            what the processor is fast at on "openvino", else float32.
        threads: of the processor that the network may use; None leaves it to the engine's library. For "reference" and
            "compiled" this sets torch's own number, for the whole process. On a GPU it does nothing.
        compile_mode: torch.compile's mode for "compiled".
        without: what "triton" does without, "graphs" or "overlap", to find out what fails on a new GPU. The environment
            variable CKD_FAST_WITHOUT adds to it. Other engines have neither.
        tiles: for "triton", a file of tiles measured on this GPU, as bench/tune.py writes it; None: those that come
            along.
    """
    if name not in ENGINES:
        raise InputError(f"engine={name!r}: known are {', '.join(ENGINES)}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads={threads!r}: expected a whole number from 1, or None")
    off = left_out(without)
    if name == "onnx" or isinstance(model, ExportedModel):
        return _onnx(name, model, device, resolve_dtype(dtype), threads)
    where, precision = resolve_device(device), resolve_dtype(dtype)
    in_int8 = precision == torch.int8
    if in_int8 and (name not in ("openvino", "auto") or where.type != "cpu"):
        raise InputError(f"dtype='int8': only engine 'openvino' on a CPU runs it, not {name!r} on {where}")
    if precision == torch.float8_e4m3fn and (name not in ("triton", "auto") or where.type != "cuda"):
        raise InputError(f"dtype='float8': only engine 'triton' on a GPU runs it, not {name!r} on {where}")
    # In int8 and float8 there is nothing to fall back to.
    if name == "triton" or precision == torch.float8_e4m3fn:
        return _triton(model, where, precision, off, tiles)
    if name == "openvino" or in_int8:
        return _openvino(model, where, precision, threads)
    if name == "auto":
        return _fastest(model, where, precision, threads, off, tiles)
    from .host import CompiledEngine, ReferenceEngine

    _limit_torch(where, threads)
    if name == "compiled":
        return CompiledEngine(model, where, precision or torch.float32, mode=compile_mode)
    return ReferenceEngine(model, where, precision or torch.float32)


def _fastest(
    model: LoadedModel,
    device: torch.device,
    precision: torch.dtype | None,
    threads: int | None,
    off: frozenset[str],
    tiles: str | os.PathLike[str] | None,
) -> Engine:
    """What "auto" chooses."""
    from .host import ReferenceEngine

    try:
        if device.type == "cuda":
            return _triton(model, device, precision, off, tiles)
        return _openvino(model, device, precision, threads, "auto: no usable GPU")
    except CkdFastError as error:
        if device.type == "cuda" and not isinstance(error, EngineError):  # the user's mistake, not what the GPU lacks
            raise
        reason = str(error) if device.type == "cuda" else f"no usable GPU; {error}"
    log.warning("engine 'auto' runs the reference network on %s, which is slow (%s)", device, reason)
    _limit_torch(device, threads)
    return ReferenceEngine(model, device, precision or torch.float32, f"auto: {reason}")


def _limit_torch(device: torch.device, threads: int | None) -> None:
    if device.type == "cpu" and threads is not None:
        torch.set_num_threads(threads)


def _openvino(
    model: LoadedModel, device: torch.device, precision: torch.dtype | None, threads: int | None, note: str = ""
) -> Engine:
    if device.type != "cpu":
        raise EngineError(f"engine 'openvino' runs on the CPU, not on {device}: use device='cpu' or another engine")
    try:
        from .openvino.engine import OpenVinoEngine
    except ImportError as error:
        raise EngineError(f"engine 'openvino' {_lacks('openvino', 'cpu', error)}") from error
    return OpenVinoEngine(model, precision, note, threads=threads)


def _lacks(package: str, extra: str, error: ImportError) -> str:
    """Why a package cannot be imported."""
    if find_spec(package) is not None:
        return f"cannot import the package {package} ({error}): repair it with pip install 'ckd_fast[{extra}]'"
    return f"needs the package {package}, which is not installed: pip install 'ckd_fast[{extra}]'"


def _onnx(
    name: str,
    model: LoadedModel | ExportedModel,
    device: str | torch.device,
    precision: torch.dtype | None,
    threads: int | None,
) -> Engine:
    if isinstance(model, LoadedModel):
        raise InputError(
            "engine 'onnx' runs files that were exported, and these are weights: write a file with ckd-fast export "
            "and pass it in their place"
        )
    if name not in ("onnx", "auto"):
        raise InputError(
            f"{model.path}: an exported file runs on engine 'onnx', not on {name!r}: leave the engine out, or pass the "
            "weights that it was exported from"
        )
    if precision not in (None, model.dtype):
        held = str(model.dtype).removeprefix("torch.")
        raise InputError(f"{model.path}: was exported in {held}: leave dtype out, or export it in another precision")
    try:
        from .onnx.engine import OnnxEngine
    except ImportError as error:
        raise EngineError(f"engine 'onnx' {_lacks('onnxruntime', 'onnx', error)}") from error
    return OnnxEngine(model, str(device), threads=threads)


def launch_settings(
    device: torch.device, off: frozenset[str], tiles: str | os.PathLike[str] | None, *, tf32: bool = False
) -> LaunchSettings:
    """Of engine "triton" on a GPU: measured tiles where there are any, and overlap where the GPU can."""
    from ckd_fast.kernels.launch import LaunchSettings
    from ckd_fast.kernels.requirements import can_overlap
    from ckd_fast.kernels.tiles import TABLE, chip_of, chooser, read_table

    try:
        table = read_table(TABLE if tiles is None else Path(tiles))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"tiles={str(tiles)!r}: expected a file that bench/tune.py wrote ({error})") from error
    return LaunchSettings(
        chooser(chip_of(device), table), tf32=tf32, overlap="overlap" not in off and can_overlap(device)
    )


def _triton(
    model: LoadedModel,
    device: torch.device,
    precision: torch.dtype | None,
    off: frozenset[str],
    tiles: str | os.PathLike[str] | None,
) -> Engine:
    if device.type != "cuda":
        raise EngineError("engine 'triton' needs a usable NVIDIA GPU and found none: engine 'auto' does without")
    from ckd_fast.kernels.requirements import can_overlap, missing

    reason = missing(device)
    if reason is not None:
        raise EngineError(f"engine 'triton' {reason}; engines 'reference' and 'compiled' do without")
    from .triton.engine import TritonEngine
    from .triton.graph import GraphRunner

    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    precision = precision or torch.bfloat16
    if precision == torch.float8_e4m3fn and torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY:
        raise EngineError(f"dtype='float8': needs a GPU of compute capability 8.9 or newer, {device} is older")
    tf32 = precision == torch.float32 and _tf32_asked()
    notes = [f"without {part}, as asked" for part in sorted(off)]
    if "overlap" not in off and not can_overlap(device):
        notes.append("launches do not overlap, which needs sm_90")
    if tf32:
        notes.append("float32 products in tf32, as torch's settings ask")
    settings = launch_settings(device, off, tiles, tf32=tf32)
    runner = GraphRunner(device, capture="graphs" not in off)
    return TritonEngine(model, device, precision, "; ".join(notes), settings=settings, runner=runner)


def _tf32_asked() -> bool:
    """Whether the user lets torch round float32 products to tf32, by either of torch's two switches."""
    newer = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if newer is not None:  # the older switch sets this one too, and raises once this one was used
        return bool(newer == "tf32")
    return torch.get_float32_matmul_precision() != "highest"
