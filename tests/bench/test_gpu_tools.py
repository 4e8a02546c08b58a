"""What runs on a GPU, tried without one as far as it goes: engines in the interpreter, clocks that stand still."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import frames
import plans
import pytest
import torch
import tune
from both import TWO_BLOCKS
from interpreter import kernel_device
from library import library
from stage import DEVICE, SMALL
from support import INTERPRETED, assert_as_exact, run

from ckd_fast import load_model
from ckd_fast.engines.triton.plan import Plan
from ckd_fast.kernels.launch import Choice, Launch, LaunchSettings, TileRequest, Tiles
from ckd_fast.kernels.tiles import (
    H200,
    Measured,
    chip_of,
    chooser,
    cost_of,
    default_choice,
    estimate_us,
    read_table,
    write_table,
)
from ckd_fast.reference.config import PRESETS
from ckd_fast.weights import Agreement


@dataclass
class Saved:
    """What a program has written, each time; changed by it."""

    states: list[dict]

    def __call__(self, result: object) -> None:
        assert isinstance(result, dict)
        self.states.append(json.loads(json.dumps(result)))


@pytest.fixture
def saved() -> Saved:
    return Saved([])


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    if not INTERPRETED:
        pytest.skip("on a GPU bench/gpu.sh runs them")
    kernel_device()
    monkeypatch.setattr(frames, "awaited", lambda call: call() and 2.0)
    monkeypatch.setattr(frames, "matmul_ceiling_tflops", lambda: 700.0)
    return argparse.Namespace(
        model="base", weights=None, dtype="float32", counts=[1, 3], frames=2, turns=1, seconds=0.01, tiles=None,
        failed=[],
    )  # fmt: skip


def test_targets(options: argparse.Namespace, saved: Saved) -> None:
    frames.targets(options, saved)
    assert [[row["targets"] for row in told["rows"]] for told in saved.states] == [[1], [1, 3]]
    assert saved.states[-1]["rows"][1]["share_of_matmul_ceiling"] == pytest.approx(90.0 * 3 / 2.0 / 700)


def test_agreement(options: argparse.Namespace, saved: Saved) -> None:
    frames.agreement(options, saved)
    told = saved.states[-1]
    precisions = ("float32", "float16", "bfloat16", "float8")
    assert list(told) == ["reference bfloat16", *(f"triton {precision}" for precision in precisions)]
    assert [len(state) for state in saved.states] == [1, 2, 3, 4, 5]
    assert told["triton float32"]["least_iou"] > 0.999
    assert told["triton float32"]["kept"] == 1
    assert told["triton float32"]["same_cell"] == 1
    assert not options.failed


def test_disagreement_fails(options: argparse.Namespace, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    options.frames = 1
    monkeypatch.setattr(frames, "iou", lambda *_: 0.5)
    frames.agreement(options, saved)
    assert options.failed[0] == "triton float32: mean IoU 0.50000 is below 0.999"
    assert len(options.failed) == 3


def test_float8_is_judged_only_with_weights_that_track(
    options: argparse.Namespace, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    options.frames = 1
    monkeypatch.setattr(frames, "summary", lambda _: Agreement(1, kept=0.92, iou=0.99))
    frames.agreement(options, saved)
    assert not options.failed
    monkeypatch.setattr(frames, "load_model", lambda _: load_model("random", SMALL))
    options.weights = "model.safetensors"
    frames.agreement(options, saved)
    assert options.failed == ["triton float8: kept tokens 0.920, median IoU 0.990, expected 0.93 and 0.95"]


def test_the_library_multiplies_in_float8(capsys: pytest.CaptureFixture[str]) -> None:
    """Behind a norm too, where only the weight is stored in it; shapes that it refuses are named and left out."""
    for dtype in ("float8_e4m3fn", "bfloat16 as float8_e4m3fn"):
        request = dataclasses.replace(REQUEST, dtype=dtype, rows=33, columns=48, depth=64)
        torch.manual_seed(7)
        routine = library(launch_of(request, 3))
        assert routine is not None
        found = routine()
        torch.manual_seed(7)
        x, w = (torch.randn(2, rows, 64, device=DEVICE, dtype=torch.bfloat16) for rows in (33, 48))
        assert isinstance(found, list)
        for branch, product in enumerate(found):
            a, b = (each[branch].to(torch.float8_e4m3fn).double() for each in (x, w))
            assert_as_exact(product, (a.float() @ b.float().T).bfloat16(), a @ b.T)
        odd = dataclasses.replace(request, depth=65)
        assert library(launch_of(odd, 3)) is None
        assert "whose float8 takes multiples of 16, not 48 x 65" in capsys.readouterr().out


def test_energy(options: argparse.Namespace, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a counter that goes up by ten joules at each reading."""
    readings = iter(range(0, 1000, 10))
    monkeypatch.setattr(frames, "joules_meter", lambda: lambda: float(next(readings)))
    frames.energy(options, saved)
    rows = saved.states[-1]["rows"]
    assert [row["engine"] for row in rows] == ["triton float32", "reference float32", "reference float32"]
    assert all(row["joules_a_frame"] * row["frames"] == pytest.approx(10) for row in rows)


