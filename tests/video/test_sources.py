"""Frame pairs from folders, videos and live sources; what is paired with what, and what is said about it."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from ckd_fast import InputError
from ckd_fast.files import natural_key
from ckd_fast.frames import FramePair
from ckd_fast.images import read_rgb, read_tir
from ckd_fast.video import AnnotatedVideo, FolderPairs, LivePairs, SideBySideVideo, VideoPairs, open_source
from ckd_fast.video.writers import COLOURS, Mark, annotate


def flat(value: int, shape: tuple[int, ...] = (48, 64, 3)) -> np.ndarray:
    return np.full(shape, value, np.uint8)


def folder(path: Path, names: list[str], start: int = 0) -> Path:
    path.mkdir()
    for number, name in enumerate(names):
        cv2.imwrite(str(path / name), flat(start + number))
    return path


def video(path: Path, values: list[int], fps: float = 10.0, shape: tuple[int, ...] = (48, 64, 3)) -> Path:
    writer = AnnotatedVideo(path, fps)
    for value in values:
        writer.write(flat(value, shape))
    writer.close()
    return path


def test_natural_order() -> None:
    assert sorted(["10.jpg", "2.jpg", "a1.jpg", "a10.jpg", "a2.jpg"], key=natural_key) == [
        "2.jpg", "10.jpg", "a1.jpg", "a2.jpg", "a10.jpg",
    ]  # fmt: skip


def test_folders_by_order(tmp_path: Path) -> None:
    rgb = folder(tmp_path / "v", ["2.png", "10.png", "1.png"], start=10)
    tir = folder(tmp_path / "i", ["1.png", "2.png", "10.png"], start=50)
    (rgb / "notes.txt").write_text("no image")
    source = FolderPairs(rgb, tir)
    assert (source.length, source.remarks) == (3, ())
    pairs = list(source)
    assert [p.name for p in pairs] == ["1", "2", "10"]
    assert [int(p.rgb[0, 0, 0]) for p in pairs] == [12, 10, 11]
    assert [int(p.tir[0, 0, 0]) for p in pairs] == [50, 51, 52]


def test_folders_of_unequal_length_and_names_say_so(tmp_path: Path) -> None:
    rgb = folder(tmp_path / "v", ["a.png", "b.png", "c.png"])
    tir = folder(tmp_path / "i", ["b.png", "c.png"])
    by_order = FolderPairs(rgb, tir)
    assert by_order.length == 2
    assert "has 3 images and" in by_order.remarks[0]
    assert "2 of 2 pairs have different stems, first a.png with b.png" in by_order.remarks[1]
    by_stem = FolderPairs(rgb, tir, "stem")
    assert [p.name for p in by_stem] == ["b", "c"]
    assert by_stem.remarks == (f"{rgb}: 1 images without a partner are left out: a",)
    cv2.imwrite(str(rgb / "b.bmp"), flat(9))
    assert any("share their stem with another: b." in remark for remark in FolderPairs(rgb, tir, "stem").remarks)
    other = folder(tmp_path / "x", ["z.png"])
    with pytest.raises(InputError, match="no file stem in common"):
        FolderPairs(rgb, other, "stem")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no images"):
        FolderPairs(rgb, empty)


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    rgb = folder(tmp_path / "v", ["1.png", "2.png", "3.png"])
    tir = folder(tmp_path / "i", ["1.png", "2.png", "3.png"])
    (tir / "2.png").write_bytes(b"not a picture")
    (rgb / "3.png").write_bytes(b"")
    pairs = list(FolderPairs(rgb, tir))
    assert [p.problem for p in pairs] == [
        "",
        f"{tir / '2.png'} cannot be read",
        f"{rgb / '3.png'} cannot be read",
    ]
    assert pairs[1].tir is None
    assert pairs[1].rgb is not None
    assert pairs[2].rgb is None


def test_images_keep_their_depth_and_order(tmp_path: Path) -> None:
    deep = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    read = read_tir(tmp_path / "deep.png")
    assert read is not None
    assert np.array_equal(read, deep)
    colour = np.zeros((48, 64, 3), np.uint8)
    colour[:] = (1, 2, 3)  # BGR on disk
    cv2.imwrite(str(tmp_path / "colour.png"), colour)
    for reader in (read_rgb, read_tir):
        image = reader(tmp_path / "colour.png")
        assert image is not None
        assert image[0, 0].tolist() == [3, 2, 1]
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([colour, colour[:, :, :1]]))
    image = read_tir(tmp_path / "alpha.png")
    assert image is not None
    assert image.shape == (48, 64, 3)
    assert read_rgb(tmp_path / "none.png") is None


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of a file as Linux does")
def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """In a process whose files may not grow: OpenCV itself only warns."""
    code = (
        "import resource, signal, numpy as np\n"
        "from pathlib import Path\n"
        "from ckd_fast.video import AnnotatedVideo\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        f"video = AnnotatedVideo(Path({str(tmp_path / 'full.mp4')!r}), 25.0)\n"
        "random = np.random.default_rng(0)\n"
        "for _ in range(60): video.write(random.integers(0, 256, (240, 320, 3), dtype=np.uint8))\n"
        "video.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "OutputError" in done.stderr
    assert "could not be finished" in done.stderr


def test_two_videos(tmp_path: Path) -> None:
    rgb = video(tmp_path / "rgb.mp4", [50, 100, 150, 200])
    tir = video(tmp_path / "tir.mp4", [200, 150, 100], fps=5.0)
    with VideoPairs(rgb, tir) as source:
        assert (source.length, source.fps) == (3, 10.0)
        assert "has 4 frames and" in source.remarks[0]
        assert "10 frames/s" in source.remarks[1]
        means = [(p.rgb.mean(), p.tir.mean()) for p in source]
    assert np.allclose(means, [(50, 200), (100, 150), (150, 100)], atol=4)
    with pytest.raises(InputError, match="not a video"):
        VideoPairs(rgb, Path(__file__))


def test_side_by_side(tmp_path: Path) -> None:
    image = np.concatenate([flat(40), flat(200)], axis=1)
    writer = AnnotatedVideo(tmp_path / "both.mp4", 10.0)
    for _ in range(3):
        writer.write(image)
    writer.close()
    for layout, expected in (("rgb-left", (40, 200)), ("tir-left", (200, 40))):
        pairs = list(SideBySideVideo(tmp_path / "both.mp4", layout))
        assert len(pairs) == 3
        assert np.allclose([(p.rgb.mean(), p.tir.mean()) for p in pairs], [expected] * 3, atol=6)
        assert pairs[0].rgb.shape == (48, 64, 3)
    (pair, *_) = SideBySideVideo(tmp_path / "both.mp4", "rgb-top")
    assert pair.rgb.shape == (24, 128, 3)


class Stream(http.server.BaseHTTPRequestHandler):
    """A motion-JPEG camera: frame n is grey of level 8 n, one every `pause` seconds."""

    pause, count = 0.02, 25

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for number in range(self.count):
            jpeg = cv2.imencode(".jpg", flat(8 * number))[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + jpeg + b"\r\n")
            except OSError:
                return
            time.sleep(self.pause)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def stream() -> Iterator[str]:
    """Address of a camera on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/camera.mjpg"
    server.shutdown()
    server.server_close()


