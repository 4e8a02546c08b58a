"""What damage to the frames costs: every corruption against the clean run, per sequence.

    python bench/robustness.py --data SEQUENCES --weights ckd.safetensors --out runs/ --levels 3 --trained-on NAME ...

Every run is kept in the output folder (clean, blur-3, ...) and goes on where it was stopped. Sequences that the weights
were trained on are marked with a star: their numbers say nothing about new ones.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import machine, write_json

from ckd_fast.datasets import Dataset, open_dataset
from ckd_fast.evaluation import Evaluation, evaluate
from ckd_fast.evaluation.corruptions import CORRUPTIONS, Corruption
from ckd_fast.evaluation.running import RunPlan, TrackerSetup, identity, run_dataset
from ckd_fast.evaluation.workers import devices, local


@dataclass(frozen=True)
class Row:
    """SR of one sequence, clean, and what each damage takes from it."""

    sequence: str
    trained_on: bool
    clean: float
    change: dict[str, float]


def rows_of(evaluation: Evaluation, trained_on: frozenset[str]) -> list[Row]:
    """One row per sequence, then the mean over those that were not trained on, and over all."""
    by_name = {tracker.name: tracker for tracker in evaluation.trackers}
    names = [name for name in by_name if name != "clean"]
    rows = []
    for index, sequence in enumerate(evaluation.benchmark.names):
        clean = evaluation.sequence_metrics(by_name["clean"], index).sr
        change = {name: evaluation.sequence_metrics(by_name[name], index).sr - clean for name in names}
        rows.append(Row(sequence, sequence in trained_on, clean, change))
    for label, chosen in (("mean of new", [r for r in rows if not r.trained_on]), ("mean of all", list(rows))):
        if chosen:
            mean = {name: sum(row.change[name] for row in chosen) / len(chosen) for name in names}
            rows.append(Row(label, False, sum(row.clean for row in chosen) / len(chosen), mean))  # noqa: FBT003
    return rows


def about(options: argparse.Namespace, dataset: Dataset) -> dict[str, object]:
    """What the rows cannot be read without."""
    used = identity(dataset, RunPlan(TrackerSetup(options.weights, options.model)))
    return {
        "machine": machine(devices(options.device, 1)[0].replace("auto", "cpu")),  # "auto" stays where no GPU is
        "weights": {"file": Path(options.weights or "packaged").name}
        | {name: used[name] for name in ("weights", "sha256", "seed")},
        "levels": options.levels,
        "corrupt_seed": options.corrupt_seed,
    }


def main() -> None:
    """Run, score, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of own sequences")
    parser.add_argument("--weights", help="default: the packaged model")
    parser.add_argument("--model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--corrupt-seed", type=int, default=0, help="of the damage")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--levels", type=int, nargs="+", default=[3])
    parser.add_argument("--sequences", nargs="+", default=[])
    parser.add_argument("--trained-on", nargs="+", default=[], help="sequences that the weights have seen")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--json", type=Path, help="result file")
    options = parser.parse_args()
    dataset = open_dataset("folder", options.data)
    if options.sequences:
        dataset = dataset.select(tuple(options.sequences))
    for name in options.trained_on:
        dataset.sequence(name)  # a misspelt one would be taken for new
    setup = TrackerSetup(options.weights, options.model)
    backend = local(devices(options.device, options.workers))
    plans: list[tuple[str, Corruption | None]] = [("clean", None)]
    plans += [
        (f"{name}-{level}", Corruption(name, level, options.corrupt_seed))
        for name in CORRUPTIONS
        for level in options.levels
    ]
    for name, corruption in plans:
        summary = run_dataset(dataset, RunPlan(setup, corruption), options.out / name, backend)
        if summary.failed:
            raise SystemExit(f"{name}: {len(summary.failed)} sequences failed: {next(iter(summary.failed.values()))}")
        print(f"{name}: {len(summary.finished)} tracked, {len(summary.kept)} kept", flush=True)
    evaluation = evaluate(dataset, [options.out / name for name, _ in plans])
    rows = rows_of(evaluation, frozenset(options.trained_on))
    names = [name for name, _ in plans[1:]]
    print("| SR, percent; change in points | clean | " + " | ".join(names) + " |")
    print("|---|" + "---|" * (len(names) + 1))
    for row in rows:
        cells = [f"{100 * row.clean:.1f}", *(f"{100 * row.change[name]:+.1f}" for name in names)]
        print(f"| {row.sequence}{' *' if row.trained_on else ''} | " + " | ".join(cells) + " |")
    if options.json:
        write_json(options.json, about(options, dataset) | {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
