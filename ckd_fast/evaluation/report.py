"""The report: one HTML file that loads nothing. No text from a result file or a name becomes markup."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files

from .metrics import NORMALISED, PRECISION_PX, SUCCESS, Array, Curves, Metrics
from .published import SOURCE, PublishedScores, PublishedTracker, published_trackers
from .scores import Evaluation, TrackerScore, summarise
from .tables import describe, metric_names, values

# Tells the browser to load nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def _rounded(array: Array) -> list[float]:
    return [round(float(value), 4) for value in array]


def _curves(curves: Curves) -> dict[str, list[float]]:
    return {name: _rounded(getattr(curves, name)) for name in ("precision", "normalised", "success")}


def _numbers(metrics: Metrics) -> list[float]:
    return [round(value, 5) for value in values(metrics)]


def _tracker(evaluation: Evaluation, tracker: TrackerScore) -> dict[str, object]:
    masks = list(evaluation.benchmark.masks.values())
    return {
        "name": tracker.name,
        "fps": tracker.fps,
        "overall": _numbers(evaluation.metrics(tracker)),
        "attributes": [_numbers(evaluation.metrics(tracker, mask)) for mask in masks],
        "sequences": [
            _numbers(evaluation.sequence_metrics(tracker, index)) if tracker.present[index] else None
            for index in range(len(evaluation.benchmark.names))
        ],
        "curves": [_curves(evaluation.curves(tracker, mask)) for mask in (None, *masks)],
    }


def _published(evaluation: Evaluation) -> list[tuple[PublishedTracker, PublishedScores]]:
    """Published trackers with scores on this data set; none if only some of its sequences are scored."""
    dataset = evaluation.benchmark.dataset
    if len(dataset.sequences) != dataset.layout.published:
        return []
    name = dataset.layout.name
    return [(tracker, tracker.scores[name]) for tracker in published_trackers() if name in tracker.scores]


def _data(evaluation: Evaluation) -> str:
    """Everything the script draws, as JSON that cannot end its own element."""
    benchmark = evaluation.benchmark
    attributes = list(benchmark.masks)
    content = {
        "metrics": metric_names(evaluation),
        "centre_px": benchmark.protocol.centre_px,
        "axes": {
            "precision": _rounded(PRECISION_PX),
            "normalised": _rounded(NORMALISED),
            "success": _rounded(SUCCESS),
        },
        "attributes": [{"name": name, "n": int(mask.sum())} for name, mask in benchmark.masks.items()],
        "sequences": [
            {
                "name": sequence.name,
                "frames": min(map(len, benchmark.truths[index])),
                "attributes": [i for i, name in enumerate(attributes) if name in sequence.attributes],
            }
            for index, sequence in enumerate(benchmark.dataset.sequences)
        ],
        "trackers": [_tracker(evaluation, tracker) for tracker in evaluation.trackers],
        "published": [
            {"name": tracker.name, "fps": tracker.fps, "pr": scores.pr, "about": f"{tracker.venue}, {tracker.backbone}"}
            for tracker, scores in _published(evaluation)
        ],
    }
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


def _ranking(evaluation: Evaluation) -> str:
    """Table of the trackers by SR, PR; published ones between them, without a rank."""
    total = len(evaluation.benchmark.names)
    scores = [values(evaluation.metrics(tracker)) for tracker in evaluation.trackers]
    best = [max(column) for column in zip(*scores, strict=True)]
    rows = []
    for rank, (tracker, own) in enumerate(zip(evaluation.trackers, scores, strict=True), 1):
        cells = "".join(
            f"<td{' class=best' if value == top else ''}>{_percent(value)}</td>"
            for value, top in zip(own, best, strict=True)
        )
        present = int(tracker.present.sum())
        complete = "" if present == total else ' class="missing"'
        fps = "-" if tracker.fps is None else f"{tracker.fps:.1f}"
        row = (
            f'<tr><td>{rank}</td><td class="text">{escape(tracker.name)}</td>{cells}'
            f"<td{complete}>{present}/{total}</td><td>{fps}</td><td>{len(tracker.problems)}</td></tr>"
        )
        rows.append((own[-1], own[0], row))
    for published, score in _published(evaluation):
        fps = "-" if published.fps is None else f"{published.fps:g}"
        row = (
            f'<tr class="published"><td></td><td class="text">{escape(published.name)}, {escape(published.venue)}</td>'
            f"<td>{_percent(score.pr)}</td><td>{_percent(score.npr)}</td><td></td><td>{_percent(score.sr)}</td>"
            f"<td></td><td>{fps}</td><td></td></tr>"
        )
        rows.append((score.sr, score.pr, row))
    rows.sort(key=lambda row: row[:2], reverse=True)
    heads = "".join(f"<th>{escape(name)}</th>" for name in metric_names(evaluation))
    return (
        f'<div class="scroll"><table id="ranking"><thead><tr><th></th><th class="text">tracker</th>{heads}'
        f"<th>sequences</th><th>frames/s</th><th>problems</th></tr></thead>"
        f"<tbody>{''.join(row for _, _, row in rows)}</tbody></table></div>"
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _problems(evaluation: Evaluation) -> str:
    problems = evaluation.problems
    if not problems:
        return ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in summarise(problems))
    full = "".join(
        f"<li>{escape(p.tracker)}: {escape(p.kind)}: {escape(p.text)}"
        f"{' (' + escape(', '.join(p.sequences)) + ')' if p.sequences else ''}</li>"
        for p in problems
    )
    return (
        f'<section class="warn" id="problems"><h2>Problems in the results</h2><ul>{lines}</ul>'
        f"<details><summary>All {len(problems)} problems</summary><ul>{full}</ul></details></section>"
    )


def html_report(evaluation: Evaluation) -> str:
    here = files("ckd_fast.evaluation")
    style, script = (here.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    benchmark = evaluation.benchmark
    frames = sum(min(map(len, truths)) for truths in benchmark.truths)
    title = f"{benchmark.dataset.layout.title}: {len(evaluation.trackers)} tracker" + "s" * (
        len(evaluation.trackers) != 1
    )
    rules = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in describe(evaluation))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p class="soft">{len(benchmark.names)} sequences, {frames:,} frames; scores in percent.</p>
{_problems(evaluation)}
<section><h2>Ranking</h2>{_ranking(evaluation)}
<p class="soft small layer-line"><label><input type="checkbox" id="layer" checked> published trackers, here and in the
speed plot: {SOURCE}. Their protocols may differ in details.</label></p>
<details><summary>How the scores are defined</summary><dl class="small">{rules}</dl></details></section>
<noscript><section>The plots and the table of sequences need JavaScript. The page loads nothing.</section>
</noscript>
<section><h2>Curves</h2>
<div class="bar"><label id="choose-attribute">sequences </label>
<span class="soft small">click a name to hide or show its tracker in the plots and the table of sequences</span></div>
<div class="plots"><figure id="success"></figure><figure id="precision"></figure><figure id="normalised"></figure></div>
</section>
<div class="pair">
<section><h2>Attributes</h2><div class="bar"><label id="choose-radar">metric </label></div>
<figure id="radar"></figure></section>
<section><h2>Speed and precision</h2>
<figure id="speed"></figure>
<p class="soft small layer-line">Circles: published trackers. Their speeds were measured on different devices, so they
show the order of magnitude, not a ranking.</p>
</section>
</div>
<section><h2>Sequences, worst first</h2>
<div class="bar"><label>find <input type="search" id="search"></label><label id="choose-challenge">attribute </label>
<label id="choose-metric">metric </label><span class="soft small" id="count"></span></div>
<div class="scroll tall" id="sequences"></div></section>
</main>
<script type="application/json" id="data">{_data(evaluation)}</script>
<script>
{script}</script>
</body>
</html>
"""
