"""Where the published data sets keep what. Needs nothing, so that the command line can name them at no cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TruthKind = Literal["init", "visible", "infrared"]
TRUTH_KINDS: tuple[TruthKind, ...] = ("init", "visible", "infrared")
VTUAV_STEP = 10  # VTUAV's boxes are of every tenth frame


@dataclass(frozen=True)
class Layout:
    """Where one data set keeps what.

    Attributes:
        name: as people type it.
        title: as people write it.
        variable: environment variable with its folder.
        published: number of sequences it was published with; None for own data.
        parts: folders under the root that may hold the sequences, tried in this order; "" is the root, `*` any name.
        lists: files under the root that name the sequences, tried in this order.
        visible, infrared: folders of frames in a sequence's folder.
        truths: by kind, the file in a sequence's folder.
        flat: pattern of a file under the root, with `{name}`, that holds the `init` truth alone.
        corners: truths of these kinds are x1 y1 x2 y2 instead of x, y, w, h.
        attribute_files: folder under the root of one file per attribute, a 0 or 1 per sequence.
        attribute_flags: folder under the root of one file per sequence, a 0 or 1 per attribute.
        attribute_order: file with the names of those flags.
        step: frames per box, where not every frame has one.
    """

    name: str
    title: str
    variable: str
    published: int | None
    parts: tuple[str, ...]
    visible: str
    infrared: str
    truths: Mapping[TruthKind, str]
    lists: tuple[str, ...] = ()
    flat: str = ""
    corners: tuple[TruthKind, ...] = ()
    attribute_files: str = ""
    attribute_flags: str = ""
    attribute_order: str = ""
    step: int = 1


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
