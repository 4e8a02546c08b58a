"""The openvino engine against the reference, step by step."""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from both import BOX, BOXES, TWO_BLOCKS, Both, frames
from support import GOLDEN_CONFIG, Golden, assert_as_exact, enliven, run
from torch import Tensor

from ckd_fast import EngineError, InputError, ModelConfig, MultiTracker, Tracker, load_model
from ckd_fast.engines import Engine, Search, build_engine, step_names
from ckd_fast.engines.host import ReferenceEngine
from ckd_fast.types import Box
from ckd_fast.weights import LoadedModel

openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install 'ckd_fast[cpu]'")

from ckd_fast.engines.openvino import engine as engine_module  # noqa: E402
from ckd_fast.engines.openvino.engine import native_precision  # noqa: E402
from ckd_fast.engines.openvino.runtime import openvino_core  # noqa: E402

CPU = torch.device("cpu")


def model(config: ModelConfig = TWO_BLOCKS, seed: int = 3) -> LoadedModel:
    loaded = load_model("random", config, seed=seed)
    enliven(loaded.student(), seed)  # it shares its tensors
    return loaded


def openvino_engine(loaded: LoadedModel) -> Engine:
    return build_engine("openvino", loaded, "cpu", "float32")


def both(loaded: LoadedModel) -> Both:
    return Both(openvino_engine(loaded), ReferenceEngine(loaded, CPU, torch.float32), limit=0.01)


def observe(engine: Engine, *boxes: Box) -> dict[str, Tensor]:
    """Every step of a search for one target per box."""
    seen: dict[str, Tensor] = {}
    searches = [Search(engine.make_target(frames(), box), box, 4.0) for box in boxes]
    engine.start(searches, frames(1), lambda name, value: seen.__setitem__(name, value.clone())).result()
    return seen


@pytest.mark.parametrize("change", [
    {}, {"elimination": "ce"}, {"elimination": "none"}, {"template_range": "ALL"}, {"template_range": "GT_BOX"},
    {"template_range": "CTR_REC", "template_size": 64}, {"share_students": True}, {"eliminate_at": (0, 1)},
    {"patch_size": 8, "template_size": 16, "search_size": 40},
], ids=str)  # fmt: skip
def test_every_step_is_the_references(change: dict) -> None:
    """Each step is as close to float64 as PyTorch's float32, and the same tokens stay in the same order."""
    config = dataclasses.replace(TWO_BLOCKS, **change)
    loaded = model(config)
    engines = (openvino_engine(loaded), *(ReferenceEngine(loaded, CPU, t) for t in (torch.float32, torch.float64)))
    ours, plain, exact = (observe(engine, *BOXES[:2]) for engine in engines)
    assert set(ours) == set(step_names(config)) - {"norm"}  # folded into the head
    for name, value in ours.items():
        if name.endswith(".eliminate"):
            assert torch.equal(value.long(), plain[name])
        elif name == "crop":  # three roundings of values below 3, in another order
            assert torch.allclose(value, plain[name], rtol=0, atol=3 * torch.finfo(torch.float32).eps * 3.0)
        elif name == "decode":
            assert torch.allclose(value, exact[name], rtol=0, atol=0.01)
        else:
            assert_as_exact(value.double(), plain[name].double(), exact[name].double())


@pytest.mark.parametrize("missing", ["rgb", "tir"])
@pytest.mark.parametrize("elimination", ["mce", "ce"])
def test_a_missing_modality(missing: str, elimination: str) -> None:
    engines = both(model(dataclasses.replace(TWO_BLOCKS, elimination=elimination)))
    engines.agree(dataclasses.replace(frames(1), **{missing: None}), (engines.target(), BOX))


def test_any_number_of_targets() -> None:
    """One graph takes one target, another any number; more than 32 targets take several calls."""
    engines = both(model())
    targets = [engines.target(BOXES[i % 3]) for i in range(5)]
    for count in (1, 3, 5, 2):
        engines.agree(frames(count), *((target, BOXES[i % 3]) for i, target in enumerate(targets[:count])))
    pair = frames()
    tracker = MultiTracker(engine=engines.ours)
    tracker.init(pair.rgb, pair.tir, [BOX] * 33)
    found = tracker.update(frames(1).rgb, frames(1).tir)
    assert len({result.box for result in found.values()}) == 1


