"""One-pass evaluation: track whole sequences from their first box, write one result file each.

A folder of results holds

    SEQUENCE.txt         one box per frame, the given one first
    SEQUENCE_time.txt    seconds per frame, without reading; the first is the initialisation
    run.json             what the results depend on; a run into the same folder goes on only if that is equal
    failures.json        sequences that failed, with the reason; absent if none did

Every file is written whole or not at all, and SEQUENCE.txt last, so whatever stops a run, the next one keeps what is
finished and does the rest. Who tracks a sequence, and beside how many others, makes no difference to its result.
"""

from __future__ import annotations

import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ckd_fast import __version__
from ckd_fast.boxes import ResultFormat, box_row
from ckd_fast.datasets.sequences import Dataset, SequenceFiles, mispaired
from ckd_fast.datasets.tables import read_table
from ckd_fast.errors import CkdFastError, InputError, OutputError
from ckd_fast.files import write_atomically

from .corruptions import Corruption

if TYPE_CHECKING:
    from ckd_fast.tracker import Tracker
    from ckd_fast.types import Box

REPORT_EVERY_S = 0.5
RUN_FILE, FAILURES_FILE = "run.json", "failures.json"


@dataclass(frozen=True)
class TrackerSetup:
    """How each worker builds its tracker.

    Attributes:
        weights, model, engine, dtype, seed: as `Tracker` takes them.
        threads: of torch on a CPU. One, by default: with another number sums are taken in another order, and results
            would depend on how many workers share the machine.
    """

    weights: str | None
    model: str | None = None
    engine: str = "auto"
    dtype: str | None = None
    seed: int | None = None
    threads: int = 1


@dataclass(frozen=True)
class RunPlan:
    """What the results depend on, besides the sequences.

    Attributes:
        setup: of the tracker.
        corruption: damage to the frames.
        result_format: "float" (comma, four decimals) or "authors" (tab, truncated to whole numbers).
    """

    setup: TrackerSetup
    corruption: Corruption | None = None
    result_format: ResultFormat = "float"


