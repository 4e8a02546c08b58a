"""`ckd-fast data check`: everything that is wrong is named, and nothing else."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import Command
from support import shared_data

from ckd_fast import InputError
from ckd_fast.datasets import checking, open_dataset
from ckd_fast.datasets.checking import Finding, check_dataset, detect, image_size

SIZE = (32, 24)
FRAMES = 4


def picture(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two faultless sequences."""
    home = tmp_path / "own"
    for name in ("a", "b"):
        for folder in ("visible", "infrared"):
            for index in range(FRAMES):
                picture(home / name / folder / f"{index}.jpg")
        (home / name / "groundtruth.txt").write_text("1,2,10,8\n" * FRAMES)
    return home


def findings(root: Path) -> tuple[Finding, ...]:
    return check_dataset(open_dataset("folder", root)).findings


def test_faultless(root: Path, tmp_path: Path, command: Command) -> None:
    report = tmp_path / "report.json"
    told = command("data", "check", root, "--quiet", "--json", report)
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines() == [
        "own data: 2 sequences, 8 frame pairs, 8 boxes (0 without area)",
        "visible frames: 32x24 in 2 sequences",
        "no findings",
    ]
    content = json.loads(report.read_text())
    assert [one["name"] for one in content["sequences"]] == ["a", "b"]
    assert content["sequences"][0]["infrared_size"] == [32, 24]


def test_everything_wrong_is_named(root: Path, command: Command) -> None:
    cut = root / "a" / "visible" / "1.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    (root / "a" / "visible" / "2.jpg").write_bytes(b"")
    picture(root / "a" / "infrared" / "3.jpg", (40, 24))
    (root / "b" / "infrared" / "0.jpg").unlink()
    (root / "b" / "groundtruth.txt").write_text("1,2,0,8\n1,2,10,8\n500,2,10,8\n")
    found = findings(root)
    unreadable = [one for one in found if one.kind == "unreadable"]
    assert [one.sequence for one in unreadable] == ["a", "a"]
    assert {(one.sequence, one.kind, one.text.split(": ", 1)[-1]) for one in found if one not in unreadable} == {
        ("a", "mis-sized", "1 of 4 are not 32x24: 3.jpg 40x24"),
        ("b", "unpaired", "4 visible and 3 infrared frames"),
        ("b", "truth", "3 boxes for 4 frames"),
        ("b", "truth", "1 boxes lie outside the frame, first in line 3"),
        ("b", "truth", "the first box has no area"),
    }
    told = command("data", "check", root, "--quiet")
    assert told.code == 1
    assert told.out.splitlines()[-1] == f"{len(found)} findings"
    assert "b: unpaired: 4 visible and 3 infrared frames" in told.err


def test_shifted_pairs_are_found(root: Path, command: Command) -> None:
    (root / "a" / "visible" / "0.jpg").unlink()
    (root / "a" / "infrared" / "2.jpg").unlink()
    (root / "a" / "groundtruth.txt").write_text("1,2,10,8\n" * (FRAMES - 1))
    text = "2 pairs have different numbers, first 1.jpg with 0.jpg"
    assert findings(root) == (Finding("a", "unpaired", text),)
    assert command("data", "check", root, "--quiet").code == 1


def test_damage_inside_an_image_is_found(root: Path) -> None:
    path = picture(root / "a" / "visible" / "1.png")
    (root / "a" / "visible" / "1.jpg").unlink()
    data = bytearray(path.read_bytes())
    data[-40:-16] = bytes(24)  # in the pixels; the end mark stays
    path.write_bytes(data)
    assert [(one.sequence, one.kind) for one in findings(root)] == [("a", "unreadable")]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff", ".pgm"])
def test_sizes(tmp_path: Path, suffix: str) -> None:
    path = picture(tmp_path / f"x{suffix}", (37, 21)) if suffix != ".pgm" else tmp_path / "x.pgm"
    if suffix == ".pgm":
        assert cv2.imwrite(str(path), np.zeros((21, 37), np.uint8))
    assert image_size(path) == (37, 21)


def test_jpegs_with_more_in_front(tmp_path: Path) -> None:
    plain = picture(tmp_path / "x.jpg").read_bytes()
    large = b"\xff\xe1" + struct.pack(">H", 60_000) + bytes(59_998)
    (tmp_path / "exif.jpg").write_bytes(plain[:2] + large * 3 + b"\xff" * 5 + plain[2:])
    assert image_size(tmp_path / "exif.jpg") == SIZE


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff", ".webp"])
def test_images_that_were_cut_off(tmp_path: Path, suffix: str) -> None:
    path = picture(tmp_path / f"x{suffix}")
    data = path.read_bytes()
    for length in (len(data) - 2, len(data) - 200, len(data) // 2):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=f"x{suffix}: "):
            image_size(path)


def test_a_cut_jpeg_that_opencv_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "x.jpg")
    path.write_bytes(path.read_bytes()[:-200])
    monkeypatch.setattr(checking, "decode", lambda *_: np.zeros((24, 32), np.uint8))
    with pytest.raises(InputError, match=r"x\.jpg: cut off after \d+ bytes"):
        image_size(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xe0\x00\x00",
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 5000,
        b"\xff\xd8\xff\xc0\x00\x11\x08\x00",
        b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x00\x00\x00\xff\xd9",
        b"\x89PNG\r\n\x1a\n",
        b"BM" + bytes(24),
        b"RIFFxxxxWEBP" + bytes(40),
        b"text",
    ],
)
def test_broken_and_hostile_headers(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.jpg"):
        image_size(path)


def test_which_data_set_it_is(root: Path, tmp_path: Path, command: Command) -> None:
    assert detect(root).layout.name == "folder"
    for name in ("a", "b"):
        (root / name / "groundtruth.txt").rename(root / name / "init.txt")
    with pytest.raises(InputError, match=r"could be any of gtot, rgbt210, rgbt234, lasher, lasher-train; choose"):
        detect(root)
    told = command("data", "check", root, "--dataset", "rgbt234", "--quiet")
    assert told.code == 1
    assert "2 sequences found; RGBT234 was published with 234" in told.err
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no data set of a known layout"):
        detect(tmp_path / "empty")
    assert command("data", "check", tmp_path / "absent").refuses("no such folder")


@pytest.mark.parametrize(
    ("folder", "name"), [("GTOT", "gtot"), ("RGBT210", "rgbt210"), ("RGBT234", "rgbt234"), ("LasHeR", "lasher")]
)
def test_ground_truths_alone(folder: str, name: str) -> None:
    dataset = detect(shared_data("eval", "groundtruth", folder))
    assert dataset.layout.name == name
    checked = check_dataset(dataset)
    assert checked.remarks == ("no frames anywhere, only ground truths: enough for scoring, not for tracking",)
    assert checked.findings == ()
