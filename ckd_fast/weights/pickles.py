"""Reads the tensors of a PyTorch checkpoint without running what is pickled in it.

A pickle is a program: it may import any function and call it. The authors' checkpoints pickle settings and statistics
objects beside the tensors, so refusing unknown classes (as torch's `weights_only` does) would refuse the files.
Python's own unpickler is not used at all: a small machine of ours runs the opcodes on plain containers. It imports
nothing and calls nothing; what the pickle would make of an unknown class is an inert placeholder, and its name is
reported.

Two containers are read: the zip of torch >= 1.6 and the stream of pickles before it. Sizes are checked against the
file before memory is taken.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ckd_fast.errors import CorruptWeightsError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE_BYTES = 16 << 20  # the objects beside the tensors; published files have less than 1 MiB
MAX_OPCODES = 500_000  # about forty per tensor
MAX_RANK = 16
MAX_NAME = 80

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


# Opcodes whose argument is the value.
_LITERALS = frozenset(
    {"INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)


class Inert:
    """Stands for an object of a class that is not loaded; nothing is kept of it."""


INERT = Inert()


@dataclass(frozen=True)
class Global:
    """A class or function that the pickle names; never looked up."""

    module: str
    name: str


@dataclass(frozen=True)
class StorageRef:
    """A typed run of bytes that tensors are views of; the bytes are attached when they are known."""

    dtype: torch.dtype
    elements: int
    data: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class TensorRef:
    """A view of a storage, checked and turned into a tensor once the bytes are there."""

    storage: StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor on its own."""
        return math.prod(self.size) * self.storage.dtype.itemsize

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


class PickleError(Exception):
    """The pickle is not one that torch.save writes."""


def _whole_numbers(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MAX_RANK or any(type(v) is not int or v < 0 for v in values):
        raise PickleError("a tensor's size or stride is not a short tuple of whole numbers")
    return values


def _tensor(arguments: tuple[object, ...]) -> TensorRef:
    """torch._utils._rebuild_tensor(_v2): the view must lie inside its storage."""
    if len(arguments) < 4:
        raise PickleError("a tensor is described in a way that torch does not write")
    storage, offset, size, stride = arguments[:4]
    sizes, strides = _whole_numbers(size), _whole_numbers(stride)
    if not isinstance(storage, StorageRef) or type(offset) is not int or offset < 0 or len(sizes) != len(strides):
        raise PickleError("a tensor is described in a way that torch does not write")
    elements = math.prod(sizes)
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) if elements else offset - 1
    if last >= storage.elements or elements > storage.elements:
        raise PickleError(f"a tensor of {elements} elements does not fit its storage of {storage.elements}")
    return TensorRef(storage, offset, sizes, strides)


def _put(target: object, key: object, value: object) -> None:
    """An entry of a dict; of other keys than names and numbers nothing is kept, since hashing may run for ever."""
    if isinstance(target, dict) and type(key) in (str, int):
        target[key] = value


