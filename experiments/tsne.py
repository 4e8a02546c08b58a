"""Exact t-SNE (van der Maaten and Hinton, 2008) for some hundred points. The same points give the same map.

    p_j|i = exp(-|x_i - x_j|^2 / 2 s_i^2) / sum,  with s_i chosen so that exp(entropy of p_.|i) is the perplexity
    q_ij  = (1 + |y_i - y_j|^2)^-1 / sum

KL(P || Q) is minimised over y by gradient descent with momentum, starting from the first two principal components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckd_fast.errors import InputError

Array = NDArray[np.float64]

SEARCH_STEPS = 60  # bisections to find each point's precision
EXAGGERATION, EXAGGERATED_STEPS = 12.0, 250
START_SPREAD = 1e-4
TINY = 1e-12
MOST_POINTS = 2000


@dataclass(frozen=True)
class Map:
    points: Array  # [N, 2]
    divergence: float  # final KL(P || Q) in nats


def squared_distances(points: Array) -> Array:
    """Squared distances [N, N] of points [N, D]."""
    norms = (points**2).sum(axis=1)
    found: Array = np.maximum(norms[:, None] + norms[None] - 2 * points @ points.T, 0)
    np.fill_diagonal(found, 0)
    return found


def neighbour_probabilities(points: Array, perplexity: float) -> Array:
    """p_j|i [N, N]: each row has the given perplexity, the diagonal is zero."""
    distances = squared_distances(points)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.min(axis=1, keepdims=True)
    shifted = np.where(np.isfinite(distances), distances - nearest, np.inf)  # the largest weight of a row is 1
    scale = np.median(shifted[np.isfinite(shifted)]) + TINY
    low, high = np.full(len(points), -40.0), np.full(len(points), 40.0)  # log of the precision, relative to the scale
    probabilities = np.zeros_like(distances)
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        weights = np.exp(-shifted * (np.exp(middle) / scale)[:, None])
        probabilities = weights / weights.sum(axis=1, keepdims=True)
        entropy = -(probabilities * np.log(probabilities + TINY)).sum(axis=1)
        wide = entropy > np.log(perplexity)  # too many neighbours: a larger precision
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return probabilities


def tsne(points: NDArray[np.floating], perplexity: float = 30.0, steps: int = 750) -> Map:
    """Map points [N, D] to the plane [N, 2]."""
    count = len(points)
    if not 8 <= count <= MOST_POINTS:
        raise InputError(f"t-SNE of {count} points: expected 8 to {MOST_POINTS}")
    if not 1 < perplexity < (count - 1) / 3:
        raise InputError(f"perplexity={perplexity}: expected more than 1 and less than {(count - 1) / 3:.1f}")
    centred = np.asarray(points, np.float64)
    centred = centred - centred.mean(axis=0)
    conditional = neighbour_probabilities(centred, perplexity)
    joint = np.maximum((conditional + conditional.T) / (2 * count), TINY)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:2]
    # The sign of a principal component is arbitrary; here its largest weight is positive.
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    placed = centred @ (directions * signs[:, None]).T
    placed = placed / (placed[:, 0].std() + TINY) * START_SPREAD
    speed, gain = np.zeros_like(placed), np.ones_like(placed)
    rate = max(count / EXAGGERATION / 4, 50.0)
    similar = joint
    for step in range(steps):
        kernel = 1 / (1 + squared_distances(placed))
        np.fill_diagonal(kernel, 0)
        similar = np.maximum(kernel / kernel.sum(), TINY)
        target = joint * (EXAGGERATION if step < EXAGGERATED_STEPS else 1.0)
        pull = (target - similar) * kernel
        gradient = 4 * (pull.sum(axis=1)[:, None] * placed - pull @ placed)
        gain = np.maximum(np.where(np.sign(gradient) != np.sign(speed), gain + 0.2, gain * 0.8), 0.01)
        speed = (0.5 if step < EXAGGERATED_STEPS else 0.8) * speed - rate * gain * gradient
        placed = placed + speed
        placed = placed - placed.mean(axis=0)
    off = ~np.eye(count, dtype=bool)
    return Map(placed, float((joint * np.log(joint / similar))[off].sum()))
