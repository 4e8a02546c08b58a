"""Many targets, and frames that are handed over before the last result is there."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from checkpoints import SMALL

from ckd_fast import EngineError, InputError, MultiTracker, NotInitialisedError, Tracker, TrackerConfig, load_model
from ckd_fast.datasets import ClipConfig, SyntheticClip
from ckd_fast.engines import Found, Search
from ckd_fast.frames import RawPair
from ckd_fast.pending import Pending

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
    for attempt, message in (
        (lambda: together.init(*PAIRS[0], [BOXES[0], (1, 1, 0, 5)]), "positive"),
        (lambda: together.add(PAIRS[0][0], None, BOXES[0]), "tir frame is None"),
        (lambda: together.update(PAIRS[0][0][:100], PAIRS[0][1]), "the track began with 160x120"),
        (lambda: together.drop(7), "there is no such target; there are 0, 1, 2"),
        (lambda: together.set_box(numbers[0], (500, 500, 10, 10)), "outside"),
    ):
        with pytest.raises(InputError, match=message):
            attempt()
    assert together.boxes == before
    assert list(together.update(*PAIRS[1])) == numbers


def test_results_may_be_asked_for_later() -> None:
    tracker, single = alone(BOXES[0]), alone(BOXES[0])
    handles = [tracker.track_async(*pair) for pair in PAIRS[1:]]
    expected = [single.update(*pair) for pair in PAIRS[1:]]
    found = [handle.result() for handle in reversed(handles)][::-1]
    timeless = [[dataclasses.replace(result, timings=None) for result in results] for results in (found, expected)]
    assert timeless[0] == timeless[1]
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
    handle = tracker.track_async(*PAIRS[1])
    with pytest.raises(EngineError, match="not finite"):
        handle.result()
    assert tracker.box == BOXES[0]


def test_warmup_leaves_no_trace() -> None:
    tracker = Tracker(MODEL, engine="reference", device="cpu")
    asked = []
    start = tracker.engine.start
    tracker.engine.start = lambda searches, frames: asked.append(searches) or start(searches, frames)
    tracker.warmup((120, 160), targets=2)
    assert [len({id(search.target) for search in searches}) for searches in asked] == [2, 2]
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


def broken(error: BaseException) -> Pending:
    def wait() -> None:
        raise error

    return Pending(wait)


class Carrying:
    """A stand-in for an engine on a GPU: it keeps the box of the last search, and finds a target when it is asked."""

    def __init__(self, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.start, self.box, self.seen = tracker.engine.start, None, []
        monkeypatch.setattr(tracker.engine, "carries_boxes", True)
        monkeypatch.setattr(tracker.engine, "start", self)

    def __call__(self, searches: list[Search], frames: RawPair) -> Pending:
        (search,) = searches
        self.seen.append(search.box)

        def wait() -> list[Found]:
            found = self.start([dataclasses.replace(search, box=search.box or self.box)], frames).result()
            self.box = found[0].box
            return found

        return Pending(wait)


def test_frames_ahead_leave_the_box_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, single = alone(BOXES[0]), alone(BOXES[0])
    engine = Carrying(tracker, monkeypatch)
    first, second = (tracker.track_async(*pair) for pair in PAIRS[1:3])
    assert tracker.frame == 0
    third = tracker.track_async(*PAIRS[3])  # two are in flight: this waits for the first
    assert tracker.frame == 1
    expected = [single.update(*pair).box for pair in PAIRS[1:6]]
    assert [third.result().box, first.result().box, second.result().box] == [expected[2], expected[0], expected[1]]
    assert [tracker.update(*pair).box for pair in PAIRS[4:6]] == expected[3:]
    assert engine.seen == [BOXES[0], None, None, expected[2], expected[3]]


def test_a_frame_that_fails_while_another_thread_starts_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have the error, nothing waits for ever, and the tracker goes on from the last box that it knows."""
    tracker, single = alone(BOXES[0]), alone(BOXES[0])
    engine = Carrying(tracker, monkeypatch)
    monkeypatch.setattr(tracker.engine, "start", lambda *_: broken(EngineError("out of memory")))
    first = tracker.track_async(*PAIRS[1])

    def start(*_: object) -> Pending:  # at this very moment somebody asks for the first
        with pytest.raises(EngineError, match="out of memory"):
            first.result()
        return broken(EngineError("out of memory"))

    monkeypatch.setattr(tracker.engine, "start", start)
    second = tracker.track_async(*PAIRS[2])
    monkeypatch.setattr(tracker.engine, "start", engine)
    assert tracker.update(*PAIRS[3]).box == single.update(*PAIRS[3]).box
    with pytest.raises(EngineError, match="out of memory"):
        second.result()
    tracker.reset()


