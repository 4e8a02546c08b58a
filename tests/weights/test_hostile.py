"""Broken and hostile files: none runs code, none loads, each is refused with the file's name and the reason."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SMALL, authors_names, one_stream
from safetensors.torch import save_file

from ckd_fast import (
    CkdFastError,
    CorruptWeightsError,
    MissingModelError,
    ModelConfig,
    WeightsMismatchError,
    load_model,
    save_model,
)
from ckd_fast.weights.files import open_weights


class Runs:
    """Unpickling this calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


class RunsOnState:
    """Unpickling this hands a state to a function."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (OrderedDict, (), {"a": Runs(Path.touch, Path(self.mark))})


def raw_zip(path: Path, data: bytes, *, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in entries.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", content)
    return path


def tensor_pickle(elements: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """{'net': {'rgb_branch.x': tensor}} with a tensor described by hand."""

    class Storage:
        pass

    class ByHand:
        def __reduce__(self) -> tuple[object, ...]:
            return (torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, OrderedDict()))

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", elements) if isinstance(value, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"net": {"rgb_branch.x": ByHand()}})
    return buffer.getvalue()


SOUND_PICKLE = tensor_pickle(4, (4,), (1,))


HOSTILE: dict[str, Callable[[Path], object]] = {
    "system": lambda mark: Runs(os.system, f"touch {mark}"),
    "exec": lambda mark: Runs(exec, f"open({str(mark)!r}, 'w').close()"),
    "eval": lambda mark: Runs(eval, f"open({str(mark)!r}, 'w').close()"),
    "touch": lambda mark: Runs(Path.touch, mark),
    "state": lambda mark: RunsOnState(str(mark)),
    "nested": lambda mark: [{"deep": (Runs(exec, f"open({str(mark)!r}, 'w').close()"),)}],
    "process": lambda mark: Runs(subprocess.check_call, ["touch", str(mark)]),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_pickle_never_runs_code(tmp_path: Path, kind: str, *, legacy: bool) -> None:
    mark, path = tmp_path / "ran", tmp_path / "hostile.pth.tar"
    content = {"net": authors_names(SMALL), "settings": HOSTILE[kind](mark)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_model(path, SMALL)  # the tensors are sound: only they are taken
    assert not mark.exists()
    assert loaded.provenance.not_loaded
    # The same file does run code in the ordinary unpickler: the test would notice.
    torch.load(path, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_pickle_in_place_of_the_tensors(tmp_path: Path, kind: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / "hostile.pth.tar"
    hostile = HOSTILE[kind](mark)
    for content in ({"net": hostile}, hostile):
        for make in (saved(content), plain(pickle.dumps(content))):
            make(path)
            with pytest.raises(CorruptWeightsError, match=r"hostile\.pth\.tar"):
                load_model(path, SMALL)
    assert not mark.exists()


def test_a_pickle_cannot_rewrite_what_was_checked(tmp_path: Path) -> None:
    """BUILD on a tensor would change its size after the check."""
    # ... (tensor) BUILD {'size': (10**12,)} before it is stored in the dict
    cut = SOUND_PICKLE.rindex(b"R") + 1
    state = pickle.dumps({"size": (10**12,), "stride": (0,)}, protocol=2)[2:-1]
    evil = SOUND_PICKLE[:cut] + state + b"b" + SOUND_PICKLE[cut:]
    path = raw_zip(tmp_path / "evil.pth", evil, data__0=bytes(range(16)))
    (tensor,) = open_weights(path).tensors.values()
    assert tensor.shape == (4,)


Make = Callable[[Path], object]
SIXTEEN = b"\0" * 16  # bytes of a sound storage
NAN = torch.full((32,), float("nan"))
INFINITE = torch.full((32,), float("inf"))


def plain(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def saved(content: object) -> Make:
    return lambda path: torch.save(content, path)


def tensors(**values: torch.Tensor) -> Make:
    return lambda path: save_file({name.replace("__", "."): value for name, value in values.items()}, path)


def zipped(data: bytes, **entries: bytes) -> Make:
    return lambda path: raw_zip(path, data, **entries)


def described(*tensor: Any) -> Make:
    """A tensor described by hand over a storage of 16 bytes."""
    return zipped(tensor_pickle(*tensor), data__0=SIXTEEN)


def checkpoint(names: Callable[[ModelConfig], dict[str, object]], **changes: object) -> Make:
    """A sound checkpoint with some entries replaced (None: removed)."""
    changed = {name.replace("__", "."): value for name, value in changes.items()}

    def make(path: Path) -> None:
        state = names(SMALL) | changed
        torch.save({"net": {name: value for name, value in state.items() if value is not None}}, path)

    return make


ckd, ostrack = partial(checkpoint, authors_names), partial(checkpoint, one_stream)


def ours(**metadata: object) -> Make:
    """A file of this package, with other metadata."""

    def make(path: Path) -> None:
        save_model(load_model("random", SMALL), path)
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        header["__metadata__"] |= metadata
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return make


def changed(make: Make, change: Callable[[bytes], bytes]) -> Make:
    """A sound file whose bytes are changed."""

    def both(path: Path) -> None:
        make(path)
        path.write_bytes(change(path.read_bytes()))

    return both


def flip_the_middle(data: bytes) -> bytes:
    """Inside a tensor: only the checksum notices."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def legacy(path: Path) -> None:
    torch.save({"net": authors_names(SMALL)}, path, _use_new_zipfile_serialization=False)


