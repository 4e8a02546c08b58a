"""Compiled graphs of engine openvino come from the cache, and only those that are right."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from both import TWO_BLOCKS

from ckd_fast import EngineError, load_model, save_model
from ckd_fast.cache import Cache, user_cache
from ckd_fast.engines import Engine, build_engine
from ckd_fast.weights import LoadedModel

openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install 'ckd_fast[cpu]'")

from ckd_fast.engines.openvino import compiling  # noqa: E402
from ckd_fast.engines.openvino import engine as engine_module  # noqa: E402
from ckd_fast.engines.openvino.compiling import Compiler, weights_digest  # noqa: E402
from ckd_fast.engines.openvino.graph import template_graph  # noqa: E402
from ckd_fast.engines.openvino.runtime import openvino_core  # noqa: E402

PROPERTIES = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("CKD_FAST_CACHE", str(tmp_path / "cache"))
    return user_cache()


@pytest.fixture(scope="module")
def core() -> Any:
    return openvino_core()


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("random", TWO_BLOCKS, seed=3)


def maps(engine: Engine) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    template, search = (torch.randn(2, 1, 3, side, side, generator=generator) for side in (32, 80))
    return torch.cat([value.flatten() for value in dataclasses.astuple(engine.run_network(template, search))])


def never(*_arguments: object, **_options: object) -> NoReturn:
    pytest.fail("a graph was built")


def start(model: LoadedModel) -> Engine:
    return build_engine("openvino", model, "cpu", "float32")


def test_a_later_start_builds_no_graph(model: LoadedModel, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    right = maps(start(model))
    entries = {entry.about for entry in cache.entries()}
    version = openvino.get_version().partition("-")[0]
    assert f"48 channels, 2 blocks, f32, template, threads: all, openvino {version}, weights random" in entries
    for name in ("template_graph", "frame_graph"):
        monkeypatch.setattr(engine_module, name, never)
    assert torch.equal(maps(start(model)), right)
    assert {entry.about for entry in cache.entries()} == entries


def test_a_damaged_entry_is_compiled_anew(model: LoadedModel, cache: Cache) -> None:
    right = maps(start(model))
    for entry in cache.entries():
        data = bytearray(entry.path.read_bytes())
        data[len(data) // 2] ^= 1
        entry.path.write_bytes(data)
    assert torch.equal(maps(start(model)), right)
    assert all(cache.load(entry.path.stem) is not None for entry in cache.entries())


def test_what_openvino_refuses_is_compiled_anew(
    model: LoadedModel, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """Entries that are whole, and no compiled graphs."""
    right = maps(start(model))
    before = {entry.path: entry.about for entry in cache.entries()}
    for entry in cache.entries():
        cache.store(entry.path.stem, "poison", lambda body: body.write(b"RR_UPCVO" + bytes(1000)))
    assert torch.equal(maps(start(model)), right)
    assert len([record for record in caplog.records if "OpenVINO refuses" in record.getMessage()]) == len(before)
    assert {entry.path: entry.about for entry in cache.entries()} == before
    caplog.clear()
    assert torch.equal(maps(start(model)), right)
    assert caplog.records == []


def test_another_model_is_another_entry(model: LoadedModel, cache: Cache) -> None:
    """Down to one bit of one weight."""
    start(model)
    count = len(cache.entries())
    weights = {name: value.clone() for name, value in model.weights.items()}
    weights["head.score.4.bias"].view(torch.int32)[0] ^= 1
    start(dataclasses.replace(model, weights=weights))
    assert len(cache.entries()) == 2 * count


def test_the_key_covers_what_a_graph_depends_on(
    core: Any, model: LoadedModel, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(properties: dict[str, str | int] = PROPERTIES, graph: str = "frame", **changes: object) -> str:
        config = dataclasses.replace(model.config, **changes)  # type: ignore[arg-type]
        return Compiler(core, properties, model, cache)._key(graph, config)

    keys = [
        key(), key(graph="template"), key(elimination="none"), key(template_range="ALL"),
        key(PROPERTIES | {"INFERENCE_PRECISION_HINT": "bf16"}), key(PROPERTIES | {"INFERENCE_NUM_THREADS": 1}),
    ]  # fmt: skip
    assert key() == keys[0] == key(dict(reversed(PROPERTIES.items())))
    others: list[tuple[object, str, object]] = [
        (openvino, "get_version", lambda: "2031.1"),
        (torch.backends.cpu, "get_cpu_capability", lambda: "another"),
        (compiling, "_source", lambda: "changed"),
        (compiling, "__version__", "another"),
    ]
    for owner, name, value in others:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            keys.append(key())
    assert len(set(keys)) == len(keys)


def test_the_source_is_that_of_the_graph_and_of_the_reference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = compiling._source()
    for name in ("graph.py", "vit.py", "notes.txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(compiling.resources, "files", lambda _package: tmp_path)
    first = compiling._source()
    (tmp_path / "notes.txt").write_text("changed")
    assert compiling._source() == first != before
    (tmp_path / "vit.py").write_text("changed")
    assert compiling._source() != first


def test_the_digest_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the definition, and different for everything that differs."""
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.0), "c": torch.empty(0)}
    about = b'[["a", "torch.float32", [2, 3]], ["b", "torch.float32", []], ["c", "torch.float32", [0]]]'
    chunks = [about, weights["a"].numpy().tobytes(), weights["b"].numpy().tobytes()]
    digest = hashlib.sha256(b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)).hexdigest()
    assert weights_digest(weights) == digest
    transposed = weights | {"a": weights["a"].T.contiguous().T}  # another layout in memory, the same values
    assert weights_digest(transposed) == digest
    others = [
        weights | {"a": weights["a"].reshape(3, 2)},
        weights | {"a": weights["a"] + torch.eye(2, 3)},
        weights | {"b": torch.tensor(1.0, dtype=torch.bfloat16)},
        {"x": weights["a"], "b": weights["b"], "c": weights["c"]},
    ]
    assert len({digest, *map(weights_digest, others)}) == 5
    monkeypatch.setattr(compiling, "CHUNK", 5)
    by_chunks = [about, *(chunks[1][at : at + 5] for at in range(0, 24, 5)), chunks[2]]
    expected = hashlib.sha256(b"".join(hashlib.sha256(chunk).digest() for chunk in by_chunks)).hexdigest()
    assert weights_digest(weights) == expected