def test_a_frame_on_paper(tmp_path: Path) -> None:
    out = tmp_path / "model.json"
    done = run(sys.executable, "bench/model.py", "--json", str(out))
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert told["summary"]["launches"] == len(told["launches"]) == 71
    # 45.0 GMAC less what is saved by multiplying live tokens only in the head's first convolution.
    assert sum(row["gflop"] for row in told["launches"]) == pytest.approx(2 * (44.982 - 2.718 + 0.945), rel=0.01)
    assert 0.1 < told["summary"]["floor_ms"] < told["summary"]["overlapped_ms"] < told["summary"]["estimate_ms"]
    assert run(sys.executable, "bench/model.py", "--model", "nonsense").returncode == 2


@pytest.mark.parametrize("tool", ["frames.py targets", "kernels.py", "tune.py", "smoke.py graph", "parity.py"])
def test_without_a_gpu_they_say_so(tool: str) -> None:
    if not INTERPRETED:
        pytest.skip("there is a GPU")
    done = run(sys.executable, *f"bench/{tool}".split())
    assert done.returncode == 2
    assert done.stderr.endswith("torch sees none; --rehearse tries everything on the CPU\n")
    done = run(sys.executable, *f"bench/{tool}".split(), "--rehearse", TRITON_INTERPRET="0")
    assert done.returncode == 2
    assert "--rehearse needs CUDA_VISIBLE_DEVICES= and TRITON_INTERPRET=1" in done.stderr


REQUEST = TileRequest("linear", "bfloat16", 2, 320, 768, 768)


@pytest.mark.parametrize("targets", [1, 32])
def test_the_requests_tuned_are_those_of_the_engines_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: int
) -> None:
    """What an engine asks for when it plans a frame of `base` is what tune.py tries, request by request."""
    asked: list[TileRequest] = []

    def choose(request: TileRequest) -> Choice:
        asked.append(request)
        return default_choice(request, H200)

    config = PRESETS["base"]
    planner = plans.frame_planner(plans.empty_build(config, torch.bfloat16, LaunchSettings(choose)), targets)
    asked.clear()
    frame = planner.plan()  # the engine's own planning
    engine_asks = set(asked)
    odd = Choice(Tiles(64, 64, 64, warps=2))  # nobody else's
    tried: list[TileRequest] = []

    def timer(plan: Plan) -> float:
        tried.extend({launch.request for launch in plan.launches if launch.request and launch.choice == odd})
        return 100.0

    monkeypatch.setattr(tune, "tried", lambda _request, _chip: [odd])  # planning takes most of the time
    assert tune.tune(tune.Tuning(planner, H200, [], frame_us=timer), tmp_path / "tiles.json", deadline=math.inf)
    assert len(tried) == len(set(tried))  # one request at a time
    assert set(tried) == set(frame.requests) == engine_asks
    assert {row.request for row in read_table(tmp_path / "tiles.json")} == engine_asks
    kinds = {request.kernel for request in engine_asks}
    assert kinds == {"crop", "patch", "linear", "attention", "tap_sum", "convolution", "last_convolution"}
    patch = next(request for request in engine_asks if request.kernel == "patch")
    assert patch.rows == targets * config.search_tokens


def test_tuning_keeps_what_is_clearly_faster(tmp_path: Path) -> None:
    """Noise changes nothing, a candidate that fails is passed over, and a faster one goes into the table."""
    planner = plans.frame_planner(plans.empty_build(TWO_BLOCKS, torch.bfloat16, LaunchSettings(chooser(H200, []))))
    times = {64: 100.0, 128: 50.0}

    def timer(plan: Plan) -> float:
        choice = next(launch.choice for launch in plan.launches if launch.name == "block0.attention")
        assert choice is not None
        if choice.tiles.rows == 32:
            raise RuntimeError("PassManager::run failed")
        return times[choice.tiles.rows] - 0.01 * choice.tiles.columns

    tuning = tune.Tuning(planner, H200, [], frame_us=timer)
    assert tune.tune(tuning, tmp_path / "tiles.json", deadline=math.inf)
    chosen = {row.request: row for row in read_table(tmp_path / "tiles.json")}
    attention = next(row for request, row in chosen.items() if request.kernel == "attention")
    assert attention.choice.tiles.rows == 128
    assert attention.frame_us < 50
    crop = next(row for request, row in chosen.items() if request.kernel == "crop")
    assert crop.choice == default_choice(crop.request, H200)


