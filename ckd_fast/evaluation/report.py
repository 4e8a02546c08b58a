"""One HTML file with everything: no network, nothing from a result file or a name ever becomes markup."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from .metrics import NORMALISED, PRECISION_PX, SUCCESS, Array, Curves
from .published import PUBLISHED_SPEEDS
from .scores import Evaluation, TrackerScore, summarise
from .tables import describe, metric_names, values

# The browser itself is told to load nothing from anywhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def _rounded(array: Array) -> list[float]:
    return [round(float(value), 4) for value in array]


def _curves(of: Curves) -> dict[str, list[float]]:
    return {"precision": _rounded(of.precision), "normalised": _rounded(of.normalised), "success": _rounded(of.success)}


def _tracker(evaluation: Evaluation, tracker: TrackerScore) -> dict[str, object]:
    masks = list(evaluation.benchmark.masks.values())

    def numbers(of: Sequence[float]) -> list[float]:
        return [round(value, 5) for value in of]

    return {
        "name": tracker.name,
        "fps": tracker.fps,
        "overall": numbers(values(evaluation.metrics(tracker))),
        "attributes": [numbers(values(evaluation.metrics(tracker, mask))) for mask in masks],
        "sequences": [
            numbers(values(evaluation.sequence_metrics(tracker, index))) if tracker.present[index] else None
            for index in range(len(evaluation.benchmark.names))
        ],
        "curves": [_curves(evaluation.curves(tracker, mask)) for mask in (None, *masks)],
    }


def _data(evaluation: Evaluation) -> str:
    """Everything the script draws, as JSON that cannot end its own element."""
    benchmark = evaluation.benchmark
    attributes = list(benchmark.masks)
    on_lasher = benchmark.dataset.layout.name == "lasher"
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
            {"name": one.name, "fps": one.fps, "pr": one.pr, "device": one.device, "source": one.source}
            for one in (PUBLISHED_SPEEDS if on_lasher else ())
        ],
    }
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


def _ranking(evaluation: Evaluation) -> str:
    total = len(evaluation.benchmark.names)
    scores = [values(evaluation.metrics(tracker)) for tracker in evaluation.trackers]
    best = [max(column) for column in zip(*scores, strict=True)]
    heads = "".join(f"<th>{escape(name)}</th>" for name in metric_names(evaluation))
    rows = []
    for rank, (tracker, mine) in enumerate(zip(evaluation.trackers, scores, strict=True), 1):
        cells = "".join(
            f"<td{' class=best' if value == top else ''}>{100 * value:.1f}</td>"
            for value, top in zip(mine, best, strict=True)
        )
        present = int(tracker.present.sum())
        complete = "" if present == total else ' class="missing"'
        fps = "-" if tracker.fps is None else f"{tracker.fps:.1f}"
        rows.append(
            f'<tr><td>{rank}</td><td class="text">{escape(tracker.name)}</td>{cells}'
            f"<td{complete}>{present}/{total}</td><td>{fps}</td><td>{len(tracker.problems)}</td></tr>"
        )
    return (
        f'<div class="scroll"><table id="ranking"><thead><tr><th></th><th class="text">tracker</th>{heads}'
        f"<th>sequences</th><th>frames/s</th><th>problems</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


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
        f"<details><summary>all {len(problems)}, in full</summary><ul>{full}</ul></details></section>"
    )


def html_report(evaluation: Evaluation) -> str:
    """The report."""
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
<details><summary>how these numbers are defined</summary><dl class="small">{rules}</dl></details></section>
<noscript><section>Plots and the table of sequences need JavaScript; nothing is loaded from anywhere.</section>
</noscript>
<section><h2>Curves</h2>
<div class="bar"><label id="choose-attribute">sequences </label>
<span class="soft small">a click on a name hides or shows its tracker everywhere</span></div>
<div class="plots"><figure id="success"></figure><figure id="precision"></figure><figure id="normalised"></figure></div>
</section>
<div class="pair">
<section><h2>Attributes</h2><div class="bar"><label id="choose-radar">metric </label></div>
<figure id="radar"></figure></section>
<section><h2>Speed and precision</h2>
<div class="bar"><label id="layer-line"><input type="checkbox" id="layer" checked> trackers as published</label></div>
<figure id="speed"></figure>
<p class="soft small" id="layer-note">Published speeds come from different devices and protocols (point at a circle):
an order of magnitude, not a ranking.</p>
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
