"""Score trackers on a data set: `evaluate(dataset, folders)`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ckd_fast.datasets.sequences import Dataset
from ckd_fast.errors import InputError, some_names

from .metrics import NORMALISED, PRECISION_PX, SUCCESS, Array, Curves, Metrics, curves, distances, metrics
from .results import (
    BOX_FORMATS,
    BoxFormat,
    Problem,
    ProblemKind,
    TrackerResults,
    read_results,
    to_boxes,
    tracker_names,
)
from .rules import Protocol, protocol_of

MissingPolicy = Literal["zero", "leave-out"]
MISSING_POLICIES: tuple[MissingPolicy, ...] = ("zero", "leave-out")


@dataclass(frozen=True)
class ScoringOptions:
    """How results are read and averaged.

    Attributes:
        strict_quirks: quirks of the toolkits to switch to the strict reading; "all" is every one.
        boxes: what rows of four numbers are.
        missing: a sequence without a usable result counts as zero, or is left out of the mean.
    """

    strict_quirks: tuple[str, ...] = ()
    boxes: BoxFormat = "ltwh"
    missing: MissingPolicy = "zero"

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        if self.boxes not in BOX_FORMATS:
            raise InputError(f"boxes={self.boxes!r}: known are {', '.join(BOX_FORMATS)}")
        if self.missing not in MISSING_POLICIES:
            raise InputError(f"missing={self.missing!r}: known are {', '.join(MISSING_POLICIES)}")


@dataclass(frozen=True)
class Benchmark:
    """A data set with its truths read, ready to score any number of trackers.

    Attributes:
        dataset: where it is.
        protocol: how it scores, quirks as they are switched.
        options: as given.
        truths: boxes of every sequence, by the protocol's kinds of truth.
        masks: by attribute, which sequences have it.
    """

    dataset: Dataset
    protocol: Protocol
    options: ScoringOptions
    truths: tuple[tuple[Array, ...], ...]
    masks: Mapping[str, NDArray[np.bool_]]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sequences."""
        return tuple(sequence.name for sequence in self.dataset.sequences)


