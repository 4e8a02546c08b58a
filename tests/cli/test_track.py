"""`ckd-fast sample` and `ckd-fast track` as a user meets them: results, bad input, interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from commands import ON_CPU, Command, Printed, by_module, sample
from support import shared_data

from ckd_fast import InputError, MultiTracker, Tracker
from ckd_fast.boxes import iou
from ckd_fast.cli.track import read_boxes
from ckd_fast.video.session import SessionOptions, SessionSummary, run_session
from ckd_fast.video.sources import FolderPairs, Pair, PairSource

FRAMES = 8
BOX = (40.0, 30.0, 24.0, 20.0)
INIT = ("--init", "40,30,24,20")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample with images, as written by the command."""
    return sample(tmp_path_factory.mktemp("clip"), FRAMES, seed=2)


@pytest.fixture
def track(clip: Path, weights: str, command: Command) -> Command:
    """Track the clip, or another, into a folder."""

    def call(out: Path, *more: object, clip: Path = clip) -> Printed:
        pair = (clip / "visible", clip / "infrared")
        return command("track", *pair, "--weights", weights, "--out", out, *ON_CPU, "--quiet", *more)

    return call


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def boxes_of(folder: Path, name: str = "boxes.txt") -> np.ndarray:
    return np.loadtxt(folder / name, delimiter=",")


def frames_of(video: Path) -> int:
    return int(cv2.VideoCapture(str(video)).get(cv2.CAP_PROP_FRAME_COUNT))


def copied(clip: Path, to: Path) -> Path:
    """Images alone, to be changed."""
    for name in ("visible", "infrared"):
        shutil.copytree(clip / name, to / name)
    return to


def test_sample_as_images_and_as_video(clip: Path, tmp_path: Path, command: Command) -> None:
    assert len(list((clip / "visible").glob("*.jpg"))) == len(list((clip / "infrared").glob("*.jpg"))) == FRAMES
    assert len(read_boxes(clip / "groundtruth.txt")) == FRAMES
    about = json.loads((clip / "clip.json").read_text())
    assert about["generator"]["seed"] == 2
    assert len(about["frames"]) == FRAMES
    names = {path.name for path in sample(tmp_path / "v", 5, "--video", seed=2).iterdir()}
    assert names == {"visible.mp4", "infrared.mp4", "groundtruth.txt", "clip.json"}
    assert command("sample", clip).refuses("use --force")
    sample(tmp_path / "again", 4, size="64x64")
    again = sample(tmp_path / "again", 2, "--force", size="64x64")
    assert len(list((again / "visible").glob("*.jpg"))) == 2


def test_track_writes_what_the_tracker_says(track: Command, clip: Path, weights: str, tmp_path: Path) -> None:
    truth = read_boxes(clip / "groundtruth.txt")
    given = ",".join(map(str, truth[0]))
    told = track(tmp_path, "--init", given, "--json", "--plot", "--ground-truth", clip / "groundtruth.txt")
    assert told.code == 0
    tracker = Tracker(weights, engine="reference", device="cpu")
    pairs = list(FolderPairs(clip / "visible", clip / "infrared"))
    tracker.init(pairs[0].rgb, pairs[0].tir, truth[0])
    expected = [truth[0]] + [tracker.update(p.rgb, p.tir).box for p in pairs[1:]]
    assert np.allclose(boxes_of(tmp_path), expected, atol=5e-5)
    rows = rows_of(tmp_path)
    assert [row["frame"] for row in rows] == list(range(FRAMES))
    assert rows[0]["targets"][0]["score"] is None
    assert rows[3]["targets"][0]["timings"]["total_ms"] > 0
    ious = iou(expected, truth).tolist()
    assert [row["iou"] for row in rows] == pytest.approx(ious, abs=1e-6)
    assert told.json["mean_iou"] == pytest.approx(sum(ious[1:]) / (FRAMES - 1))
    assert (told.json["frames"], told.json["unreadable"], told.json["interrupted"]) == (FRAMES, [], False)
    assert frames_of(tmp_path / "video.mp4") == FRAMES
    assert cv2.VideoCapture(str(tmp_path / "video.mp4")).get(cv2.CAP_PROP_FRAME_WIDTH) == 320
    assert cv2.imread(str(tmp_path / "plot.png")).shape[0] > 300
    files = ("boxes.txt", "results.jsonl", "video.mp4", "plot.png")
    assert set(told.json["files"]) == {str(tmp_path / name) for name in files}


