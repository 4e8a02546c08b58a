"""One-pass evaluation: track whole sequences from their first box, write result and time files.

The result of a sequence does not depend on the worker that tracks it, nor on how many others run beside it.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_fast import __version__
from ckd_fast.boxes import ResultFormat, box_row
from ckd_fast.datasets.sequences import Dataset, SequenceFiles, mispaired
from ckd_fast.errors import CkdFastError, InputError

from .corruptions import Corruption
from .run_folder import claim_engine, claim_folder, is_finished, refuse_data_folder, write_failures, write_results

if TYPE_CHECKING:
    from ckd_fast.tracker import Tracker
    from ckd_fast.types import Box

REPORT_EVERY_S = 0.5


@dataclass(frozen=True)
class TrackerSetup:
    """How each worker builds its tracker."""

    # as for `Tracker`
    weights: str | None
    model: str | None = None
    engine: str = "auto"
    dtype: str | None = None
    seed: int | None = None
    # of the engine on a CPU. More than one changes the order of sums, so results would depend on it.
    threads: int = 1
    without: tuple[str, ...] = ()  # parts of engine "triton", which change no result


@dataclass(frozen=True)
class RunPlan:
    """Everything the results depend on except the sequences."""

    setup: TrackerSetup
    corruption: Corruption | None = None  # damage to the frames
    # "float" (comma, four decimals) or "authors" (tab, truncated to whole numbers)
    result_format: ResultFormat = "float"


@dataclass(frozen=True)
class Track:
    """A tracked sequence: box and seconds of every frame, and notes for the user."""

    boxes: tuple[Box, ...]
    seconds: tuple[float, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Started:
    """A worker has built its tracker."""

    engine: str  # in words
    ran: str  # its name and precision; the same on every device

    @classmethod
    def of(cls, tracker: Tracker) -> Started:
        engine = tracker.engine
        return cls(str(engine), f"{engine.name} {str(engine.dtype).removeprefix('torch.')}")


@dataclass(frozen=True)
class Progress:
    """More frames are tracked."""

    frames: int


@dataclass(frozen=True)
class Outcome:
    """A sequence is finished, or has failed."""

    sequence: str
    # contents of its files; empty if it failed
    boxes: str = ""
    seconds: str = ""
    frames: int = 0  # tracked ones
    notes: tuple[str, ...] = ()  # for the user
    failure: str = ""  # the reason; empty if it is finished
    details: str = ""  # traceback of an error that is not one of this package's


Message = Started | Progress | Outcome
OnMessage = Callable[[Message], object]
# Tracks sequences somewhere and reports: `workers.local` or `cluster.on_ray`.
Backend = Callable[[Sequence[SequenceFiles], RunPlan, OnMessage], object]


@dataclass(frozen=True)
class RunSummary:
    finished: tuple[str, ...]  # sequences tracked in this run
    kept: tuple[str, ...]  # sequences that an earlier run had finished
    failed: Mapping[str, str]  # reasons by sequence
    notes: Mapping[str, str]  # notes for the user by sequence
    frames: int  # tracked in this run
    seconds: float
    engines: tuple[str, ...]  # those that ran


def build_tracker(setup: TrackerSetup, device: str) -> Tracker:
    import torch

    from ckd_fast.tracker import Tracker

    torch.set_num_threads(setup.threads)
    return Tracker(
        setup.weights,
        setup.model,
        setup.engine,
        device,
        setup.dtype,
        seed=setup.seed,
        threads=setup.threads,
        without=setup.without,
    )


def track_sequence(
    tracker: Tracker,
    sequence: SequenceFiles,
    corruption: Corruption | None = None,
    on_frames: Callable[[int], object] = lambda _count: None,
) -> Track:
    """Track one sequence from its first box to its last frame.

    If one modality of a frame cannot be read, the other is tracked alone; if neither can, the last box is repeated.
    `on_frames` is called now and then with the number of frames tracked since the last call.
    """
    from ckd_fast.images import read_rgb, read_tir

    frames = sequence.frames()
    x, y, w, h = map(float, sequence.boxes()[0])
    boxes: list[Box] = []
    seconds: list[float] = []
    unreadable: list[str] = []
    reported, last_report = 0, time.monotonic()
    for index in range(len(frames)):
        source = index if corruption is None else corruption.delivered(sequence.name, index)
        paths = frames.visible[source], frames.infrared[source]
        rgb, tir = read_rgb(paths[0]), read_tir(paths[1])
        missing = [str(path) for path, image in zip(paths, (rgb, tir), strict=True) if image is None]
        if missing and index == 0:
            raise InputError(f"{' and '.join(missing)} cannot be read; the first frame is needed in both modalities")
        unreadable += missing
        if corruption is not None:
            rgb, tir = corruption.apply(sequence.name, index, rgb, tir)
        if index == 0 and rgb is not None and tir is not None:
            if tracker.engine.device.type == "cuda":
                # Kernels are compiled and graphs captured once per frame size: no frame's time contains that.
                tracker.warmup(rgb.shape[:2], tir_size=tir.shape[:2])
            begin = time.perf_counter()
            tracker.init(rgb, tir, (x, y, w, h))
            box: Box = (x, y, w, h)
        else:
            begin = time.perf_counter()
            box = boxes[-1] if rgb is None and tir is None else tracker.update(rgb, tir).box
        seconds.append(time.perf_counter() - begin)
        boxes.append(box)
        if time.monotonic() - last_report > REPORT_EVERY_S:
            on_frames(len(boxes) - reported)
            reported, last_report = len(boxes), time.monotonic()
    on_frames(len(boxes) - reported)
    notes = [note for note in [mispaired(frames.visible, frames.infrared)] if note]
    if unreadable:
        notes.append(f"{len(unreadable)} images cannot be read, first {unreadable[0]}")
    return Track(tuple(boxes), tuple(seconds), tuple(notes))


def attempt(
    tracker: Tracker, sequence: SequenceFiles, plan: RunPlan, on_frames: Callable[[int], object] = lambda _count: None
) -> Outcome:
    """Track one sequence; any error becomes its outcome, so that other sequences go on."""
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


def describe_run(dataset: Dataset, plan: RunPlan) -> dict[str, object]:
    """Everything the results depend on, for run.json. Loads the weights, so bad ones are found at once."""
    from ckd_fast.weights import LoadedModel, open_model

    setup = plan.setup
    first_boxes = {}
    for sequence in dataset.sequences:
        try:
            # As text, because NaN differs from itself.
            first_boxes[sequence.name] = ",".join(str(float(value)) for value in sequence.boxes()[0])
        except InputError:
            continue  # reported when the sequence is tracked
    model = open_model(setup.weights, setup.model, setup.seed)
    calibration = model.calibration if isinstance(model, LoadedModel) else None
    return {
        "ckd_fast": __version__,
        "dataset": dataset.layout.name,
        "root": str(dataset.root.resolve()),
        "weights": model.provenance.source,
        "sha256": model.provenance.sha256,
        "seed": model.provenance.seed,
        "calibration": None if calibration is None else calibration.sha256(),
        "model": model.config.to_dict(),
        "engine": setup.engine,
        "dtype": setup.dtype,
        "threads": setup.threads,
        "corruption": None if plan.corruption is None else dataclasses.asdict(plan.corruption),
        "format": plan.result_format,
        "first_boxes": first_boxes,
    }


class _Recorder:
    """Writes results and failures as they arrive, and keeps count."""

    def __init__(
        self, folder: Path, on_progress: Callable[[int], object], on_outcome: Callable[[Outcome], object]
    ) -> None:
        self._folder, self._on_progress, self._on_outcome = folder, on_progress, on_outcome
        self.finished: list[Outcome] = []
        self.failed: dict[str, Outcome] = {}
        self.engines: set[str] = set()
        self._write_failures()  # those of an earlier run are tried again

    def receive(self, message: Message) -> None:
        if isinstance(message, Started):
            claim_engine(self._folder, message.ran)
            self.engines.add(message.engine)
        elif isinstance(message, Progress):
            self._on_progress(message.frames)
        else:
            if message.failure:
                self.failed[message.sequence] = message
                self._write_failures()
            else:
                write_results(self._folder, message.sequence, message.boxes, message.seconds)
                self.finished.append(message)
            self._on_outcome(message)

    def _write_failures(self) -> None:
        write_failures(self._folder, {name: (o.failure, o.details) for name, o in self.failed.items()})


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
        dataset: a data set with frames.
        plan: everything the results depend on.
        out: folder of the results, see `run_folder`.
        backend: tracks the sequences: `workers.local` or `cluster.on_ray`.
        force: replace results of another run.
        on_total: called once with the number of frames to track and of sequences kept.
        on_progress: called with the number of newly tracked frames.
        on_outcome: called with every sequence's outcome after its files are written.
    """
    refuse_data_folder(dataset, out)
    claim_folder(out, describe_run(dataset, plan), dataset.names, force=force)
    begin = time.monotonic()
    recorder = _Recorder(out, on_progress, on_outcome)
    lengths: dict[str, int] = {}
    without_frames: list[Outcome] = []
    for sequence in dataset.sequences:
        try:
            lengths[sequence.name] = len(sequence.frames())
        except InputError as error:
            without_frames.append(Outcome(sequence.name, failure=str(error)))
    kept = [name for name, length in lengths.items() if is_finished(out, name, length)]
    waiting = [sequence for sequence in dataset.sequences if sequence.name in lengths and sequence.name not in kept]
    # Longest first: a long sequence at the end would leave the other workers idle.
    waiting.sort(key=lambda sequence: (-lengths[sequence.name], sequence.name))
    on_total(sum(lengths[sequence.name] for sequence in waiting), len(kept))
    for outcome in without_frames:
        recorder.receive(outcome)
    if waiting:
        backend(waiting, plan, recorder.receive)
    return RunSummary(
        finished=tuple(outcome.sequence for outcome in recorder.finished),
        kept=tuple(kept),
        failed={name: outcome.failure for name, outcome in recorder.failed.items()},
        notes={outcome.sequence: "; ".join(outcome.notes) for outcome in recorder.finished if outcome.notes},
        frames=sum(outcome.frames for outcome in recorder.finished),
        seconds=time.monotonic() - begin,
        engines=tuple(sorted(recorder.engines)),
    )
