"""`ckd-fast sample` and `ckd-fast track` as a user meets them: results, bad input, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from checkpoints import SMALL
from support import shared_data

from ckd_fast import InputError, MultiTracker, Tracker, load_model, save_model
from ckd_fast.boxes import iou
from ckd_fast.cli import main
from ckd_fast.cli.track import read_boxes
from ckd_fast.video.session import SessionOptions, run_session
from ckd_fast.video.sources import FolderPairs, Pair, PairSource

FRAMES = 8


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample with images, as written by the command."""
    out = tmp_path_factory.mktemp("clip")
    assert main(["sample", str(out), "--frames", str(FRAMES), "--size", "160x120", "--seed", "2"]) == 0
    return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(load_model("random", SMALL, seed=3), path)
    return str(path)


def track(clip: Path, weights: str, out: Path, *more: str) -> int:
    command = ["track", str(clip / "visible"), str(clip / "infrared"), "--weights", weights, "--out", str(out)]
    return main([*command, "--engine", "reference", "--device", "cpu", "--quiet", *more])


def test_sample_as_images_and_as_video(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list((clip / "visible").glob("*.jpg"))) == len(list((clip / "infrared").glob("*.jpg"))) == FRAMES
    assert len(read_boxes(clip / "groundtruth.txt")) == FRAMES
    about = json.loads((clip / "clip.json").read_text())
    assert about["generator"]["seed"] == 2
    assert len(about["frames"]) == FRAMES
    code = main(["sample", str(tmp_path / "v"), "--frames", "5", "--size", "160x120", "--video", "--seed", "2"])
    assert code == 0
    assert {p.name for p in (tmp_path / "v").iterdir()} == {
        "visible.mp4", "infrared.mp4", "groundtruth.txt", "clip.json",
    }  # fmt: skip
    capsys.readouterr()
    assert main(["sample", str(clip)]) == 2
    assert "use --force" in capsys.readouterr().err
    again = tmp_path / "again"
    assert main(["sample", str(again), "--frames", "4", "--size", "64x64"]) == 0
    assert main(["sample", str(again), "--frames", "2", "--size", "64x64", "--force"]) == 0
    assert len(list((again / "visible").glob("*.jpg"))) == 2


