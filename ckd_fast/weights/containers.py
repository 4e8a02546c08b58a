"""Reads the files that torch.save writes: the zip of torch >= 1.6, and the stream of pickles before it.

Every file is untrusted: `pickles` runs the pickle, and sizes are checked against the file before memory is taken.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from ckd_fast.errors import CorruptWeightsError

from .pickles import PickleMachine, StorageRef

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE_BYTES = 16 << 20  # the objects beside the tensors; published files have less than 1 MiB


@dataclass(frozen=True)
class Checkpoint:
    """The pickled object, with a `TensorRef` for each tensor, and the names of the classes that were not loaded."""

    content: object
    placeholders: tuple[str, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """The object that torch.save wrote, from either container."""
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


def _read_zip(path: Path) -> Checkpoint:
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
        machine = PickleMachine(storages)
        content, _ = machine.run(archive.read(pickles[0]))
        if sum(storage.elements * storage.dtype.itemsize for storage in storages.values()) > path.stat().st_size:
            raise CorruptWeightsError(f"{path}: its tensors need more bytes than the file has")
        for key, storage in storages.items():
            data = archive.read(f"{root}data/{key}")  # checks its CRC
            expected = storage.elements * storage.dtype.itemsize
            if len(data) != expected:
                raise CorruptWeightsError(f"{path}: data/{key} has {len(data)} bytes, expected {expected}")
            _attach(storage, data)
    return Checkpoint(content, tuple(sorted(machine.placeholders)))


def _read_legacy(path: Path) -> Checkpoint:
    """Five pickles (magic number, protocol, machine, object, storage keys), then each storage's length and bytes."""
    data = path.read_bytes()
    if data.startswith(b"PK"):
        raise CorruptWeightsError(f"{path}: truncated, its archive has no end (an incomplete download?)")
    storages: dict[str, StorageRef] = {}
    position = 0
    parts: list[object] = []
    placeholders: set[str] = set()
    for expected in (LEGACY_MAGIC, LEGACY_PROTOCOL, None, None, None):
        machine = PickleMachine(storages)
        part, length = machine.run(data[position : position + MAX_PICKLE_BYTES])
        if expected is not None and (type(part) is not int or part != expected):
            raise CorruptWeightsError(f"{path}: not a PyTorch checkpoint (a pickle without torch.save's marks)")
        parts.append(part)
        placeholders |= machine.placeholders
        position += length
    written_on, content, keys = parts[2:]
    if isinstance(written_on, dict) and written_on.get("little_endian") is False:
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
    return Checkpoint(content, tuple(sorted(placeholders)))


def _attach(storage: StorageRef, data: bytes) -> None:
    empty = torch.empty(0, dtype=storage.dtype)
    storage.data.append(torch.frombuffer(bytearray(data), dtype=storage.dtype) if data else empty)