@dataclass(frozen=True)
class TrackerScore:
    """One tracker on every sequence.

    Attributes:
        name: of the tracker.
        present: [S], the sequences with a usable result.
        frames: [S], frames that counted; of a missing sequence, those it has.
        curves: [S, T] of each sequence; zero where missing.
        fps: frames per second by the time files; None without them.
        timed: number of sequences with times.
        problems: all that was odd in its files.
    """

    name: str
    present: NDArray[np.bool_]
    frames: NDArray[np.int64]
    curves: Curves
    fps: float | None
    timed: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Evaluation:
    """Several trackers on one benchmark; `trackers` is ranked, the best first."""

    benchmark: Benchmark
    trackers: tuple[TrackerScore, ...]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Of all trackers."""
        return tuple(problem for tracker in self.trackers for problem in tracker.problems)

    def weights(self, tracker: TrackerScore, mask: NDArray[np.bool_] | None = None) -> Array:
        """[S], what each sequence counts in a mean; they add up to 1, or are all 0 where nothing counts."""
        chosen = tracker.frames > 0
        if self.benchmark.options.missing == "leave-out":
            chosen = chosen & tracker.present
        if mask is not None:
            chosen = chosen & mask
        by_frames = self.benchmark.protocol.weighting == "frames"
        weights: Array = np.where(chosen, tracker.frames if by_frames else 1, 0).astype(np.float64)
        total = float(weights.sum())
        return weights / total if total > 0 else weights

    def curves(self, tracker: TrackerScore, mask: NDArray[np.bool_] | None = None) -> Curves:
        """Averaged over all sequences, or those of a mask."""
        weights = self.weights(tracker, mask)
        of = tracker.curves
        return Curves(weights @ of.precision, weights @ of.normalised, weights @ of.success)

    def metrics(self, tracker: TrackerScore, mask: NDArray[np.bool_] | None = None) -> Metrics:
        """The numbers over all sequences, or those of a mask."""
        return metrics(self.curves(tracker, mask), self.benchmark.protocol)

    def sequence_metrics(self, tracker: TrackerScore, index: int) -> Metrics:
        """The numbers of one sequence."""
        of = tracker.curves
        one = Curves(of.precision[index], of.normalised[index], of.success[index])
        return metrics(one, self.benchmark.protocol)


def load_benchmark(dataset: Dataset, options: ScoringOptions | None = None) -> Benchmark:
    """Read the ground truths."""
    options = options or ScoringOptions()
    protocol = protocol_of(dataset.layout.name)
    protocol = dataclasses.replace(protocol, quirks=protocol.quirks.without(options.strict_quirks))
    inclusive = not protocol.quirks.open_corners
    truths = []
    for sequence in dataset.sequences:
        kinds = protocol.truths if len(protocol.truths) > 1 else (sequence.kind(*protocol.truths),)
        truths.append(tuple(sequence.boxes(kind, inclusive=inclusive) for kind in kinds))
    masks = {
        name: np.array([name in sequence.attributes for sequence in dataset.sequences]) for name in dataset.attributes
    }
    return Benchmark(dataset, protocol, options, tuple(truths), masks)


def score_tracker(benchmark: Benchmark, results: TrackerResults) -> TrackerScore:
    """Score the results of one tracker."""
    protocol, quirks = benchmark.protocol, benchmark.protocol.quirks
    count = len(benchmark.names)
    present, frames = np.zeros(count, bool), np.zeros(count, np.int64)
    precision, normalised = np.zeros((count, len(PRECISION_PX))), np.zeros((count, len(NORMALISED)))
    success = np.zeros((count, len(SUCCESS)))
    problems = list(results.problems)
    for index, (sequence, truths) in enumerate(zip(benchmark.dataset.sequences, benchmark.truths, strict=True)):
        rows = results.boxes.get(sequence.name)
        if rows is None:
            frames[index] = min(map(len, truths))
            continue
        expected = min(map(len, truths))
        wanted, written = expected, len(rows)
        # Of every frame, or of those with a truth? Whichever is closer by ratio, so that a short or long file of either
        # kind is still taken for what it is.
        if written**2 > expected**2 * sequence.step:
            rows = rows[:: sequence.step]
            wanted = expected * sequence.step
        if quirks.rounded_results:
            rows = np.rint(rows)
        boxes = to_boxes(rows, benchmark.options.boxes, inclusive=not quirks.open_corners)
        # The frames after the last truth are not known: between two truths any count will do.
        if len(boxes) != expected:
            kind: ProblemKind = "short" if len(boxes) < expected else "long"
            problems.append(Problem(results.name, kind, (sequence.name,), f"{written} rows for {wanted} of the truth"))
        problems += _without_area(results.name, sequence.name, boxes)
        found = distances(boxes, truths, quirks)
        present[index], frames[index] = True, len(found.centre)
        if not len(found.centre):
            text = "no frame has a ground truth that counts: left out"
            problems.append(Problem(results.name, "no truth", (sequence.name,), text))
            continue
        of = curves(found, protocol)
        precision[index], normalised[index], success[index] = of.precision, of.normalised, of.success
    return TrackerScore(
        results.name,
        present,
        frames,
        Curves(precision, normalised, success),
        results.fps,
        len(results.seconds),
        tuple(problems),
    )


def _without_area(tracker: str, sequence: str, boxes: Array) -> list[Problem]:
    empty = int((boxes[:, 2:] <= 0).any(axis=1).sum())
    return [Problem(tracker, "without area", (sequence,), f"{empty} boxes without width or height")] if empty else []


def evaluate(
    dataset: Dataset,
    folders: Sequence[str | os.PathLike[str]],
    options: ScoringOptions | None = None,
    on_tracker: Callable[[str], object] = lambda _name: None,
) -> Evaluation:
    """Score every folder of results; the trackers come ranked by SR, then PR.

    Args:
        dataset: what to score on.
        folders: of results, each named after its tracker.
        options: how results are read and averaged.
        on_tracker: called with every name, before its results are read.
    """
    if isinstance(folders, str | os.PathLike):
        raise InputError(f"folders={folders!r}: expected a list of folders, one per tracker")
    paths = [Path(folder) for folder in folders]
    names = tracker_names(paths)
    benchmark = load_benchmark(dataset, options)
    trackers = []
    for path, name in zip(paths, names, strict=True):
        on_tracker(name)
        trackers.append(score_tracker(benchmark, read_results(path, name, benchmark.names, dataset.names)))
    evaluation = Evaluation(benchmark, tuple(trackers))
    order = sorted(trackers, key=lambda one: _rank(evaluation.metrics(one)))
    return Evaluation(benchmark, tuple(order))


def _rank(of: Metrics) -> tuple[float, float]:
    return -of.sr, -of.pr


def summarise(problems: Sequence[Problem]) -> list[str]:
    """One line per tracker and kind, with names; what concerns one sequence alone is said in full."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.tracker, problem.kind), []).append(problem)
    lines = []
    for (tracker, kind), members in groups.items():
        names = list(dict.fromkeys(name for member in members for name in member.sequences))
        where = f" ({some_names(names)})" if names else ""
        if len(members) == 1:
            lines.append(f"{tracker}: {kind}: {members[0].text}{where}")
        else:
            lines.append(f"{tracker}: {kind}: {len(names)} sequences{where}; first: {members[0].text}")
    return lines
