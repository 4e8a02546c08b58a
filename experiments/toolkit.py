"""Compare our scores with those of the Python package `rgbt`: same result files, same numbers, both timed.

    python -m venv toolkit && toolkit/bin/pip install rgbt matplotlib "numpy<2"
    python experiments/toolkit.py --data GROUND_TRUTHS_AND_RESULTS --toolkit-python toolkit/bin/python

The toolkit runs in its own interpreter because its arithmetic depends on numpy: under numpy 2 its overlaps are float32
and its scores differ by up to 5e-4. Both sides read the ground truths and the results and score them, once per tracker.
The second of two rounds is reported, so that both find the files in memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))  # for common.py, which finds ckd_fast

from common import machine, write_json

from ckd_fast.datasets import open_dataset
from ckd_fast.evaluation import evaluate


@dataclass(frozen=True)
class Case:
    """One tracker on one data set; results are in results/FOLDER/TRACKER."""

    folder: str  # of the data set, and the name of the toolkit's class; in small letters our name
    tracker: str
    bbox_type: str  # how the toolkit reads the rows
    metrics: tuple[str, ...]

    @property
    def results(self) -> str:
        return f"results/{self.folder}/{self.tracker}"


CASES = (
    *(Case("LasHeR", tracker, "ltwh", ("PR", "NPR", "SR")) for tracker in ("APFNet", "mfDiMP", "MTNet")),
    Case("RGBT234", "MTNet", "ltwh", ("MPR", "MSR")),
    Case("RGBT210", "mfDiMP", "ltwh", ("PR", "SR")),
    Case("GTOT", "MTNet", "corner", ("MPR", "MSR")),
    Case("GTOT", "MaCNet", "ltwh", ("MPR", "MSR")),
)

# The other interpreter runs this: argument 1 is the list of cases as JSON, the answer is one line of JSON.
TOOLKIT = """
import contextlib, io, json, sys, time
import numpy, rgbt
from rgbt.utils import RGBT_end, RGBT_start
answers = []
for case in json.loads(sys.argv[1]):
    for _ in range(2):
        with contextlib.redirect_stdout(io.StringIO()):
            begin = time.perf_counter()
            data = getattr(rgbt, case["folder"])()
            name = case["tracker"]
            # Scoring against two ground truths is a switch of the toolkit, which GTOT leaves to the caller.
            (RGBT_start if case["metrics"][0] == "MPR" else RGBT_end)()
            data(tracker_name=name, result_path=case["results"], bbox_type=case["bbox_type"])
            scores = {metric: float(getattr(data, metric)(name)[0]) for metric in case["metrics"]}
            seconds = time.perf_counter() - begin
    answers.append({"scores": scores, "seconds": seconds})
print(json.dumps({"numpy": numpy.__version__, "answers": answers}))
"""


def ours(case: Case, data: Path) -> tuple[dict[str, float], float]:
    """Our scores, and the seconds they took."""
    seconds = 0.0
    scores: dict[str, float] = {}
    for _ in range(2):
        begin = time.perf_counter()
        dataset = open_dataset(case.folder.lower(), data / "groundtruth" / case.folder)
        evaluation = evaluate(dataset, [data / case.results])
        metrics = evaluation.metrics(evaluation.trackers[0])
        seconds = time.perf_counter() - begin
        scores = {name: float(getattr(metrics, name.removeprefix("M").lower())) for name in case.metrics}
    return scores, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with groundtruth/ and results/")
    parser.add_argument("--toolkit-python", required=True, metavar="FILE", help="Python interpreter that has rgbt")
    parser.add_argument("--json", type=Path, metavar="FILE", help="result file")
    options = parser.parse_args()
    asked = [dataclasses.asdict(case) | {"results": str((options.data / case.results).resolve())} for case in CASES]
    command = [options.toolkit_python, "-c", TOOLKIT, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the toolkit failed: {done.stderr.splitlines()[-1] if done.stderr else done.returncode}")
    answer = json.loads(done.stdout.splitlines()[-1])
    rows = []
    print(f"{'':26}{'largest difference':>20}{'rgbt s':>10}{'ckd_fast s':>12}{'ratio':>8}")
    for case, theirs in zip(CASES, answer["answers"], strict=True):
        scores, seconds = ours(case, options.data)
        largest = max(abs(scores[name] - theirs["scores"][name]) for name in case.metrics)
        label, their_seconds = f"{case.folder} {case.tracker}", theirs["seconds"]
        print(f"{label:<26}{largest:>20.1e}{their_seconds:>10.2f}{seconds:>12.2f}{their_seconds / seconds:>8.1f}")
        rows.append(
            {"dataset": case.folder, "tracker": case.tracker, "rgbt": theirs["scores"], "ckd_fast": scores}
            | {"largest_difference": largest, "rgbt_seconds": their_seconds, "ckd_fast_seconds": seconds}
        )
    if options.json:
        about = machine("cpu") | {"rgbt_numpy": answer["numpy"]}
        write_json(options.json, {"machine": about, "rows": rows})


if __name__ == "__main__":
    main()
