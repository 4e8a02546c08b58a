"""`ckd-fast run`: the tracker's own boxes, whoever tracks, whatever breaks in between."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from calibrations import calibrate_by_chance
from commands import Command, by_module, called, descendants, looped, results, sample, tracking_run, unheard
from support import ROOT

from ckd_fast import InputError, Tracker, load_model, save_model
from ckd_fast.datasets import open_dataset
from ckd_fast.evaluation import workers
from ckd_fast.evaluation.corruptions import CORRUPTIONS, Corruption, parse_corruption
from ckd_fast.evaluation.running import Outcome, RunPlan, Started, TrackerSetup, attempt, run_dataset, track_sequence
from ckd_fast.evaluation.workers import default_workers, devices, local
from ckd_fast.images import read_rgb, read_tir

LENGTHS = {"first": 9, "second": 5, "third": 7, "fourth": 6}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, (name, frames) in enumerate(LENGTHS.items()):
        sample(tmp_path / "data" / name, frames, seed=seed)
    return tmp_path / "data"


@pytest.fixture
def run(data: Path, weights: str, command: Command) -> Command:
    """Run the tracker over the data set, or another, into a folder."""
    return lambda out, *more, root=data: command(*tracking_run(root, weights, out, *more))


def expected(data: Path, weights: str, corruption: Corruption | None = None) -> dict[str, str]:
    """By the tracker alone, frame by frame."""
    tracker = Tracker(weights, engine="reference", device="cpu")
    rows = {}
    for sequence in open_dataset("folder", data).sequences:
        frames = sequence.frames()
        boxes = [tuple(sequence.boxes()[0])]
        for index in range(len(frames)):
            source = corruption.delivered(sequence.name, index) if corruption else index
            pair = read_rgb(frames.visible[source]), read_tir(frames.infrared[source])
            if corruption:
                pair = corruption.apply(sequence.name, index, *pair)
            if index == 0:
                tracker.init(*pair, boxes[0])
            else:
                boxes.append(tracker.update(*pair).box)
        rows[f"{sequence.name}.txt"] = "".join(",".join(f"{v:.4f}" for v in box) + "\n" for box in boxes)
    return rows


def test_any_number_of_workers_gives_the_trackers_boxes(run: Command, data: Path, weights: str, tmp_path: Path) -> None:
    truth = expected(data, weights)
    for count in (1, 2, 4):
        out = tmp_path / str(count)
        told = run(out, "--workers", count, "--json")
        assert told.code == 0
        assert results(out) == truth
        summary = told.json
        assert (sorted(summary["finished"]), summary["kept"], summary["failed"]) == (sorted(LENGTHS), [], {})
        assert summary["frames"] == sum(LENGTHS.values())
        assert summary["engines"] == ["reference on cpu, float32"]
        for name, frames in LENGTHS.items():
            times = np.loadtxt(out / f"{name}_time.txt")
            assert times.shape == (frames,)
            assert (times > 0).all()
        assert not (out / "failures.json").exists()
        assert not list(out.glob(".*"))


def test_goes_on_where_it_stopped(run: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out).code == 0
    truth = results(out)
    half = out / "first.txt"
    half.write_text("".join(half.read_text().splitlines(keepends=True)[:4]))  # half-written, by another program
    (out / "second_time.txt").unlink()
    untouched = {name: (out / f"{name}.txt").stat().st_mtime_ns for name in ("third", "fourth")}
    told = run(out, "--json")
    assert told.code == 0
    assert (sorted(told.json["finished"]), sorted(told.json["kept"])) == (["first", "second"], ["fourth", "third"])
    assert results(out) == truth
    assert untouched == {name: (out / f"{name}.txt").stat().st_mtime_ns for name in untouched}
    changed = ("--authors-format", "--corrupt", "blur:1")
    assert run(out, *changed).refuses("results of another run (corruption, format differ)")
    assert results(out) == truth
    assert run(out, "--authors-format", "--force").code == 0
    first = [row.split(",") for row in truth["first.txt"].splitlines()]
    assert results(out)["first.txt"] == "".join("\t".join(str(int(float(v))) for v in row) + "\n" for row in first)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("1,2,3,4\n")
    assert run(tmp_path / "other").refuses("holds results without run.json")
    assert (tmp_path / "other" / "mine.txt").exists()


def test_pairs_that_do_not_match_are_said(run: Command, data: Path, tmp_path: Path) -> None:
    sorted((data / "second" / "visible").iterdir())[0].unlink()
    sorted((data / "second" / "infrared").iterdir())[-1].unlink()
    told = run(tmp_path / "out", "--sequences", "second")
    assert told.code == 0
    assert "second: 4 pairs have different numbers, first " in told.err


def test_failures_are_recorded_counted_and_tried_again(run: Command, data: Path, weights: str, tmp_path: Path) -> None:
    truth = expected(data, weights)
    frame = sorted((data / "second" / "visible").iterdir())[0]
    good = frame.read_bytes()
    frame.write_bytes(b"no image")
    gone = sorted((data / "third" / "infrared").iterdir())[-1]
    kept = gone.read_bytes()
    gone.unlink()
    sorted((data / "fourth" / "visible").iterdir())[2].write_bytes(b"")
    out = tmp_path / "out"
    told = run(out, "--json")
    assert told.code == 1
    assert "fourth: 1 images cannot be read" in told.err
    reasons = {name: entry["reason"] for name, entry in json.loads((out / "failures.json").read_text()).items()}
    assert reasons == told.json["failed"]
    assert set(reasons) == {"second", "third"}
    assert "the first frame is needed in both modalities" in reasons["second"]
    assert reasons["third"] == "third: 7 visible and 6 infrared images; expected equally many"
    assert set(results(out)) == {"first.txt", "fourth.txt"}
    assert results(out)["first.txt"] == truth["first.txt"]
    frame.write_bytes(good)
    gone.write_bytes(kept)
    assert run(out).code == 0
    assert [results(out)[name] for name in ("second.txt", "third.txt")] == [truth["second.txt"], truth["third.txt"]]
    assert not (out / "failures.json").exists()


class OnGpu(Tracker):
    """Says that it is on a GPU, and notes the order of what is asked of it."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        self.calls: list[object] = []
        self.engine = SimpleNamespace(device=torch.device("cuda"))

    def warmup(self, frame_size: tuple[int, int], *, tir_size: tuple[int, int]) -> None:
        self.calls.append((frame_size, tir_size))

    def init(self, *_arguments: object) -> None:
        self.calls.append("init")

    def update(self, *_frames: object) -> object:
        self.calls.append("update")
        return SimpleNamespace(box=(1.0, 2.0, 3.0, 4.0))