def test_several_targets_are_single_targets(track: Command, tmp_path: Path) -> None:
    boxes = ("40,30,24,20", "80,50,30,30")
    assert track(tmp_path / "both", "--init", boxes[0], "--init", boxes[1], "--no-video").code == 0
    for number, box in enumerate(boxes, 1):
        assert track(tmp_path / str(number), "--init", box, "--no-video").code == 0
        together = boxes_of(tmp_path / "both", f"boxes-{number}.txt")
        assert np.abs(together - boxes_of(tmp_path / str(number))).max() < 1e-3
    assert not (tmp_path / "both" / "video.mp4").exists()


def test_authors_format(track: Command, tmp_path: Path) -> None:
    more = ("--init", "40.7,30.9,24,20", "--no-video")
    assert track(tmp_path / "a", *more).code == 0
    assert track(tmp_path / "b", *more, "--authors-format").code == 0
    rows = (tmp_path / "b" / "boxes.txt").read_text().splitlines()
    assert rows == ["\t".join(str(int(v)) for v in row) for row in boxes_of(tmp_path / "a")]


def test_nothing_is_overwritten(track: Command, tmp_path: Path) -> None:
    assert track(tmp_path, *INIT, "--no-video", "--limit", "3").code == 0
    before = (tmp_path / "boxes.txt").read_text()
    assert before.count("\n") == 3
    assert track(tmp_path, *INIT).refuses("boxes.txt, results.jsonl exist")
    assert (tmp_path / "boxes.txt").read_text() == before
    assert track(tmp_path, *INIT, "--no-video", "--force").code == 0
    assert (tmp_path / "boxes.txt").read_text().count("\n") == FRAMES


def test_unreadable_frames_are_named_counted_and_bounded(track: Command, clip: Path, tmp_path: Path) -> None:
    broken = copied(clip, tmp_path / "broken")
    for name in ("visible/000003.jpg", "visible/000005.jpg", "infrared/000005.jpg"):
        (broken / name).write_bytes(b"x")
    told = track(tmp_path / "out", *INIT, clip=broken)
    assert told.code == 0
    assert "2 frames could not be read" in told.out
    assert "000003.jpg cannot be read" in told.err
    (third,), (fourth,), (fifth,) = (row["targets"] for row in rows_of(tmp_path / "out")[2:5])
    assert (third["rgb_used"], third["tir_used"]) == (False, True)
    assert fifth["score"] is None
    assert fifth["box"] == fourth["box"]
    assert len(boxes_of(tmp_path / "out")) == FRAMES
    assert track(tmp_path / "strict", *INIT, "--max-unreadable", "1", clip=broken).refuses(
        "more than 1 unreadable frames"
    )
    assert len(boxes_of(tmp_path / "strict")) == 4
    (broken / "visible" / "000001.jpg").write_bytes(b"x")
    assert track(tmp_path / "first", *INIT, clip=broken).refuses("the first frame is needed in both modalities")


