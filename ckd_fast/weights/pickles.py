"""Reads the tensors of a PyTorch checkpoint without running what is pickled in it.

A pickle is a program: it may import any function and call it. The authors' checkpoints pickle settings and statistics
objects beside the tensors, so refusing unknown classes (as torch's `weights_only` does) would refuse the files. Here
every class and function but the few that build tensors becomes an inert placeholder that accepts any argument and does
nothing; its name is reported.

Two containers are read: the zip of torch >= 1.6 and the stream of pickles before it. Sizes are checked against the
file before memory is taken.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch
from torch import Tensor

from ckd_fast.errors import CorruptWeightsError

if TYPE_CHECKING:
    from typing_extensions import Self

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE_BYTES = 64 << 20  # the objects beside the tensors; published files have less than 1 MiB

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Inert:
    """Stands for an object of a class that is not loaded; whatever the pickle does to it is discarded."""

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        """Accept anything."""
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...

    def __call__(self, *_args: object, **_kwargs: object) -> Inert:
        """Do nothing."""
        return Inert()

    def __setstate__(self, _state: object) -> None: ...

    def __setitem__(self, _key: object, _value: object) -> None: ...

    def __hash__(self) -> int:
        return id(self)

    def append(self, _value: object) -> None:
        """A pickled list would grow here."""

    def extend(self, _values: object) -> None:
        """A pickled list would grow here."""

    def add(self, _value: object) -> None:
        """A pickled set would grow here."""


@dataclass(frozen=True)
class StorageRef:
    """A typed run of bytes that tensors are views of; the bytes are attached when they are known."""

    dtype: torch.dtype
    elements: int
    data: list[Tensor] = field(default_factory=list)

    def __setstate__(self, _state: object) -> None:
        """A pickle may call this; it must not change what was checked."""
        raise pickle.UnpicklingError("a pickle that rewrites a storage")


@dataclass(frozen=True)
class TensorRef:
    """A view of a storage, checked and turned into a tensor once the bytes are there."""

    storage: StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, _state: object) -> None:
        """A pickle may call this; it must not change what was checked."""
        raise pickle.UnpicklingError("a pickle that rewrites a tensor")

    def tensor(self) -> Tensor:
        """A contiguous copy of its own."""
        return (
            self.storage.data[0]
            .as_strided(self.size, self.stride, self.offset)
            .clone(memory_format=torch.contiguous_format)
        )


@dataclass(frozen=True)
class Unpickled:
    """The pickled object with `TensorRef` for tensors, and the names of what was not loaded."""

    content: object
    placeholders: tuple[str, ...]


def _whole_numbers(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or any(type(v) is not int or v < 0 for v in values):
        raise pickle.UnpicklingError("a tensor's size or stride is not a tuple of whole numbers")
    return values


def _rebuild_tensor(storage: object, offset: object, size: object, stride: object, *_rest: object) -> TensorRef:
    """In place of torch._utils._rebuild_tensor(_v2): the view must lie inside its storage."""
    sizes, strides = _whole_numbers(size), _whole_numbers(stride)
    if not isinstance(storage, StorageRef) or type(offset) is not int or offset < 0 or len(sizes) != len(strides):
        raise pickle.UnpicklingError("a tensor is described in a way that torch does not write")
    elements = math.prod(sizes)
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) if elements else offset - 1
    if last >= storage.elements or elements > storage.elements:
        raise pickle.UnpicklingError(f"a tensor of {elements} elements does not fit its storage of {storage.elements}")
    return TensorRef(storage, offset, sizes, strides)


def _rebuild_parameter(data: object, *_rest: object) -> object:
    """In place of torch._utils._rebuild_parameter."""
    return data


_ALLOWED: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
}


class _SafeUnpickler(pickle.Unpickler):
    """Knows how to build tensors and nothing else."""

    def __init__(self, file: BinaryIO, storages: dict[str, StorageRef]) -> None:
        super().__init__(file, encoding="latin1")
        self._storages = storages
        self.placeholders: set[str] = set()

    def find_class(self, module: str, name: str) -> object:
        """A tensor builder, a storage's dtype, or a placeholder class."""
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in ("torch", "torch.cuda") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        self.placeholders.add(f"{module}.{name}")
        return type(name.rpartition(".")[2] or "Inert", (Inert,), {"__module__": module})

    def persistent_load(self, reference: object) -> StorageRef:
        """('storage', type, key, device, elements, ...) -> the storage of that key."""
        if not (isinstance(reference, tuple) and len(reference) >= 5 and reference[0] == "storage"):
            raise pickle.UnpicklingError("a reference to something that is not a storage")
        if len(reference) > 5 and reference[5] is not None:
            raise pickle.UnpicklingError("a storage that is a view of another, which torch has not written since 0.3")
        dtype, key, elements = reference[1], reference[2], reference[4]
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(elements) is not int or elements < 0:
            raise pickle.UnpicklingError("a storage is described in a way that torch does not write")
        known = self._storages.setdefault(key, StorageRef(dtype, elements))
        if (known.dtype, known.elements) != (dtype, elements):
            raise pickle.UnpicklingError(f"storage {key} is described twice, differently")
        return known


