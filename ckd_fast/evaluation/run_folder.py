"""A folder of results that `ckd-fast run` writes.

    SEQUENCE.txt         one box per frame, the given one first
    SEQUENCE_time.txt    seconds per frame, without reading; the first is the initialisation
    run.json             everything the results depend on, and what ran; only an equal run may continue in this folder
    failures.json        failed sequences with the reason; absent if there are none

Every file is written as a whole, SEQUENCE.txt last. However a run ends, the next one keeps the finished sequences and
tracks the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ckd_fast.datasets.sequences import Dataset
from ckd_fast.datasets.tables import read_table
from ckd_fast.errors import InputError, OutputError
from ckd_fast.files import reading, write_atomically

RUN_FILE, FAILURES_FILE = "run.json", "failures.json"
FIRST_BOXES = "first_boxes"  # key of run.json: first box by sequence
RAN = "ran"  # key of run.json: engine and precision of the results, known when the first worker has started


def box_file(folder: Path, sequence: str) -> Path:
    return folder / f"{sequence}.txt"


def time_file(folder: Path, sequence: str) -> Path:
    return folder / f"{sequence}_time.txt"


def refuse_data_folder(dataset: Dataset, folder: Path) -> None:
    """Raise if results would land among the data, or if a result and a time file would have the same name."""
    target = folder.resolve()
    data_folders = {dataset.root.resolve()}
    for sequence in dataset.sequences:
        for truth in sequence.truths.values():
            data_folders.add(truth.path.parent.resolve())  # a linked sequence lies elsewhere
            if truth.path.resolve().parent == target:
                raise InputError(f"--out {folder} holds ground truths: choose another folder")
    for data in data_folders:
        if target == data or data in target.parents or target in data.parents:
            raise InputError(f"--out {folder} overlaps with the data set's own folder {data}: choose another")
    for name in dataset.names:
        if f"{name}_time" in dataset.names:
            raise InputError(f"{name}_time: its results would be taken for the times of {name}; rename the sequence")


def claim_folder(folder: Path, run: Mapping[str, object], sequences: Sequence[str], *, force: bool) -> None:
    """Write run.json with everything the results depend on; raise if the folder holds results of another run.

    With `force`, another run's results for these sequences are deleted instead; other files stay.
    """
    record = folder / RUN_FILE
    wanted = json.loads(json.dumps(run))
    try:
        has_results = any(folder.glob("*.txt"))
        before = json.loads(record.read_text()) if record.is_file() else None
    except ValueError:
        before = "damaged"
    except OSError as error:
        raise OutputError(f"{record}: cannot be read ({error}); choose another folder") from error
    differences = _differences(before, wanted) if isinstance(before, dict) else []
    if isinstance(before, dict) and not differences:
        wanted[FIRST_BOXES] = {**before[FIRST_BOXES], **wanted[FIRST_BOXES]}
        if has_results and RAN in before:
            wanted[RAN] = before[RAN]
        if wanted != before:
            write_atomically(record, json.dumps(wanted, indent=1) + "\n")
        return
    if has_results and not force:  # a run.json alone comes from a run that could not start
        content = "results without run.json" if before is None else "results with a damaged run.json"
        if differences:
            content = f"results of another run ({', '.join(differences)} differ)"
        raise OutputError(f"{folder}: holds {content}; choose another folder, or replace them with --force")
    try:
        for name in sequences:
            box_file(folder, name).unlink(missing_ok=True)
            time_file(folder, name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be cleared ({error.strerror or error})") from error
    write_atomically(record, json.dumps(wanted, indent=1) + "\n")


def claim_engine(folder: Path, ran: str) -> None:
    """Note in run.json which engine and precision run; raise if others made the results in the folder.

    What "auto" and the default precision stand for depends on the machine and on what is installed.
    """
    record = folder / RUN_FILE
    with reading(record):
        run = json.loads(record.read_text())
    if run.get(RAN, ran) != ran:
        raise OutputError(
            f"{folder}: holds results of {run[RAN]}, and now {ran} would run; choose another folder, or name the "
            "engine and the precision: --engine, --dtype"
        )
    if RAN not in run:
        write_atomically(record, json.dumps(run | {RAN: ran}, indent=1) + "\n")


def _differences(before: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    """Where two runs differ. They may have different sequences, but not different first boxes of the same one."""
    names = [name for name in {**before, **wanted} if name not in (FIRST_BOXES, RAN)]
    names = [name for name in names if before.get(name) != wanted.get(name)]
    old, new = before.get(FIRST_BOXES), wanted.get(FIRST_BOXES)
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [*names, FIRST_BOXES]
    return names + [f"first box of {name}" for name in new if name in old and new[name] != old[name]]


def is_finished(folder: Path, sequence: str, frames: int) -> bool:
    """Whether both files of a sequence hold finite numbers for every frame."""
    try:
        boxes, seconds = (read_table(file(folder, sequence)).values for file in (box_file, time_file))
    except InputError:
        return False
    complete = boxes.shape == (frames, 4) and seconds.shape == (frames, 1)
    return complete and bool(np.isfinite(boxes).all() and np.isfinite(seconds).all())


def write_results(folder: Path, sequence: str, boxes: str, seconds: str) -> None:
    write_atomically(time_file(folder, sequence), seconds)
    write_atomically(box_file(folder, sequence), boxes)  # last: it marks the sequence as finished


def write_failures(folder: Path, failures: Mapping[str, tuple[str, str]]) -> None:
    """Replace failures.json by the reason and the traceback of each failed sequence."""
    path = folder / FAILURES_FILE
    if not failures:
        path.unlink(missing_ok=True)
        return
    content = {name: {"reason": failures[name][0], "traceback": failures[name][1]} for name in sorted(failures)}
    write_atomically(path, json.dumps(content, indent=1) + "\n")