def test_live_sources_are_paired_by_time(stream: str) -> None:
    with open_source(stream, stream, tolerance_s=0.5) as source:
        assert source.length is None
        levels = [(float(p.rgb.mean()), float(p.tir.mean())) for p in source]
    assert len(levels) >= 5
    assert [a for a, _ in levels] == sorted(a for a, _ in levels)


class Clock:
    """A camera whose frames arrived at known times."""

    dropped = 0

    def __init__(self, times: list[float]) -> None:
        self.times = list(times)

    def next(self, _stopped: object) -> tuple[float, np.ndarray] | None:
        return (self.times[0], flat(round(self.times.pop(0) * 1e3) % 251)) if self.times else None

    def peek(self) -> float | None:
        return self.times[0] if self.times else None


def paired(visible: list[float], thermal: list[float], tolerance: float) -> tuple[list[tuple[float, float]], int]:
    """Which times of arrival became pairs, and how many frames were left out."""
    source = LivePairs.__new__(LivePairs)
    source._cameras, source._tolerance, source.unpaired = (Clock(visible), Clock(thermal)), tolerance, 0
    levels = {round(t * 1e3) % 251: t for t in (*visible, *thermal)}
    pairs = [(levels[int(p.rgb[0, 0, 0])], levels[int(p.tir[0, 0, 0])]) for p in source]
    return pairs, source.unpaired


