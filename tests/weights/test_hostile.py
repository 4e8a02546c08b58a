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
from pathlib import Path

import pytest
import torch
from checkpoints import SMALL, authors_names, one_stream
from safetensors.torch import save_file

from ckd_fast import CkdFastError, CorruptWeightsError, MissingModelError, WeightsMismatchError, load_model, save_model
from ckd_fast.weights.files import open_weights

MARK = "ran"


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


def authors(path: Path, **changes: object) -> Path:
    """A sound checkpoint with some entries of the state dict replaced (None: removed)."""
    state: dict[str, object] = dict(authors_names(SMALL))
    for name, value in changes.items():
        key = name.replace("__", ".")
        state.pop(key) if value is None else state.update({key: value})
    torch.save({"net": state}, path)
    return path


def raw_zip(path: Path, data: bytes, *, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in entries.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", content)
    return path


def tensor_pickle(key: str, elements: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """{'net': {'rgb_branch.x': tensor}} with a tensor described by hand."""

    class Storage:
        pass

    class ByHand:
        def __reduce__(self) -> tuple[object, ...]:
            return (torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, OrderedDict()))

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, key, "cpu", elements) if isinstance(value, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"net": {"rgb_branch.x": ByHand()}})
    return buffer.getvalue()


def hostile_pickle(mark: Path, kind: str) -> object:
    touch = f"open({str(mark)!r}, 'w').close()"
    return {
        "system": Runs(os.system, f"touch {mark}"),
        "exec": Runs(exec, touch),
        "eval": Runs(eval, touch),
        "touch": Runs(Path.touch, mark),
        "state": RunsOnState(str(mark)),
        "nested": [{"deep": (Runs(exec, touch),)}],
        "process": Runs(subprocess.check_call, ["touch", str(mark)]),
    }[kind]