def test_measured_tiles_win_over_computed_ones(tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    odd = Choice(Tiles(16, 16, 16, 2, 2), 3)
    write_table(
        [Measured(H200.name, REQUEST, odd, 3.5, "3.6.0"), Measured("another", REQUEST, odd, 1.0, "3.6.0")], path
    )
    table = read_table(path)
    assert chooser(H200, table)(REQUEST) == odd
    other = dataclasses.replace(REQUEST, rows=321)
    assert chooser(H200, table)(other) == default_choice(other, H200)
    assert chooser(dataclasses.replace(H200, name="a third"), table)(REQUEST) == default_choice(REQUEST, H200)
    write_table([*table, Measured(H200.name, REQUEST, default_choice(REQUEST, H200), 3.0, "3.6.0")], path)
    assert chooser(H200, read_table(path))(REQUEST) == default_choice(REQUEST, H200)
    assert len(read_table(path)) == 2


def test_defaults_fill_the_chip() -> None:
    """Narrow products are split or cut small, wide ones are not split; everything fits the chip's memory."""
    narrow = default_choice(dataclasses.replace(REQUEST, rows=153, depth=3072), H200)
    tiles = math.ceil(153 / narrow.tiles.rows) * math.ceil(768 / narrow.tiles.columns)
    assert 2 * tiles * narrow.split_k > H200.multiprocessors / 2
    assert default_choice(dataclasses.replace(REQUEST, rows=10240, columns=3072), H200).split_k == 1
    small = dataclasses.replace(H200, shared_bytes=65536, name="small")
    for rows in (89, 320, 10240):
        tiles = default_choice(dataclasses.replace(REQUEST, rows=rows), small).tiles
        assert tiles.stages * (tiles.rows + tiles.columns) * tiles.depth * 2 <= 65536


@pytest.mark.parametrize(("reported", "memory_tb"), [
    ({"memory_clock_rate": 2_619_000, "memory_bus_width": 5120}, 2.95),  # an H100
    ({"memory_clock_rate": 3_201_000, "memory_bus_width": 6144}, 4.33),  # an H200
    ({"memory_clock_rate": 0, "memory_bus_width": 0}, 4.0),
    ({}, 4.0),  # torch 2.6
])  # fmt: skip
def test_the_rate_of_memory_is_the_drivers(
    monkeypatch: pytest.MonkeyPatch, reported: dict[str, int], memory_tb: float
) -> None:
    about = SimpleNamespace(name="Some GPU", multi_processor_count=132, **reported)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    assert chip_of(torch.device("cuda")).memory_tb == pytest.approx(memory_tb, abs=0.01)


def test_the_last_wave_costs_a_whole_one() -> None:
    """144 programs do not fit 132 multiprocessors at once: one wave of wider tiles, or two of programs side by side."""
    request = dataclasses.replace(REQUEST, columns=3072)
    alone, wide = Choice(Tiles(128, 128, 64, 8, 4)), Choice(Tiles(64, 256, 64, 8, 4))
    assert estimate_us(request, alone, H200) > 1.25 * estimate_us(request, wide, H200)
    side_by_side = Choice(Tiles(128, 128, 64, 8, 3))
    assert estimate_us(request, side_by_side, H200) < 0.8 * estimate_us(request, alone, H200)
    fits = dataclasses.replace(request, rows=256)  # 96 programs
    assert estimate_us(fits, alone, H200) < 0.6 * estimate_us(request, alone, H200)


def test_statistics_take_narrower_tiles() -> None:
    """Tiles of 128 x 256 with statistics would spill."""
    many = dataclasses.replace(REQUEST, rows=10240)
    assert default_choice(many, H200).tiles.columns == 256
    assert default_choice(dataclasses.replace(many, statistics=True), H200).tiles.columns == 128


def test_two_stages_of_attention_wait_for_keys() -> None:
    attention = TileRequest("attention", "bfloat16", 24, 320, 320, 64)
    two, three = (cost_of(launch_of(attention, stages), H200).estimate_us for stages in (2, 3))
    assert two == pytest.approx(three + 5 * H200.trip_us / 2)


def launch_of(request: TileRequest, stages: int) -> Launch:
    choice = Choice(Tiles(stages=stages))
    return Launch("a", "b", None, (1,), {}, {}, (), (), flops=1.0, request=request, choice=choice)


def test_the_table_that_ships_is_readable(tmp_path: Path) -> None:
    row = Measured(H200.name, REQUEST, default_choice(REQUEST, H200), 480.0, "3.6.0")
    write_table([*read_table(), row], tmp_path / "tiles.json")
    for row in read_table(tmp_path / "tiles.json"):
        assert row.frame_us > 0
        assert row.choice.split_k >= 1


def test_the_profile_goes_by_the_plan() -> None:
    """Kernels of a replayed graph come in the order of the plan; a frame that is cut off is an error."""
    plan = plans.frame_planner(plans.empty_build(TWO_BLOCKS, torch.bfloat16, LaunchSettings(chooser(H200, [])))).plan()
    names = [launch.kernel_name for launch in plan.launches]
    kernels = [frames.Kernel(f"_{name}_kernel", 10.0 * i + turn) for turn in range(3) for i, name in enumerate(names)]
    rows = frames.by_launch(plan.launches, kernels)
    assert [row.launch for row in rows] == [launch.name for launch in plan.launches]
    assert [row.median_us for row in rows] == [10.0 * i + 1 for i in range(len(names))]
    with pytest.raises(ValueError, match="kernels of a frame"):
        frames.by_launch(plan.launches, kernels[:-1])
    with pytest.raises(ValueError, match="kernels of a frame"):
        frames.by_launch(plan.launches, kernels[1:] + kernels[:1])
