"""Readers of the published layouts: built small in a temporary folder, and the real ground truths where they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import ROOT, lay_out, shared_data

from ckd_fast import InputError
from ckd_fast.datasets import DATASETS, open_dataset
from ckd_fast.datasets.sequences import mispaired
from ckd_fast.datasets.tables import read_table

FRAMES = 3


def images(folder: Path, count: int = FRAMES, names: str = "{:06d}.jpg") -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        assert cv2.imwrite(str(folder / names.format(index)), np.full((12, 16, 3), 10 * index, np.uint8))


def in_folders(root: Path, names: tuple[str, ...], visible: str, infrared: str, files: dict[str, str]) -> None:
    for name in names:
        images(root / name / visible)
        images(root / name / infrared)
        lay_out(root / name, files)


BOXES = "1,2,3,4\n5,6,7,8\n9,10,11,12\n"
ARRAY = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]


@pytest.mark.parametrize(
    ("name", "part", "visible", "infrared", "files"),
    [
        ("rgbt210", "", "visible", "infrared", {"init.txt": BOXES}),
        ("rgbt234", "", "visible", "infrared", {"visible.txt": BOXES, "infrared.txt": BOXES, "init.txt": BOXES}),
        ("lasher", "testingset", "visible", "infrared", {"visible.txt": BOXES, "init.txt": BOXES}),
        ("lasher", "TestingSet/testingset", "visible", "infrared", {"init.txt": BOXES}),
        ("lasher-train", "TrainingSet/trainingset", "visible", "infrared", {"visible.txt": BOXES}),
        ("lasher-train", "", "visible", "infrared", {"visible.txt": BOXES}),
        ("vtuav", "test_ST/test_ST", "rgb", "ir", {"rgb.txt": BOXES.replace(",", " "), "ir.txt": BOXES}),
        ("vtuav-train", "train/train_ST_001", "rgb", "ir", {"rgb.txt": BOXES.replace(",", " ")}),
        ("folder", "", "visible", "infrared", {"groundtruth.txt": BOXES}),
    ],
)
def test_published_layouts(
    tmp_path: Path, name: str, part: str, visible: str, infrared: str, files: dict[str, str]
) -> None:
    in_folders(tmp_path / part, ("b10", "b2"), visible, infrared, files)
    dataset = open_dataset(name, tmp_path)
    assert [s.name for s in dataset.sequences] == ["b2", "b10"]
    sequence = dataset.sequence("b2")
    frames = sequence.frames()
    home = tmp_path / part / "b2"
    assert frames.visible == tuple(home / visible / f"{i:06d}.jpg" for i in range(FRAMES))
    assert frames.infrared == tuple(home / infrared / f"{i:06d}.jpg" for i in range(FRAMES))
    assert sequence.boxes().tolist() == ARRAY
    assert sequence.frame_of_row(2) == (20 if name.startswith("vtuav") else 2)


def test_gtot_corners(tmp_path: Path) -> None:
    files = {"groundTruth_v.txt": "10 20 30 60\n12\t50\t8\t20\n", "groundTruth_i.txt": "1 2 3 4\n1 2 3 4\n"}
    in_folders(tmp_path, ("Pool",), "v", "i", files)
    sequence = open_dataset("gtot", tmp_path).sequence("Pool")
    assert sequence.boxes("visible").tolist() == [[10, 20, 20, 40], [8, 20, 4, 30]]
    assert sequence.boxes("infrared", inclusive=True)[0].tolist() == [1, 2, 3, 3]
    assert sequence.kind("visible") == "visible"
    with pytest.raises(InputError, match="Pool: no init ground truth; available: visible, infrared"):
        sequence.boxes("init")


def test_lists_attributes_and_remarks(tmp_path: Path) -> None:
    in_folders(tmp_path / "testingset", ("one", "two", "extra"), "visible", "infrared", {"init.txt": BOXES})
    flags = {"Attributes_order.txt": "NO, PO, TO", "AttriSeqsTxt/one.txt": "0,1,1", "AttriSeqsTxt/two.txt": "1,0,0"}
    lay_out(tmp_path, flags | {"testingsetList.txt": "two\none\ngone\n"})
    dataset = open_dataset("lasher", tmp_path)
    assert [s.name for s in dataset.sequences] == ["two", "one"]  # the list decides, also what is left out
    assert dataset.attributes == ("NO", "PO", "TO")
    assert dataset.sequence("one").attributes == {"PO", "TO"}
    assert "1 sequences of testingsetList.txt have no ground truth" in dataset.remarks[0]
    assert "gone" in dataset.remarks[0]
    assert dataset.remarks[1] == "2 sequences found; LasHeR test was published with 245"
    lay_out(tmp_path, {"AttriSeqsTxt/one.txt": "0,1"})
    with pytest.raises(InputError, match=r"one\.txt: 2 flags, but .* has 3 names"):
        open_dataset("lasher", tmp_path)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    in_folders(tmp_path / "own", ("walk",), "visible", "infrared", {"groundtruth.txt": BOXES})
    images(tmp_path / "own" / "bare" / "visible")
    (tmp_path / "own" / "other").mkdir()
    (remark,) = open_dataset("folder", tmp_path / "own").remarks
    assert remark == "1 sequences have frames but no ground truth and are left out: bare"
    home = tmp_path / "lasher"
    in_folders(home / "testingset", ("one", "two"), "visible", "infrared", {"init.txt": BOXES})
    images(home / "testingset" / "bare" / "infrared")
    images(home / "testingset" / "listed" / "visible")
    lay_out(home, {"testingsetList.txt": "one\ntwo\nlisted\n", "AttriSeqsTxt/one.txt": "0,1"})
    assert open_dataset("lasher", home).remarks[:-1] == (
        "no attributes: AttriSeqsTxt is there, Attributes_order.txt is not",
        "1 sequences have frames but no ground truth and are left out: bare",
        f"1 sequences of testingsetList.txt have no ground truth in {home}: listed",
    )
    lay_out(home, {"Attributes_order.txt": "NO, PO"})
    assert "1 sequences have no attribute flags: two" in open_dataset("lasher", home).remarks
    in_folders(tmp_path / "rgbt", ("a",), "visible", "infrared", {"init.txt": BOXES})
    remarks = open_dataset("rgbt210", lay_out(tmp_path / "rgbt", {"attr_txt/LI.txt": "1\n"})).remarks
    assert "no attributes: attr_txt is there, attr_txt/SequencesName.txt is not" in remarks


@pytest.mark.parametrize(
    ("visible", "infrared", "text"),
    [
        ("v1 v2 v3", "i1 i2 i3", ""),
        ("0001 0002 0003", "1 2 3", ""),
        ("1 2 4", "2 3 4", "2 pairs have different numbers, first 1.png with 2.png"),
        ("a-1 a-3", "b-3 b-4", "2 pairs have different numbers, first a-1.png with b-3.png"),
        ("17001 17034", "17003 17036", ""),
        ("left right", "left right", ""),
    ],
)
def test_pairs_by_their_numbers(visible: str, infrared: str, text: str) -> None:
    sides = [[Path(f"{name}.png") for name in names.split()] for names in (visible, infrared)]
    assert mispaired(*sides) == text


def test_attribute_files_follow_their_own_list(tmp_path: Path) -> None:
    in_folders(tmp_path, ("a", "b"), "visible", "infrared", {"init.txt": BOXES})
    flags = {"attr_txt/LI.txt": "1\n0\n1\n", "attr_txt/BC.txt": "0\n1\n1\n"}
    lay_out(tmp_path, flags | {"SequencesName.txt": "a\nb\n", "attr_txt/SequencesName.txt": "x\nb\na\n"})
    dataset = open_dataset("rgbt210", tmp_path)
    assert [(s.name, sorted(s.attributes)) for s in dataset.sequences] == [("a", ["BC", "LI"]), ("b", ["BC"])]
    lay_out(tmp_path, {"attr_txt/BC.txt": "0\n2\n1\n"})
    with pytest.raises(InputError, match=r"BC\.txt: expected 0 or 1"):
        open_dataset("rgbt210", tmp_path)


def test_vtuav_parts_with_a_sequence_twice(tmp_path: Path) -> None:
    for part, names in (("train_ST_001", ("car_1", "car_2")), ("train_ST_002", ("car_2", "car_3"))):
        in_folders(tmp_path / part, names, "rgb", "ir", {"rgb.txt": BOXES})
    dataset = open_dataset("vtuav-train", tmp_path)
    assert [s.name for s in dataset.sequences] == ["car_1", "car_2", "car_3"]
    assert dataset.sequence("car_2").visible == tmp_path / "train_ST_001" / "car_2" / "rgb"
    assert "exist twice; the first of each is used: car_2" in dataset.remarks[0]


def test_single_own_sequence(tmp_path: Path) -> None:
    in_folders(tmp_path, ("walk",), "visible", "infrared", {"groundtruth.txt": BOXES})
    dataset = open_dataset("folder", tmp_path / "walk")
    assert [(s.name, len(s.frames())) for s in dataset.sequences] == [("walk", FRAMES)]
    assert dataset.remarks == ()


def test_roots_from_the_environment(tmp_path: Path) -> None:
    in_folders(tmp_path, ("a",), "visible", "infrared", {"init.txt": BOXES})
    assert open_dataset("rgbt210", environ={"CKD_FAST_RGBT210": str(tmp_path)}).root == tmp_path
    with pytest.raises(InputError, match="name its folder by --root or the environment variable CKD_FAST_RGBT210"):
        open_dataset("rgbt210", environ={})
    listed = (ROOT / "docs" / "environment.md").read_text()
    for name in ("GTOT", "RGBT210", "RGBT234", "LASHER", "VTUAV"):
        assert f"`CKD_FAST_{name}`" in listed


def test_bad_roots_lists_and_truths(tmp_path: Path) -> None:
    for name, root, message in (
        ("otb", tmp_path, f"data set 'otb': known are {', '.join(DATASETS)}"),
        ("gtot", tmp_path / "absent", "no such folder; expected the folder of GTOT"),
        ("gtot", tmp_path, r"no sequences of GTOT; looked for .*groundTruth_v\.txt"),
    ):
        with pytest.raises(InputError, match=message):
            open_dataset(name, root)
    in_folders(tmp_path, ("a",), "visible", "infrared", {"init.txt": BOXES})
    lay_out(tmp_path, {"SequencesName.txt": "../../etc\n"})
    with pytest.raises(InputError, match="is not a sequence name"):
        open_dataset("rgbt210", tmp_path)
    lay_out(tmp_path, {"SequencesName.txt": "a\n"})
    (tmp_path / "a" / "infrared" / "000000.jpg").unlink()
    sequence = open_dataset("rgbt210", tmp_path).sequence("a")
    with pytest.raises(InputError, match="a: 3 visible and 2 infrared images"):
        sequence.frames()
    lay_out(tmp_path, {"a/init.txt": "1,2,3\n"})
    with pytest.raises(InputError, match="3 numbers per line; expected 4"):
        sequence.boxes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ("1,2,3,4\n1,2,3\n", "line 2: 3 numbers where line 1 has 4"),
        ("1,2,3,4\n\n1,2,3,4\n", "line 2: 0 numbers where line 1 has 4"),
        ("1,2,3,4\n1,2,x,4\n", "line 2: 'x' is not a number"),
        ("\n1,2,3,4\n", "line 1: empty; expected numbers"),
        (",20,30,40,50\n", "line 1: '' is not a number"),
        ("10,20,,30,40\n", "line 1: '' is not a number"),
        ("1,2,3,4\n1,2,3,\n", "line 2: '' is not a number"),
        ("1,2,3,4,\n", "line 1: '' is not a number"),
        ("1,2 3,4\n", "line 1: '2 3' is not a number"),
        ("1_0,2,3,4\n", "line 1: '1_0' is not a number"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_table(lay_out(tmp_path, {"t.txt": text}) / "t.txt")


def test_a_pipe_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.txt")
    with pytest.raises(InputError, match=r"t\.txt: not a file"):
        read_table(tmp_path / "t.txt")


def test_tables_in_every_spelling(tmp_path: Path) -> None:
    for text, separators in (
        ("1,2\r\n3,4\r\n\r\n", ("comma",)),
        ("\ufeff1\t2\n3\t4", ("tab",)),
        ("  1   2 \n3 4\t\n", ("space",)),
        ("1, 2\n3 4\n", ("comma", "space")),
    ):
        table = read_table(lay_out(tmp_path, {"t.txt": text}) / "t.txt")
        assert table.values.tolist() == [[1, 2], [3, 4]]
        assert table.separators == separators
    (tmp_path / "t.txt").write_bytes(b"\xff\xfe1,2")
    with pytest.raises(InputError, match="not a text file"):
        read_table(tmp_path / "t.txt")


@pytest.mark.parametrize(
    ("name", "folder", "sequences", "frames", "attributes"),
    [
        ("gtot", "GTOT", 50, 7_850, 0),
        ("rgbt210", "RGBT210", 210, 104_706, 12),
        ("rgbt234", "RGBT234", 234, 116_650, 12),
        ("lasher", "LasHeR", 245, 220_703, 19),
    ],
)
def test_real_ground_truths(name: str, folder: str, sequences: int, frames: int, attributes: int) -> None:
    dataset = open_dataset(name, shared_data("eval", "groundtruth", folder))
    assert (len(dataset.sequences), len(dataset.attributes), dataset.remarks) == (sequences, attributes, ())
    assert sum(len(s.boxes()) for s in dataset.sequences) == frames
    with pytest.raises(InputError, match="no folders of frames, only a ground truth"):
        dataset.sequences[0].frames()


def test_readers_need_no_torch() -> None:
    code = "import sys, ckd_fast.datasets.sequences; assert 'torch' not in sys.modules and 'cv2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