def test_the_authors_track(tmp_path: Path) -> None:
    """Within a hundredth of a pixel over all frames."""
    golden = Golden("ckd_small_track.npz")
    torch.save({"net": golden.authors_weights()}, tmp_path / "w.pth.tar")
    loaded = load_model(tmp_path / "w.pth.tar", GOLDEN_CONFIG)
    tracker = Tracker(engine=openvino_engine(loaded))
    rgb, tir, boxes = golden["rgb"], golden["tir"], golden["mce/boxes"]
    tracker.init(rgb[0], tir[0], golden["init_box"].tolist())
    for index in range(1, len(boxes)):
        assert tracker.update(rgb[index], tir[index]).box == pytest.approx(boxes[index].tolist(), abs=0.01)


def test_the_network_alone() -> None:
    engines = both(model())
    template, search = torch.randn(2, 3, 3, 32, 32), torch.randn(2, 3, 3, 80, 80)
    ours, plain = (engine.run_network(template, search) for engine in (engines.ours, engines.plain))
    for name in ("score", "size", "offset"):
        assert torch.allclose(getattr(ours, name), getattr(plain, name), atol=1e-5)


def test_a_result_is_not_overwritten_by_the_next() -> None:
    engines = both(model())
    template, search = torch.randn(2, 1, 3, 32, 32), torch.randn(2, 1, 3, 80, 80)
    first = engines.ours.run_network(template, search)
    kept = first.score.clone()
    engines.ours.run_network(template + 1, search - 1)
    assert torch.equal(first.score, kept)


def test_auto_takes_it_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    engine = build_engine("auto", model())
    assert str(engine) in {f"openvino on cpu, {dtype} (auto: no usable GPU)" for dtype in ("float32", "bfloat16")}
    assert str(build_engine("auto", model(), dtype="float32")) == "openvino on cpu, float32 (auto: no usable GPU)"
    assert not caplog.records
    # What it does not run goes to the reference, and is said.
    with caplog.at_level(logging.WARNING, logger="ckd_fast"):
        fallen = build_engine("auto", model(), dtype="float16")
    assert str(fallen).startswith("reference on cpu, float16 (auto: no usable GPU; dtype='float16': engine 'openvi")
    assert "runs the reference network on cpu" in caplog.text


@pytest.mark.parametrize(("capabilities", "expected"), [
    (["FP32", "INT8", "BIN"], torch.float32), (["FP32", "BF16", "INT8"], torch.bfloat16),
    (["FP32", "FP16", "INT8"], torch.float32),
])  # fmt: skip
def test_precision_follows_the_instruction_set(
    monkeypatch: pytest.MonkeyPatch, capabilities: list[str], expected: torch.dtype
) -> None:
    """As the processor says; nothing is tried. OpenVINO itself would run float32 in place of bfloat16."""

    class Processor(openvino.Core):
        def get_property(self, device: str, name: str) -> Any:
            return capabilities if name == "OPTIMIZATION_CAPABILITIES" else super().get_property(device, name)

    monkeypatch.setattr(engine_module, "openvino_core", Processor)
    assert build_engine("openvino", model(), "cpu").dtype == expected
    if expected == torch.float32:
        with pytest.raises(EngineError, match="does not multiply bfloat16 by itself"):
            build_engine("openvino", model(), "cpu", "bfloat16")


@pytest.mark.skipif(
    native_precision(openvino_core()) != torch.bfloat16, reason="this processor does not multiply bfloat16 by itself"
)
def test_bfloat16_is_as_exact_as_pytorchs() -> None:
    """Maps without elimination, whose cuts would turn rounding into other tokens."""
    loaded = model(dataclasses.replace(TWO_BLOCKS, elimination="none"))
    ours = build_engine("openvino", loaded, "cpu", "bfloat16")
    plain, exact = (ReferenceEngine(loaded, CPU, dtype) for dtype in (torch.bfloat16, torch.float64))
    found, theirs, truth = (observe(engine, BOX) for engine in (ours, plain, exact))
    for name in ("head.score", "head.size", "head.offset"):
        assert_as_exact(found[name].double(), theirs[name].double(), truth[name].double())


