"""Each adapter driven by a loop of its own shape over real frames, beside the tracker itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support import shared_data

from ckd_fast import InputError, MultiTracker, NotInitialisedError, OutputError, Tracker, TrackerConfig
from ckd_fast.adapters import OpenCVTracker, SixChannelTracker, get_tracker_class, save_results
from ckd_fast.adapters.vot import parse_region, track_vot_folder

FRAMES = 6


@pytest.fixture(scope="module")
def sequence() -> tuple[list[Path], list[Path], list[float]]:
    """Paths of real frames and the first box."""
    root = shared_data("sequences", "m3svd_0111_1753")
    rgb, tir = (sorted((root / name).glob("*.jpg"))[:FRAMES] for name in ("visible", "infrared"))
    box = [float(v) for v in (root / "groundtruth.txt").read_text().splitlines()[0].replace("\t", ",").split(",")]
    return rgb, tir, box


def bgr(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path))
    assert image is not None
    return image


def rgb(path: Path) -> NDArray[np.uint8]:
    return cv2.cvtColor(bgr(path), cv2.COLOR_BGR2RGB)


@pytest.fixture(scope="module")
def expected(sequence: tuple, weights: str) -> list[tuple]:
    """Boxes and scores of the tracker itself."""
    visible, thermal, box = sequence
    tracker = Tracker(weights, engine="reference", device="cpu")
    tracker.init(rgb(visible[0]), rgb(thermal[0]), box)
    results = [tracker.update(rgb(v), rgb(t)) for v, t in zip(visible[1:], thermal[1:], strict=True)]
    height, width = rgb(visible[0]).shape[:2]
    for x, y, w, h in (r.box for r in results):
        assert 0 <= x <= x + w <= width + 1e-9
        assert y + h <= height + 1e-9
    return [(list(r.box), r.score) for r in results]


def test_the_authors_loop(sequence: tuple, weights: str, expected: list, tmp_path: Path) -> None:
    visible, thermal, box = sequence
    params = SimpleNamespace(checkpoint=weights, engine="reference", device="cpu", search_size=256, debug=0)
    tracker = get_tracker_class()(params, "lasher")
    out = tracker.initialize(rgb(visible[0]), rgb(thermal[0]), {"init_bbox": box}) or {}
    boxes, times, previous = [out.get("target_bbox", box)], [0.25], out
    scores = []
    for number, (v, t) in enumerate(zip(visible[1:], thermal[1:], strict=True), 1):
        info = {"gt_bbox": [0, 0, 1, 1], "baseline_rect": None, "previous_output": previous, "frame_num": number}
        out = tracker.track(rgb(v), rgb(t), info)
        previous = dict(out)
        boxes.append(out["target_bbox"])
        scores.append(out["best_score"])
        times.append(0.125)
    assert list(zip(boxes[1:], scores, strict=True)) == expected
    save_results(tmp_path / "sequence", boxes, times)
    rows = (tmp_path / "sequence.txt").read_text().splitlines()
    assert rows == ["\t".join(str(int(v)) for v in row) for row in boxes]
    assert np.loadtxt(tmp_path / "sequence.txt", delimiter="\t").shape == (FRAMES, 4)
    assert (tmp_path / "sequence_time.txt").read_text().splitlines() == ["0.250000"] + ["0.125000"] * (FRAMES - 1)


def test_six_channels(sequence: tuple, weights: str, expected: list) -> None:
    visible, thermal, box = sequence
    images = [cv2.merge((*cv2.split(rgb(v)), *cv2.split(rgb(t)))) for v, t in zip(visible, thermal, strict=True)]
    tracker = SixChannelTracker(Tracker(weights, engine="reference", device="cpu"))
    tracker.initialize(images[0], {"init_bbox": box})
    found = [tracker.track(image) for image in images[1:]]
    assert [(f["target_bbox"], f["best_score"]) for f in found] == expected
    with pytest.raises(InputError, match=r"expected \[height, width, 6\]"):
        tracker.track(images[0][:, :, :3])


@pytest.mark.parametrize("shape", ["pair", "six"])
def test_opencv(sequence: tuple, weights: str, expected: list, shape: str) -> None:
    visible, thermal, box = sequence
    pairs = [(bgr(v), bgr(t)) for v, t in zip(visible, thermal, strict=True)]
    images = pairs if shape == "pair" else [np.concatenate(pair, axis=2) for pair in pairs]
    config = TrackerConfig(lost_threshold=0.0)
    tracker = OpenCVTracker(weights, engine="reference", device="cpu", config=config)
    with pytest.raises(NotInitialisedError):
        tracker.getTrackingScore()
    tracker.init(images[0], tuple(int(v) for v in box))
    for image, (wanted, score) in zip(images[1:], expected, strict=True):
        ok, found = tracker.update(image)
        assert ok
        assert all(isinstance(v, int) for v in found)
        if box == [int(v) for v in box]:
            assert found == tuple(round(v) for v in wanted)
            assert tracker.getTrackingScore() == score


def test_opencv_keeps_the_trusted_box_when_lost(sequence: tuple, weights: str) -> None:
    visible, thermal, _ = sequence
    config = TrackerConfig(lost_threshold=1.0, color="rgb")
    tracker = OpenCVTracker(weights, engine="reference", device="cpu", config=config)
    tracker.init((bgr(visible[0]), bgr(thermal[0])), (100, 100, 40, 60))
    assert tracker.update((bgr(visible[1]), bgr(thermal[1]))) == (False, (100, 100, 40, 60))
    assert tracker.update((bgr(visible[2]), None)) == (False, (100, 100, 40, 60))
    with pytest.raises(InputError, match="expected a pair"):
        tracker.update([bgr(visible[2])] * 3)


def vot_folder(folder: Path, sequence: tuple, **queries: str) -> Path:
    visible, thermal, _ = sequence
    for name, paths in (("color", visible), ("ir", thermal)):
        (folder / f"frames_{name}.txt").write_text("".join(f"{path}\n" for path in paths))
    for name, text in queries.items():
        (folder / f"query_{name}.txt").write_text(text)
    return folder


def test_vot_folder_protocol(sequence: tuple, weights: str, expected: list, tmp_path: Path) -> None:
    x, y, w, h = sequence[2]
    polygon = f"{x},{y},{x + w},{y},{x + w},{y + h},{x},{y + h}"
    first = f"0\n{x},{y},{w},{h}\nname=value\n"
    folder = vot_folder(tmp_path, sequence, b=f"2\n{polygon}\n", z=first)
    command = [sys.executable, "-m", "ckd_fast.adapters.vot", "--weights", weights, "--device", "cpu"]
    done = subprocess.run([*command, "--engine", "reference"], check=True, cwd=folder, capture_output=True, text=True)
    assert done.stderr == ""
    rows = np.loadtxt(folder / "output_z.txt", delimiter=",")
    assert rows.shape == (FRAMES, 4)
    assert rows[0].tolist() == pytest.approx([x, y, w, h], abs=1e-4)
    assert np.allclose(rows[1:], [box for box, _ in expected], atol=1e-3)
    later = np.loadtxt(folder / "output_b.txt", delimiter=",")
    assert later.shape == (FRAMES - 2, 4)
    assert later[0].tolist() == pytest.approx([x, y, w, h], abs=1e-4)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_vot_frames_keep_their_bits_and_colours(weights: str, tmp_path: Path, color: str) -> None:
    seen: list[tuple[NDArray, NDArray]] = []

    class Notes(MultiTracker):
        def add(self, *arguments: Any) -> int:
            seen.append(arguments[:2])
            return super().add(*arguments)

    blue = np.zeros((60, 80, 3), np.uint8)
    blue[..., 0] = 200  # as OpenCV writes it
    warm = np.random.default_rng(0).integers(8000, 8200, (60, 80), np.uint16)
    assert cv2.imwrite(str(tmp_path / "color.png"), blue)
    assert cv2.imwrite(str(tmp_path / "ir.png"), warm)
    folder = vot_folder(tmp_path, ([Path("color.png")], [Path("ir.png")], []), a="0\n5,5,20,20\n")
    tracker = Notes(weights, engine="reference", device="cpu", config=TrackerConfig(color=color))
    track_vot_folder(folder, tracker)
    ((visible, thermal),) = seen
    assert visible[0, 0].tolist() == ([0, 0, 200] if color == "rgb" else [200, 0, 0])
    assert thermal.dtype == np.uint16
    assert np.array_equal(thermal, warm)


def test_vot_bad_folders(sequence: tuple, weights: str, tmp_path: Path) -> None:
    tracker = MultiTracker(weights, engine="reference", device="cpu")
    with pytest.raises(InputError, match="is this a VOT folder"):
        track_vot_folder(tmp_path, tracker)
    vot_folder(tmp_path, sequence)
    with pytest.raises(InputError, match=r"no query_\*"):
        track_vot_folder(tmp_path, tracker)
    for text, message in (("0\n", "expected the frame's number"), ("99\n1,2,3,4\n", "frame 99, but there are")):
        (tmp_path / "query_0.txt").write_text(text)
        with pytest.raises(InputError, match=message):
            track_vot_folder(tmp_path, tracker)
    (tmp_path / "frames_ir.txt").write_text("one.jpg\n")
    with pytest.raises(InputError, match="6 color and 1 ir frames"):
        track_vot_folder(tmp_path, tracker)
    command = [sys.executable, "-m", "ckd_fast.adapters.vot", "--weights", weights]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "6 color and 1 ir frames" in done.stderr


def test_vot_regions() -> None:
    assert parse_region("1,2,3,4", "x") == (1, 2, 3, 4)
    assert parse_region("1,2,5,1,6,9", "x") == (1, 1, 5, 8)
    for text, message in (("m0,0,4,4,1", "a mask"), ("1,2,3", "got 3"), ("a,b", "comma-separated")):
        with pytest.raises(InputError, match=message):
            parse_region(text, "x")


def test_authors_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no 'checkpoint'"):
        get_tracker_class()(SimpleNamespace(), "lasher")
    with pytest.raises(InputError, match="2 boxes and 1 times"):
        save_results(tmp_path / "x", [[1, 2, 3, 4]] * 2, [1.0])
    with pytest.raises(InputError, match="four finite numbers"):
        save_results(tmp_path / "x", [[1, 2, 3, float("nan")]], [1.0])
    with pytest.raises(OutputError, match="cannot be written"):
        save_results(tmp_path / "no" / "x", [[1, 2, 3, 4]], [1.0])