def test_the_nearest_frame_that_waits_is_the_partner() -> None:
    """Two cameras of 30 frames a second, one 40 ms late: 6.7 ms to the next frame, not 40 to the first."""
    visible = [index / 30 for index in range(7)]
    thermal = [0.040 + index / 30 for index in range(6)]
    pairs, unpaired = paired(visible, thermal, 0.05)
    assert max(abs(a - b) for a, b in pairs) < 0.007
    assert len(pairs) == 6
    assert unpaired == 1


def test_frames_without_a_partner_in_time_are_left_out() -> None:
    pairs, unpaired = paired([0.0, 0.1, 0.2, 0.3], [0.105, 0.31], 0.02)
    assert pairs == [(0.1, 0.105), (0.3, 0.31)]
    assert unpaired == 2
    assert paired([0.0, 1.0], [0.5], 0.1)[0] == []


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_tolerance(tolerance: float) -> None:
    with pytest.raises(InputError, match="live tolerance"):
        LivePairs("0", "1", tolerance)


def test_a_slow_reader_of_live_sources_drops_old_frames(stream: str) -> None:
    source = LivePairs(stream, stream, tolerance_s=5.0)
    time.sleep(0.9)
    pairs = list(source)
    source.close()
    assert 1 <= len(pairs) <= 6
    assert source.dropped > 20


def test_what_does_not_fit_together(tmp_path: Path) -> None:
    one = folder(tmp_path / "v", ["1.png"])
    clip = video(tmp_path / "a.mp4", [1, 2])
    for rgb, tir, message in (
        (str(one), str(clip), "one is a folder and the other a file"),
        (str(one), "0", "one is live"),
        (str(one), None, "the thermal source is missing"),
        (str(tmp_path / "no"), str(one), "no such file or folder"),
    ):
        with pytest.raises(InputError, match=message):
            open_source(rgb, tir)
    with pytest.raises(InputError, match="no such camera or stream"):
        open_source("http://127.0.0.1:9/x.mjpg", "http://127.0.0.1:9/y.mjpg")


def test_annotation_draws_where_it_says() -> None:
    marks = [Mark((10.0, 20.0, 30.0, 16.0), "0.5", truth=(5.0, 5.0, 10.0, 10.0)), Mark((40, 25, 12, 12), "", lost=True)]
    image = annotate(FramePair(flat(0), None, (48, 64)), marks)
    assert image.shape == (48, 128, 3)
    assert tuple(image[20, 25]) == COLOURS[0]
    assert tuple(image[20, 64 + 25]) == COLOURS[0]
    assert tuple(image[5, 8]) == (255, 255, 255)
    assert tuple(image[25, 45]) == (160, 160, 160)
    thermal = annotate(FramePair(None, np.broadcast_to(flat(7, (48, 64, 1)), (48, 64, 3)), (48, 64)), [])
    assert (thermal[10, 64:] == 7).all()
    assert (thermal[10, :64] == 40).all()