KINDS = ["system", "exec", "eval", "touch", "state", "nested", "process"]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_never_runs_code(tmp_path: Path, kind: str, *, legacy: bool) -> None:
    mark, path = tmp_path / MARK, tmp_path / "hostile.pth.tar"
    content = {"net": authors_names(SMALL), "settings": hostile_pickle(mark, kind)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_model(path, SMALL)  # the tensors are sound: only they are taken
    assert not mark.exists()
    assert loaded.provenance.not_loaded
    # The same file does run code in the ordinary unpickler: the test would notice.
    torch.load(path, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_in_place_of_the_tensors(tmp_path: Path, kind: str) -> None:
    mark, path = tmp_path / MARK, tmp_path / "hostile.pth.tar"
    for content in ({"net": hostile_pickle(mark, kind)}, hostile_pickle(mark, kind)):
        torch.save(content, path)
        with pytest.raises(CorruptWeightsError, match=r"hostile\.pth\.tar"):
            load_model(path, SMALL)
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(CorruptWeightsError, match=r"hostile\.pth\.tar"):
            load_model(path, SMALL)
    assert not mark.exists()


def test_a_pickle_cannot_rewrite_what_was_checked(tmp_path: Path) -> None:
    """BUILD on a tensor would change its size after the check."""
    good = tensor_pickle("0", 4, (4,), (1,))
    # ... (tensor) BUILD {'size': (10**12,)} before it is stored in the dict
    cut = good.rindex(b"R") + 1
    evil = good[:cut] + pickle.dumps({"size": (10**12,), "stride": (0,)}, protocol=2)[2:-1] + b"b" + good[cut:]
    path = raw_zip(tmp_path / "evil.pth", evil, data__0=bytes(range(16)))
    (tensor,) = open_weights(path).tensors.values()
    assert tensor.shape == (4,)


SOUND_PICKLE = tensor_pickle("0", 4, (4,), (1,))


def cut_short(path: Path, keep: float) -> Path:
    authors(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def flipped(path: Path) -> Path:
    authors(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF  # inside a tensor: only the checksum notices
    path.write_bytes(bytes(data))
    return path


def legacy_cut(path: Path) -> Path:
    torch.save({"net": authors_names(SMALL)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def safetensors_file(path: Path, **changes: object) -> Path:
    save_model(load_model("random", SMALL), path)
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path


def legacy_pickles(keys: bytes) -> bytes:
    """The five pickles of the older container, the last by hand."""
    first = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"net": {}}]
    return b"".join(pickle.dumps(part, protocol=2) for part in first) + keys


def many_names(path: Path) -> Path:
    tensor = torch.zeros(1 << 18)
    torch.save({"net": {f"rgb_branch.x{number}": tensor for number in range(500)}}, path)
    return path


def plain(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def torchscript(path: Path) -> Path:
    return raw_zip(path, SOUND_PICKLE, data__0=b"\0" * 16, constants__pkl=b"", **{"constants.pkl": b""})


NAN = torch.full((32,), float("nan"))
INFINITE = torch.full((32,), float("inf"))

BROKEN: dict[str, tuple[Callable[[Path], Path], type[CkdFastError], str]] = {
    "missing": (lambda p: p, MissingModelError, "no such file"),
    "directory": (lambda p: p.mkdir() or p, CorruptWeightsError, "a directory"),
    "empty": (lambda p: plain(p, b""), CorruptWeightsError, "empty"),
    "text": (lambda p: plain(p, b"<!DOCTYPE html><title>404"), CorruptWeightsError, "neither safetensors nor"),
    "one byte": (lambda p: plain(p, b"\x80"), CorruptWeightsError, "not a readable PyTorch checkpoint"),
    "cut in half": (lambda p: cut_short(p, 0.5), CorruptWeightsError, "truncated"),
    "single tensor": (lambda p: torch.save(torch.zeros(3), p) or p, CorruptWeightsError, "holds a single tensor"),
    "cut at the end": (lambda p: cut_short(p, 0.999), CorruptWeightsError, "truncated"),
    "flipped bit": (flipped, CorruptWeightsError, "CRC"),
    "legacy cut": (legacy_cut, CorruptWeightsError, "cut short"),
    "plain pickle": (lambda p: plain(p, pickle.dumps({"net": 1})), CorruptWeightsError, "without torch.save's marks"),
    "zip of something": (
        lambda p: raw_zip(p, b"").rename(p) and _other_zip(p),
        CorruptWeightsError,
        "expected one data",
    ),
    "compressed zip": (
        lambda p: raw_zip(p, SOUND_PICKLE, compression=zipfile.ZIP_DEFLATED, data__0=b"\0" * 16),
        CorruptWeightsError,
        "compressed",
    ),
    "torchscript": (torchscript, CorruptWeightsError, "TorchScript"),
    "pickle without end": (lambda p: raw_zip(p, SOUND_PICKLE[:-1]), CorruptWeightsError, "pickle"),
    "memo bomb": (
        lambda p: raw_zip(p, b"\x80\x02}r\xff\xff\xff\x7f."),
        CorruptWeightsError,
        "no tensors",
    ),
    "nested beyond any stack": (
        lambda p: raw_zip(p, b"}" + b")" + b"\x85" * 150_000 + b"K\x01s."),
        CorruptWeightsError,
        "no tensors",
    ),
    "a key that hashes for ever": (
        lambda p: raw_zip(p, b"}" + b")" + b"2\x86" * 60 + b"K\x01s."),
        CorruptWeightsError,
        "no tensors",
    ),
    "legacy keys that print for ever": (
        lambda p: plain(p, legacy_pickles(b"]" + b")" + b"2\x86" * 60 + b"a.")),
        CorruptWeightsError,
        "list of storages",
    ),
    "millions of objects": (lambda p: raw_zip(p, b"\x8f" * 4_000_000 + b"."), CorruptWeightsError, "instructions"),
    "one huge size, many times": (
        lambda p: raw_zip(p, b"(" + b"ctorch\nSize\n(" + b"]" + b"K\x01a" * 50_000 + b"tR" + b"t."),
        CorruptWeightsError,
        "short tuple",
    ),
    "many names for the same bytes": (many_names, CorruptWeightsError, "more than the file has"),
    "a name that moves the cursor": (
        lambda p: torch.save({"net": {"\x1b[2J": torch.zeros(3)}}, p) or p,
        CorruptWeightsError,
        "no tensor's name",
    ),
    "an endless whole number": (
        lambda p: raw_zip(p, b"}" + pickle.dumps(1 << 40_000, protocol=2)[2:-1] + b"K\x01s."),
        CorruptWeightsError,
        "no tensors",
    ),
    "position table of rank 1": (
        lambda p: torch.save({"net": one_stream(SMALL) | {"backbone.pos_embed_z": torch.zeros(64)}}, p) or p,
        WeightsMismatchError,
        "position table has shape",
    ),
    "one position table": (
        lambda p: torch.save({"net": {k: v for k, v in one_stream(SMALL).items() if "embed_x" not in k}}, p) or p,
        WeightsMismatchError,
        "pos_embed_x is missing",
    ),
    "head convolution of rank 1": (
        lambda p: torch.save({"net": one_stream(SMALL) | {"box_head.conv1_ctr.0.weight": torch.zeros(9)}}, p) or p,
        WeightsMismatchError,
        "expected a convolution's",
    ),
    "float8": (
        lambda p: save_file({"rgb.patch_embed.weight": torch.zeros(3).to(torch.float8_e4m3fn)}, p) or p,
        CorruptWeightsError,
        "16 to 64 bits",
    ),
    "metadata with an endless number": (
        lambda p: safetensors_file(p, config='{"search_factor": 1' + "0" * 400 + "}"),
        CorruptWeightsError,
        "search_factor",
    ),
    "metadata with a crop of the universe": (
        lambda p: safetensors_file(p, config='{"search_factor": 1e30}'),
        CorruptWeightsError,
        r"\(0, 16\]",
    ),
    "extension code": (lambda p: raw_zip(p, b"\x80\x02\x82\x01."), CorruptWeightsError, "EXT1"),
    "storage too short": (lambda p: raw_zip(p, SOUND_PICKLE, data__0=b"\0" * 12), CorruptWeightsError, "12 bytes"),
    "storage missing": (lambda p: raw_zip(p, SOUND_PICKLE), CorruptWeightsError, "data/0"),
    "tensor beyond its storage": (
        lambda p: raw_zip(p, tensor_pickle("0", 4, (5,), (1,)), data__0=b"\0" * 16),
        CorruptWeightsError,
        "does not fit its storage of 4",
    ),
    "strided beyond its storage": (
        lambda p: raw_zip(p, tensor_pickle("0", 4, (2,), (4,)), data__0=b"\0" * 16),
        CorruptWeightsError,
        "does not fit",
    ),
    "negative offset": (
        lambda p: raw_zip(p, tensor_pickle("0", 4, (2,), (1,), -2), data__0=b"\0" * 16),
        CorruptWeightsError,
        "torch does not write",
    ),
    "expanded without end": (
        lambda p: raw_zip(p, tensor_pickle("0", 4, (10**12,), (0,)), data__0=b"\0" * 16),
        CorruptWeightsError,
        "does not fit",
    ),
    "storage larger than the file": (
        lambda p: raw_zip(p, tensor_pickle("0", 10**12, (1,), (1,)), data__0=b"\0" * 16),
        CorruptWeightsError,
        "more bytes than the file has",
    ),
    "list instead of a dict": (lambda p: torch.save([1, 2], p) or p, CorruptWeightsError, "holds a list"),
    "no tensors": (lambda p: torch.save({"epoch": 3}, p) or p, CorruptWeightsError, "no tensors under net"),
    "number among the tensors": (
        lambda p: authors(p, tir_branch__norm__weight=3.0),
        CorruptWeightsError,
        "tir_branch.norm.weight is a float",
    ),
    "not finite": (lambda p: authors(p, tir_branch__norm__weight=NAN), CorruptWeightsError, "32 of 32 values"),
    "infinite": (lambda p: authors(p, rgb_branch__norm__bias=INFINITE), CorruptWeightsError, "not finite"),
    "integers": (
        lambda p: authors(p, rgb_branch__norm__bias=torch.zeros(32, dtype=torch.int32)),
        CorruptWeightsError,
        "expected a floating-point",
    ),
    "negative variance": (
        lambda p: authors(p, box_head__conv1_ctr__1__running_var=-torch.ones(16)),
        CorruptWeightsError,
        "variance",
    ),
    "overflow in float64": (
        lambda p: authors(p, rgb_branch__norm__bias=torch.full((32,), 1e300, dtype=torch.float64)),
        CorruptWeightsError,
        "not finite",
    ),
    "tensor missing": (
        lambda p: authors(p, tir_branch__blocks__1__mlp__fc2__bias=None),
        WeightsMismatchError,
        r"missing 1 of \d+: tir\.blocks\.1\.fc2\.bias",
    ),
    "patch embedding missing": (
        lambda p: authors(p, rgb_branch__patch_embed__proj__weight=None),
        WeightsMismatchError,
        "rgb.patch_embed.weight is missing",
    ),
    "tensor too many": (
        lambda p: authors(p, rgb_branch__extra__weight=torch.zeros(3)),
        WeightsMismatchError,
        "1 tensors that such a model does not: rgb_branch.extra.weight",
    ),
    "wrong shape": (
        lambda p: authors(p, tir_branch__norm__weight=torch.zeros(33)),
        WeightsMismatchError,
        r"tir\.norm\.weight is \(33,\), expected \(32,\)",
    ),
    "wrong rank": (
        lambda p: authors(p, rgb_branch__patch_embed__proj__weight=torch.zeros(32, 3)),
        WeightsMismatchError,
        "expected 4 axes",
    ),
    "positions not square": (
        lambda p: authors(p, rgb_branch__pos_embed_x=torch.zeros(1, 255, 32)),
        WeightsMismatchError,
        "not a square grid",
    ),
    "another model": (
        lambda p: torch.save({"net": {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(3)}}, p) or p,
        WeightsMismatchError,
        r"not a model that ckd_fast knows.*conv1\.weight, fc\.bias",
    ),
    "safetensors cut": (
        lambda p: plain(p, safetensors_file(p).read_bytes()[:-50]),
        CorruptWeightsError,
        "safetensors",
    ),
    "safetensors with a giant header": (
        lambda p: plain(p, struct.pack("<Q", 2**60) + b"{" + b" " * 100),
        CorruptWeightsError,
        "safetensors",
    ),
    "safetensors of another model": (
        lambda p: save_file({"weight": torch.zeros(3)}, p) or p,
        WeightsMismatchError,
        "not a model that ckd_fast knows",
    ),
    "metadata that is not JSON": (lambda p: safetensors_file(p, config="{"), CorruptWeightsError, "not JSON"),
    "metadata that is no object": (lambda p: safetensors_file(p, config="[]"), CorruptWeightsError, "JSON object"),
    "metadata with unknown sizes": (
        lambda p: safetensors_file(p, config='{"width": 3}'),
        CorruptWeightsError,
        "unknown setting 'width'",
    ),
    "metadata that lies": (
        lambda p: safetensors_file(p, config=json.dumps({"dim": 64, "depth": 2, "heads": 2, "eliminate_at": [1]})),
        WeightsMismatchError,
        r"by its tensors dim=32 \(expected 64\)",
    ),
    "a future format": (lambda p: safetensors_file(p, format_version="9"), WeightsMismatchError, "reads version 1"),
}


def _other_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "weights are elsewhere")
    return path


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path: Path, name: str) -> None:
    make, error, message = BROKEN[name]
    path = make(tmp_path / "broken.weights")
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
