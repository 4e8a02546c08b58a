"""The graph runner's order of work, on a stand-in for CUDA: streams and events that log, graphs that record launches.

A captured launch or copy is recorded and not executed, as on a GPU; a replay executes the record and nothing else.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from both import BOX, Both, frames
from interpreter import kernel_device
from support import INTERPRETED, large_tiles

from ckd_fast import EngineError, InputError, load_model
from ckd_fast.engines import Search, registry
from ckd_fast.engines.host import ReferenceEngine
from ckd_fast.engines.triton import TritonEngine
from ckd_fast.engines.triton.graph import MOST_GRAPHS, GraphRunner
from ckd_fast.engines.triton.plan import Plan
from ckd_fast.kernels.launch import Launch, LaunchSettings
from ckd_fast.reference.config import ModelConfig

if not INTERPRETED:
    pytest.skip("on a GPU the runner itself runs", allow_module_level=True)
CPU = kernel_device()
CONFIG = ModelConfig(dim=32, depth=1, heads=2, head_channels=16, eliminate_at=(0,), template_size=32, search_size=64)


class Graph:
    """Launches and copies, in order."""

    def __init__(self) -> None:
        self.work: list[Callable[[], object]] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for one in self.work:
            one()


class Stream(contextlib.nullcontext):
    """Work runs at once: there is nothing to wait for."""

    def wait_stream(self, _other: object) -> None: ...

    def synchronize(self) -> None: ...


class StandIn:
    """Takes the place of what the runner uses of torch.cuda."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.graphs: list[Graph] = []
        self.log: list[str] = []
        self.capturing: Graph | None = None
        run, copy, empty = Launch.run, torch.Tensor.copy_, torch.empty

        def launched(launch: Launch) -> None:
            if self.capturing is None:
                run(launch)
            else:
                self.capturing.work.append(lambda: run(launch))

        def copied(target: torch.Tensor, source: torch.Tensor, **named: Any) -> torch.Tensor:
            named.pop("non_blocking", None)
            if self.capturing is None:
                return copy(target, source, **named)
            self.capturing.work.append(lambda: copy(target, source, **named))
            return target

        def pageable(*arguments: Any, **named: Any) -> torch.Tensor:
            named.pop("pin_memory", None)
            return empty(*arguments, **named)

        with torch.device("cpu"):
            empty(0)  # torch notes its factories at the first call under a device: these, not the one below
        monkeypatch.setattr(Launch, "run", launched)
        monkeypatch.setattr(torch.Tensor, "copy_", copied)
        monkeypatch.setattr(torch, "empty", pageable)
        for name in ("Stream", "Event", "CUDAGraph", "graph", "stream", "device", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name.lower() if name != "graph" else "capture"))

    def stream(self, which: object = None) -> Any:
        return which if isinstance(which, Stream) else Stream()

    current_stream = stream

    def event(self) -> Any:
        return SimpleNamespace(record=lambda *_: None, synchronize=lambda: self.log.append("await"))

    def cudagraph(self) -> Graph:
        self.graphs.append(Graph())
        return self.graphs[-1]

    @contextlib.contextmanager
    def capture(self, graph: Graph, **_: Any) -> Iterator[None]:
        self.log.append("capture")
        self.capturing = graph
        try:
            yield
        finally:
            self.capturing = None

    def device(self, _: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(monkeypatch)


def engines(*, capture: bool = True) -> Both:
    model = load_model("random", CONFIG, seed=2)
    runner = GraphRunner(CPU, capture=capture)
    ours = TritonEngine(model, CPU, torch.float32, settings=LaunchSettings(large_tiles), runner=runner)
    return Both(ours, ReferenceEngine(model, CPU, torch.float32), limit=1e-2)


def test_two_graphs_serve_all_frames_of_a_target(cuda: StandIn) -> None:
    both = engines()
    target = both.target()
    for seed in range(1, 7):
        both.agree(frames(seed), (target, BOX))
    assert [graph.replays for graph in cuda.graphs] == [2, 2]  # the first frame of each buffer runs launch by launch
    assert cuda.log.count("capture") == 2


def test_frames_are_taken_in_before_the_last_result_is_there(cuda: StandIn) -> None:
    """The box is carried on the device, through launches, captures and replays alike."""
    both = engines()
    target, other = both.target()
    pending = [both.ours.start([Search(target, BOX, 4.0)], frames(1))]
    box = BOX
    for seed in range(2, 8):
        pending.append(both.ours.start([Search(target, None, 4.0)], frames(seed)))
        (expected,) = both.plain.start([Search(other, box, 4.0)], frames(seed - 1)).result()
        (found,) = pending.pop(0).result()
        assert found.box == pytest.approx(expected.box, abs=1e-2)
        box = found.box
    assert sum(graph.replays for graph in cuda.graphs) == 5


def test_a_result_outlives_its_memory(cuda: StandIn) -> None:
    """Asked for late, after its buffer went to other frames, from several threads."""
    both = engines()
    target, other = both.target()
    first, *_ = (both.ours.start([Search(target, BOX, 4.0)], frames(seed)) for seed in range(1, 6))
    (expected,) = both.plain.start([Search(other, BOX, 4.0)], frames(1)).result()
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: first.result()[0].box, range(3)))
    assert found[0] == pytest.approx(expected.box, abs=1e-2)
    assert found[1:] == found[:1] * 2
    assert "await" in cuda.log


