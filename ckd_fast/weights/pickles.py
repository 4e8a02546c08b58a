"""Runs a pickle without running what is pickled in it.

A pickle is a program: it may import any function and call it. The authors' checkpoints pickle settings and statistics
objects beside the tensors, so refusing unknown classes (as torch's `weights_only` does) would refuse the files.
Python's own unpickler is not used at all: a small machine of ours runs the opcodes on plain containers. It imports
nothing and calls nothing. An object of an unknown class becomes an inert placeholder, and the class's name is reported.

`containers` reads the files that hold such pickles.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass, field

import torch
from torch import Tensor

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
    """Stands for an object of a class that is not loaded; nothing of it is kept."""


INERT = Inert()


@dataclass(frozen=True)
class Global:
    """A class or function that the pickle names; never looked up."""

    module: str
    name: str


@dataclass(frozen=True)
class StorageRef:
    """Typed bytes that tensors are views of; they are added to `data` when they have been read."""

    dtype: torch.dtype
    elements: int
    data: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class TensorRef:
    """A view of a storage; it becomes a tensor once the bytes are there."""

    storage: StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize

    def tensor(self) -> Tensor:
        """A contiguous copy."""
        view = self.storage.data[0].as_strided(self.size, self.stride, self.offset)
        return view.clone(memory_format=torch.contiguous_format)


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
    """Set an entry of a dict. Only names and numbers are kept as keys: hashing others may run for ever."""
    if isinstance(target, dict) and type(key) in (str, int):
        target[key] = value


class PickleMachine:
    """Runs the opcodes of a pickle on plain containers.

    It looks up no class and calls no function. What the pickle would import is a `Global`; what it would make is a
    `TensorRef`, a dict or `INERT`. Every opcode adds at most one small object, and their number is bounded.
    Storages that the pickle's tensors use are added to `storages` by their keys.
    """

    def __init__(self, storages: dict[str, StorageRef]) -> None:
        self._storages = storages
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}
        self.placeholders: set[str] = set()

    def run(self, data: bytes) -> tuple[object, int]:
        """The object of the first pickle in the data, and the pickle's length."""
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
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
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
                values = self._since_mark()
                stack.append({})
                self._set_items(stack[-1], values)
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
            case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
                if name == "NEWOBJ_EX":
                    stack.pop()  # keyword arguments
                arguments, called = stack.pop(), stack.pop()
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
        """What calling it would give, for the few functions that matter."""
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
