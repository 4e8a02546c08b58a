"""What trackers return."""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one frame.

    Attributes:
        prepare_ms: checking and converting the frames.
        crop_ms: cutting out and normalising the search crops.
        network_ms: the network, until its result is on the host.
        decode_ms: from the maps to the box.
        total_ms: from taking the frames to the result.
    """

    prepare_ms: float
    crop_ms: float
    network_ms: float
    decode_ms: float
    total_ms: float


@dataclass(frozen=True)
class TrackResult:
    """One target in one frame.

    Attributes:
        box: (x, y, w, h) in pixels of the visible frame, inside it, at least 10 wide and high.
        score: the score map's value at the chosen cell, in [1e-4, 1 - 1e-4]; without the window that prefers little
            motion.
        lost: the score is below the tracker's `lost_threshold`. This changes neither the box nor the tracker's state.
        frame: number of this frame, 1 for the first after `init`.
        rgb_used: False where the visible frame was missing.
        tir_used: False where the thermal frame was missing.
        timings: where the time went.
    """

    box: Box
    score: float
    lost: bool
    frame: int
    rgb_used: bool
    tir_used: bool
    timings: Timings
