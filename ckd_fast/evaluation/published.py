"""Published accuracy and speed of other trackers: Table I of the CKD paper, entered once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SOURCE = "Table I of the CKD paper (ACM MM 2024, arXiv 2410.11586)"

# Percent, "-" where the paper has no figure. The paper calls the last row "Ours".
# LasHeR's middle column, NPR, is the toolkits' definition (at 0.2), although the paper's text describes an area:
# the published result files of APFNet and mfDiMP have these figures at 0.2.
#                                       GTOT        RGBT210     RGBT234     LasHeR           VTUAV       frames
# tracker    published      backbone    PR   SR     PR   SR     PR   SR     PR   NPR  SR     PR   SR     per s
TABLE_I = """
MANet      | ICCVW 2019   | VGG-M     | 89.4 72.4 |    -    - | 77.7 53.9 | 45.5 38.3 32.6 |    -    - | 1
DAPNet     | ACM MM 2019  | VGG-M     | 88.2 70.7 |    -    - | 76.6 53.7 | 43.1 38.3 31.4 |    -    - | 2
mfDiMP     | ICCVW 2019   | ResNet-50 | 83.6 69.7 | 78.6 55.5 |    -    - | 44.7 39.5 34.3 | 67.3 55.4 | 10.3
CMPP       | CVPR 2020    | VGG-M     | 92.6 73.8 |    -    - | 82.3 57.5 |    -    -    - |    -    - | 1.3
CAT        | ECCV 2020    | VGG-M     | 88.9 71.7 | 79.2 53.3 | 80.4 56.1 | 45.0 39.5 31.4 |    -    - | 20
ADNet      | IJCV 2021    | VGG-M     | 90.4 73.9 |    -    - | 80.7 57.0 |    -    -    - | 62.2 46.6 | 25
JMMAC      | TIP 2021     | VGG-M     | 90.2 73.2 |    -    - | 79.0 57.3 |    -    -    - |    -    - | 4
MANet++    | TIP 2021     | VGG-M     | 88.2 70.7 |    -    - | 80.0 55.4 | 46.7 40.4 31.4 |    -    - | 25.4
APFNet     | AAAI 2022    | VGG-M     | 90.5 73.7 |    -    - | 82.7 57.9 | 50.0 43.9 36.2 |    -    - | 1.3
DMCNet     | TNNLS 2022   | VGG-M     | 90.9 73.3 | 79.7 55.5 | 83.9 59.3 | 49.0 43.1 35.5 |    -    - | 2.3
ProTrack   | ACM MM 2022  | ViT-B     |    -    - |    -    - | 78.6 58.7 | 50.9    - 42.1 |    -    - | 30
MIRNet     | ICME 2022    | VGG-M     | 90.9 74.4 |    -    - | 81.6 58.9 |    -    -    - |    -    - | 30
HMFT       | CVPR 2022    | ResNet-50 | 91.2 74.9 | 78.6 53.5 | 78.8 56.8 |    -    -    - | 75.8 62.7 | 30.2
MFG        | TMM 2022     | ResNet-18 | 88.9 70.7 | 74.9 46.7 | 75.8 51.5 |    -    -    - |    -    - | -
DFNet      | TITS 2022    | VGG-M     | 88.1 71.9 |    -    - | 77.2 51.3 |    -    -    - |    -    - | -
MACFT      | Sensors 2023 | ViT-B     |    -    - |    -    - | 85.7 62.2 | 65.3    - 51.4 | 80.1 66.8 | 22
CMD        | CVPR 2023    | ResNet-50 | 89.2 73.4 |    -    - | 82.4 58.4 | 59.0 54.6 46.4 |    -    - | 30
ViPT       | CVPR 2023    | ViT-B     |    -    - |    -    - | 83.5 61.7 | 65.1    - 52.5 |    -    - | -
TBSI       | CVPR 2023    | ViT-B     |    -    - | 85.3 62.5 | 87.1 63.7 | 69.2 65.7 55.6 |    -    - | 36.2
QAT        | ACM MM 2023  | ResNet-50 | 91.5 75.5 | 86.8 61.9 | 88.4 64.4 | 64.2 59.6 50.1 | 80.1 66.7 | 22
BAT        | AAAI 2024    | ViT-B     |    -    - |    -    - | 86.8 64.1 | 70.2    - 56.3 |    -    - | -
TATrack    | AAAI 2024    | ViT-B     |    -    - | 85.3 61.8 | 87.2 64.4 | 70.2    - 56.1 |    -    - | 26.1
OneTracker | CVPR 2024    | ViT-B     |    -    - |    -    - | 85.7 64.2 | 67.2    - 53.8 |    -    - | -
Un-Track   | CVPR 2024    | ViT-B     |    -    - |    -    - | 84.2 62.5 | 66.7    - 53.6 |    -    - | -
SDSTrack   | CVPR 2024    | ViT-B     |    -    - |    -    - | 84.8 62.5 | 66.5    - 53.1 |    -    - | 20.9
CKD        | ACM MM 2024  | ViT-B     | 93.2 77.2 | 88.4 65.2 | 90.0 67.4 | 73.2 69.3 58.1 | 90.2 77.8 | 96.4
"""
DATASETS = ("gtot", "rgbt210", "rgbt234", "lasher", "vtuav")


@dataclass(frozen=True)
class PublishedScores:
    """Scores on one data set, as fractions; MPR and MSR on GTOT and RGBT234."""

    pr: float
    sr: float
    npr: float | None


@dataclass(frozen=True)
class PublishedTracker:
    name: str
    venue: str  # where it was published
    backbone: str
    scores: Mapping[str, PublishedScores]  # by data set, without those that have no figures
    fps: float | None  # frames per second as its authors report them, on different devices


def published_trackers() -> tuple[PublishedTracker, ...]:
    """The table's rows, in the paper's order."""
    return tuple(_row(line) for line in TABLE_I.strip().splitlines())


def _row(line: str) -> PublishedTracker:
    name, venue, backbone, *columns, speed = (cell.strip() for cell in line.split("|"))
    scores = {}
    for dataset, column in zip(DATASETS, columns, strict=True):
        pr, *npr, sr = (_number(text, 100) for text in column.split())
        if pr is not None and sr is not None:
            scores[dataset] = PublishedScores(pr, sr, *npr or [None])
    return PublishedTracker(name, venue, backbone, scores, _number(speed))


def _number(text: str, divisor: float = 1) -> float | None:
    return None if text == "-" else float(text) / divisor