def test_compiling_is_no_frames_time(data: Path, weights: str) -> None:
    tracker = OnGpu(weights, engine="reference", device="cpu")
    track = track_sequence(tracker, open_dataset("folder", data).sequence("second"))
    assert tracker.calls == [((120, 160), (120, 160)), "init", *["update"] * 4]
    assert track.boxes[1:] == ((1.0, 2.0, 3.0, 4.0),) * 4


class Breaks(Tracker):
    """Fails as no error of this package does."""

    def update(self, *_frames: object) -> object:
        raise ZeroDivisionError("second frame")


def test_unexpected_errors_are_failures_with_a_traceback(data: Path, weights: str) -> None:
    sequence = open_dataset("folder", data).sequence("first")
    outcome = attempt(Breaks(weights, device="cpu", engine="reference"), sequence, RunPlan(TrackerSetup(weights)))
    assert outcome.failure == "ZeroDivisionError: second frame"
    assert "in update" in outcome.details
    assert outcome.boxes == ""


def test_bad_weights_and_engines_end_at_once(run: Command, data: Path, tmp_path: Path) -> None:
    for option, value, message in (
        ("--weights", tmp_path / "absent", "absent"),
        ("--engine", "triton", "a worker on cpu: engine 'triton' needs a usable NVIDIA GPU"),
        ("--corrupt", "fog:3", "corruption 'fog': known are blur"),
        ("--corrupt", "blur", "expected NAME:LEVEL"),
        ("--corrupt", "blur:6", "expected a level from 1 to 5"),
        ("--sequences", "fifth", "fifth: no sequence"),
        ("--out", data, "the data set's own folder"),
    ):
        assert run(tmp_path / "out", option, value).refuses(message)
    assert results(tmp_path / "out") == {}


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def workers_of(pid: int) -> list[int]:
    """Children that track; not the one that watches over shared resources."""
    return called(descendants(pid), b"spawn_main")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_killed_workers_and_killed_runs_lose_nothing(command: Command, weights: str, tmp_path: Path) -> None:
    data = tmp_path / "long data"
    looped(data / "long", 149, seed=5)
    looped(data / "longer", 169, seed=5)
    assert command(*tracking_run(data, weights, tmp_path / "calm", "--workers", "2")).code == 0
    calm = results(tmp_path / "calm")

    def started(out: Path) -> subprocess.Popen[str]:
        arguments = by_module(*tracking_run(data, weights, out, "--workers", "1"))
        return subprocess.Popen(arguments, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def wait_for_the_first(out: Path) -> None:
        wait_for((out / "longer.txt").exists, "the first sequence was not finished")

    one = tmp_path / "one worker"
    run = started(one)
    wait_for(lambda: workers_of(run.pid), "no worker started")
    (worker,) = workers_of(run.pid)
    wait_for_the_first(one)
    os.kill(worker, signal.SIGKILL)
    out, err = run.communicate(timeout=90)
    assert run.returncode == 0, err
    assert "2 sequences finished, 0 kept, 0 failed" in out
    assert results(one) == calm

    whole = tmp_path / "whole run"
    run = started(whole)
    wait_for_the_first(whole)
    run.kill()
    run.communicate(timeout=90)
    assert set(results(whole)) == {"longer.txt"}
    assert command(*tracking_run(data, weights, whole)).code == 0
    assert results(whole) == calm

    asked = tmp_path / "asked to end"
    run = started(asked)
    wait_for_the_first(asked)
    run.terminate()
    _, err = run.communicate(timeout=90)
    assert run.returncode == 130
    assert err.splitlines()[-1] == "ckd-fast: interrupted"
    assert set(results(asked)) == {"longer.txt"}


def dies(*_arguments: object) -> None:
    raise AssertionError("nothing is left to do")


def test_nothing_is_done_twice(data: Path, weights: str, tmp_path: Path) -> None:
    dataset, plan = open_dataset("folder", data), RunPlan(TrackerSetup(weights, engine="reference"))
    heard: list[object] = []
    run_dataset(dataset, plan, tmp_path / "out", local(["cpu"]), on_outcome=heard.append)
    assert sorted(one.sequence for one in heard if isinstance(one, Outcome)) == sorted(LENGTHS)
    # The longest first, so that none is left over at the end.
    assert [one.sequence for one in heard] == ["first", "third", "fourth", "second"]
    summary = run_dataset(dataset, plan, tmp_path / "out", dies)
    assert sorted(summary.kept) == sorted(LENGTHS)


def test_no_results_among_the_data(run: Command, data: Path, tmp_path: Path) -> None:
    linked, labels = tmp_path / "linked" / "walk", tmp_path / "labels"
    linked.parent.mkdir()
    (data / "first").rename(linked)
    (data / "first").symlink_to(linked)
    labels.mkdir()
    truth = (data / "second" / "groundtruth.txt").rename(labels / "second.txt")
    (data / "second" / "groundtruth.txt").symlink_to(truth)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.txt")}
    for out in (data, data / "third", data / "third" / "visible", data / "new", tmp_path, linked, labels):
        assert run(out, "--force").refuses(f"--out {out} ")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.txt")} == before
    (data / "third").rename(data / "fourth_time")
    assert run(tmp_path / "out").refuses("fourth_time: its results would be taken for the times of fourth")


def test_force_removes_the_data_sets_own_results_alone(run: Command, tmp_path: Path) -> None:
    assert run(tmp_path / "out").code == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert run(tmp_path / "out", "--corrupt", "noise:5", "--force", "--sequences", "second").code == 0
    # Sequences that were not asked for are of the other run: they must not be taken for finished later.
    assert set(results(tmp_path / "out")) == {"second.txt", "notes.txt"}
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_failed_start_leaves_nothing_to_replace(run: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, "--engine", "triton").code == 2
    assert (out / "run.json").exists()
    assert run(out, "--sequences", "second").code == 0
    assert run(out, "--sequences", "second", "third").code == 0  # the same run goes on
    assert set(json.loads((out / "run.json").read_text())["first_boxes"]) == {"second", "third"}
    (out / "run.json").write_text("{")
    assert run(out).refuses("a damaged run.json")
    assert run(out, "--sequences", "second", "--force").code == 0
    assert set(results(out)) == {"second.txt"}


def test_other_data_are_not_finished(run: Command, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    only = ("--sequences", "second")
    assert run(out, *only).code == 0
    shutil.copytree(data, tmp_path / "copy")
    assert run(out, *only, root=tmp_path / "copy").refuses("another run (root differ)")
    truth = data / "second" / "groundtruth.txt"
    rows = truth.read_text().splitlines()
    truth.write_text("\n".join(["9,9,20,20", *rows[1:]]))
    assert run(out, *only).refuses("first box of second differ")
    truth.write_text("\n".join(rows))
    (out / "second.txt").write_text("nan,nan,nan,nan\n" * LENGTHS["second"])
    told = run(out, *only, "--json")
    assert (told.code, told.json["finished"]) == (0, ["second"])
    assert "nan" not in (out / "second.txt").read_text()


@pytest.mark.parametrize("how", [{"broken": ("stderr",)}, {"closed": "2>&-"}], ids=["pipe", "from the start"])
def test_a_closed_standard_error_loses_nothing(
    run: Command, data: Path, weights: str, tmp_path: Path, how: dict[str, Any]
) -> None:
    calm, out = tmp_path / "calm", tmp_path / "out"
    sorted((data / "first" / "visible").iterdir())[2].write_bytes(b"")  # there is something to say early
    (data / "bare" / "visible").mkdir(parents=True)
    assert run(calm).code == 0
    assert unheard(by_module(*tracking_run(data, weights, out)), **how).returncode == 0
    assert results(out) == results(calm)
    assert set(results(out)) == {f"{name}.txt" for name in LENGTHS}


def test_an_error_of_the_listener_is_no_dead_worker(data: Path, weights: str, tmp_path: Path) -> None:
    def leaves(_outcome: Outcome) -> None:
        raise BrokenPipeError("the listener's own")

    plan = RunPlan(TrackerSetup(weights, engine="reference"))
    with pytest.raises(BrokenPipeError, match="the listener's own"):
        run_dataset(open_dataset("folder", data), plan, tmp_path / "out", local(["cpu"]), on_outcome=leaves)


def test_a_worker_ends_after_an_unexpected_error(data: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence, plan = open_dataset("folder", data).sequence("first"), RunPlan(TrackerSetup(weights))
    tracker = Breaks(weights, device="cpu", engine="reference")
    monkeypatch.setattr(workers, "build_tracker", lambda *_arguments: tracker)
    monkeypatch.setattr(signal, "signal", lambda *_arguments: None)
    ours, theirs = multiprocessing.Pipe()
    ours.send(sequence)
    ours.send(sequence)
    workers._work(theirs, plan, "cpu")
    heard = [ours.recv() for _ in range(2)]
    assert "ZeroDivisionError" in heard[1].failure
    assert not ours.poll()  # the second sequence is left to another worker


def test_a_worker_with_an_unexpected_error_is_replaced(
    data: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def start_thread(_plan: RunPlan, device: str) -> workers._Worker:
        started.append(device)
        ours, theirs = multiprocessing.Pipe()

        def work() -> None:
            theirs.send(Started("fake on cpu", "fake"))
            theirs.send(Outcome(theirs.recv().name, failure="ZeroDivisionError", details="a traceback"))

        thread = threading.Thread(target=work)
        thread.start()
        return workers._Worker(SimpleNamespace(join=thread.join, terminate=lambda: None, exitcode=0), ours, device)

    monkeypatch.setattr(workers, "_start", start_thread)
    plan = RunPlan(TrackerSetup(weights, engine="reference"))
    summary = run_dataset(open_dataset("folder", data), plan, tmp_path / "out", local(["cpu"]))
    assert set(summary.failed) == set(LENGTHS)
    assert started == ["cpu"] * len(LENGTHS)


def test_workers_go_round_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices("cpu", 3) == ("cpu",) * 3
    assert devices("cuda:1", 2) == ("cuda:1", "cuda:1")
    assert default_workers("cpu") == default_workers("cuda:1") == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices("auto", 4) == ("cuda:0", "cuda:1", "cuda:2", "cuda:0")
    assert default_workers("auto") == default_workers("cuda") == 3
    assert devices("auto", 2, "model.onnx") == ("auto", "auto")  # ONNX Runtime may see none of them
    assert devices("cuda", 2, "model.onnx") == devices("auto", 2, "model.safetensors") == ("cuda:0", "cuda:1")
    assert default_workers("auto", "model.onnx") == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices("auto", 2) == ("auto", "auto")
    assert default_workers("auto") == 1


# --- corruption --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["noise:2", "dropped:4", "stutter:4", "shift:3"])
def test_damaged_runs_are_the_tracker_on_damaged_frames(data: Path, weights: str, name: str) -> None:
    corruption = parse_corruption(name, seed=4)
    dataset = open_dataset("folder", data)
    tracker = Tracker(weights, engine="reference", device="cpu")
    truth = expected(data, weights, corruption)
    assert truth != expected(data, weights)
    for sequence in dataset.sequences:
        boxes = track_sequence(tracker, sequence, corruption).boxes
        rows = "".join(",".join(f"{v:.4f}" for v in box) + "\n" for box in boxes)
        assert rows == truth[f"{sequence.name}.txt"]


def pair(dtype: type = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    high = 256 if dtype == np.uint8 else 4000
    return rng.integers(40, 200, (60, 80, 3), np.uint8), rng.integers(high // 8, high - high // 8, (60, 80), dtype)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_damage_is_seeded_and_keeps_the_form(name: str, dtype: type) -> None:
    rgb, tir = pair(dtype)
    kept = rgb.copy(), tir.copy()
    one, again, other = Corruption(name, 3, 1), Corruption(name, 3, 1), Corruption(name, 3, 2)
    for frame in (0, 1, 7):
        first, second = one.apply("walk", frame, rgb, tir), again.apply("walk", frame, rgb, tir)
        for mine, yours, source in zip(first, second, (rgb, tir), strict=True):
            if mine is None:
                assert yours is None
                assert name == "dropped"
            else:
                assert np.array_equal(mine, yours)
                assert (mine.shape, mine.dtype) == (source.shape, source.dtype)
    assert np.array_equal(rgb, kept[0])
    assert np.array_equal(tir, kept[1])
    assert one.apply("walk", 3, None, None) == (None, None)
    if name in ("noise", "darkness", "stripes"):
        changed = 0 if name != "stripes" else 1
        assert not np.array_equal(one.apply("a", 1, rgb, tir)[changed], other.apply("a", 1, rgb, tir)[changed])
        assert not np.array_equal(one.apply("a", 1, rgb, tir)[changed], one.apply("b", 1, rgb, tir)[changed])


def test_what_each_damage_does() -> None:
    rgb, tir = pair()
    dark, same = Corruption("darkness", 2).apply("s", 0, rgb, tir)
    assert same is tir
    assert dark.mean() == pytest.approx(0.3 * rgb.mean(), abs=0.5)
    noisy = Corruption("noise", 2).apply("s", 5, np.full_like(rgb, 128), tir)[0]
    assert noisy.std() == pytest.approx(16, rel=0.05)
    blurred = Corruption("blur", 3).apply("s", 0, rgb, tir)
    assert np.array_equal(blurred[0], cv2.GaussianBlur(rgb, (0, 0), 3))
    same, striped = Corruption("stripes", 3).apply("s", 0, rgb, np.full_like(tir, 128))
    assert same is rgb
    assert (striped == striped[:1]).all()  # whole columns
    assert striped[0].std() == pytest.approx(16, rel=0.25)
    later = Corruption("stripes", 3).apply("s", 9, rgb, np.full_like(tir, 128))[1]
    assert np.array_equal(striped, later)  # a fixed pattern
    grid = np.zeros((60, 80), np.uint8)
    grid[30, 40] = 255
    (y,), (x,) = np.nonzero(Corruption("shift", 2).apply("s", 0, rgb, grid)[1])
    assert np.hypot(y - 30, x - 40) == pytest.approx(8, abs=0.8)
    gone = [Corruption("dropped", 4).apply("s", frame, rgb, tir) for frame in range(400)]
    assert gone[0][0] is rgb  # the first is always there
    assert gone[0][1] is tir
    without = [sum(images[side] is None for images in gone) / 400 for side in (0, 1)]
    assert without == pytest.approx([0.3, 0.3], abs=0.07)
    assert not any(images[0] is None and images[1] is None for images in gone)
    late = Corruption("stutter", 4)
    arrivals = [late.delivered("s", frame) for frame in range(400)]
    assert arrivals[0] == 0
    assert all(a <= b for a, b in itertools.pairwise(arrivals))
    assert sum(a != frame for frame, a in enumerate(arrivals)) / 400 == pytest.approx(0.5, abs=0.08)


def test_corruptions_by_name() -> None:
    assert parse_corruption("stripes:5", 9) == Corruption("stripes", 5, 9)
    assert [Corruption("shift", level).strength for level in range(1, 6)] == [4, 8, 16, 24, 32]
    with pytest.raises(InputError, match="known are blur, noise, darkness, stripes, dropped, shift, stutter"):
        parse_corruption("fog:1")


def test_calibrations_are_other_runs(run: Command, tmp_path: Path, weights: str) -> None:
    """Files with them keep the provenance of the weights."""
    plain = load_model(weights)
    variants = {
        "calibrated": calibrate_by_chance(plain),
        "other ranges": calibrate_by_chance(plain, seed=1),
        "other layers": calibrate_by_chance(plain, ("rgb.head",)),
    }
    file, out = tmp_path / "weights.safetensors", tmp_path / "out"
    arguments = (out, "--sequences", "second", "--weights", file)
    save_model(plain, file)
    assert run(*arguments).code == 0
    for name, model in variants.items():
        save_model(model, file)
        assert run(*arguments).refuses("results of another run (calibration differ)"), name
        assert run(*arguments, "--force").code == 0
        assert run(*arguments, "--json").json["kept"] == ["second"]


def test_what_auto_stands_for_is_kept_to(run: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    only = ("--sequences", "second")
    assert run(out, *only).code == 0
    written = json.loads((out / "run.json").read_text())
    assert written["ran"] == "reference float32"
    (out / "run.json").write_text(json.dumps(written | {"ran": "openvino int8"}))
    assert run(out, *only).code == 0  # nothing is left to do
    told = run(out, "--sequences", "second", "first")
    assert told.refuses("holds results of openvino int8, and now reference float32 would run")
    assert set(results(out)) == {"second.txt"}
    (out / "second.txt").unlink()
    (out / "second_time.txt").unlink()
    assert run(out, *only).code == 0  # no result is mixed
    assert json.loads((out / "run.json").read_text())["ran"] == "reference float32"


def test_a_record_of_an_earlier_version_is_read(run: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, "--sequences", "second").code == 0
    written = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({name: written[name] for name in written.keys() - {"calibration", "ran"}}))
    told = run(out, "--sequences", "second", "first", "--json")
    assert told.json["kept"] == ["second"]
    assert json.loads((out / "run.json").read_text())["ran"] == written["ran"]
