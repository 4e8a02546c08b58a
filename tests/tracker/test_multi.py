"""Many targets, and frames that are handed over before the last result is there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from checkpoints import SMALL

from ckd_fast import EngineError, InputError, MultiTracker, NotInitialisedError, Tracker, TrackerConfig, load_model
from ckd_fast.datasets import ClipConfig, SyntheticClip
from ckd_fast.engines import Found, Pending

MODEL = load_model("random", SMALL, seed=4)
CLIP = SyntheticClip(ClipConfig(width=160, height=120, frames=6, seed=9))
PAIRS = [(frame.rgb, frame.tir) for frame in CLIP]
BOXES = [(60.0, 40.0, 30.0, 20.0), (10.0, 12.0, 20.0, 28.0), (100.0, 60.0, 40.0, 44.0)]


def alone(box: tuple[float, ...], config: TrackerConfig | None = None) -> Tracker:
    tracker = Tracker(MODEL, engine="reference", device="cpu", config=config)
    tracker.init(*PAIRS[0], box)
    return tracker


def many(config: TrackerConfig | None = None) -> MultiTracker:
    return MultiTracker(MODEL, engine="reference", device="cpu", config=config)


@pytest.mark.parametrize("lost_scale", [1.0, 2.0])
def test_many_targets_are_single_trackers(lost_scale: float) -> None:
    config = TrackerConfig(lost_threshold=0.5, lost_search_scale=lost_scale)
    together = many(config)
    numbers = together.init(*PAIRS[0], BOXES)
    singles = [alone(box, config) for box in BOXES]
    for turn, (rgb, tir) in enumerate(PAIRS[1:]):
        results = together.update(None if turn == 2 else rgb, tir)
        for number, single in zip(numbers, singles, strict=True):
            expected = single.update(None if turn == 2 else rgb, tir)
            found = results[number]
            assert found.box == pytest.approx(expected.box, abs=1e-3)
            assert found.score == pytest.approx(expected.score, abs=1e-5)
            assert (found.frame, found.lost, found.rgb_used) == (expected.frame, expected.lost, expected.rgb_used)


def test_targets_come_and_go() -> None:
    together = many()
    first, second = together.init(*PAIRS[0], BOXES[:2])
    together.update(*PAIRS[1])
    third = together.add(*PAIRS[1], BOXES[2])
    late = Tracker(engine=together.engine)
    late.init(*PAIRS[1], BOXES[2])
    results = together.update(*PAIRS[2])
    assert list(results) == [first, second, third]
    assert [result.frame for result in results.values()] == [2, 2, 1]
    assert results[third].box == pytest.approx(late.update(*PAIRS[2]).box, abs=1e-3)
    together.drop(first)
    assert list(together.update(*PAIRS[3])) == [second, third]
    assert len(together) == 2
    assert together.add(*PAIRS[3], BOXES[0]) == third + 1  # a number is never given twice
    together.set_box(second, BOXES[0])
    assert together.boxes[second] == BOXES[0]
    together.reset()
    assert len(together) == 0
    assert repr(together) == "<MultiTracker: reference on cpu, float32; 0 targets>"


def test_no_targets_is_no_work() -> None:
    together = many()
    assert together.init(*PAIRS[0], []) == []
    assert together.update(*PAIRS[1]) == {}


def test_bad_input_changes_nothing() -> None:
    together = many()
    with pytest.raises(NotInitialisedError, match="call init"):
        together.update(*PAIRS[0])
    numbers = together.init(*PAIRS[0], BOXES)
    before = dict(together.boxes)
    with pytest.raises(InputError, match="positive"):
        together.init(*PAIRS[0], [BOXES[0], (1, 1, 0, 5)])
    with pytest.raises(InputError, match="tir frame is None"):
        together.add(PAIRS[0][0], None, BOXES[0])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the track began with 160x120"):
        together.update(PAIRS[0][0][:100], PAIRS[0][1])
    with pytest.raises(InputError, match="there is no such target; there are 0, 1, 2"):
        together.drop(7)
    with pytest.raises(InputError, match="outside"):
        together.set_box(numbers[0], (500, 500, 10, 10))
    assert together.boxes == before
    assert list(together.update(*PAIRS[1])) == numbers


def test_results_may_be_asked_for_later() -> None:
    tracker, single = alone(BOXES[0]), alone(BOXES[0])
    handles = [tracker.track_async(*pair) for pair in PAIRS[1:]]
    expected = [single.update(*pair) for pair in PAIRS[1:]]
    found = [handle.result() for handle in reversed(handles)][::-1]
    assert [dataclasses.replace(r, timings=None) for r in found] == [
        dataclasses.replace(r, timings=None) for r in expected
    ]
    assert tracker.box == expected[-1].box
    assert handles[0].result() is found[0]


def test_follow_is_update_for_every_pair() -> None:
    tracker, single = alone(BOXES[0]), alone(BOXES[0])
    found = [(result.frame, result.box) for result in tracker.follow(PAIRS[1:])]
    assert found == [(result.frame, result.box) for result in (single.update(*pair) for pair in PAIRS[1:])]
    assert list(tracker.follow([])) == []


def test_a_call_waits_for_what_is_on_its_way() -> None:
    tracker, single = alone(BOXES[0]), alone(BOXES[0])
    handle = tracker.track_async(*PAIRS[1])
    tracker.box = BOXES[1]
    single.update(*PAIRS[1])
    single.box = BOXES[1]
    assert tracker.update(*PAIRS[2]).box == single.update(*PAIRS[2]).box
    assert handle.result().frame == 1
    with pytest.raises(InputError, match="the track began with"):
        tracker.track_async(PAIRS[0][0][:100], PAIRS[0][1])
    tracker.reset()
    with pytest.raises(NotInitialisedError):
        tracker.track_async(*PAIRS[1])


def test_a_network_that_overflows_is_told_by_the_handle() -> None:
    weights = {name: torch.full_like(value, float("nan")) for name, value in MODEL.weights.items()}
    tracker = Tracker(dataclasses.replace(MODEL, weights=weights), engine="reference", device="cpu")
    tracker.init(*PAIRS[0], BOXES[0])
    with pytest.raises(EngineError, match="not finite"):
        tracker.track_async(*PAIRS[1])
    assert tracker.box == BOXES[0]


def test_warmup_leaves_no_trace() -> None:
    tracker = Tracker(MODEL, engine="reference", device="cpu")
    tracker.warmup((120, 160), targets=2)
    assert tracker.box is None
    with pytest.raises(InputError, match="targets=0"):
        tracker.warmup((120, 160), targets=0)
    with pytest.raises(InputError, match="at least 10x10"):
        tracker.warmup((4, 160))


def test_frames_may_be_overwritten_at_once() -> None:
    tracker, single = alone(BOXES[0]), alone(BOXES[0])
    buffers = tuple(np.empty_like(frame) for frame in PAIRS[0])
    handles = []
    for pair in PAIRS[1:3]:
        for buffer, frame in zip(buffers, pair, strict=True):
            buffer[:] = frame
        handles.append(tracker.track_async(*buffers))
    for buffer in buffers:
        buffer[:] = 0
    assert [handle.result().box for handle in handles] == [single.update(*pair).box for pair in PAIRS[1:3]]


class Broken(Pending):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def result(self) -> list[Found]:
        raise self.error


def test_any_failure_is_told_by_all_handles_that_follow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = alone(BOXES[0])
    monkeypatch.setattr(tracker.engine, "carries", True)
    monkeypatch.setattr(tracker.engine, "start", lambda *_: Broken(RuntimeError("the device is gone")))
    handles = [tracker.track_async(*pair) for pair in PAIRS[1:3]]
    for handle in (*handles, *handles):
        with pytest.raises(RuntimeError, match="the device is gone"):
            handle.result()
    assert tracker.box == BOXES[0]
    assert tracker.update(*PAIRS[1]).frame == 1


def test_an_interrupted_wait_can_be_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, single = alone(BOXES[0]), alone(BOXES[0])
    handle = tracker.track_async(*PAIRS[1])
    pending = tracker._flights[0].pending
    monkeypatch.setattr(tracker._flights[0], "pending", Broken(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        handle.result()
    tracker._flights[0].pending = pending
    assert handle.result().box == single.update(*PAIRS[1]).box