BAD = {
    "no target": ([], "name the targets by --init"),
    "two ways": (["--init", "1,2,3,4", "--select"], "name the targets by"),
    "outside": (["--init", "900,2,30,40"], "lies wholly outside"),
    "no weights": (["--init", "1,2,3,4", "--weights", "no.pth"], "no.pth: no such file"),
    "triton": (["--init", "1,2,3,4", "--engine", "triton"], "needs a usable NVIDIA GPU"),
    "threshold": (["--init", "1,2,3,4", "--lost-threshold", "3"], "lost_threshold=3.0"),
    "range": (["--init", "1,2,3,4", "--tir-range", "9", "3"], "tir_range=(9, 3)"),
    "homography": (["--init", "1,2,3,4", "--tir-to-rgb", __file__], "expected a 3x3 matrix"),
    "fps": (["--init", "1,2,3,4", "--fps", "0"], "--fps 0.0"),
    "truth": (["--ground-truth", "missing.txt"], "missing.txt: cannot be read"),
    "out is a file": (["--init", "40,30,24,20", "--out", __file__], "cannot be"),
    "three numbers": (["--init", "1,2,3"], "expected x,y,w,h in pixels"),
    "no numbers": (["--init", "a,b,c,d"], "expected x,y,w,h in pixels"),
    "five numbers": (["--init", "1,2,3,4,5"], "expected x,y,w,h in pixels"),
    "truth rows": (["--ground-truth", __file__], "line 1: expected x,y,w,h"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str, track: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments, message = BAD[name]
    told = track(tmp_path / "out", *arguments)
    assert told.refuses(message)
    assert told.err.count("\n") == 1
    assert not (tmp_path / "out" / "boxes.txt").exists()


def test_a_homography_file(track: Command, tmp_path: Path) -> None:
    (tmp_path / "h.txt").write_text("1, 0, 0\n0 1 0\n0\t0\t1\n")
    np.save(tmp_path / "h.npy", np.eye(3))
    assert track(tmp_path / "plain", *INIT, "--no-video").code == 0
    for name in ("h.txt", "h.npy"):
        out = tmp_path / f"out-{name}"
        assert track(out, *INIT, "--no-video", "--tir-to-rgb", tmp_path / name).code == 0
        assert (out / "boxes.txt").read_text() == (tmp_path / "plain" / "boxes.txt").read_text()


def test_select_without_a_display_is_an_error_not_an_abort(clip: Path, weights: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")}
    pair = (clip / "visible", clip / "infrared")
    line = by_module("track", *pair, "--select", "--weights", weights, "--out", tmp_path)
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    message = "ckd-fast: --select needs a display, and none can be opened here: name the target with --init x,y,w,h\n"
    assert done.stderr == message


class Endless(PairSource):
    """The same frames for ever."""

    def __init__(self, clip: Path) -> None:
        self._pairs = list(FolderPairs(clip / "visible", clip / "infrared"))

    def __iter__(self):  # noqa: ANN204
        index = 0
        while True:
            pair = self._pairs[index % len(self._pairs)]
            yield Pair(index, str(index), pair.rgb, pair.tir)
            index += 1


def session(source: PairSource, weights: str, out: Path, **more: Any) -> SessionSummary:
    tracker = MultiTracker(weights, engine="reference", device="cpu")
    return run_session(source, tracker, lambda _pair: [BOX], SessionOptions(out), **more)


def test_ctrl_c_keeps_what_was_written(clip: Path, weights: str, tmp_path: Path) -> None:
    def on_frame(pair: Pair) -> None:
        if pair.index == 4:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    summary = session(Endless(clip), weights, tmp_path, on_frame=on_frame)
    assert summary.interrupted
    assert 5 <= summary.frames <= 6
    assert len(boxes_of(tmp_path)) == len(rows_of(tmp_path)) == frames_of(tmp_path / "video.mp4") == summary.frames
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_a_source_stalls(clip: Path, weights: str, tmp_path: Path) -> None:
    class Stalled(Endless):
        """Delivers a few frames, then waits as a camera does until it is told to stop."""

        def __iter__(self):  # noqa: ANN204
            for index, pair in enumerate(super().__iter__()):
                if index == 3:
                    os.kill(os.getpid(), signal.SIGINT)
                    while not self.stopped():
                        time.sleep(0.01)
                    return
                yield pair

    summary = session(Stalled(clip), weights, tmp_path)
    assert (summary.interrupted, summary.frames) == (True, 3)


def test_an_error_midway_says_what_is_kept(clip: Path, weights: str, tmp_path: Path) -> None:
    class Shrinking(Endless):
        def __iter__(self):  # noqa: ANN204
            for index, pair in enumerate(super().__iter__()):
                yield pair if index < 4 else Pair(index, pair.name, pair.rgb[:-3], pair.tir)

    with pytest.raises(InputError, match=r"rgb frame is 160x117.*\(after 4 frames, which are in"):
        session(Shrinking(clip), weights, tmp_path)
    assert len(boxes_of(tmp_path)) == 4


def test_truth_that_is_not_in_view(track: Command, clip: Path, tmp_path: Path) -> None:
    rows = (clip / "groundtruth.txt").read_text().splitlines()
    rows[3], rows[5] = "nan,nan,nan,nan", "0,0,0,0"
    (tmp_path / "truth.txt").write_text("\n".join(rows))
    told = track(tmp_path / "out", "--ground-truth", tmp_path / "truth.txt", "--json")
    assert told.code == 0
    known = [row["iou"] for row in rows_of(tmp_path / "out")[1:] if "iou" in row]
    assert len(known) == FRAMES - 3
    assert told.json["mean_iou"] == pytest.approx(sum(known) / len(known))
    (tmp_path / "first.txt").write_text("nan,nan,nan,nan\n")
    assert track(tmp_path / "x", "--ground-truth", tmp_path / "first.txt").refuses("the first row is no box")


def test_truth_belongs_to_the_visible_frame(track: Command, clip: Path, tmp_path: Path) -> None:
    """Thermal images 2 to 4 are missing: the second pair is the fifth visible frame, and so is its truth."""
    thin = copied(clip, tmp_path / "thin")
    for number in (2, 3, 4):
        (thin / "infrared" / f"{number:06d}.jpg").unlink()
    (thin / "visible" / "._000001.jpg").write_bytes(b"a companion that is no image")
    truth = read_boxes(clip / "groundtruth.txt")
    more = ("--ground-truth", clip / "groundtruth.txt", "--pair", "stem", "--no-video")
    told = track(tmp_path / "out", *more, clip=thin)
    assert told.code == 0
    assert "3 images without a partner" in told.err
    rows = rows_of(tmp_path / "out")
    assert [row["name"] for row in rows] == ["000001", "000005", "000006", "000007", "000008"]
    assert rows[1]["iou"] == pytest.approx(float(iou(rows[1]["targets"][0]["box"], truth[4])))
    (tmp_path / "short.txt").write_text("".join(f"{x},{y},{w},{h}\n" for x, y, w, h in truth[:3]))
    told = track(tmp_path / "s", "--ground-truth", tmp_path / "short.txt", "--no-video")
    assert told.code == 0
    assert "has 3 rows for 8 visible frames" in told.err


def test_an_input_is_never_overwritten(
    track: Command, command: Command, clip: Path, weights: str, tmp_path: Path
) -> None:
    assert track(tmp_path, *INIT).code == 0
    video = tmp_path / "video.mp4"
    before = video.read_bytes()
    assert command("track", video, *INIT, "--weights", weights, "--out", tmp_path, "--force").refuses(
        "is an input of this run"
    )
    assert video.read_bytes() == before
    assert track(clip / "visible", *INIT, "--force").refuses("is an input folder")


def test_force_leaves_nothing_of_the_run_before(track: Command, tmp_path: Path) -> None:
    assert track(tmp_path, *INIT).code == 0
    assert track(tmp_path, *INIT, "--init", "80,50,30,30", "--force", "--no-video").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes-1.txt", "boxes-2.txt", "results.jsonl"]


def test_thermal_is_drawn_on_the_visible_grid(track: Command, clip: Path, tmp_path: Path) -> None:
    """A frame of which only a small thermal image is there keeps the video's size and the box's place."""
    mixed = copied(clip, tmp_path / "mixed")
    for path in (mixed / "infrared").iterdir():
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (80, 60)))
    (mixed / "visible" / "000002.jpg").write_bytes(b"x")
    assert track(tmp_path / "out", *INIT, "--limit", "3", clip=mixed).code == 0
    capture = cv2.VideoCapture(str(tmp_path / "out" / "video.mp4"))
    assert [capture.read()[1].shape for _ in range(3)] == [(120, 320, 3)] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_the_shell(weights: str, tmp_path: Path, number: int) -> None:
    clip = sample(tmp_path / "clip", 200, "--video", size="128x96")
    pair = (clip / "visible.mp4", clip / "infrared.mp4")
    line = by_module("track", *pair, *INIT, "--weights", weights, "--out", tmp_path / "run")
    process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    rows = tmp_path / "run" / "boxes.txt"
    for _ in range(600):
        if rows.exists() and rows.read_text().count("\n") > 3:
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    count = rows.read_text().count("\n")
    assert process.returncode == 130
    assert f"interrupted; {count} frames are in" in err
    assert 3 < count < 200


def test_real_frames(track: Command, tmp_path: Path) -> None:
    """Real sequences through the command line: it runs, keeps shapes, stays inside the frame."""
    for name in ("m3svd_0117_1605_b", "tno_duine"):
        root = shared_data("sequences", name)
        told = track(tmp_path / name, "--ground-truth", root / "groundtruth.txt", "--limit", "7", "--json", clip=root)
        assert told.json["frames"] == 7
        height, width = cv2.imread(str(next((root / "visible").glob("*.jpg")))).shape[:2]
        boxes = boxes_of(tmp_path / name)[1:]
        assert boxes.shape == (6, 4)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= np.array([width, height]) + 1e-3).all()


def test_completion(command: Command) -> None:
    for shell in ("zsh", "bash"):
        told = command("completion", shell)
        assert told.code == 0
        assert "--max-unreadable" in told.out
    done = subprocess.run(["bash", "-n"], input=told.out, capture_output=True, text=True, check=True)
    assert done.stderr == ""
