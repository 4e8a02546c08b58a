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
from .results import BOX_FORMATS, BoxFormat, Problem, ProblemKind, TrackerResults, read_results, to_boxes, tracker_names
from .rules import Protocol, protocol_of

MissingPolicy = Literal["zero", "leave-out"]
MISSING_POLICIES: tuple[MissingPolicy, ...] = ("zero", "leave-out")


@dataclass(frozen=True)
class ScoringOptions:
    """How results are read and averaged.

    Attributes:
        strict_quirks: names of the toolkits' quirks to score strictly; "all" for every one.
        boxes: what four numbers in a row mean.
        missing: whether a sequence without a usable result counts as zero or is left out of the mean.
    """

    strict_quirks: tuple[str, ...] = ()
    boxes: BoxFormat = "ltwh"
    missing: MissingPolicy = "zero"

    def __post_init__(self) -> None:
        if self.boxes not in BOX_FORMATS:
            raise InputError(f"boxes={self.boxes!r}: known are {', '.join(BOX_FORMATS)}")
        if self.missing not in MISSING_POLICIES:
            raise InputError(f"missing={self.missing!r}: known are {', '.join(MISSING_POLICIES)}")


@dataclass(frozen=True)
class Benchmark:
    """A data set with its ground truths read, ready to score any number of trackers."""

    dataset: Dataset
    protocol: Protocol  # how it scores, with the quirks that the options leave on
    options: ScoringOptions  # how results are read and averaged
    truths: tuple[tuple[Array, ...], ...]  # boxes of every sequence, one array per ground truth of the protocol
    masks: Mapping[str, NDArray[np.bool_]]  # by attribute, [S] bool: the sequences that have it

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sequence.name for sequence in self.dataset.sequences)


@dataclass(frozen=True)
class TrackerScore:
    """One tracker on every sequence."""

    name: str
    present: NDArray[np.bool_]  # [S], sequences with a usable result
    frames: NDArray[np.int64]  # [S], frames that count; for a missing sequence, all its frames
    curves: Curves  # [S, T] per sequence; zero where missing
    fps: float | None  # frames per second according to the time files; None without them
    problems: tuple[Problem, ...]  # everything wrong with its files


@dataclass(frozen=True)
class Evaluation:
    """Several trackers on one benchmark, the best first."""

    benchmark: Benchmark
    trackers: tuple[TrackerScore, ...]

    @property
    def problems(self) -> tuple[Problem, ...]:
        return tuple(problem for tracker in self.trackers for problem in tracker.problems)

    def weights(self, tracker: TrackerScore, mask: NDArray[np.bool_] | None = None) -> Array:
        """[S], weight of each sequence in a mean; they add up to 1, or are all 0 if nothing counts."""
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
        """Mean curves over all sequences, or over those of a mask."""
        weights, curves = self.weights(tracker, mask), tracker.curves
        return Curves(weights @ curves.precision, weights @ curves.normalised, weights @ curves.success)

    def metrics(self, tracker: TrackerScore, mask: NDArray[np.bool_] | None = None) -> Metrics:
        """Scores over all sequences, or over those of a mask."""
        return metrics(self.curves(tracker, mask), self.benchmark.protocol)

    def sequence_metrics(self, tracker: TrackerScore, index: int) -> Metrics:
        curves = tracker.curves
        own = Curves(curves.precision[index], curves.normalised[index], curves.success[index])
        return metrics(own, self.benchmark.protocol)


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
    count = len(benchmark.names)
    present, frames = np.zeros(count, bool), np.zeros(count, np.int64)
    precision, normalised = np.zeros((count, len(PRECISION_PX))), np.zeros((count, len(NORMALISED)))
    success = np.zeros((count, len(SUCCESS)))
    problems = list(results.problems)
    for index, (sequence, truths) in enumerate(zip(benchmark.dataset.sequences, benchmark.truths, strict=True)):
        if sequence.name not in results.boxes:
            frames[index] = min(map(len, truths))
            continue

        def report(kind: ProblemKind, text: str, name: str = sequence.name) -> None:
            problems.append(Problem(results.name, kind, (name,), text))

        boxes = _comparable_boxes(benchmark, results.boxes[sequence.name], min(map(len, truths)), sequence.step, report)
        compared = distances(boxes, truths, benchmark.protocol.quirks)
        present[index], frames[index] = True, len(compared.centre)
        if not frames[index]:
            report("no truth", "no frame has a ground truth that counts; the sequence is left out")
        own = curves(compared, benchmark.protocol)
        precision[index], normalised[index], success[index] = own.precision, own.normalised, own.success
    every = Curves(precision, normalised, success)
    return TrackerScore(results.name, present, frames, every, results.fps, tuple(problems))


def _comparable_boxes(
    benchmark: Benchmark, rows: Array, truth_count: int, step: int, report: Callable[[ProblemKind, str], None]
) -> Array:
    """Boxes for the frames that have a ground truth, one every `step` frames; reports a wrong number of rows.

    Results may have a row per frame or a row per truth. We assume the count that is closer by ratio, so that short and
    long files of both kinds are recognised.
    """
    written, expected = len(rows), truth_count
    if written**2 > truth_count**2 * step:
        rows, expected = rows[::step], truth_count * step
    if benchmark.protocol.quirks.rounded_results:
        rows = np.rint(rows)
    boxes = to_boxes(rows, benchmark.options.boxes, inclusive=not benchmark.protocol.quirks.open_corners)
    if len(boxes) != truth_count:  # between two truths any number of rows is right
        report("short" if len(boxes) < truth_count else "long", f"{written} rows; expected {expected}")
    empty = int((boxes[:, 2:] <= 0).any(axis=1).sum())
    if empty:
        report("without area", f"{empty} boxes without width or height")
    return boxes


def evaluate(
    dataset: Dataset,
    folders: Sequence[str | os.PathLike[str]],
    options: ScoringOptions | None = None,
    on_tracker: Callable[[str], object] = lambda _name: None,
) -> Evaluation:
    """Score every folder of results and rank the trackers by SR, then PR.

    Args:
        dataset: data set to score on.
        folders: folders of results, each named after its tracker.
        options: how results are read and averaged.
        on_tracker: called with every tracker's name before its results are read.
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

    def rank(tracker: TrackerScore) -> tuple[float, float]:
        scores = evaluation.metrics(tracker)
        return -scores.sr, -scores.pr

    return Evaluation(benchmark, tuple(sorted(trackers, key=rank)))


def summarise(problems: Sequence[Problem]) -> list[str]:
    """One line per tracker and kind of problem, with some names and the first description."""
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
