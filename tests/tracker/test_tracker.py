"""What a tracker promises beyond the numbers: inputs of every shape, state, sharing, missing modalities."""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import threading

import cv2
import numpy as np
import pytest
import torch
from checkpoints import SMALL
from numpy.typing import NDArray

from ckd_fast import EngineError, InputError, LoadedModel, ModelConfig, NotInitialisedError, Tracker, load_model
from ckd_fast.config import TrackerConfig
from ckd_fast.engines.host import ReferenceEngine
from ckd_fast.frames import FrameForm, check_pair, first_pair, reduce_to_8_bits, register
from ckd_fast.types import TrackResult

H, W = 96, 128
BOX = (40.0, 30.0, 24.0, 20.0)
MODEL = load_model("random", SMALL, seed=3)


def tracker(model: LoadedModel = MODEL, **config: object) -> Tracker:
    return Tracker(model, engine="reference", device="cpu", config=TrackerConfig(**config))


def frames(count: int = 4, height: int = H, width: int = W, seed: int = 0) -> list[tuple[NDArray, NDArray]]:
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (count, 2, height // 8, width // 8, 3), dtype=np.uint8)
    grown = [[cv2.resize(image, (width, height)) for image in pair] for pair in noise]
    return [(rgb, tir) for rgb, tir in grown]


def walk(target: Tracker, pairs: list[tuple]) -> list[TrackResult]:
    target.init(*pairs[0], BOX)
    return [target.update(*pair) for pair in pairs[1:]]


def places(results: list[TrackResult]) -> list[tuple]:
    return [(r.box, r.score) for r in results]


PAIRS = frames(5)
EXPECTED = places(walk(tracker(), PAIRS))


# --- inputs as people have them ---------------------------------------------------------------------------------------


def read_only(array: NDArray) -> NDArray:
    array = array.copy()
    array.flags.writeable = False
    return array


def strided(array: NDArray) -> NDArray:
    wide = np.zeros((array.shape[0] * 2, array.shape[1] * 3, array.shape[2]), array.dtype)
    wide[::2, ::3] = array
    return wide[::2, ::3]


SAME = {
    "read-only": (read_only, {}),
    "non-contiguous": (strided, {}),
    "flipped twice": (lambda a: np.ascontiguousarray(a[::-1])[::-1], {}),
    "fortran order": (np.asfortranarray, {}),
    "torch": (lambda a: torch.from_numpy(a.copy()), {}),
    "torch view": (lambda a: torch.from_numpy(strided(a)), {}),
    "torch that requires nothing": (lambda a: torch.from_numpy(a.copy()).permute(2, 0, 1).permute(1, 2, 0), {}),
    "bgr": (lambda a: np.ascontiguousarray(a[:, :, ::-1]), {"color": "bgr"}),
    "masked array": (np.ma.masked_array, {}),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_frames_in_another_form(name: str) -> None:
    change, config = SAME[name]
    changed = [(change(rgb), change(tir)) for rgb, tir in PAIRS]
    assert places(walk(tracker(**config), changed)) == EXPECTED


def test_one_channel_thermal_is_three_equal_channels() -> None:
    grey = [(rgb, tir[:, :, :1]) for rgb, tir in PAIRS]
    flat = [(rgb, tir[:, :, 0]) for rgb, tir in PAIRS]
    three = [(rgb, np.repeat(tir[:, :, :1], 3, axis=2)) for rgb, tir in PAIRS]
    expected = places(walk(tracker(), three))
    assert places(walk(tracker(), grey)) == expected
    assert places(walk(tracker(), flat)) == expected


def test_16_bit_thermal_follows_one_rule() -> None:
    """From low to high linearly, rounded half up, clipped; in integers."""
    values = np.array([[0, 999, 1000, 1001, 2000, 3000, 3001, 65535]], np.uint16)
    assert reduce_to_8_bits(values, 1000, 3000).tolist() == [[0, 0, 0, 0, 128, 255, 255, 255]]
    every = np.arange(1000, 3001, dtype=np.uint16)
    exact = np.floor((every.astype(float) - 1000) / 2000 * 255 + 0.5)
    assert np.array_equal(reduce_to_8_bits(every, 1000, 3000), exact)
    wide = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(reduce_to_8_bits(wide, 0, 65535), np.floor(wide / 65535 * 255 + 0.5))


def test_16_bit_thermal_tracks_as_its_reduction() -> None:
    deep = [(rgb, (tir[:, :, 0].astype(np.uint16) * 40 + 5000)) for rgb, tir in PAIRS]
    limits = (5000, 5000 + 255 * 40)
    assert places(walk(tracker(tir_range=limits), deep)) == places(
        walk(tracker(), [(rgb, tir[:, :, 0]) for rgb, tir in PAIRS])
    )
    assert places(walk(tracker(tir_range=limits), [(a, torch.from_numpy(b)) for a, b in deep])) == places(
        walk(tracker(tir_range=limits), deep)
    )


def test_the_range_of_16_bit_thermal_is_that_of_the_first_frame() -> None:
    thermal = np.full((100, 100), 5000, np.uint16)
    thermal[20:60, 20:60] = 7000
    thermal[0, 0], thermal[99, 99] = 0, 65535  # dead pixels: less than 0.05 % each
    form = first_pair(np.zeros((100, 100, 3), np.uint8), thermal, TrackerConfig()).form
    assert form.tir_range == (5000, 7000)
    later = np.full((100, 100), 9000, np.uint16)
    pair = register(check_pair(None, later, form, TrackerConfig()))
    assert pair.tir is not None
    assert (pair.tir == 255).all()
    flat = first_pair(np.zeros((10, 10, 3), np.uint8), np.full((10, 10), 65535, np.uint16), TrackerConfig())
    assert flat.form.tir_range == (65534, 65535)


def test_thermal_of_another_resolution_is_scaled() -> None:
    rgb, tir = PAIRS[0]
    small = cv2.resize(tir, (W // 2, H // 2))
    pair = register(first_pair(rgb, small, TrackerConfig()))
    assert pair.tir is not None
    assert np.array_equal(pair.tir, cv2.resize(small, (W, H)))
    results = walk(tracker(), [(a, cv2.resize(b, (W // 2, H // 2))) for a, b in PAIRS])
    assert all(0 <= r.box[0] <= W - 10 for r in results)


def test_homography_puts_thermal_on_the_visible_grid() -> None:
    """Thermal pixel (x, y) lands on visible pixel (2 x + 6, 2 y + 4)."""
    thermal = np.zeros((H // 2, W // 2, 3), np.uint8)
    thermal[10, 20] = 200
    matrix = ((2, 0, 6), (0, 2, 4), (0, 0, 1))
    config = TrackerConfig(tir_to_rgb=matrix)
    form = first_pair(PAIRS[0][0], thermal, config).form
    pair = register(check_pair(None, thermal, form, config))
    assert pair.tir is not None
    assert pair.tir.shape == (H, W, 3)
    assert np.unravel_index(pair.tir[:, :, 0].argmax(), (H, W)) == (24, 46)
    identity = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    assert places(walk(tracker(tir_to_rgb=identity), PAIRS)) == EXPECTED


def test_frames_may_change_size_with_leave() -> None:
    big = [tuple(cv2.resize(frame, (2 * W, 2 * H)) for frame in pair) for pair in PAIRS]
    target = tracker(allow_resize=True)
    target.init(*PAIRS[0], BOX)
    first = target.update(*PAIRS[1])
    doubled = target.update(*big[2])
    again = Tracker(engine=target.engine)
    again.init(*big[0], tuple(2 * v for v in BOX))
    again._track.target = target._track.target
    again.box = tuple(2 * v for v in first.box)
    assert doubled.box == again.update(*big[2]).box


# --- missing modalities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["rgb", "tir"])
def test_a_missing_modality_is_marked_and_shown_as_the_mean(missing: str) -> None:
    target = tracker()
    target.init(*PAIRS[0], BOX)
    pair = [None if name == missing else frame for name, frame in zip(("rgb", "tir"), PAIRS[1], strict=True)]
    result = target.update(*pair)
    assert (result.rgb_used, result.tir_used) == (missing != "rgb", missing != "tir")
    # By hand: zeros for the missing crop, no vote in eliminations.
    from ckd_fast.reference.boxes import clip_box, find_peak, hann_window, to_frame
    from ckd_fast.reference.preprocess import crop, normalise

    student = MODEL.student()
    present_frame = pair[1] if missing == "rgb" else pair[0]
    shown = crop(present_frame, BOX, 4.0, 256)
    images = torch.zeros(2, 1, 3, 256, 256)
    images[1 if missing == "rgb" else 0] = normalise(torch.from_numpy(shown.image)[None])
    template = torch.stack([normalise(torch.from_numpy(crop(frame, BOX, 2.0, 128).image)[None]) for frame in PAIRS[0]])
    present = torch.tensor([[missing != "rgb"], [missing != "tir"]])
    with torch.inference_mode():
        maps = student(student.embed_template(template), images, present=present).maps
    peak = find_peak(maps, hann_window(16))
    box = clip_box(to_frame(peak.boxes_cxcywh[0], BOX, shown.resize_factor, 256), H, W)
    assert result.box == pytest.approx(box, abs=1e-4)
    after = target.update(*PAIRS[2])
    assert after.rgb_used
    assert after.tir_used


# --- state ------------------------------------------------------------------------------------------------------------


def test_results_stay_inside_the_frame_and_count_frames() -> None:
    results = walk(tracker(), PAIRS)
    assert [r.frame for r in results] == [1, 2, 3, 4]
    for r in results:
        x, y, w, h = r.box
        assert x >= 0
        assert y >= 0
        assert x + w <= W + 1e-9
        assert y + h <= H + 1e-9
        assert min(w, h) >= 10
        assert 1e-4 <= r.score <= 1 - 1e-4
        parts = r.timings
        assert parts.total_ms >= parts.prepare_ms + parts.crop_ms + parts.network_ms + parts.decode_ms - 1e-6 > 0


def test_the_threshold_is_the_weights_unless_it_is_given() -> None:
    calibrated = dataclasses.replace(MODEL, lost_threshold=0.37)
    assert tracker().lost_threshold == 0.2
    own = tracker(calibrated)
    assert own.lost_threshold == 0.37
    assert Tracker(engine=own.engine).lost_threshold == 0.37
    assert ReferenceEngine(calibrated, torch.device("cpu"), torch.float32).lost_threshold == 0.37
    assert Tracker(engine=own.engine, config=TrackerConfig(lost_threshold=0.0)).lost_threshold == 0
    surely = tracker(dataclasses.replace(MODEL, lost_threshold=1.0))
    assert [r.lost for r in walk(surely, PAIRS)] == [True] * 4


def test_lost_says_and_changes_nothing() -> None:
    never, always = tracker(lost_threshold=0.0), tracker(lost_threshold=1.0)
    first, second = walk(never, PAIRS), walk(always, PAIRS)
    assert places(first) == places(second)
    assert [r.lost for r in first] == [False] * 4
    assert [r.lost for r in second] == [True] * 4


def test_widened_search_only_after_a_lost_frame() -> None:
    wide = walk(tracker(lost_threshold=1.0, lost_search_scale=2.0), PAIRS)
    assert places(wide)[0] == EXPECTED[0]
    assert places(wide)[1] != EXPECTED[1]
    assert places(walk(tracker(lost_threshold=0.0, lost_search_scale=2.0), PAIRS)) == EXPECTED


def test_a_widened_search_is_bounded() -> None:
    """A crop of many frames' width shows nothing more, and would fill the memory."""
    target = tracker(lost_threshold=1.0, lost_search_scale=4.0)
    target.init(*PAIRS[0], (0, 0, W, H))
    seen: list[float] = []
    start = target.engine.start

    def watch(*arguments: object) -> object:
        seen.append(arguments[0][0].factor)
        return start(*arguments)

    target.engine.start = watch
    for pair in PAIRS[1:]:
        target.box = (0, 0, W, H)
        target.update(*pair)
    assert seen == [4.0] * 4


def test_a_result_that_is_not_finite_is_an_error() -> None:
    """Finite weights may overflow; the state stays."""
    huge = {name: torch.full_like(v, 3e38) if "fc1.weight" in name else v for name, v in MODEL.weights.items()}
    target = tracker(dataclasses.replace(MODEL, weights=huge))
    target.init(*PAIRS[0], BOX)
    with pytest.raises(EngineError, match="not finite"):
        target.update(*PAIRS[1])
    assert (target.box, target.frame) == (BOX, 0)


def test_an_operator_may_move_the_box() -> None:
    target = tracker()
    target.init(*PAIRS[0], BOX)
    first = target.update(*PAIRS[1])
    assert target.box == first.box
    target.box = [60, 50, 30, 30]
    assert target.box == (60.0, 50.0, 30.0, 30.0)
    moved = target.update(*PAIRS[2])
    assert moved.frame == 2
    target.reset()
    assert target.box is None
    assert target.last is None
    with pytest.raises(NotInitialisedError, match="call init"):
        target.update(*PAIRS[1])


def test_init_again_starts_anew() -> None:
    target = tracker()
    walk(target, PAIRS)
    assert places(walk(target, PAIRS)) == EXPECTED


def test_interleaved_trackers_share_an_engine() -> None:
    first = tracker()
    second = Tracker(engine=first.engine)
    assert second.engine is first.engine
    other_box = (10.0, 60.0, 40.0, 30.0)
    alone = Tracker(engine=first.engine)
    alone.init(*PAIRS[0], other_box)
    expected = [alone.update(*pair).box for pair in PAIRS[1:]]
    first.init(*PAIRS[0], BOX)
    second.init(*PAIRS[0], other_box)
    mixed = [(first.update(*pair), second.update(*pair)) for pair in PAIRS[1:]]
    assert places([a for a, _ in mixed]) == EXPECTED
    assert [b.box for _, b in mixed] == expected


def test_two_threads_give_what_each_gives_alone() -> None:
    shared = tracker().engine
    sequences = [frames(6, seed=seed) for seed in (1, 2)]
    expected = [places(walk(Tracker(engine=shared), pairs)) for pairs in sequences]
    found: list[list] = [[], []]
    failures: list[BaseException] = []

    def run(index: int) -> None:
        try:
            found[index] = [places(walk(Tracker(engine=shared), sequences[index])) for _ in range(3)]
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert found == [[e] * 3 for e in expected]


def test_gt_box_range_uses_the_target() -> None:
    config = dataclasses.replace(SMALL, template_range="GT_BOX")
    target = tracker(dataclasses.replace(MODEL, config=config))
    target.init(*PAIRS[0], BOX)
    # By hand: the template crop is ceil(2 sqrt(24 x 20)) = 44 pixels wide around the target, the box 24 x 20 of them.
    factor = 128 / 44
    left, top = 63.5 - 12 * factor, 63.5 - 10 * factor

    def covered(start: float, length: float) -> list[int]:
        """Cells of which one of the two middle pixels is painted."""
        painted = range(int(start), int(start + length - 1))
        return [cell for cell in range(8) if 16 * cell + 7 in painted or 16 * cell + 8 in painted]

    columns, rows = covered(left, 24 * factor), covered(top, 20 * factor)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    assert torch.equal(target._track.target.template.deciding[0].reshape(8, 8), expected)
    assert places([target.update(*PAIRS[1])]) != EXPECTED[:1]


# --- engines ----------------------------------------------------------------------------------------------------------


def test_auto_falls_back_visibly(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "ckd_fast.engines.openvino.engine", raising=False)
    with caplog.at_level(logging.WARNING, logger="ckd_fast"):
        target = Tracker(MODEL)
    reason = (
        "no usable GPU; engine 'openvino' needs the package openvino, which is not installed: "
        "pip install 'ckd_fast[cpu]'"
    )
    assert str(target.engine) == f"reference on cpu, float32 (auto: {reason})"
    assert [record.getMessage() for record in caplog.records] == [
        f"engine 'auto' runs the reference network on cpu, which is slow ({reason})"
    ]
    with pytest.raises(EngineError, match="needs a usable NVIDIA GPU and found none"):
        Tracker(MODEL, engine="triton")
    with pytest.raises(EngineError, match="sees no usable GPU"):
        Tracker(MODEL, device="cuda")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": tracker().engine}, "pass it alone"),
        ({"engine": "fast"}, "engine='fast': known are auto, reference, compiled, openvino, onnx, triton"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"device": "meta"}, "device='meta'"),
        ({"dtype": "int4"}, "dtype='int4': known are float32"),
        ({"dtype": torch.int32}, "dtype=torch.int32"),
        ({"model": "base"}, "brings its sizes"),
        ({"config": {"lost_threshold": 0.3}}, "config is a dict"),
    ],
)
def test_bad_constructor_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tracker(MODEL, **arguments)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"color": "grey"}, "color='grey'"),
        ({"lost_threshold": 2}, "lost_threshold=2"),
        ({"lost_search_scale": 0.5}, "lost_search_scale=0.5"),
        ({"lost_threshold": "0.2"}, "lost_threshold='0.2'"),
        ({"lost_search_scale": "2"}, "lost_search_scale='2'"),
        ({"tir_range": (5, 5)}, "tir_range"),
        ({"tir_range": 5}, "tir_range=5"),
        ({"tir_range": (1, 2, 3)}, "tir_range"),
        ({"tir_range": (0.5, 10.2)}, "two whole numbers"),
        ({"tir_to_rgb": ((1, 0), (0, 1))}, "3x3"),
        ({"tir_to_rgb": ((1, 0, 0), (2, 0, 0), (0, 0, 1))}, "cannot be inverted"),
        ({"tir_to_rgb": ((math.nan, 0, 0), (0, 1, 0), (0, 0, 1))}, "not finite"),
        ({"tir_to_rgb": "identity"}, "3x3"),
        ({"tir_to_rgb": ((0, 0, 0),) * 3}, "cannot be inverted"),
    ],
)
def test_bad_config(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrackerConfig(**values)


# --- everything that can be wrong ------------------------------------------------------------------------------------

RGB, TIR = PAIRS[1]
BAD_FRAMES = {
    "both missing": (None, None, "both frames are None"),
    "list": (RGB.tolist(), TIR, "rgb frame is a list"),
    "path": ("frame.jpg", TIR, "rgb frame is a str.*cv2.imread"),
    "float": (RGB / 255, TIR, "rgb frame is float64.*scale values"),
    "int64": (RGB.astype(np.int64), TIR, "rgb frame is int64"),
    "bool": (RGB > 100, TIR, "rgb frame is bool"),
    "16-bit rgb": (RGB.astype(np.uint16), TIR, "rgb frame is uint16: expected uint8"),
    "object array": (RGB.astype(object), TIR, "rgb frame is object"),
    "rank 1": (RGB.ravel(), TIR, "shape .*expected .height, width, channels"),
    "rank 4": (RGB[None], TIR, "expected .height, width, channels"),
    "grey rgb": (RGB[:, :, 0], TIR, "expected 3 channels"),
    "rgba": (np.dstack([RGB, RGB[:, :, :1]]), TIR, "expected 3 channels"),
    "channels first": (RGB.transpose(2, 0, 1), TIR, "channels come last"),
    "empty": (RGB[:0], TIR, "expected at least 10x10"),
    "narrow": (RGB[:, :9], TIR, "is 9x96: expected at least"),
    "two channels": (RGB, TIR[:, :, :2], "tir frame has shape .*expected 1 or 3"),
    "float thermal": (RGB, TIR.astype(np.float32), "tir frame is float32: expected uint8 or uint16"),
    "int16 thermal": (RGB, TIR.astype(np.int16), "tir frame is int16"),
    "complex tensor": (torch.zeros(H, W, 3, dtype=torch.complex64), TIR, "rgb frame is complex64"),
    "bfloat16 tensor": (torch.zeros(H, W, 3, dtype=torch.bfloat16), TIR, "rgb frame is bfloat16"),
    "meta tensor": (torch.zeros(H, W, 3, dtype=torch.uint8, device="meta"), TIR, "holds no image"),
    "sparse tensor": (torch.zeros(H, W, 3, dtype=torch.uint8).to_sparse(), TIR, "holds no image"),
    "float tensor": (torch.zeros(H, W, 3), TIR, "rgb frame is float32.*scale values"),
    "rgb of another size": (RGB[:-1], TIR, "rgb frame is 128x95, the track began with 128x96"),
    "tir of another size": (RGB, TIR[:, :-2], "tir frame is 126x96, the track began"),
    "thermal became 16-bit": (RGB, TIR.astype(np.uint16), "tir frame is uint16, the track began with uint8"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_frames_leave_the_state_alone(name: str) -> None:
    rgb, tir, message = BAD_FRAMES[name]
    target = tracker()
    target.init(*PAIRS[0], BOX)
    target.update(*PAIRS[1])
    before = (target._track.target, target._form, target.box, target.last)
    with pytest.raises(InputError, match=message):
        target.update(rgb, tir)
    assert before == (target._track.target, target._form, target.box, target.last)
    assert places([target.update(*PAIRS[2])]) == EXPECTED[1:2]
    if "another size" not in name and "became" not in name:
        with pytest.raises(InputError):
            target.init(rgb, tir, BOX)
        assert target.frame == 2


BAD_BOXES = {
    "none": (None, "expected four numbers"),
    "text": ("1,2,3,4", "expected four numbers"),
    "digits": ("1234", "expected four numbers"),
    "bytes": (b"abcd", "expected four numbers"),
    "keys": ({1: 0, 2: 0, 3: 0, 4: 0}, "expected four numbers"),
    "endless": ([10**400, 2, 3, 4], "expected four numbers"),
    "meta tensor": (torch.ones(4, device="meta"), "expected four numbers"),
    "next to nothing": ([10, 10, 1e-200, 1e-200], "must be positive"),
    "three numbers": ([1, 2, 3], "got 3"),
    "five numbers": ([1, 2, 3, 4, 5], "got 5"),
    "nested": ([[1, 2, 3, 4]], "expected four numbers"),
    "nan": ([1, 2, math.nan, 4], "not finite"),
    "infinite": ([1, 2, math.inf, 4], "not finite"),
    "zero width": ([10, 10, 0, 20], "must be positive"),
    "negative height": ([10, 10, 20, -5], "must be positive"),
    "right of the frame": ([W, 10, 20, 20], "wholly outside"),
    "left of the frame": ([-30, 10, 20, 20], "wholly outside"),
    "above the frame": ([10, -20, 20, 20], "wholly outside"),
    "below the frame": ([10, 500, 20, 20], "wholly outside"),
    "far too large": ([0, 0, 1e7, 1e7], "larger than the 128x96 frame"),
    "corners taken for a size": ([60, 40, 30, 170], "larger than the 128x96 frame"),
}


@pytest.mark.parametrize("name", BAD_BOXES)
def test_bad_boxes_leave_the_state_alone(name: str) -> None:
    box, message = BAD_BOXES[name]
    target = tracker()
    with pytest.raises(InputError, match=message):
        target.init(*PAIRS[0], box)
    assert target.box is None
    target.init(*PAIRS[0], BOX)
    with pytest.raises(InputError, match=message):
        target.box = box
    with pytest.raises(InputError, match=message):
        target.initialize(*PAIRS[0], {"init_bbox": box})
    assert places([target.update(*PAIRS[1])]) == EXPECTED[:1]


@pytest.mark.parametrize("missing", [(None, TIR), (RGB, None), (None, None)])
def test_a_track_starts_with_both_modalities(missing: tuple) -> None:
    with pytest.raises(InputError, match="starts with both modalities"):
        tracker().init(*missing, BOX)


@pytest.mark.parametrize("info", [None, {}, {"bbox": [1, 2, 3, 4]}, [1, 2, 3, 4]])
def test_bad_info(info: object) -> None:
    with pytest.raises(InputError, match="init_bbox"):
        tracker().initialize(RGB, TIR, info)


def test_before_init() -> None:
    target = tracker()
    for call in (lambda: target.update(RGB, TIR), lambda: target.track(RGB, TIR)):
        with pytest.raises(NotInitialisedError, match="call init"):
            call()
    with pytest.raises(NotInitialisedError, match="call init"):
        target.box = BOX


def test_a_box_partly_outside_is_fine() -> None:
    target = tracker()
    target.init(*PAIRS[0], (-10, -5, 30, 30))
    assert min(target.update(*PAIRS[1]).box[:2]) >= 0


def test_form_of_the_frames_is_settled_at_init() -> None:
    assert first_pair(RGB, TIR, TrackerConfig()).form == FrameForm((H, W), (H, W), None)


def test_half_precision_runs() -> None:
    target = Tracker(MODEL, engine="reference", device="cpu", dtype="bfloat16")
    results = walk(target, PAIRS)
    assert str(target.engine) == "reference on cpu, bfloat16"
    assert all(math.isfinite(v) for r in results for v in r.box)


def test_repr_tells_the_state() -> None:
    target = tracker()
    assert repr(target) == "<Tracker: reference on cpu, float32; not initialised>"
    walk(target, PAIRS[:2])
    assert "frame 1, box" in repr(target)


def test_a_model_of_other_sizes_tracks() -> None:
    odd = ModelConfig(dim=48, depth=1, heads=3, head_channels=8, elimination="none", template_size=96, search_size=160)
    target = Tracker("random", odd, engine="reference", device="cpu", seed=1)
    assert len(walk(target, PAIRS)) == 4


def test_parts_to_do_without_reach_the_engine() -> None:
    with pytest.raises(InputError, match=r"without=\('speed',\): known are graphs, overlap"):
        Tracker("random", "tiny", "reference", "cpu", without=("speed",))
    with pytest.raises(InputError, match="pass it alone"):
        Tracker(engine=tracker().engine, without=("graphs",))