def test_larger_frames_take_new_memory_and_new_graphs(cuda: StandIn) -> None:
    both = engines()
    for size in ((72, 96), (100, 120), (72, 96)):
        target = both.target(pair=frames(0, size))
        for seed in range(1, 4):
            both.agree(frames(seed, size), (target, BOX))
    assert cuda.log.count("capture") == 4  # smaller frames again go through the large buffers' graphs
    assert both.ours.memory().frames >= 2 * 2 * 100 * 120 * 3


def test_graphs_are_bounded(cuda: StandIn) -> None:
    runner = GraphRunner(CPU)
    for _ in range(MOST_GRAPHS + 5):
        runner.measure(Plan((), {}, None, torch.zeros(1)))
    assert len(runner._graphs) == MOST_GRAPHS
    assert len(cuda.graphs) == MOST_GRAPHS + 5


def test_the_network_alone(cuda: StandIn) -> None:
    both = engines()
    for count in (3, 1, 3, 1):
        template, search = torch.randn(2, count, 3, 32, 32), torch.randn(2, count, 3, 64, 64)
        expected, found = (engine.run_network(template, search) for engine in (both.plain, both.ours))
        for name in ("score", "size", "offset"):
            assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-4)
    assert [graph.replays for graph in cuda.graphs] == [1, 1]


def test_an_engine_goes_when_its_last_user_goes(cuda: StandIn) -> None:  # noqa: ARG001
    """Without waiting for the collector of cycles: it holds a GPU's memory."""
    ours = engines().ours
    target = ours.make_target(frames(0), BOX)
    ours.start([Search(target, BOX, 4.0)], frames(1)).result()
    pending = ours.start([Search(target, None, 4.0)], frames(2))
    pending.result()
    gone = weakref.ref(ours)
    gc.disable()
    try:
        del ours, target, pending
        assert gone() is None
    finally:
        gc.enable()


