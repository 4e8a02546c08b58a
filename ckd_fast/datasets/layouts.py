"""File layouts of the published data sets. Imports nothing heavy: the command line lists them in --help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TruthKind = Literal["init", "visible", "infrared"]
TRUTH_KINDS: tuple[TruthKind, ...] = ("init", "visible", "infrared")
VTUAV_STEP = 10  # VTUAV has a box for every tenth frame


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its files. Paths are relative to its root, unless they lie in a sequence's folder."""

    name: str  # for the command line
    title: str  # for messages and reports
    variable: str  # environment variable that may hold the root
    published: int | None  # number of published sequences; None for your own data
    parts: tuple[str, ...]  # folders that may hold the sequences, tried in this order; "" is the root, `*` any name
    # folders of frames in a sequence's folder
    visible: str
    infrared: str
    truths: Mapping[TruthKind, str]  # files of boxes in a sequence's folder, by kind
    lists: tuple[str, ...] = ()  # files with the names of the sequences, tried in this order
    flat: str = ""  # file of a sequence's `init` truth where all truths lie in one folder; `{name}` is the sequence
    corners: tuple[TruthKind, ...] = ()  # kinds of truth whose rows are x1 y1 x2 y2 instead of x, y, w, h
    attribute_files: str = ""  # folder with one file per attribute, in it a 0 or 1 per sequence
    attribute_flags: str = ""  # folder with one file per sequence, in it a 0 or 1 per attribute
    attribute_order: str = ""  # file with the attributes' names, in the order of `attribute_flags`
    step: int = 1  # there is a box for every `step`-th frame


TRUTHS_IN_FOLDER: Mapping[TruthKind, str] = {"init": "init.txt", "visible": "visible.txt", "infrared": "infrared.txt"}
_GTOT: Mapping[TruthKind, str] = {"init": "init.txt", "visible": "groundTruth_v.txt", "infrared": "groundTruth_i.txt"}
_VTUAV: Mapping[TruthKind, str] = {"visible": "rgb.txt", "infrared": "ir.txt"}

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "gtot", "GTOT", "CKD_FAST_GTOT", 50, ("groundtruth", ""), "v", "i", _GTOT,
        lists=("SequencesName.txt",), corners=("visible", "infrared"),
    ),
    Layout(
        "rgbt210", "RGBT210", "CKD_FAST_RGBT210", 210, ("groundtruth", ""), "visible", "infrared", TRUTHS_IN_FOLDER,
        lists=("SequencesName.txt",), attribute_files="attr_txt",
    ),
    Layout(
        "rgbt234", "RGBT234", "CKD_FAST_RGBT234", 234, ("rgbt234_gt", ""), "visible", "infrared", TRUTHS_IN_FOLDER,
        lists=("SequencesName.txt", "attr_txt/SequencesName.txt"), attribute_files="attr_txt",
    ),
    Layout(
        "lasher", "LasHeR test", "CKD_FAST_LASHER", 245, ("TestingSet/testingset", "testingset", "lasher_gt", ""),
        "visible", "infrared", TRUTHS_IN_FOLDER,
        lists=("lashertest.txt", "testingsetList.txt", "TestingSet/testingsetList.txt"), flat="lasher_gt/{name}.txt",
        attribute_flags="AttriSeqsTxt", attribute_order="Attributes_order.txt",
    ),
    Layout(
        "lasher-train", "LasHeR train", "CKD_FAST_LASHER", 979, ("TrainingSet/trainingset", "trainingset", ""),
        "visible", "infrared", TRUTHS_IN_FOLDER,
        lists=("lashertrain.txt", "trainingsetList.txt", "TrainingSet/trainingsetList.txt"),
        attribute_flags="AttriSeqsTxt", attribute_order="Attributes_order.txt",
    ),
    Layout(
        "vtuav", "VTUAV short-term test", "CKD_FAST_VTUAV", 176, ("test_ST/test_ST", "test_ST", "test_ST_*", ""),
        "rgb", "ir", _VTUAV, lists=("ST_test_split.txt",), step=VTUAV_STEP,
    ),
    Layout(
        "vtuav-train", "VTUAV short-term train", "CKD_FAST_VTUAV", 207,
        ("train_ST/train_ST", "train_ST", "train/train_ST_*", "train_ST_*", "train", ""),
        "rgb", "ir", _VTUAV, lists=("ST_train_split.txt",), step=VTUAV_STEP,
    ),
    Layout("folder", "own data", "", None, ("",), "visible", "infrared", {"init": "groundtruth.txt"}),
)  # fmt: skip
DATASETS: tuple[str, ...] = tuple(layout.name for layout in LAYOUTS)