def legacy_pickles(keys: bytes) -> bytes:
    """The five pickles of the older container, the last by hand."""
    first = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"net": {}}]
    return b"".join(pickle.dumps(part, protocol=2) for part in first) + keys


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "weights are elsewhere")


CORRUPT: dict[str, tuple[Make, str]] = {
    "directory": (Path.mkdir, "a directory"),
    "empty": (plain(b""), "empty"),
    "text": (plain(b"<!DOCTYPE html><title>404"), "neither safetensors nor"),
    "one byte": (plain(b"\x80"), "not a readable PyTorch checkpoint"),
    "cut in half": (changed(ckd(), lambda data: data[: len(data) // 2]), "truncated"),
    "single tensor": (saved(torch.zeros(3)), "holds a single tensor"),
    "cut at the end": (changed(ckd(), lambda data: data[: int(len(data) * 0.999)]), "truncated"),
    "flipped bit": (changed(ckd(), flip_the_middle), "CRC"),
    "legacy cut": (changed(legacy, lambda data: data[:-100]), "cut short"),
    "plain pickle": (plain(pickle.dumps({"net": 1})), "without torch.save's marks"),
    "zip of something": (other_zip, "expected one data"),
    "compressed zip": (
        lambda path: raw_zip(path, SOUND_PICKLE, compression=zipfile.ZIP_DEFLATED, data__0=SIXTEEN),
        "compressed",
    ),
    "torchscript": (
        zipped(SOUND_PICKLE, data__0=SIXTEEN, constants__pkl=b"", **{"constants.pkl": b""}),
        "TorchScript",
    ),
    "pickle without end": (zipped(SOUND_PICKLE[:-1]), "pickle"),
    "memo bomb": (zipped(b"\x80\x02}r\xff\xff\xff\x7f."), "no tensors"),
    "nested beyond any stack": (zipped(b"})" + b"\x85" * 150_000 + b"K\x01s."), "no tensors"),
    "a key that hashes for ever": (zipped(b"})" + b"2\x86" * 60 + b"K\x01s."), "no tensors"),
    "legacy keys that print for ever": (plain(legacy_pickles(b"])" + b"2\x86" * 60 + b"a.")), "list of storages"),
    "millions of objects": (zipped(b"\x8f" * 4_000_000 + b"."), "instructions"),
    "one huge size, many times": (zipped(b"(ctorch\nSize\n(]" + b"K\x01a" * 50_000 + b"tRt."), "short tuple"),
    "many names for the same bytes": (
        lambda path: torch.save(
            {"net": dict.fromkeys(map("rgb_branch.x{}".format, range(500)), torch.zeros(1 << 18))}, path
        ),
        "more than the file has",
    ),
    "a name that moves the cursor": (saved({"net": {"\x1b[2J": torch.zeros(3)}}), "no tensor's name"),
    "an endless whole number": (zipped(b"}" + pickle.dumps(1 << 40_000, protocol=2)[2:-1] + b"K\x01s."), "no tensors"),
    "float8": (tensors(rgb__patch_embed__weight=torch.zeros(3).to(torch.float8_e4m3fn)), "16 to 64 bits"),
    "metadata with an endless number": (ours(config='{"search_factor": 1' + "0" * 400 + "}"), "search_factor"),
    "metadata with a crop of the universe": (ours(config='{"search_factor": 1e30}'), r"\(0, 16\]"),
    "extension code": (zipped(b"\x80\x02\x82\x01."), "EXT1"),
    "storage too short": (zipped(SOUND_PICKLE, data__0=bytes(12)), "12 bytes"),
    "storage missing": (zipped(SOUND_PICKLE), "data/0"),
    "tensor beyond its storage": (described(4, (5,), (1,)), "does not fit its storage of 4"),
    "strided beyond its storage": (described(4, (2,), (4,)), "does not fit"),
    "negative offset": (described(4, (2,), (1,), -2), "torch does not write"),
    "expanded without end": (described(4, (10**12,), (0,)), "does not fit"),
    "storage larger than the file": (described(10**12, (1,), (1,)), "more bytes than the file has"),
    "list instead of a dict": (saved([1, 2]), "holds a list"),
    "no tensors": (saved({"epoch": 3}), "no tensors under net"),
    "number among the tensors": (ckd(tir_branch__norm__weight=3.0), "tir_branch.norm.weight is a float"),
    "not finite": (ckd(tir_branch__norm__weight=NAN), "32 of 32 values"),
    "infinite": (ckd(rgb_branch__norm__bias=INFINITE), "not finite"),
    "integers": (ckd(rgb_branch__norm__bias=torch.zeros(32, dtype=torch.int32)), "expected a floating-point"),
    "negative variance": (ckd(box_head__conv1_ctr__1__running_var=-torch.ones(16)), "variance"),
    "overflow in float64": (ckd(rgb_branch__norm__bias=torch.full((32,), 1e300, dtype=torch.float64)), "not finite"),
    "safetensors cut": (changed(ours(), lambda data: data[:-50]), "safetensors"),
    "safetensors with a giant header": (plain(struct.pack("<Q", 2**60) + b"{" + b" " * 100), "safetensors"),
    "metadata that is not JSON": (ours(config="{"), "not JSON"),
    "metadata that is no object": (ours(config="[]"), "JSON object"),
    "metadata with unknown sizes": (ours(config='{"width": 3}'), "unknown setting 'width'"),
}
OTHER_SIZES = json.dumps({"dim": 64, "depth": 2, "heads": 2, "eliminate_at": [1]})
MISMATCHED: dict[str, tuple[Make, str]] = {
    "position table of rank 1": (ostrack(backbone__pos_embed_z=torch.zeros(64)), "position table has shape"),
    "one position table": (ostrack(backbone__pos_embed_x=None), "pos_embed_x is missing"),
    "head convolution of rank 1": (
        ostrack(box_head__conv1_ctr__0__weight=torch.zeros(9)),
        "expected a convolution's",
    ),
    "tensor missing": (
        ckd(tir_branch__blocks__1__mlp__fc2__bias=None),
        r"missing 1 of \d+: tir\.blocks\.1\.fc2\.bias",
    ),
    "patch embedding missing": (
        ckd(rgb_branch__patch_embed__proj__weight=None),
        "rgb.patch_embed.weight is missing",
    ),
    "tensor too many": (
        ckd(rgb_branch__extra__weight=torch.zeros(3)),
        "1 tensors that such a model does not: rgb_branch.extra.weight",
    ),
    "wrong shape": (
        ckd(tir_branch__norm__weight=torch.zeros(33)),
        r"tir\.norm\.weight is \(33,\), expected \(32,\)",
    ),
    "wrong rank": (ckd(rgb_branch__patch_embed__proj__weight=torch.zeros(32, 3)), "expected 4 axes"),
    "positions not square": (ckd(rgb_branch__pos_embed_x=torch.zeros(1, 255, 32)), "not a square grid"),
    "another model": (
        saved({"net": {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(3)}}),
        r"not a model that ckd_fast knows.*conv1\.weight, fc\.bias",
    ),
    "safetensors of another model": (tensors(weight=torch.zeros(3)), "not a model that ckd_fast knows"),
    "metadata that lies": (ours(config=OTHER_SIZES), r"by its tensors dim=32 \(expected 64\)"),
    "a future format": (ours(format_version="9"), "reads version 1"),
}
BROKEN: dict[str, tuple[Make, str, type[CkdFastError]]] = {
    "missing": (lambda _path: None, "no such file", MissingModelError),
    **{name: (*case, CorruptWeightsError) for name, case in CORRUPT.items()},
    **{name: (*case, WeightsMismatchError) for name, case in MISMATCHED.items()},
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path: Path, name: str) -> None:
    make, message, error = BROKEN[name]
    path = tmp_path / "broken.weights"
    make(path)
    with pytest.raises(error, match=message) as caught:
        load_model(path, None if name.startswith("metadata") else SMALL)
    assert "broken.weights" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_path(tmp_path: Path) -> None:
    with pytest.raises(CkdFastError, match="x"):
        load_model(tmp_path / ("x" * 300))
    with pytest.raises(CkdFastError, match=r"null|no such file"):
        load_model("bad\0name")


def test_names_of_placeholders_do_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    """A class may be called anything; what is reported is short and printable."""
    evil = b"}X\x01\x00\x00\x00xc\x1b[31mboo\x07" + b"k" * 500 + b"\nname\n)Rs" + SOUND_PICKLE[2:-1] + b"0."
    path = raw_zip(tmp_path / "evil.pth", evil, data__0=b"\0" * 16)
    with pytest.raises(CorruptWeightsError, match="no tensors"):
        load_model(path, SMALL)
    from ckd_fast.weights.containers import read_checkpoint

    (name,) = read_checkpoint(path).placeholders
    assert name.isprintable()
    assert name.startswith("\\x1b[31mboo\\x07")
    assert len(name) < 120


def test_reading_changes_nothing_global(tmp_path: Path) -> None:
    """BUILD on what stands for torch's functions must not reach ours."""
    from ckd_fast.weights import pickles

    before = (pickles._tensor.__defaults__, dict(vars(pickles._tensor)))
    state = pickle.dumps({"__defaults__": (1, 2), "owned": True}, protocol=2)[2:-1]
    evil = b"}ctorch._utils\n_rebuild_tensor_v2\n" + state + b"b0."
    with pytest.raises(CorruptWeightsError):
        load_model(raw_zip(tmp_path / "evil.pth", evil), SMALL)
    assert (pickles._tensor.__defaults__, dict(vars(pickles._tensor))) == before
