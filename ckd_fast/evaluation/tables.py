"""An evaluation as a table for the terminal, as CSV and as JSON. The table is in percent, files hold fractions."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence

from .metrics import Metrics
from .scores import Evaluation, TrackerScore

DIGITS = 6


def metric_names(evaluation: Evaluation) -> tuple[str, str, str, str]:
    """PR, NPR, NPR_AUC and SR under the benchmark's names."""
    prefix = evaluation.benchmark.protocol.prefix
    return f"{prefix}PR", f"{prefix}NPR", f"{prefix}NPR_AUC", f"{prefix}SR"


def values(metrics: Metrics) -> tuple[float, float, float, float]:
    """The scores in the order of `metric_names`."""
    return metrics.pr, metrics.npr, metrics.npr_auc, metrics.sr


def describe(evaluation: Evaluation) -> list[tuple[str, str]]:
    """How the scores are defined: terms and explanations."""
    benchmark = evaluation.benchmark
    protocol, options = benchmark.protocol, benchmark.options
    precision, normalised, area, success = metric_names(evaluation)
    limit = "at most" if protocol.limit_hits else "less than"
    mean = "trapezoid" if protocol.success_area == "trapezoid" else "mean"
    averaged = "frames of all sequences" if protocol.weighting == "frames" else "sequences"
    usual = {"zero": "count as 0", "leave-out": "are left out of the mean"}[options.missing]
    described = [
        ("data set", f"{benchmark.dataset.layout.title}, {len(benchmark.names)} sequences"),
        (precision, f"share of frames whose centre error is {limit} {protocol.centre_px} pixels"),
        (normalised, "share of frames whose normalised centre error is at most 0.2 (the toolkits' NPR)"),
        (area, "mean of that share over the 51 thresholds 0, 0.01 .. 0.5 (the NPR that the CKD paper's text defines)"),
        (success, f"{mean} over the 21 thresholds 0, 0.05 .. 1 of the share of frames whose overlap is larger"),
        ("mean over", averaged),
        ("truth", " or ".join(protocol.truths) + ", whichever is closer in a frame" * (len(protocol.truths) > 1)),
        ("rules", protocol.source if not options.strict_quirks else "as the toolkits, with some quirks switched off"),
        ("quirks on", ", ".join(protocol.quirks.on()) or "none"),
        ("rows of four", {"ltwh": "x, y, w, h", "ltrb": "x1, y1, x2, y2", "centre": "cx, cy, w, h"}[options.boxes]),
        ("missing", f"sequences without a usable result {usual}"),
    ]
    return described + [("remark", remark) for remark in benchmark.dataset.remarks]


def text_table(evaluation: Evaluation) -> str:
    """The ranking, in percent."""
    names = metric_names(evaluation)
    total = len(evaluation.benchmark.names)
    rows: list[tuple[str, ...]] = [("", "tracker", *names, "sequences", "frames/s", "problems")]
    for rank, tracker in enumerate(evaluation.trackers, 1):
        scores = [f"{100 * value:.1f}" for value in values(evaluation.metrics(tracker))]
        present = f"{int(tracker.present.sum())}/{total}"
        fps = "-" if tracker.fps is None else f"{tracker.fps:.1f}"
        rows.append((str(rank), tracker.name, *scores, present, fps, str(len(tracker.problems))))
    return _aligned(rows, left=1)


def attribute_table(evaluation: Evaluation) -> str:
    """PR and SR of every tracker by attribute, in percent."""
    precision, _, _, success = metric_names(evaluation)
    rows = [("attribute", "n", *(f"{t.name} {precision}/{success}" for t in evaluation.trackers))]
    for name, mask in evaluation.benchmark.masks.items():
        scores = [evaluation.metrics(tracker, mask) for tracker in evaluation.trackers]
        rows.append((name, str(int(mask.sum())), *(f"{100 * m.pr:.1f}/{100 * m.sr:.1f}" for m in scores)))
    return _aligned(rows, left=0)


def loss_table(evaluation: Evaluation, reference: str) -> str:
    """Difference of every other tracker to one of them, in percentage points."""
    precision, _, _, success = metric_names(evaluation)
    by_name = {tracker.name: evaluation.metrics(tracker) for tracker in evaluation.trackers}
    base = by_name[reference]
    rows: list[tuple[str, ...]] = [(f"against {reference}", precision, success, f"{success} kept")]
    for name, scores in by_name.items():
        if name != reference:
            kept = f"{100 * scores.sr / base.sr:.0f} %" if base.sr > 0 else "-"
            rows.append((name, f"{100 * (scores.pr - base.pr):+.1f}", f"{100 * (scores.sr - base.sr):+.1f}", kept))
    return _aligned(rows, left=0)


def _aligned(rows: Sequence[Sequence[str]], left: int) -> str:
    """Columns aligned to the right, except one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column == left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _by_name(evaluation: Evaluation, metrics: Metrics) -> dict[str, float]:
    return {name: round(value, DIGITS) for name, value in zip(metric_names(evaluation), values(metrics), strict=True)}


def _as_dict(evaluation: Evaluation, tracker: TrackerScore) -> dict[str, object]:
    benchmark = evaluation.benchmark
    return {
        "overall": _by_name(evaluation, evaluation.metrics(tracker)),
        "attributes": {
            name: {**_by_name(evaluation, evaluation.metrics(tracker, mask)), "n": int(mask.sum())}
            for name, mask in benchmark.masks.items()
        },
        "sequences": {
            name: {
                **_by_name(evaluation, evaluation.sequence_metrics(tracker, index)),
                "frames": int(tracker.frames[index]),
                "present": bool(tracker.present[index]),
            }
            for index, name in enumerate(benchmark.names)
        },
        "fps": tracker.fps,
        "problems": [{"kind": p.kind, "sequences": p.sequences, "text": p.text} for p in tracker.problems],
        "scoring": {
            "dataset": benchmark.dataset.layout.name,
            "quirks": list(benchmark.protocol.quirks.on()),
            "missing": benchmark.options.missing,
        },
    }


def to_json(evaluation: Evaluation) -> str:
    """{"TRACKER": {"overall": ..., "attributes": ..., "sequences": ...}}, best tracker first."""
    return json.dumps({tracker.name: _as_dict(evaluation, tracker) for tracker in evaluation.trackers}, indent=1) + "\n"


def _csv_rows(evaluation: Evaluation) -> Iterator[tuple[object, ...]]:
    yield ("tracker", "level", "name", "sequences", *metric_names(evaluation))
    for tracker in evaluation.trackers:

        def row(level: str, name: str, count: int, scores: Metrics, who: str = tracker.name) -> tuple[object, ...]:
            return (who, level, name, count, *(f"{value:.{DIGITS}f}" for value in values(scores)))

        yield row("overall", "", len(evaluation.benchmark.names), evaluation.metrics(tracker))
        for name, mask in evaluation.benchmark.masks.items():
            yield row("attribute", name, int(mask.sum()), evaluation.metrics(tracker, mask))
        for index, name in enumerate(evaluation.benchmark.names):
            if tracker.present[index]:
                yield row("sequence", name, 1, evaluation.sequence_metrics(tracker, index))
            else:
                yield (tracker.name, "sequence", name, 0, "", "", "", "")


def to_csv(evaluation: Evaluation) -> str:
    """One line per tracker and level (overall, attribute, sequence). A missing sequence has no scores."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(_csv_rows(evaluation))
    return text.getvalue()