class _Machine:
    """Runs the opcodes of a pickle with effects on plain containers alone.

    No class is looked up and no function is called: what the pickle would import is a `Global`, what it would make is a
    tensor, a dict or `INERT`. Every opcode adds at most one small object, and their number is bounded.
    """

    def __init__(self, storages: dict[str, StorageRef]) -> None:
        self._storages = storages
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}
        self.placeholders: set[str] = set()

    def run(self, data: bytes) -> tuple[object, int]:
        """The first pickle's object and length."""
        for number, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if number > MAX_OPCODES:
                raise PickleError(f"more than {MAX_OPCODES} instructions; checkpoints have far fewer")
            if opcode.name == "STOP":
                return self._stack.pop(), (position or 0) + 1
            self._step(opcode.name, argument)
        raise PickleError("the pickle has no end")

    def _since_mark(self) -> list[object]:
        start = self._marks.pop()
        taken, self._stack[start:] = self._stack[start:], []
        return taken

    def _step(self, name: str, argument: object) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_SET":
                stack.append(INERT)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                items = tuple(stack[-count:])
                if len(items) < count:
                    raise PickleError("a tuple of more than there is")
                stack[-count:] = [items]
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "LIST":
                stack.append(self._since_mark())
            case "DICT":
                made: dict[object, object] = {}
                self._set_items(made, self._since_mark())
                stack.append(made)
            case "FROZENSET":
                self._since_mark()
                stack.append(INERT)
            case "APPEND":
                value = stack.pop()
                if isinstance(stack[-1], list):
                    stack[-1].append(value)
            case "APPENDS" | "ADDITEMS":
                values = self._since_mark()
                if isinstance(stack[-1], list):
                    stack[-1].extend(values)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _put(stack[-1], key, value)
            case "SETITEMS":
                values = self._since_mark()
                self._set_items(stack[-1], values)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[_index(argument)] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[_index(argument)])
            case "GLOBAL":
                module, _, attribute = str(argument).partition(" ")
                stack.append(Global(module, attribute))
            case "STACK_GLOBAL":
                last, first = stack.pop(), stack.pop()
                if type(first) is not str or type(last) is not str:
                    raise PickleError("a class that is named by something else than text")
                stack.append(Global(first, last))
            case "REDUCE" | "NEWOBJ":
                arguments, called = stack.pop(), stack.pop()
                stack.append(self._make(called, arguments))
            case "NEWOBJ_EX":
                _, arguments, called = stack.pop(), stack.pop(), stack.pop()
                stack.append(self._make(called, arguments))
            case "OBJ" | "INST":
                values = self._since_mark()
                module, _, attribute = str(argument).partition(" ")
                called = values.pop(0) if name == "OBJ" else Global(module, attribute)
                stack.append(self._make(called, tuple(values)))
            case "BUILD":
                stack.pop()  # an object's state: nothing that we make has one
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case _ if name in _LITERALS:
                stack.append(argument)
            case _:
                raise PickleError(f"opcode {name}, which checkpoints do not use")

    def _set_items(self, target: object, values: list[object]) -> None:
        for key, value in zip(values[0::2], values[1::2], strict=True):
            _put(target, key, value)

    def _make(self, called: object, arguments: object) -> object:
        """What calling would give, for the few that matter."""
        if not isinstance(called, Global) or not isinstance(arguments, tuple):
            return INERT
        match (called.module, called.name):
            case ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2"):
                return _tensor(arguments)
            case ("torch._utils", "_rebuild_parameter"):
                return arguments[0] if arguments and isinstance(arguments[0], TensorRef) else INERT
            case ("collections", "OrderedDict"):
                made: dict[object, object] = {}
                pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
                for pair in pairs:
                    if isinstance(pair, tuple | list) and len(pair) == 2:
                        _put(made, pair[0], pair[1])
                return made
            case ("torch", "Size"):
                sizes = arguments[0] if arguments else ()
                return _whole_numbers(tuple(sizes) if isinstance(sizes, list) and len(sizes) <= MAX_RANK else sizes)
        self.placeholders.add(ascii(f"{called.module}.{called.name}"[:MAX_NAME])[1:-1])
        return INERT

    def _storage(self, reference: object) -> StorageRef:
        """('storage', type, key, device, elements, view) -> the storage of that key."""
        if not (isinstance(reference, tuple) and len(reference) >= 5 and type(reference[0]) is str):
            raise PickleError("a reference to something that is not a storage")
        kind, key, elements = reference[1], reference[2], reference[4]
        known_type = isinstance(kind, Global) and kind.module in ("torch", "torch.cuda")
        dtype = _STORAGE_DTYPES.get(kind.name) if known_type else None
        if reference[0] != "storage" or dtype is None or type(key) is not str or type(elements) is not int:
            raise PickleError("a storage is described in a way that torch does not write")
        if len(reference) > 5 and reference[5] is not None:
            raise PickleError("a storage that is a view of another, which torch has not written since 0.3")
        if elements < 0:
            raise PickleError("a storage of negative length")
        known = self._storages.setdefault(key, StorageRef(dtype, elements))
        if (known.dtype, known.elements) != (dtype, elements):
            raise PickleError("a storage is described twice, differently")
        return known


def _index(argument: object) -> int:
    if not isinstance(argument, int):
        raise PickleError("a memo index that is no number")
    return argument


def _unpickle(data: bytes, storages: dict[str, StorageRef]) -> tuple[object, set[str], int]:
    machine = _Machine(storages)
    content, length = machine.run(data)
    return content, machine.placeholders, length


def read_checkpoint(path: Path) -> Unpickled:
    """The object that torch.save wrote, of either container."""
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        return _read_legacy(path)
    except CorruptWeightsError:
        raise
    # Broken bytes can make the decoder of opcodes and of the archive raise nearly anything.
    except Exception as error:
        reason = ascii(str(error) or type(error).__name__)[1:-1][:200]
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
    if data.startswith(b"PK"):
        raise CorruptWeightsError(f"{path}: truncated, its archive has no end (an incomplete download?)")
    storages: dict[str, StorageRef] = {}
    position = 0
    parts: list[object] = []
    placeholders: set[str] = set()
    for expected in (LEGACY_MAGIC, LEGACY_PROTOCOL, None, None, None):
        part, names, length = _unpickle(data[position : position + MAX_PICKLE_BYTES], storages)
        if expected is not None and (type(part) is not int or part != expected):
            raise CorruptWeightsError(f"{path}: not a PyTorch checkpoint (a pickle without torch.save's marks)")
        parts.append(part)
        placeholders |= names
        position += length
    machine, content, keys = parts[2:]
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise CorruptWeightsError(f"{path}: written on a big-endian machine, which is not supported")
    if not isinstance(keys, list) or any(type(key) is not str for key in keys) or set(keys) != set(storages):
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