@dataclass(frozen=True)
class Track:
    """A tracked sequence: boxes and seconds of every frame, and what a user should know."""

    boxes: tuple[Box, ...]
    seconds: tuple[float, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one sequence.

    Attributes:
        sequence: its name.
        boxes, seconds: contents of its files; empty if it failed.
        frames: that were tracked.
        notes: what a user should know.
        failure: the reason; empty if it was finished.
        details: the failure's traceback, where it was nothing that this package raises on purpose.
    """

    sequence: str
    boxes: str = ""
    seconds: str = ""
    frames: int = 0
    notes: tuple[str, ...] = ()
    failure: str = ""
    details: str = ""


def build_tracker(setup: TrackerSetup, device: str) -> Tracker:
    """A tracker in this process."""
    import torch

    from ckd_fast.tracker import Tracker

    torch.set_num_threads(setup.threads)
    return Tracker(setup.weights, setup.model, setup.engine, device, setup.dtype, seed=setup.seed)


def track_sequence(
    tracker: Tracker,
    sequence: SequenceFiles,
    corruption: Corruption | None = None,
    on_frames: Callable[[int], object] = lambda _count: None,
) -> Track:
    """Track one sequence from its first box to its last frame.

    A frame of which one modality cannot be read is tracked with the other; of which neither can, the box is repeated.

    Args:
        tracker: any; its target is replaced.
        sequence: with frames.
        corruption: damage to the frames.
        on_frames: called now and then with the number of frames since the last call.
    """
    from ckd_fast.images import read_rgb, read_tir

    frames = sequence.frames()
    first = tuple(float(value) for value in sequence.boxes()[0])
    boxes: list[Box] = []
    seconds: list[float] = []
    unread: list[str] = []
    reported, last_report = 0, time.monotonic()
    for index in range(len(frames)):
        source = index if corruption is None else corruption.delivered(sequence.name, index)
        rgb, tir = read_rgb(frames.visible[source]), read_tir(frames.infrared[source])
        missing = [
            str(path)
            for path, image in ((frames.visible[source], rgb), (frames.infrared[source], tir))
            if image is None
        ]
        if missing and index == 0:
            raise InputError(f"{' and '.join(missing)} cannot be read; the first frame is needed in both modalities")
        unread += missing
        if corruption is not None:
            rgb, tir = corruption.apply(sequence.name, index, rgb, tir)
        if rgb is not None and tir is not None and index == 0 and tracker.engine.device.type == "cuda":
            # Kernels are compiled and graphs captured once per size of frames; that is no frame's time.
            tracker.warmup(rgb.shape[:2], tir_size=tir.shape[:2])
        begin = time.perf_counter()
        if rgb is not None and tir is not None and index == 0:
            tracker.init(rgb, tir, first)
            box: Box = (first[0], first[1], first[2], first[3])
        elif rgb is not None or tir is not None:
            box = tracker.update(rgb, tir).box
        else:
            box = boxes[-1]
        seconds.append(time.perf_counter() - begin)
        boxes.append(box)
        if time.monotonic() - last_report > REPORT_EVERY_S:
            on_frames(len(boxes) - reported)
            reported, last_report = len(boxes), time.monotonic()
    on_frames(len(boxes) - reported)
    odd = mispaired(frames.visible, frames.infrared)
    notes = [odd] if odd else []
    notes += [f"{len(unread)} images cannot be read, first {unread[0]}"] if unread else []
    return Track(tuple(boxes), tuple(seconds), tuple(notes))


def attempt(
    tracker: Tracker, sequence: SequenceFiles, plan: RunPlan, on_frames: Callable[[int], object] = lambda _count: None
) -> Outcome:
    """Track one sequence; whatever goes wrong with it becomes an outcome, so that the others go on."""
    try:
        track = track_sequence(tracker, sequence, plan.corruption, on_frames)
    except CkdFastError as error:
        return Outcome(sequence.name, failure=str(error))
    except Exception as error:  # noqa: BLE001  # recorded with its traceback, and counted in the exit code
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        return Outcome(sequence.name, failure=reason, details=traceback.format_exc())
    rows = "".join(box_row(box, plan.result_format) for box in track.boxes)
    times = "".join(f"{value:.6f}\n" for value in track.seconds)
    return Outcome(sequence.name, rows, times, len(track.boxes), track.notes)


@dataclass(frozen=True)
class Progress:
    """So many more frames were tracked, by whom ever."""

    frames: int


@dataclass(frozen=True)
class RunSummary:
    """How a run went.

    Attributes:
        finished: sequences that were tracked now.
        kept: sequences that an earlier run had finished.
        failed: reasons by sequence.
        notes: what a user should know, by sequence.
        frames: that were tracked now.
        seconds: that it took.
        engines: what ran.
    """

    finished: tuple[str, ...]
    kept: tuple[str, ...]
    failed: Mapping[str, str]
    notes: Mapping[str, str]
    frames: int
    seconds: float
    engines: tuple[str, ...]


# Tracks sequences somewhere: called with them, the plan, and what to do with everything that is heard of them.
Backend = Callable[[Sequence[SequenceFiles], RunPlan, Callable[["Progress | Outcome | Started"], object]], object]


@dataclass(frozen=True)
class Started:
    """A worker has built its tracker."""

    engine: str


def identity(dataset: Dataset, plan: RunPlan) -> dict[str, object]:
    """What the results depend on, to be written down. Loads the weights, so that bad ones are found at once."""
    from ckd_fast.weights import load_model

    setup = plan.setup
    first_boxes = {}
    for sequence in dataset.sequences:
        try:
            # As text: NaN would differ from itself.
            first_boxes[sequence.name] = ",".join(str(float(value)) for value in sequence.boxes()[0])
        except InputError:
            continue  # tracking it says what is wrong
    model = load_model(setup.weights, setup.model, setup.seed)
    return {
        "ckd_fast": __version__,
        "dataset": dataset.layout.name,
        "root": str(dataset.root.resolve()),
        "weights": model.provenance.source,
        "sha256": model.provenance.sha256,
        "seed": model.provenance.seed,
        "model": model.config.to_dict(),
        "engine": setup.engine,
        "dtype": setup.dtype,
        "threads": setup.threads,
        "corruption": None if plan.corruption is None else dataclasses.asdict(plan.corruption),
        "format": plan.result_format,
        "first_boxes": first_boxes,
    }


def refuse_own_folder(dataset: Dataset, out: Path) -> None:
    """Raise where results would be written among the data, or could not be told from each other."""
    target = out.resolve()
    homes = {dataset.root.resolve()}
    for sequence in dataset.sequences:
        for truth in sequence.truths.values():
            homes.add(truth.path.parent.resolve())  # a linked sequence lies elsewhere
            if truth.path.resolve().parent == target:
                raise InputError(f"--out {out} holds ground truths: choose another folder")
    for home in homes:
        if target == home or home in target.parents or target in home.parents:
            raise InputError(f"--out {out} and the data set's own folder {home} are in one another: choose another")
    for name in dataset.names:
        if f"{name}_time" in dataset.names:
            raise InputError(f"{name}_time: its results would be taken for the times of {name}; rename the sequence")


def _differences(before: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    """What two runs do not have in common; a run of further sequences is the same run."""
    boxes = "first_boxes"
    names = [name for name in {**before, **wanted} if name != boxes and before.get(name) != wanted.get(name)]
    mine, theirs = wanted.get(boxes), before.get(boxes)
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return [*names, boxes]
    return names + [f"first box of {name}" for name in mine if name in theirs and mine[name] != theirs[name]]


def claim_folder(out: Path, about: Mapping[str, object], names: Sequence[str], *, force: bool) -> None:
    """Write down what the results of a folder depend on; a folder of other results is an error.

    Args:
        out: the folder.
        about: see `identity`.
        names: of all sequences of the data set.
        force: remove results of these that are there of another run; files of other names stay.
    """
    record = out / RUN_FILE
    wanted = json.loads(json.dumps(about))
    before: object = None
    try:
        present = sorted(out.glob("*.txt")) if out.is_dir() else []
        if record.is_file():
            before = json.loads(record.read_text())
    except ValueError:
        before = "unreadable"
    except OSError as error:
        raise OutputError(f"{record}: cannot be read ({error}); choose another folder") from error
    differences = _differences(before, wanted) if isinstance(before, dict) else []
    if isinstance(before, dict) and not differences:
        wanted["first_boxes"] = {**before["first_boxes"], **wanted["first_boxes"]}
        if wanted != before:
            write_atomically(record, json.dumps(wanted, indent=1) + "\n")
        return
    # A record without results is of a run that could not start.
    if present and not force:
        what = "results without run.json" if before is None else "results with a damaged run.json"
        if differences:
            what = f"results of another run ({', '.join(differences)} differ)"
        raise OutputError(f"{out}: holds {what}; choose another folder, or replace them with --force")
    try:
        for name in names:
            for suffix in ("", "_time"):
                (out / f"{name}{suffix}.txt").unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be cleared ({error.strerror or error})") from error
    write_atomically(record, json.dumps(wanted, indent=1) + "\n")


def is_finished(out: Path, sequence: str, frames: int) -> bool:
    """Whether a sequence's files are complete: a finite box and its time for every frame."""
    try:
        boxes, seconds = (read_table(out / f"{sequence}{suffix}.txt").values for suffix in ("", "_time"))
    except InputError:
        return False
    whole = boxes.shape == (frames, 4) and seconds.shape == (frames, 1)
    return whole and bool(np.isfinite(boxes).all() and np.isfinite(seconds).all())


def run_dataset(
    dataset: Dataset,
    plan: RunPlan,
    out: Path,
    backend: Backend,
    *,
    force: bool = False,
    on_total: Callable[[int, int], object] = lambda _frames, _kept: None,
    on_progress: Callable[[int], object] = lambda _frames: None,
    on_outcome: Callable[[Outcome], object] = lambda _outcome: None,
) -> RunSummary:
    """Track every sequence that is not finished yet.

    Args:
        dataset: with frames.
        plan: what the results depend on.
        out: folder of the results.
        backend: who tracks: `workers.local`, or a cluster.
        force: replace results of another run.
        on_total: called once with the number of frames to track and of sequences kept.
        on_progress: called with numbers of frames as they are tracked.
        on_outcome: called with every sequence's outcome, its files written.
    """
    refuse_own_folder(dataset, out)
    claim_folder(out, identity(dataset, plan), dataset.names, force=force)
    begin = time.monotonic()
    failed: dict[str, str] = {}
    todo: list[tuple[int, SequenceFiles]] = []
    kept: list[str] = []
    for sequence in dataset.sequences:
        try:
            count = len(sequence.frames())
        except InputError as error:
            failed[sequence.name] = str(error)
            continue
        if is_finished(out, sequence.name, count):
            kept.append(sequence.name)
        else:
            todo.append((count, sequence))
    # The longest first: a long one at the end would leave the other workers idle.
    todo.sort(key=lambda item: (-item[0], item[1].name))
    on_total(sum(count for count, _ in todo), len(kept))
    finished: list[str] = []
    notes: dict[str, str] = {}
    engines: set[str] = set()
    details: dict[str, str] = {}
    frames = 0

    def record_failures() -> None:
        content = {name: {"reason": failed[name], "traceback": details.get(name, "")} for name in sorted(failed)}
        if content:
            write_atomically(out / FAILURES_FILE, json.dumps(content, indent=1) + "\n")
        else:
            (out / FAILURES_FILE).unlink(missing_ok=True)

    def hear(message: Progress | Outcome | Started) -> None:
        nonlocal frames
        if isinstance(message, Started):
            engines.add(message.engine)
        elif isinstance(message, Progress):
            on_progress(message.frames)
        else:
            if message.failure:
                failed[message.sequence] = message.failure
                details[message.sequence] = message.details
                record_failures()
            else:
                # The boxes last: their file says that the sequence is finished.
                write_atomically(out / f"{message.sequence}_time.txt", message.seconds)
                write_atomically(out / f"{message.sequence}.txt", message.boxes)
                finished.append(message.sequence)
                frames += message.frames
                if message.notes:
                    notes[message.sequence] = "; ".join(message.notes)
            on_outcome(message)

    record_failures()
    for name, reason in failed.items():
        on_outcome(Outcome(name, failure=reason))
    if todo:
        backend([sequence for _, sequence in todo], plan, hear)
    return RunSummary(
        tuple(finished), tuple(kept), failed, notes, frames, time.monotonic() - begin, tuple(sorted(engines))
    )