def _check_program(data: bytes) -> int:
    """Length of the first pickle in `data`; refuses one that would make the unpickler itself allocate without bound."""
    for opcode, argument, position in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(data):
            raise pickle.UnpicklingError("a memo index beyond the pickle's own length")
        if opcode.name in ("EXT1", "EXT2", "EXT4", "NEXT_BUFFER"):
            raise pickle.UnpicklingError(f"opcode {opcode.name}, which checkpoints do not use")
        if opcode.name == "STOP":
            return (position or 0) + 1
    raise pickle.UnpicklingError("the pickle has no end")


def _unpickle(data: bytes, storages: dict[str, StorageRef]) -> tuple[object, set[str], int]:
    length = _check_program(data)
    unpickler = _SafeUnpickler(io.BytesIO(data[:length]), storages)
    return unpickler.load(), unpickler.placeholders, length


def read_checkpoint(path: Path) -> Unpickled:
    """The object that torch.save wrote, of either container."""
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        return _read_legacy(path)
    except CorruptWeightsError:
        raise
    # A hostile pickle can make the unpickler raise nearly anything; nothing of it has run.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise CorruptWeightsError(f"{path}: not a readable PyTorch checkpoint ({reason})") from error


def _read_zip(path: Path) -> Unpickled:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1 or len(set(names)) != len(names):
            raise CorruptWeightsError(
                f"{path}: a zip archive, but not a PyTorch checkpoint (expected one data.pkl, found {len(pickles)})"
            )
        root = pickles[0].removesuffix("data.pkl")
        if root + "constants.pkl" in names:
            raise CorruptWeightsError(
                f"{path}: a TorchScript program, not a checkpoint; save the state dict with torch.save or safetensors"
            )
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CorruptWeightsError(f"{path}: {entry.filename} is compressed, which torch.save never does")
        if archive.getinfo(pickles[0]).file_size > MAX_PICKLE_BYTES:
            raise CorruptWeightsError(f"{path}: data.pkl is larger than {MAX_PICKLE_BYTES >> 20} MiB")
        if root + "byteorder" in names and archive.read(root + "byteorder") != b"little":
            raise CorruptWeightsError(f"{path}: written on a big-endian machine, which is not supported")
        storages: dict[str, StorageRef] = {}
        content, placeholders, _ = _unpickle(archive.read(pickles[0]), storages)
        if sum(storage.elements * storage.dtype.itemsize for storage in storages.values()) > path.stat().st_size:
            raise CorruptWeightsError(f"{path}: its tensors need more bytes than the file has")
        for key, storage in storages.items():
            data = archive.read(f"{root}data/{key}")  # checks its CRC
            expected = storage.elements * storage.dtype.itemsize
            if len(data) != expected:
                raise CorruptWeightsError(f"{path}: data/{key} has {len(data)} bytes, expected {expected}")
            _attach(storage, data)
    return Unpickled(content, tuple(sorted(placeholders)))


def _read_legacy(path: Path) -> Unpickled:
    """Magic number, protocol, machine, object, storage keys (five pickles), then each storage's count and bytes."""
    data = path.read_bytes()
    storages: dict[str, StorageRef] = {}
    position = 0
    parts: list[object] = []
    placeholders: set[str] = set()
    for expected in (LEGACY_MAGIC, LEGACY_PROTOCOL, None, None, None):
        part, names, length = _unpickle(data[position : position + MAX_PICKLE_BYTES], storages)
        if expected is not None and part != expected:
            raise CorruptWeightsError(f"{path}: not a PyTorch checkpoint (a pickle without torch.save's marks)")
        parts.append(part)
        placeholders |= names
        position += length
    machine, content, keys = parts[2:]
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise CorruptWeightsError(f"{path}: written on a big-endian machine, which is not supported")
    if not isinstance(keys, list) or {str(key) for key in keys} != set(storages):
        raise CorruptWeightsError(f"{path}: the list of storages does not match the tensors")
    for key in keys:
        storage = storages[key]
        size = storage.elements * storage.dtype.itemsize
        count = int.from_bytes(data[position : position + 8], "little")
        payload = data[position + 8 : position + 8 + size]
        if count != storage.elements or len(payload) != size:
            raise CorruptWeightsError(f"{path}: storage {key} is cut short: {len(payload)} of {size} bytes")
        _attach(storage, payload)
        position += 8 + size
    return Unpickled(content, tuple(sorted(placeholders)))


def _attach(storage: StorageRef, data: bytes) -> None:
    empty = torch.empty(0, dtype=storage.dtype)
    storage.data.append(torch.frombuffer(bytearray(data), dtype=storage.dtype) if data else empty)
