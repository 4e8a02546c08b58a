"""Engine onnx with files that were just exported, against the reference."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from both import BOX, BOXES, Both, frames
from exports import ANY_NUMBER, CASES, PLAIN, THREE, Case, Made, changed, copied, describe_again
from support import GOLDEN_CONFIG, ROOT, Golden, assert_as_exact
from torch import Tensor, nn

from ckd_fast import (
    CorruptWeightsError,
    EngineError,
    InputError,
    LoadedModel,
    MultiTracker,
    Tracker,
    WeightsMismatchError,
    load_model,
)
from ckd_fast.engines import Engine, build_engine
from ckd_fast.engines.host import ReferenceEngine
from ckd_fast.exporting import export_model, export_network
from ckd_fast.reference.boxes import find_peak, hann_window
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.preprocess import normalise
from ckd_fast.weights import open_model
from ckd_fast.weights.exported import Port, Ports

Exports = Callable[[Case], Made]
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'ckd_fast[onnx]'")
CPU = torch.device("cpu")


def engine(made: Made) -> Engine:
    return build_engine("auto", open_model(made.path), "cpu")


def both(made: Made, loaded: LoadedModel | None = None) -> Both:
    return Both(engine(made), ReferenceEngine(loaded or made.model, CPU, torch.float32), limit=0.01)


def pixels(count: int, side: int, seed: int) -> Tensor:
    """Random crops [2, B, side, side, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (2, count, side, side, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_maps_are_the_references(exported: Exports, case: Case) -> None:
    """As close to float64 as PyTorch's float32, with all three eliminations."""
    made = exported(case)
    config = case.config
    template, search = (normalise(pixels(3, side, side)) for side in (config.template_size, config.search_size))
    template, search = (value[:, : 1 if case.targets == 1 else 3] for value in (template, search))
    engines = (engine(made), *(ReferenceEngine(made.model, CPU, t) for t in (torch.float32, torch.float64)))
    ours, plain, exact = (
        each.run_network(template.to(each.dtype), search.to(each.dtype)) for each in engines
    )  # fmt: skip
    for name in ("score", "size", "offset"):
        assert_as_exact(*(getattr(maps, name).double() for maps in (ours, plain, exact)))


@pytest.mark.parametrize("missing", ["rgb", "tir"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_missing_modality(exported: Exports, case: Case, missing: str) -> None:
    engines = both(exported(case))
    engines.agree(dataclasses.replace(frames(1), **{missing: None}), (engines.target(), BOX))


@pytest.mark.parametrize("template_range", ["ALL", "CTR_REC", "GT_BOX"])
def test_template_ranges(exported: Exports, tmp_path: Path, template_range: str) -> None:
    """Which tokens decide is an input of the graph."""
    made = copied(exported(PLAIN), tmp_path)
    config = dataclasses.replace(PLAIN.config, template_range=template_range)
    describe_again(made, config=json.dumps(config.to_dict()))
    engines = both(made, dataclasses.replace(made.model, config=config))
    assert engines.ours.config == config
    engines.agree(frames(1), (engines.target(), BOX))


def test_any_number_of_targets(exported: Exports) -> None:
    engines = both(exported(ANY_NUMBER))
    assert engines.ours.most_targets == 64  # in one call
    targets = [engines.target(BOXES[i % 3]) for i in range(5)]
    for count in (1, 3, 5, 2):
        engines.agree(frames(count), *((target, BOXES[i % 3]) for i, target in enumerate(targets[:count])))


def test_a_fixed_number_of_targets(exported: Exports) -> None:
    """Fewer are filled up, more take several calls."""
    engines = both(exported(THREE))
    targets = [engines.target(box) for box in BOXES]
    for count in (1, 2, 3):
        engines.agree(frames(count), *zip(targets[:count], BOXES[:count], strict=True))
    boxes = [BOXES[i % 3] for i in range(7)]
    found = []
    for one in (engines.ours, engines.plain):
        tracker = MultiTracker(engine=one)
        tracker.init(frames().rgb, frames().tir, boxes)
        found.append([result.box for result in tracker.update(frames(1).rgb, frames(1).tir).values()])
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, abs=0.01)


def test_trackers_and_threads_share_an_engine(exported: Exports) -> None:
    shared = engine(exported(PLAIN))

    def track(number: int) -> list[tuple[float, ...]]:
        tracker = Tracker(engine=shared)
        tracker.init(frames().rgb, frames().tir, BOXES[number])
        return [tracker.update(frames(i).rgb, frames(i).tir).box for i in range(1, 5)]

    alone = [track(number) for number in range(3)]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(track, range(3))) == alone
    assert len({boxes[-1] for boxes in alone}) == 3


def test_the_authors_track(tmp_path: Path) -> None:
    """Within a hundredth of a pixel over all frames."""
    golden = Golden("ckd_small_track.npz")
    torch.save({"net": golden.authors_weights()}, tmp_path / "w.pth.tar")
    export_model(load_model(tmp_path / "w.pth.tar", GOLDEN_CONFIG), tmp_path / "golden.onnx")
    tracker = Tracker(tmp_path / "golden.onnx")
    rgb, tir, boxes = golden["rgb"], golden["tir"], golden["mce/boxes"]
    tracker.init(rgb[0], tir[0], golden["init_box"].tolist())
    for index in range(1, len(boxes)):
        assert tracker.update(rgb[index], tir[index]).box == pytest.approx(boxes[index].tolist(), abs=0.01)


def test_what_the_file_brings(exported: Exports) -> None:
    made = exported(PLAIN)
    tracker = Tracker(made.path)
    assert str(tracker.engine) == "onnx on CPUExecutionProvider, float32"
    assert tracker.lost_threshold == 0.25
    assert tracker.engine.config == PLAIN.config
    found = open_model(made.path)
    assert (found.provenance.source, found.provenance.seed) == ("model.onnx", 3)
    assert found.provenance.kind == "exported in float32 from random (random weights, seed 3)"


def test_files_tell_nothing_of_this_machine(exported: Exports) -> None:
    for case in CASES:
        made = exported(case)
        for file in (made.path, made.template):
            content = file.read_bytes()
            assert b"ckd_fast.config" in content
            for part in (b".py", str(ROOT).encode(), sys.prefix.encode(), str(file.parent).encode()):
                assert part not in content


def test_the_graph_alone(exported: Exports) -> None:
    """Boxes, scores and cells are the reference's of the same maps; a missing crop may hold anything."""
    made = exported(ANY_NUMBER)
    config = ANY_NUMBER.config
    session = ort.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    search = normalise(pixels(2, config.search_size, 7)).numpy()
    present = np.array([[True, False], [True, True]])
    inputs = {
        "template": np.random.default_rng(5).normal(size=(2, 2, config.template_tokens, config.dim)).astype(np.float32),
        "search": search,
        "deciding": np.ones((2, config.template_tokens), bool),
        "present": present,
    }
    score_map, size_map, offset_map, box, score, cell = map(torch.from_numpy, session.run(None, inputs))
    peak = find_peak(HeadMaps(score_map, size_map, offset_map), hann_window(config.search_grid))
    assert torch.equal(cell, peak.cell)
    assert torch.equal(score, peak.score)
    assert torch.allclose(box, peak.boxes_cxcywh, rtol=0, atol=1e-6)
    student = made.model.student()
    with torch.inference_mode():
        shown = torch.from_numpy(search) * torch.from_numpy(present)[:, :, None, None, None]
        template, deciding = (torch.from_numpy(inputs[name]) for name in ("template", "deciding"))
        maps = student(template, shown, deciding, torch.from_numpy(present)).maps
    assert torch.allclose(score_map, maps.score, rtol=0, atol=1e-5)
    search[0, 1] = np.nan
    again = session.run(["score_map"], inputs)[0]
    assert np.array_equal(again, score_map.numpy())


class Ranking(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return scores.sort(dim=-1, descending=True, stable=True).indices


def test_equal_scores_are_ranked_by_position(tmp_path: Path) -> None:
    from ckd_fast.exporting.graphs import trace

    ports = Ports((Port("scores", "float32", (2, 1, 40)),), (Port("order", "int64", (2, 1, 40)),))
    trace(Ranking(), ports).save(tmp_path / "ranking.onnx")
    session = ort.InferenceSession(tmp_path / "ranking.onnx", providers=["CPUExecutionProvider"])
    scores = np.random.default_rng(0).integers(0, 4, (2, 1, 40)).astype(np.float32)
    (order,) = session.run(None, {"scores": scores})
    assert np.array_equal(order, np.argsort(-scores, axis=-1, kind="stable"))


def test_the_plain_network(exported: Exports, tmp_path: Path) -> None:
    """The benchmark's peer: the same maps, nothing around them."""
    loaded = exported(PLAIN).model
    export_network(loaded, tmp_path / "plain.onnx")
    session = ort.InferenceSession(tmp_path / "plain.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["template", "search", "deciding"]
    config = loaded.config
    template, search = torch.randn(2, 1, config.template_tokens, config.dim), torch.randn(2, 1, 3, 80, 80)
    deciding = torch.ones(1, config.template_tokens, dtype=torch.bool)
    inputs = {"template": template.numpy(), "search": search.numpy(), "deciding": deciding.numpy()}
    with torch.inference_mode():
        maps = loaded.student()(template, search, deciding).maps
    for ours, theirs in zip(session.run(None, inputs), (maps.score, maps.size, maps.offset), strict=True):
        assert torch.allclose(torch.from_numpy(ours), theirs, rtol=0, atol=1e-5)


def test_a_provider_that_does_not_load(exported: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name it is an error. "auto" goes on without it, and says so."""
    path = exported(PLAIN).path
    with pytest.raises(EngineError, match=r"'tensorrt': this onnxruntime .* has the providers .*cpu"):
        Tracker(path, device="tensorrt")
    with pytest.raises(EngineError, match="'cpu:x'"):
        Tracker(path, device="cpu:x")
    claimed = ["CUDAExecutionProvider", "CPUExecutionProvider"]  # as a package for GPUs says on a machine without one
    monkeypatch.setattr("ckd_fast.engines.onnx.session.onnxruntime.get_available_providers", lambda: claimed)
    # ONNX Runtime warns and runs on the CPU.
    with (
        pytest.warns(UserWarning, match="CUDA"),
        pytest.raises(EngineError, match=r"CUDA.* does not load on this mach"),
    ):
        Tracker(path, device="cuda")
    with pytest.warns(UserWarning, match="CUDA"):
        tracker = Tracker(path)
    note = "(auto: CUDAExecutionProvider does not load here)"
    assert str(tracker.engine) == f"onnx on CPUExecutionProvider, float32 {note}"


def test_a_gpu_that_fails(
    exported: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ "auto" goes on with the CPU where a session for CUDA is an error; a bad file stays one."""
    made = copied(exported(PLAIN), tmp_path)
    claimed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("ckd_fast.engines.onnx.session.onnxruntime.get_available_providers", lambda: claimed)
    plain = ort.InferenceSession

    def session(path: str, options: object, providers: list[str], *rest: object, **more: object) -> object:
        if "CUDAExecutionProvider" in providers:
            raise RuntimeError("CUDA failure 35: driver too old")
        return plain(path, options, providers, *rest, **more)

    monkeypatch.setattr("ckd_fast.engines.onnx.session.onnxruntime.InferenceSession", session)
    tracker = Tracker(made.path)
    note = "(auto: CUDAExecutionProvider does not load here)"
    assert str(tracker.engine) == f"onnx on CPUExecutionProvider, float32 {note}"
    assert "CUDA failure 35: driver too old" in caplog.text
    with pytest.raises(EngineError, match=r"cannot use CUDAExecutionProvider .* driver too old"):
        Tracker(made.path, device="cuda")
    changed(made.path, lambda proto: setattr(proto, "ir_version", 99))  # type: ignore[call-overload]
    with pytest.raises(CorruptWeightsError, match="ONNX Runtime cannot load it"):
        Tracker(made.path)


def test_what_it_refuses(exported: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    made = exported(PLAIN)
    for name in ("reference", "openvino", "compiled", "triton"):
        with pytest.raises(InputError, match=f"runs on engine 'onnx', not on '{name}'"):
            Tracker(made.path, engine=name, device="cpu")
    with pytest.raises(InputError, match="write a file with ckd-fast export"):
        Tracker("random", "tiny", engine="onnx")
    with pytest.raises(InputError, match="was exported in float32"):
        Tracker(made.path, dtype="float16")
    with pytest.raises(InputError, match="leave the model out"):
        Tracker(made.path, "base")
    with pytest.raises(InputError, match="ExportedModel brings its sizes"):
        Tracker(open_model(made.path), "base")
    with pytest.raises(WeightsMismatchError, match="gives no weights back"):
        load_model(made.path)
    one = engine(made)
    with pytest.raises(InputError, match="cannot be observed"):
        one.start([], frames(), lambda _name, _value: None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EngineError, match=r"pip install 'ckd_fast\[onnx\]'"):
        open_model(made.path)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("engine", "session"):
        monkeypatch.delitem(sys.modules, f"ckd_fast.engines.onnx.{name}", raising=False)
    with pytest.raises(EngineError, match=r"pip install 'ckd_fast\[onnx\]'"):
        build_engine("onnx", open_model(made.path))


def test_results_that_are_not_finite(exported: Exports, tmp_path: Path) -> None:
    made = copied(exported(PLAIN), tmp_path)

    def spoil(proto: object) -> None:
        (bias,) = [each for each in proto.graph.initializer if each.name.endswith("head.score.4.bias")]  # type: ignore[attr-defined]
        bias.raw_data = np.full(1, np.nan, np.float32).tobytes()

    changed(made.path, spoil)
    tracker = Tracker(made.path)
    tracker.init(frames().rgb, frames().tir, BOX)
    with pytest.raises(EngineError, match="not finite on engine onnx"):
        tracker.update(frames(1).rgb, frames(1).tir)


def test_the_documented_program_runs(exported: Exports, tmp_path: Path) -> None:
    """The program of docs/export.md knows only ONNX Runtime and NumPy; it gives the boxes of the tracker."""
    made = copied(exported(PLAIN), tmp_path)
    page = (ROOT / "docs" / "export.md").read_text()
    (program,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "InferenceSession" in block]
    assert "ckd_fast" not in program.replace("ckd_fast.", "")  # names of metadata only
    videos = [frames(i) for i in range(4)]
    np.savez(tmp_path / "clip.npz", rgb=[f.rgb for f in videos], tir=[f.tir for f in videos], box=BOX)
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-I", "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    tracker = Tracker(made.path)
    tracker.init(videos[0].rgb, videos[0].tir, BOX)
    expected = [tracker.update(f.rgb, f.tir).box for f in videos[1:]]
    printed = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    assert len(printed) == 3
    for ours, theirs in zip(printed, expected, strict=True):
        assert ours[:4] == pytest.approx(theirs, abs=0.06)  # printed with one decimal