@pytest.mark.parametrize("sizes", [(1, 2, 2, 1), (2, 1, 2, 1)])
def test_frames_ahead_may_change_size(monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]) -> None:
    config = TrackerConfig(allow_resize=True)
    tracker, single = alone(BOXES[0], config), alone(BOXES[0], config)
    Carrying(tracker, monkeypatch)
    pairs = [
        [cv2.resize(frame, (160 * n, 120 * n)) for frame in pair] for n, pair in zip(sizes, PAIRS[1:5], strict=True)
    ]
    expected = [single.update(*pair).box for pair in pairs]
    handles = [tracker.track_async(*pair) for pair in pairs]
    assert [handle.result().box for handle in handles] == expected


def test_targets_may_come_with_frames_of_another_size() -> None:
    together = many(TrackerConfig(allow_resize=True))
    (first,) = together.init(*PAIRS[0], BOXES[:1])
    big = [[cv2.resize(frame, (320, 240)) for frame in pair] for pair in PAIRS]
    second = together.add(*big[1], [2 * value for value in BOXES[1]])
    single = Tracker(engine=together.engine, config=TrackerConfig(allow_resize=True))
    single.init(*PAIRS[0], BOXES[0])
    late = Tracker(engine=together.engine)
    late.init(*big[1], [2 * value for value in BOXES[1]])
    results = together.update(*big[2])
    assert results[first].box == pytest.approx(single.update(*big[2]).box, abs=1e-3)
    assert results[second].box == pytest.approx(late.update(*big[2]).box, abs=1e-3)


def test_any_failure_is_told_by_all_handles_that_follow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = alone(BOXES[0])
    monkeypatch.setattr(tracker.engine, "carries_boxes", True)
    start = tracker.engine.start
    monkeypatch.setattr(tracker.engine, "start", lambda *_: broken(RuntimeError("the device is gone")))
    handles = [tracker.track_async(*pair) for pair in PAIRS[1:3]]
    with pytest.raises(RuntimeError, match="the device is gone"):
        handles[0].result()
    assert tracker.box == BOXES[0]
    monkeypatch.setattr(tracker.engine, "start", start)
    assert tracker.update(*PAIRS[1]).box == alone(BOXES[0]).update(*PAIRS[1]).box
    for handle in (*handles, *handles):  # the second was searched from the first's box
        with pytest.raises(RuntimeError, match="the device is gone"):
            handle.result()
    assert tracker.frame == 1


def test_an_interrupted_wait_can_be_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, single = alone(BOXES[0]), alone(BOXES[0])
    start, interrupts = tracker.engine.start, [KeyboardInterrupt()]

    def interrupted_once(*arguments: object) -> Pending:
        found = start(*arguments).result()

        def wait() -> list[Found]:
            if interrupts:
                raise interrupts.pop()
            return found

        return Pending(wait)

    monkeypatch.setattr(tracker.engine, "start", interrupted_once)
    pending = tracker.track_async(*PAIRS[1])
    with pytest.raises(KeyboardInterrupt):
        pending.result()
    assert tracker.frame == 0
    assert pending.result().box == single.update(*PAIRS[1]).box