def test_a_frame_that_nobody_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its inputs, and the mapped weights, live until the network is done with them; it crashed the process."""
    monkeypatch.setenv("CKD_FAST_CACHE", str(tmp_path))
    program = (
        "import gc, numpy as np\n"
        "from ckd_fast import Tracker\n"
        "for _ in range(6):\n"
        "    tracker = Tracker('random', 'tiny', engine='openvino', device='cpu')\n"
        "    frame = np.zeros((240, 320, 3), np.uint8)\n"
        "    tracker.init(frame, frame, (100, 100, 40, 40))\n"
        "    engine = tracker.engine\n"
        "    from ckd_fast.engines import Search\n"
        "    from ckd_fast.frames import first_pair\n"
        "    from ckd_fast import TrackerConfig\n"
        "    pair = first_pair(frame, frame, TrackerConfig())\n"
        "    target = engine.make_target(pair, (100, 100, 40, 40))\n"
        "    pending = engine.start([Search(target, (100, 100, 40, 40), 4.0)], pair)\n"
        "    del tracker, engine, target\n"
        "    del pending\n"
        "    gc.collect()\n"
        "print('alive')\n"
    )
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive\n"


def test_openvinos_errors_are_ours() -> None:
    engine = openvino_engine(model())
    with pytest.raises(EngineError, match="engine 'openvino' cannot run the network"):
        engine.run_network(torch.zeros(2, 1, 3, 32, 32), torch.zeros(2, 1, 3, 48, 48))


def test_the_number_of_threads_is_an_argument() -> None:
    tracker = Tracker(model(), engine="openvino", device="cpu", threads=1)
    assert tracker.engine._template.compiled.get_property("INFERENCE_NUM_THREADS") == 1
    for threads in (0, -1, True, 1.5):
        with pytest.raises(InputError, match="expected a whole number from 1"):
            Tracker(model(), threads=threads)


def test_frames_may_be_overwritten_and_results_asked_for_late() -> None:
    """The network runs behind the caller's back; two trackers on one engine have frames on their way at once."""
    loaded = model()
    engine = openvino_engine(loaded)
    expected, started = [], []
    for seed in range(3):
        tracker, pair = Tracker(engine=engine), [array.copy() for array in (frames(seed).rgb, frames(seed).tir)]
        tracker.init(*pair, BOX)
        expected.append(tracker.update(*pair).box)
        tracker.box = BOX
        started.append(tracker.track_async(*pair))
        for array in pair:
            array[:] = 0
    assert [pending.result().box for pending in started] == expected
    assert len(set(expected)) == 3


def test_threads_share_an_engine() -> None:
    engine = openvino_engine(model())

    def follow(seed: int) -> list[Box]:
        tracker = Tracker(engine=engine)
        tracker.init(frames(seed).rgb, frames(seed).tir, BOX)
        return [tracker.update(frames(seed + k).rgb, frames(seed + k).tir).box for k in range(8)]

    alone = [follow(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(follow, range(4))) == alone


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = model()
    with pytest.raises(InputError, match="dtype='float16': engine 'openvino' runs float32, bfloat16 and int8"):
        build_engine("openvino", loaded, "cpu", "float16")
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    monkeypatch.delitem(__import__("sys").modules, "ckd_fast.engines.openvino.engine", raising=False)
    with pytest.raises(EngineError, match=r"pip install 'ckd_fast\[cpu\]'"):
        build_engine("openvino", loaded, "cpu")


SIGNALLED = """
import signal, threading
from ckd_fast import Tracker

trackers = [Tracker(engine="openvino", device="cpu")]
ended = threading.Thread(target=trackers.clear)
ended.start()
ended.join()
seen = []
signal.signal(signal.SIGUSR1, lambda number, _frame: seen.append(number))
signal.raise_signal(signal.SIGUSR1)
assert seen == [signal.SIGUSR1]
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
def test_signals_after_a_tracker_ended_on_another_thread() -> None:
    """OpenVINO frees the main thread's stack for signals then, unless its core lives on."""
    done = run(sys.executable, "-c", SIGNALLED)
    assert done.returncode == 0, done.stderr
