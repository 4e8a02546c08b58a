"""Measure what damage to the frames costs: every corruption against the clean run, per sequence.

    python experiments/robustness.py --data SEQUENCES --weights ckd.safetensors --out runs/ --levels 3

Each run has its own folder in --out (clean, blur-3, ...); an interrupted run continues there. Name the sequences that
the weights were trained on with --trained-on: the table marks them with a star and gives means without them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))  # for common.py, which finds ckd_fast

from common import machine, write_json

from ckd_fast.datasets import Dataset, open_dataset
from ckd_fast.evaluation import Evaluation, evaluate
from ckd_fast.evaluation.corruptions import CORRUPTIONS, Corruption
from ckd_fast.evaluation.running import RunPlan, TrackerSetup, describe_run, run_dataset
from ckd_fast.evaluation.workers import devices, local


@dataclass(frozen=True)
class Row:
    """SR of one sequence in the clean run, and how each corruption changes it."""

    sequence: str
    trained_on: bool
    clean: float
    change: dict[str, float]


def table_rows(evaluation: Evaluation, trained_on: frozenset[str]) -> list[Row]:
    """One row per sequence, then the mean over new sequences and the mean over all."""
    by_name = {tracker.name: tracker for tracker in evaluation.trackers}
    corruptions = [name for name in by_name if name != "clean"]
    rows = []
    for index, sequence in enumerate(evaluation.benchmark.names):
        clean = evaluation.sequence_metrics(by_name["clean"], index).sr
        change = {name: evaluation.sequence_metrics(by_name[name], index).sr - clean for name in corruptions}
        rows.append(Row(sequence, sequence in trained_on, clean, change))
    for label, chosen in (("mean of new", [row for row in rows if not row.trained_on]), ("mean of all", list(rows))):
        if chosen:
            means = {name: fmean(row.change[name] for row in chosen) for name in corruptions}
            rows.append(Row(label, trained_on=False, clean=fmean(row.clean for row in chosen), change=means))
    return rows


def describe(options: argparse.Namespace, dataset: Dataset) -> dict[str, object]:
    """Machine, weights and settings, for the result file."""
    run = describe_run(dataset, RunPlan(TrackerSetup(options.weights, options.model)))
    return {
        "machine": machine(devices(options.device, 1)[0].replace("auto", "cpu")),  # "auto" is left if there is no GPU
        "weights": {"file": Path(options.weights or "packaged").name}
        | {name: run[name] for name in ("weights", "sha256", "seed")},
        "levels": options.levels,
        "corrupt_seed": options.corrupt_seed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of your own sequences")
    parser.add_argument("--weights", metavar="FILE", help="weights file (default: the packaged model)")
    parser.add_argument("--model", metavar="PRESET", help="preset, if the file does not say")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--corrupt-seed", type=int, default=0, metavar="N", help="seed of the damage (default: 0)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--levels", type=int, nargs="+", default=[3], metavar="N", help="levels, 1 to 5 (default: 3)")
    parser.add_argument("--sequences", nargs="+", default=[], metavar="NAME", help="only these sequences")
    parser.add_argument("--trained-on", nargs="+", default=[], metavar="NAME", help="sequences the weights have seen")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="result file")
    options = parser.parse_args()
    dataset = open_dataset("folder", options.data)
    if options.sequences:
        dataset = dataset.select(tuple(options.sequences))
    for name in options.trained_on:
        dataset.sequence(name)  # a misspelt name would count as new
    setup = TrackerSetup(options.weights, options.model)
    backend = local(devices(options.device, options.workers, options.weights))
    plans: dict[str, Corruption | None] = {"clean": None}
    for name in CORRUPTIONS:
        plans |= {f"{name}-{level}": Corruption(name, level, options.corrupt_seed) for level in options.levels}
    for name, corruption in plans.items():
        summary = run_dataset(dataset, RunPlan(setup, corruption), options.out / name, backend)
        if summary.failed:
            raise SystemExit(f"{name}: {len(summary.failed)} sequences failed: {next(iter(summary.failed.values()))}")
        print(f"{name}: {len(summary.finished)} tracked, {len(summary.kept)} kept", flush=True)
    evaluation = evaluate(dataset, [options.out / name for name in plans])
    rows = table_rows(evaluation, frozenset(options.trained_on))
    corruptions = [name for name in plans if name != "clean"]
    print("| SR, percent; change in points | clean | " + " | ".join(corruptions) + " |")
    print("|---|" + "---|" * (len(corruptions) + 1))
    for row in rows:
        cells = [f"{100 * row.clean:.1f}", *(f"{100 * row.change[name]:+.1f}" for name in corruptions)]
        print(f"| {row.sequence}{' *' if row.trained_on else ''} | " + " | ".join(cells) + " |")
    if options.json:
        write_json(options.json, describe(options, dataset) | {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
