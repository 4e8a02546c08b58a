from __future__ import annotations

from ckd_fast.boxes import iou


def test_iou_row_by_row() -> None:
    found = [(0, 0, 10, 10), (5, 0, 10, 10), (100, 0, 10, 10), (0, 0, 0, 0)]
    truth = [(0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 0, 0)]
    assert iou(found, truth).tolist() == [1, 1 / 3, 0, 0]


def test_iou_of_two_boxes() -> None:
    assert float(iou((0, 0, 10, 10), (0, 5, 10, 5))) == 0.5
    assert float(iou((0, 0, 0, 0), (0, 0, 0, 0))) == 0
