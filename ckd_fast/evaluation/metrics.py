"""Centre errors, overlaps, and the curves over their thresholds.

Let e be the centre error in pixels, e' the centre error with x and y divided by the truth's width and height, and o the
overlap (intersection over union). A sequence of frames has the curves

    precision(t)    share of frames with e  <= t    t = 0, 1, .. 50 pixels        PR       precision(20), GTOT: (5)
    normalised(t)   share of frames with e' <= t    t = 0, 0.01, .. 0.5           NPR      normalised(0.2)
                                                                                  NPR_AUC  mean of normalised(t)
    success(t)      share of frames with o  >  t    t = 0, 0.05, .. 1             SR       mean of success(t)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckd_fast.boxes import iou

from .rules import Protocol, Quirks

Array = NDArray[np.float64]

PRECISION_PX: Array = np.arange(51, dtype=np.float64)
NORMALISED: Array = np.arange(51, dtype=np.float64) / 100
SUCCESS: Array = np.linspace(0, 1, 21)
NPR_AT = 20  # index of 0.2


@dataclass(frozen=True)
class Distances:
    """Errors of one sequence per frame; a miss has infinite errors and overlap -1."""

    centre: Array  # centre error in pixels
    normalised: Array  # centre error relative to the truth's width and height
    overlap: Array  # intersection over union


@dataclass(frozen=True)
class Curves:
    """Shares of frames over the thresholds; [T] for one sequence, [S, T] for many."""

    precision: Array
    normalised: Array
    success: Array


@dataclass(frozen=True)
class Metrics:
    """Scores as fractions."""

    pr: float  # precision at the benchmark's threshold
    npr: float  # normalised precision at 0.2, as the toolkits compute it
    npr_auc: float  # area under the normalised precision curve over [0, 0.5], as the CKD paper's text defines NPR
    sr: float  # area under the success curve


def _repeat_empty(boxes: Array) -> Array:
    """Replace each box without area by the last box before it that has some; the first row stays.

    A box that is not finite is a miss: it stays, and boxes without area after it repeat it.
    """
    stays: NDArray[np.bool_] = (boxes[:, 2] > 0) & (boxes[:, 3] > 0) | ~np.isfinite(boxes).all(axis=1)
    source_rows = np.maximum.accumulate(np.where(stays, np.arange(len(boxes)), 0))
    repeated: Array = boxes[source_rows]
    return repeated


def distances(boxes: Array, truths: Sequence[Array], quirks: Quirks) -> Distances:
    """Compare result boxes with one ground truth, or with several: each frame takes the closer one.

    Args:
        boxes: [N, 4] x, y, w, h.
        truths: [M, 4] each; M may differ.
        quirks: quirks of the benchmark. Frames without a truth are left out unless a quirk counts them.
    """
    rows = min(map(len, truths))
    if quirks.shorter_counts:
        rows = min(rows, len(boxes))
    boxes = boxes[:rows]
    boxes = np.concatenate([boxes, np.full((rows - len(boxes), 4), np.nan)])
    truths = [truth[:rows] for truth in truths]
    if quirks.rounded_truth:
        truths = [np.rint(truth) for truth in truths]
    if quirks.given_first_row and rows:
        boxes[0] = truths[0][0]
    if quirks.repeated_boxes and rows:
        boxes = _repeat_empty(boxes)

    counted = np.zeros(rows, bool)
    centre, normalised = np.full(rows, np.inf), np.full(rows, np.inf)
    best = np.full(rows, -1.0)
    unusable = ~np.isfinite(boxes).all(axis=1)
    if not quirks.empty_boxes_count:
        unusable |= (boxes[:, 2:] <= 0).any(axis=1)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for truth in truths:
            offset = (boxes[:, :2] + boxes[:, 2:] / 2) - (truth[:, :2] + truth[:, 2:] / 2)
            error = np.hypot(offset[:, 0], offset[:, 1])
            relative = np.hypot(offset[:, 0] / truth[:, 2], offset[:, 1] / truth[:, 3])
            overlap = iou(boxes, truth)
            miss = unusable.copy()
            usable = np.isfinite(truth).all(axis=1) & (truth[:, 2] > 0) & (truth[:, 3] > 0)
            if quirks.bad_truth_hits:
                bad = (truth <= 0).any(axis=1)
                error, relative, overlap = (np.where(bad, -1.0, values) for values in (error, relative, overlap))
                miss &= ~bad
            considered = np.ones(rows, bool) if quirks.bad_truth_counts or quirks.bad_truth_hits else usable
            counted |= considered
            miss |= ~considered
            centre = np.minimum(centre, np.where(miss | np.isnan(error), np.inf, error))
            normalised = np.minimum(normalised, np.where(miss | np.isnan(relative), np.inf, relative))
            best = np.maximum(best, np.where(miss | np.isnan(overlap), -1.0, overlap))
    return Distances(centre[counted], normalised[counted], best[counted])


def curves(compared: Distances, protocol: Protocol) -> Curves:
    """Shares of frames over the thresholds; all zero if no frame counts."""
    frames = max(len(compared.centre), 1)
    # searchsorted counts the values below (left), or below and equal (right).
    side = "right" if protocol.limit_hits else "left"
    precision = np.searchsorted(np.sort(compared.centre), PRECISION_PX, side=side)  # type: ignore[call-overload]
    normalised = np.searchsorted(np.sort(compared.normalised), NORMALISED, side="right")
    success = len(compared.overlap) - np.searchsorted(np.sort(compared.overlap), SUCCESS, side="right")
    return Curves(precision / frames, normalised / frames, success / frames)


def metrics(averaged: Curves, protocol: Protocol) -> Metrics:
    """PR, NPR, NPR_AUC and SR of averaged curves."""
    success = averaged.success
    if protocol.success_area == "trapezoid":
        area = float((success[:-1] + success[1:]).sum() / (2 * (len(success) - 1)))
    else:
        area = float(success.mean())
    normalised = averaged.normalised
    return Metrics(
        float(averaged.precision[protocol.centre_px]), float(normalised[NPR_AT]), float(normalised.mean()), area
    )
