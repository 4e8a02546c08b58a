"""Reads the tensors of any weights file by name, and writes safetensors. Every file is untrusted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ckd_fast.errors import CorruptWeightsError, MissingModelError, OutputError, WeightsMismatchError
from ckd_fast.files import atomically

from .containers import read_checkpoint
from .pickles import TensorRef

# Where trackers of this field keep the state dict inside their checkpoint.
STATE_DICT_KEYS = ("net", "model", "state_dict")
TIED_TIMES = 8
MAX_NAME = 300
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds; which model it is comes later."""

    path: Path
    container: str  # "safetensors" or "checkpoint"
    tensors: Mapping[str, Tensor]  # by the file's own names
    metadata: Mapping[str, str]  # safetensors' strings; empty for a checkpoint
    placeholders: tuple[str, ...]  # names of pickled classes and functions that were not loaded

    @cached_property
    def sha256(self) -> str:
        """Of the file. Read when it is asked for: for a large model it takes longer than the rest of loading."""
        digest = hashlib.sha256()
        with _readable(self.path), self.path.open("rb") as handle:
            while piece := handle.read(1 << 22):
                digest.update(piece)
        return digest.hexdigest()


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, MissingModelError):
            raise
        raise CorruptWeightsError(f"{file}: cannot be read ({error.strerror or error})") from error


def open_weights(path: str | os.PathLike[str]) -> WeightsFile:
    """Read a weights file; every fault of the file is a `WeightsError`."""
    file = Path(path)
    if file.suffix.lower() == ".onnx":
        raise WeightsMismatchError(
            f"{file}: an exported network, which gives no weights back: track with it (Tracker({file.name!r}) "
            "or --weights), or pass the weights that it was exported from"
        )
    with _readable(file):
        if file.is_dir():
            raise CorruptWeightsError(f"{file}: a directory; expected a weights file (.safetensors or .pth.tar)")
        if not file.exists():
            raise MissingModelError(f"{file}: no such file")
        if not file.is_file():
            raise CorruptWeightsError(f"{file}: not a regular file")
        with file.open("rb") as handle:
            start = handle.read(9)
    if not start:
        raise CorruptWeightsError(f"{file}: empty")
    if start[8:9] == b"{":
        tensors, metadata = _read_safetensors(file)
        return WeightsFile(file, "safetensors", tensors, metadata, ())
    if not (start.startswith((b"PK\x03\x04", b"\x80"))):
        raise CorruptWeightsError(
            f"{file}: neither safetensors nor a PyTorch checkpoint (it starts with {start[:4].hex(' ')})"
        )
    checkpoint = read_checkpoint(file)
    tensors = _state_dict(file, checkpoint.content)
    return WeightsFile(file, "checkpoint", tensors, {}, checkpoint.placeholders)


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors = load_file(file)
        with safetensors.safe_open(file, framework="pt") as handle:
            metadata = handle.metadata() or {}
    except (
        safetensors.SafetensorError,
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        AttributeError,
        TypeError,
    ) as error:
        raise CorruptWeightsError(f"{file}: not a readable safetensors file ({error})") from error
    for name in tensors:
        check_name(file, name)
    return tensors, dict(metadata)


def check_name(file: Path, name: str, what: str = "tensor's name") -> None:
    """Refuse names that are not plain text: names appear in messages and on terminals."""
    if not name.isascii() or not name.isprintable() or len(name) > MAX_NAME:
        raise CorruptWeightsError(f"{file}: {name[:40]!a} is no {what}")


def _state_dict(file: Path, content: object) -> dict[str, Tensor]:
    """The dict of tensors in a checkpoint: the whole object, or the part under one of the usual keys."""
    if not isinstance(content, dict):
        what = "single tensor" if isinstance(content, TensorRef) else type(content).__name__
        raise CorruptWeightsError(f"{file}: holds a {what}, expected a dict of tensors")
    candidates = [content.get(key) for key in STATE_DICT_KEYS] + [content]
    size = file.stat().st_size
    state = next(
        (c for c in candidates if isinstance(c, dict) and any(isinstance(v, TensorRef) for v in c.values())), None
    )
    if state is None:
        names = ", ".join(sorted(ascii(key[:40])[1:-1] for key in content if type(key) is str)[:8]) or "nothing"
        raise CorruptWeightsError(
            f"{file}: holds no tensors under {', '.join(STATE_DICT_KEYS)} or at its top level (found: {names})"
        )
    tensors: dict[str, Tensor] = {}
    # Tied weights share bytes, but a hostile file could give the same bytes so many names that they fill the memory.
    total = sum(value.nbytes for value in state.values() if isinstance(value, TensorRef))
    if total > TIED_TIMES * size:
        raise CorruptWeightsError(f"{file}: its tensors take {total} bytes, {TIED_TIMES} times more than the file has")
    for name, value in state.items():
        if not isinstance(name, str):
            raise CorruptWeightsError(f"{file}: a tensor's name is a {type(name).__name__}, expected a string")
        check_name(file, name)
        if isinstance(value, TensorRef):
            tensors[name.removeprefix("module.")] = value.tensor()  # DataParallel's prefix
        elif state is not content:
            raise CorruptWeightsError(f"{file}: {name} is a {type(value).__name__}, expected a tensor")
    return tensors


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write atomically: the file appears only when it is complete."""
    file = Path(path)
    if file.is_dir():
        raise OutputError(f"{file}: a directory; expected the name of a file to write")
    if not file.parent.is_dir():
        raise OutputError(f"{file}: the folder {file.parent} does not exist")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        with atomically(file) as temporary:
            save_file(contiguous, temporary, metadata=dict(metadata))
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
    except safetensors.SafetensorError as error:
        raise OutputError(f"{file}: cannot be written ({error})") from error


def metadata_json(metadata: Mapping[str, str], key: str, file: Path) -> dict[str, object]:
    """A JSON object in safetensors' metadata."""
    try:
        value = json.loads(metadata[key])
    except (ValueError, RecursionError) as error:
        raise CorruptWeightsError(f"{file}: its metadata {key!r} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise CorruptWeightsError(f"{file}: its metadata {key!r} is not a JSON object")
    return value


def finite_or_raise(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN, infinity, negative variances and tensors that are not floating-point."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATING:
            raise CorruptWeightsError(
                f"{file}: {name} is {tensor.dtype}, expected a floating-point tensor of 16 to 64 bits"
            )
        if not tensor.numel():
            continue
        lowest, highest = torch.aminmax(tensor)  # NaN if any value is; one pass over the memory, without a copy
        if not (torch.isfinite(lowest) and torch.isfinite(highest)):
            bad = int((~torch.isfinite(tensor)).sum())
            raise CorruptWeightsError(f"{file}: {name} has {bad} of {tensor.numel()} values that are not finite")
        if name.endswith("running_var") and lowest < 0:
            raise CorruptWeightsError(f"{file}: {name} is a variance and has negative values")