def test_requests_keep_the_memory_that_they_read(core: Any, model: LoadedModel, cache: Cache) -> None:
    """OpenVINO itself does not: without the reference, this reads memory that is gone."""
    images = torch.ones(2, 1, 3, 32, 32).numpy()
    compiler = Compiler(core, PROPERTIES, model, cache)

    def compiled() -> Any:
        return compiler("template", model.config, lambda: template_graph(model.student()))

    right = compiled().create_infer_request().infer([images])[0].copy()
    for _ in range(5):
        request = compiled().create_infer_request()
        cache.clear()
        gc.collect()
        assert (request.infer([images])[0] == right).all()
        compiled()  # stored again
    assert isinstance(compiled(), compiling.MappedModel)


def test_a_cache_that_is_off(model: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CKD_FAST_CACHE", "")
    monkeypatch.setattr(compiling, "weights_digest", never)
    assert maps(start(model)).isfinite().all()
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_does_no_harm(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CKD_FAST_CACHE", str(tmp_path / "file"))
    assert maps(start(model)).isfinite().all()
    assert len(caplog.records) == 2  # not used, not written; each once for two graphs
    assert all(f"the cache {tmp_path / 'file'}" in record.getMessage() for record in caplog.records)


def test_a_graph_that_openvino_refuses(core: Any, model: LoadedModel, cache: Cache) -> None:
    def refuse() -> NoReturn:
        raise RuntimeError("Check failed\nno such operation")

    with pytest.raises(EngineError, match="cannot compile the network: no such operation"):
        Compiler(core, PROPERTIES, model, cache)("template", model.config, refuse)
    assert cache.entries() == []


def test_a_copy_of_the_weights_meets_the_same_entries(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is by content, not by file."""
    right = maps(start(model))
    save_model(model, tmp_path / "copy.safetensors")
    for name in ("template_graph", "frame_graph"):
        monkeypatch.setattr(engine_module, name, never)
    assert torch.equal(maps(start(load_model(tmp_path / "copy.safetensors"))), right)