def test_track_writes_what_the_tracker_says(
    clip: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = read_boxes(clip / "groundtruth.txt")
    given = ",".join(map(str, truth[0]))
    assert (
        track(
            clip,
            weights,
            tmp_path,
            "--init",
            given,
            "--json",
            "--plot",
            "--ground-truth",
            str(clip / "groundtruth.txt"),
        )
        == 0
    )
    summary = json.loads(capsys.readouterr().out)
    tracker = Tracker(weights, engine="reference", device="cpu")
    pairs = list(FolderPairs(clip / "visible", clip / "infrared"))
    tracker.init(pairs[0].rgb, pairs[0].tir, truth[0])
    expected = [truth[0]] + [tracker.update(p.rgb, p.tir).box for p in pairs[1:]]
    written = np.loadtxt(tmp_path / "boxes.txt", delimiter=",")
    assert np.allclose(written, expected, atol=5e-5)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(FRAMES))
    assert lines[0]["targets"][0]["score"] is None
    assert lines[3]["targets"][0]["timings"]["total_ms"] > 0
    ious = iou(expected, truth).tolist()
    assert [line["iou"] for line in lines] == pytest.approx(ious, abs=1e-6)
    assert summary["mean_iou"] == pytest.approx(sum(ious[1:]) / (FRAMES - 1))
    assert (summary["frames"], summary["unreadable"], summary["interrupted"]) == (FRAMES, [], False)
    capture = cv2.VideoCapture(str(tmp_path / "video.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FRAME_WIDTH)) == (FRAMES, 320)
    assert cv2.imread(str(tmp_path / "plot.png")).shape[0] > 300
    assert set(summary["files"]) == {str(tmp_path / n) for n in ("boxes.txt", "results.jsonl", "video.mp4", "plot.png")}


def test_several_targets_are_single_targets(clip: Path, weights: str, tmp_path: Path) -> None:
    boxes = ("40,30,24,20", "80,50,30,30")
    assert track(clip, weights, tmp_path / "both", "--init", boxes[0], "--init", boxes[1], "--no-video") == 0
    for number, box in enumerate(boxes, 1):
        assert track(clip, weights, tmp_path / str(number), "--init", box, "--no-video") == 0
        alone = np.loadtxt(tmp_path / str(number) / "boxes.txt", delimiter=",")
        together = np.loadtxt(tmp_path / "both" / f"boxes-{number}.txt", delimiter=",")
        assert np.abs(together - alone).max() < 1e-3
    assert not (tmp_path / "both" / "video.mp4").exists()


def test_authors_format(clip: Path, weights: str, tmp_path: Path) -> None:
    assert track(clip, weights, tmp_path / "a", "--init", "40.7,30.9,24,20", "--no-video") == 0
    assert track(clip, weights, tmp_path / "b", "--init", "40.7,30.9,24,20", "--no-video", "--authors-format") == 0
    exact = np.loadtxt(tmp_path / "a" / "boxes.txt", delimiter=",")
    rows = (tmp_path / "b" / "boxes.txt").read_text().splitlines()
    assert rows == ["\t".join(str(int(v)) for v in row) for row in exact]


def test_nothing_is_overwritten(clip: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert track(clip, weights, tmp_path, "--init", "40,30,24,20", "--no-video", "--limit", "3") == 0
    before = (tmp_path / "boxes.txt").read_text()
    assert before.count("\n") == 3
    assert track(clip, weights, tmp_path, "--init", "40,30,24,20") == 2
    assert "boxes.txt, results.jsonl exist" in capsys.readouterr().err
    assert (tmp_path / "boxes.txt").read_text() == before
    assert track(clip, weights, tmp_path, "--init", "40,30,24,20", "--no-video", "--force") == 0
    assert (tmp_path / "boxes.txt").read_text().count("\n") == FRAMES


def test_unreadable_frames_are_named_counted_and_bounded(
    clip: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    for name in ("visible", "infrared"):
        (broken / name).mkdir(parents=True)
        for path in (clip / name).glob("*.jpg"):
            (broken / name / path.name).write_bytes(path.read_bytes())
    (broken / "visible" / "000003.jpg").write_bytes(b"x")
    for name in ("visible", "infrared"):
        (broken / name / "000005.jpg").write_bytes(b"x")
    out = tmp_path / "out"
    assert track(broken, weights, out, "--init", "40,30,24,20") == 0
    printed = capsys.readouterr()
    assert "2 frames could not be read" in printed.out
    assert "000003.jpg cannot be read" in printed.err
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert (lines[2]["targets"][0]["rgb_used"], lines[2]["targets"][0]["tir_used"]) == (False, True)
    assert lines[4]["targets"][0]["score"] is None
    assert lines[4]["targets"][0]["box"] == lines[3]["targets"][0]["box"]
    assert len((out / "boxes.txt").read_text().splitlines()) == FRAMES
    assert track(broken, weights, tmp_path / "strict", "--init", "40,30,24,20", "--max-unreadable", "1") == 2
    assert "more than 1 unreadable frames" in capsys.readouterr().err
    assert len((tmp_path / "strict" / "boxes.txt").read_text().splitlines()) == 4
    (broken / "visible" / "000001.jpg").write_bytes(b"x")
    assert track(broken, weights, tmp_path / "first", "--init", "40,30,24,20") == 2
    assert "the first frame is needed in both modalities" in capsys.readouterr().err


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
    "truth rows": (["--ground-truth", __file__], "line 1: expected x,y,w,h"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(
    name: str,
    clip: Path,
    weights: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments, message = BAD[name]
    assert track(clip, weights, tmp_path / "out", *arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "boxes.txt").exists()


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "1,2,3,4,5"])
def test_bad_boxes_on_the_command_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["track", "a", "b", "--out", "o", "--init", text])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert "expected x,y,w,h in pixels" in err
    assert err.count("\n") == 1


def test_a_homography_file(clip: Path, weights: str, tmp_path: Path) -> None:
    (tmp_path / "h.txt").write_text("1, 0, 0\n0 1 0\n0\t0\t1\n")
    np.save(tmp_path / "h.npy", np.eye(3))
    assert track(clip, weights, tmp_path / "plain", "--init", "40,30,24,20", "--no-video") == 0
    for name in ("h.txt", "h.npy"):
        out = tmp_path / f"out-{name}"
        assert (
            track(clip, weights, out, "--init", "40,30,24,20", "--no-video", "--tir-to-rgb", str(tmp_path / name)) == 0
        )
        assert (out / "boxes.txt").read_text() == (tmp_path / "plain" / "boxes.txt").read_text()


def test_select_without_a_display_is_an_error_not_an_abort(clip: Path, weights: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")}
    command = [sys.executable, "-m", "ckd_fast", "track", str(clip / "visible"), str(clip / "infrared"), "--select"]
    command += ["--weights", weights, "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr
        == "ckd-fast: --select needs a display, and none can be opened here: name the target with --init x,y,w,h\n"
    )


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


def test_ctrl_c_keeps_what_was_written(clip: Path, weights: str, tmp_path: Path) -> None:
    tracker = MultiTracker(weights, engine="reference", device="cpu")

    def on_frame(pair: Pair) -> None:
        if pair.index == 4:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    summary = run_session(
        Endless(clip), tracker, lambda _pair: [(40, 30, 24, 20)], SessionOptions(tmp_path), on_frame=on_frame
    )
    assert summary.interrupted
    assert 5 <= summary.frames <= 6
    assert len((tmp_path / "boxes.txt").read_text().splitlines()) == summary.frames
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == summary.frames
    capture = cv2.VideoCapture(str(tmp_path / "video.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == summary.frames
    assert signal.getsignal(signal.SIGINT) is before


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


def test_ctrl_c_while_a_source_stalls(clip: Path, weights: str, tmp_path: Path) -> None:
    tracker = MultiTracker(weights, engine="reference", device="cpu")
    summary = run_session(Stalled(clip), tracker, lambda _pair: [(40, 30, 24, 20)], SessionOptions(tmp_path))
    assert (summary.interrupted, summary.frames) == (True, 3)


def test_an_error_midway_says_what_is_kept(clip: Path, weights: str, tmp_path: Path) -> None:
    class Shrinking(Endless):
        def __iter__(self):  # noqa: ANN204
            for index, pair in enumerate(super().__iter__()):
                yield pair if index < 4 else Pair(index, pair.name, pair.rgb[:-3], pair.tir)

    tracker = MultiTracker(weights, engine="reference", device="cpu")
    with pytest.raises(InputError, match=r"rgb frame is 160x117.*\(after 4 frames, which are in"):
        run_session(Shrinking(clip), tracker, lambda _pair: [(40, 30, 24, 20)], SessionOptions(tmp_path))
    assert len((tmp_path / "boxes.txt").read_text().splitlines()) == 4


def test_truth_that_is_not_in_view(
    clip: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (clip / "groundtruth.txt").read_text().splitlines()
    rows[3], rows[5] = "nan,nan,nan,nan", "0,0,0,0"
    (tmp_path / "truth.txt").write_text("\n".join(rows))
    assert track(clip, weights, tmp_path / "out", "--ground-truth", str(tmp_path / "truth.txt"), "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    known = [line["iou"] for line in lines[1:] if "iou" in line]
    assert len(known) == FRAMES - 3
    assert summary["mean_iou"] == pytest.approx(sum(known) / len(known))
    (tmp_path / "first.txt").write_text("nan,nan,nan,nan\n")
    assert track(clip, weights, tmp_path / "x", "--ground-truth", str(tmp_path / "first.txt")) == 2
    assert "the first row is no box" in capsys.readouterr().err


def test_truth_belongs_to_the_visible_frame(
    clip: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thermal images 2 to 4 are missing: the second pair is the fifth visible frame, and so is its truth."""
    thin = tmp_path / "thin"
    for name in ("visible", "infrared"):
        (thin / name).mkdir(parents=True)
        for number, path in enumerate(sorted((clip / name).glob("*.jpg"))):
            if name == "visible" or number not in (1, 2, 3):
                (thin / name / path.name).write_bytes(path.read_bytes())
    (thin / "visible" / "._000001.jpg").write_bytes(b"a companion that is no image")
    truth = read_boxes(clip / "groundtruth.txt")
    out = tmp_path / "out"
    more = ("--ground-truth", str(clip / "groundtruth.txt"), "--pair", "stem", "--no-video")
    assert track(thin, weights, out, *more) == 0
    assert "3 images without a partner" in capsys.readouterr().err
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["000001", "000005", "000006", "000007", "000008"]
    assert lines[1]["iou"] == pytest.approx(float(iou(lines[1]["targets"][0]["box"], truth[4])))
    (tmp_path / "short.txt").write_text("".join(f"{x},{y},{w},{h}\n" for x, y, w, h in truth[:3]))
    assert track(clip, weights, tmp_path / "s", "--ground-truth", str(tmp_path / "short.txt"), "--no-video") == 0
    assert "has 3 rows for 8 visible frames" in capsys.readouterr().err


def test_an_input_is_never_overwritten(
    clip: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert track(clip, weights, tmp_path / "a", "--init", "40,30,24,20") == 0
    before = (tmp_path / "a" / "video.mp4").read_bytes()
    command = ["track", str(tmp_path / "a" / "video.mp4"), "--init", "40,30,24,20", "--weights", weights]
    assert main([*command, "--out", str(tmp_path / "a"), "--force"]) == 2
    assert "is an input of this run" in capsys.readouterr().err
    assert (tmp_path / "a" / "video.mp4").read_bytes() == before
    assert track(clip, weights, clip / "visible", "--init", "40,30,24,20", "--force") == 2
    assert "is an input folder" in capsys.readouterr().err


def test_force_leaves_nothing_of_the_run_before(clip: Path, weights: str, tmp_path: Path) -> None:
    assert track(clip, weights, tmp_path, "--init", "40,30,24,20") == 0
    more = ("--init", "40,30,24,20", "--init", "80,50,30,30", "--force", "--no-video")
    assert track(clip, weights, tmp_path, *more) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes-1.txt", "boxes-2.txt", "results.jsonl"]


def test_thermal_is_drawn_on_the_visible_grid(clip: Path, weights: str, tmp_path: Path) -> None:
    """A frame of which only a small thermal image is there keeps the video's size and the box's place."""
    mixed = tmp_path / "mixed"
    for name in ("visible", "infrared"):
        (mixed / name).mkdir(parents=True)
        for path in sorted((clip / name).glob("*.jpg"))[:3]:
            image = cv2.imread(str(path))
            cv2.imwrite(str(mixed / name / path.name), cv2.resize(image, (80, 60)) if name == "infrared" else image)
    (mixed / "visible" / "000002.jpg").write_bytes(b"x")
    assert track(mixed, weights, tmp_path / "out", "--init", "40,30,24,20") == 0
    capture = cv2.VideoCapture(str(tmp_path / "out" / "video.mp4"))
    shapes = [capture.read()[1].shape for _ in range(3)]
    assert shapes == [(120, 320, 3)] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_the_shell(weights: str, tmp_path: Path, number: int) -> None:
    clip = tmp_path / "clip"
    assert main(["sample", str(clip), "--frames", "200", "--size", "128x96", "--video"]) == 0
    command = [sys.executable, "-m", "ckd_fast", "track", str(clip / "visible.mp4"), str(clip / "infrared.mp4")]
    command += ["--init", "40,30,24,20", "--weights", weights, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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


def test_real_frames(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real sequences through the command line: it runs, keeps shapes, stays inside the frame."""
    for name in ("m3svd_0117_1605_b", "tno_duine"):
        root = shared_data("sequences", name)
        out = tmp_path / name
        more = ("--ground-truth", str(root / "groundtruth.txt"), "--limit", "7", "--json")
        assert track(root, weights, out, *more) == 0
        assert json.loads(capsys.readouterr().out)["frames"] == 7
        height, width = cv2.imread(str(next((root / "visible").glob("*.jpg")))).shape[:2]
        boxes = np.loadtxt(out / "boxes.txt", delimiter=",")[1:]
        assert boxes.shape == (6, 4)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 0] + boxes[:, 2] <= width + 1e-3).all()
        assert (boxes[:, 1] + boxes[:, 3] <= height + 1e-3).all()


def test_completion(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "--max-unreadable" in script
    done = subprocess.run(["bash", "-n"], input=completion_for_bash(capsys), capture_output=True, text=True, check=True)
    assert done.stderr == ""


def completion_for_bash(capsys: pytest.CaptureFixture[str]) -> str:
    main(["completion", "bash"])
    return capsys.readouterr().out


def test_every_subcommand_has_examples() -> None:
    for name in ("track", "sample", "completion"):
        done = subprocess.run(
            [sys.executable, "-m", "ckd_fast", name, "--help"], capture_output=True, text=True, check=True
        )
        assert "examples:\n" in done.stdout
        assert "ckd-fast " in done.stdout