def test_errors_of_the_device_are_errors_of_the_engine(cuda: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is not in the tables: the next call copies and runs everything again."""
    both = engines()
    target = both.target()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "current_stream", fail)
        with pytest.raises(EngineError, match="triton on cpu, float32 could not run: CUDA error: out of memory"):
            both.ours.start([Search(target[0], BOX, 4.0)], frames(1)).result()
    for seed in (2, 3, 4):
        both.agree(frames(seed), (target, BOX))
    assert sum(graph.replays for graph in cuda.graphs) == 1


def test_a_capture_that_fails_keeps_the_frame_and_goes_on(
    cuda: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its frame, which ran launch by launch before, is good; graphs that were captured earlier are still replayed."""
    both = engines()
    target = both.target()
    both.agree(frames(1), (target, BOX))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", fail)
    for seed in range(2, 7):
        both.agree(frames(seed), (target, BOX))
    assert [graph.replays for graph in cuda.graphs] == [2]
    said = "launch by launch, because a graph could not be captured: CUDA error: out of memory"
    assert str(both.ours) == f"triton on cpu, float32 ({said})"
    assert [record.getMessage() for record in caplog.records] == [f"engine 'triton' on cpu runs {said}"]


def test_without_graphs(cuda: StandIn) -> None:
    both = engines(capture=False)
    target = both.target()
    for seed in range(1, 4):
        both.agree(frames(seed), (target, BOX))
    assert "capture" not in cuda.log


def test_a_failing_kernel_names_itself(cuda: StandIn) -> None:  # noqa: ARG001
    ours = engines().ours
    target = ours.make_target(frames(0), BOX)
    plan = ours._plan(ours._batch(1), ours._buffers[0], 0, ours._kind)  # of the next frame
    broken = next(launch for launch in plan.launches if launch.name == "block0.fc1")
    object.__setattr__(broken, "kernel", {broken.grid: fail})
    said = (
        r"could not run: launch block0\.fc1 \(.*\) in tiles of 256x256x256, 4 warps, 3 stages on cpu: CUDA error: out"
    )
    with pytest.raises(EngineError, match=said):
        ours.start([Search(target, BOX, 4.0)], frames(1)).result()


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("CUDA error: out of memory\nfor debugging consider ...")


class Properties:
    name, multi_processor_count, shared_memory_per_block_optin = "Some GPU", 100, 101376

    def __init__(self, major: int, minor: int) -> None:
        self.major, self.minor = major, minor


NO_OVERLAP = "launches do not overlap, which needs sm_90"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """There is a GPU, and what Triton needs beside it."""
    monkeypatch.setattr(registry, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("pathlib.Path.exists", lambda _: True)
    return monkeypatch


@pytest.mark.parametrize(("capability", "dtype", "expected"), [
    ((9, 0), None, "triton on cuda:0, bfloat16"),
    ((8, 6), None, "triton on cuda:0, bfloat16 (" + NO_OVERLAP + ")"),
    ((7, 5), None, "needs a GPU of compute capability 8.0 or newer, Some GPU has 7.5"),
    ((9, 0), "float32", "triton on cuda:0, float32"),
])  # fmt: skip
def test_what_a_gpu_lacks_is_said(
    gpu: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str | None, expected: str
) -> None:
    gpu.setattr(torch.cuda, "get_device_properties", lambda _: Properties(*capability))
    gpu.setattr(torch.cuda, "current_device", lambda: 0)
    gpu.setattr("ckd_fast.engines.triton.graph.GraphRunner", lambda _, capture: made.update(capture=capture))
    made = {}

    def engine(_model: object, device: torch.device, precision: torch.dtype, note: str, **more: Any) -> str:
        made.update(more)
        told = f"triton on {device}, {str(precision).removeprefix('torch.')}"
        return told + (f" ({note})" if note else "")

    gpu.setattr("ckd_fast.engines.triton.engine.TritonEngine", engine)
    model = load_model("random", CONFIG, seed=2)
    if expected.startswith("triton"):
        assert registry.build_engine("triton", model, "cuda", dtype) == expected
        assert made["settings"].overlap == (capability >= (9, 0))
        assert made["capture"]
        assert registry.build_engine("auto", model, "cuda", dtype) == expected
    else:
        with pytest.raises(EngineError, match=expected):
            registry.build_engine("triton", model, "cuda", dtype)


def test_parts_that_are_left_out(gpu: pytest.MonkeyPatch) -> None:
    """By argument, by environment variable, or by both."""
    gpu.setattr(torch.cuda, "get_device_properties", lambda _: Properties(9, 0))
    gpu.setattr(torch.cuda, "current_device", lambda: 0)
    made = []
    gpu.setattr("ckd_fast.engines.triton.graph.GraphRunner", lambda _, capture: capture)
    gpu.setattr("ckd_fast.engines.triton.engine.TritonEngine", lambda *about, **more: made.append((about[3], more)))
    model = load_model("random", CONFIG, seed=2)
    for named, given in (("", ("graphs",)), ("overlap", ()), (" graphs, overlap ", ()), ("graphs", ["overlap"])):
        gpu.setenv("CKD_FAST_WITHOUT", named)
        registry.build_engine("triton", model, "cuda", without=given)
    notes = ["without graphs, as asked", "without overlap, as asked"]
    assert [note for note, _ in made] == [notes[0], notes[1], "; ".join(notes), "; ".join(notes)]
    assert [more["runner"] for _, more in made] == [False, True, False, False]
    assert [more["settings"].overlap for _, more in made] == [True, False, False, False]
    gpu.setenv("CKD_FAST_WITHOUT", "graph")
    with pytest.raises(InputError, match="CKD_FAST_WITHOUT=graph: known are graphs, overlap"):
        registry.build_engine("reference", model, "cpu")
    gpu.delenv("CKD_FAST_WITHOUT")
    with pytest.raises(InputError, match="without='speed': known are graphs, overlap"):
        registry.build_engine("reference", model, "cpu", without="speed")


def test_tiles_that_are_no_tiles(gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu.setattr(torch.cuda, "get_device_properties", lambda _: Properties(9, 0))
    for text in ("", "{}", '{"measured": [{"gpu": "x"}]}'):
        (tmp_path / "tiles.json").write_text(text)
        with pytest.raises(InputError, match=r"tiles\.json': expected a file that bench/tune\.py wrote"):
            registry.launch_settings(CPU, frozenset(), tmp_path / "tiles.json")


@pytest.mark.parametrize(("missing", "lack"), [
    ("shutil.which", "needs a C compiler"), ("pathlib.Path.exists", "needs Python.h"),
])  # fmt: skip
def test_what_triton_builds_with_is_asked_for_first(gpu: pytest.MonkeyPatch, missing: str, lack: str) -> None:
    """`auto` must not choose an engine that fails with its first frame."""
    gpu.setattr(missing, lambda _: None)
    with pytest.raises(EngineError, match=lack):
        registry.build_engine("triton", load_model("random", CONFIG, seed=2), "cuda")


@pytest.mark.parametrize("switch", ["old", "new"])
def test_both_of_torchs_switches_for_tf32(switch: str) -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        assert not registry._tf32_asked()
        if switch == "old":
            torch.set_float32_matmul_precision("high")
        else:
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert registry._tf32_asked()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_interpreted_kernels_are_no_engine(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr("triton.knobs.runtime.interpret", True)
    with pytest.raises(EngineError, match="TRITON_INTERPRET is set"):
        registry.build_engine("triton", load_model("random", CONFIG, seed=2), "cuda")
