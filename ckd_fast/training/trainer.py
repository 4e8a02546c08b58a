"""A training run, from its configuration to a student that tracks.

What is random in a batch depends on the run's seed, the stage and the batch's number (see `seeds`). So a run that was
killed and resumed ends with the same weights as one that was not, and two processes compute what one process computes
that accumulates two batches per step.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ckd_fast.boxes import iou
from ckd_fast.errors import InputError, OutputError, TrainingError
from ckd_fast.interrupts import interruptible
from ckd_fast.reference.boxes import find_peak
from ckd_fast.reference.model import Student, Trainee
from ckd_fast.reference.training import Distillation
from ckd_fast.weights import save_model

from . import seeds
from .batches import Feed, normalised
from .checkpoints import Checkpoint, Checkpoints, RunState, optimiser_tensors, restore_optimiser
from .config import SceneConfig, TrainConfig, read_config
from .distillation import distillation_of
from .first_weights import initial_trainee, renew_teachers
from .logs import Board, RunLog, memory_mb
from .processes import Process, joined, sole_run, summed, wait_for_all
from .rendering import Renderer
from .run_weights import RunningMean, RunWeights, load_weights, trainee_names
from .stage import TERMS, StageLearner, elimination_in

CONFIG = "config.json"
FINAL = "final.safetensors"
BEST = "best.safetensors"
VALIDATION_BATCH = 32
NAMES_SHOWN = 5
LAST_EPOCH = 10**9
FREE_TO_CHANGE = ("upkeep", "workers", "init")  # when a run is resumed


@dataclass(frozen=True)
class Progress:
    """What a run tells with every line of its log, for a progress bar.

    Loss and speed (over all processes) are means since the last line; the pairs are those of all stages.
    """

    pairs_done: int
    pairs_total: int
    stage: str
    loss: float
    pairs_per_second: float
    memory_mb: float  # peak
    validation: float | None  # mean IoU on rendered pairs; None before the stage's first validation


@dataclass(frozen=True)
class Trained:
    """What a run ends with: the student's file, the best validation and the number of steps.

    An interrupted run ends with its last checkpoint.
    """

    final: Path
    best: float
    steps: int
    bad_samples: int
    interrupted: bool = False


class _Since:
    """What happened since the last line of the log: mean of the terms, kept on the device, and pairs per second."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._steps, self._pairs, self._began = 0, 0, time.perf_counter()

    def add(self, terms: Tensor, pairs: int) -> None:
        self._sum = terms if self._sum is None else self._sum + terms
        self._steps, self._pairs = self._steps + 1, self._pairs + pairs

    def take(self) -> tuple[dict[str, float], float]:
        """Both, and start anew."""
        speed = self._pairs / max(time.perf_counter() - self._began, 1e-9)
        means = {} if self._sum is None else dict(zip(TERMS, (self._sum / self._steps).tolist(), strict=True))
        self._sum, self._steps, self._pairs, self._began = None, 0, 0, time.perf_counter()
        return means, speed


class Trainer:
    """One run.

    Args:
        config: what is computed.
        out: folder of the run.
        process: this one.
        board: TensorBoard writer of the first process.
        on_progress: called with every line of the log in the first process.
        distil: distillation terms, instead of those that the configuration names.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        process: Process,
        *,
        board: Board | None = None,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
        distil: Distillation | None = None,
    ) -> None:
        if config.imitates and not config.feature_teacher:
            raise InputError(
                "a stage imitates a public network's features, but feature_teacher is empty: name its ONNX file there, "
                "or with --feature-teacher"
            )
        self.config, self.out, self.process = config, out, process
        self._board, self._on_progress = board, on_progress
        self._distil = distil or distillation_of(config, process.device)
        self._checkpoints = Checkpoints(out, config.upkeep.keep_last)
        self._stop = threading.Event()
        self._interrupted = False
        self._scene = next((s.scene for s in config.sources if s.kind == "synthetic"), SceneConfig())

    def run(self, *, resume: bool = False) -> Trained:
        """Train to the end, from the start or from the last checkpoint."""
        with ExitStack() as stack:
            stack.enter_context(joined(self.process))
            if self.process.first:
                stack.enter_context(sole_run(self.out))
            self._stop = stack.enter_context(interruptible())
            last = self._open(resume=resume)
            state = last.state if last is not None else RunState()
            weights = self._weights(last)
            self._log = RunLog(self.out, state.total, self._board) if self.process.first else None
            try:
                for number in range(state.stage, len(self.config.stages)):
                    if self._interrupted:
                        break
                    optimiser_state = last.optimiser if last is not None and number == last.state.stage else {}
                    state = self._run_stage(number, state, weights, optimiser_state)
                if self.process.first and not self._interrupted:
                    save_model(weights.student(self.config.model), self.out / FINAL)
            finally:
                if self._log is not None:
                    self._log.close()
        final = (self._checkpoints.newest() if self._interrupted else None) or self.out / FINAL
        return Trained(final, state.best, state.total, state.bad_samples, self._interrupted)

    def _open(self, *, resume: bool) -> Checkpoint | None:
        """Prepare the folder; the checkpoint to go on from, if any."""
        stored, present = self.out / CONFIG, self._checkpoints.all()
        if present and not resume:
            raise OutputError(
                f"{self.out}: holds a run ({present[-1].name}): go on with --resume, or choose another folder"
            )
        if resume and stored.exists():
            before = read_config(stored.read_text(encoding="utf-8"), str(stored))
            changed = [
                field.name
                for field in dataclasses.fields(before)
                if field.name not in FREE_TO_CHANGE and getattr(before, field.name) != getattr(self.config, field.name)
            ]
            if changed:
                raise InputError(
                    f"{stored}: the run was started with other {', '.join(changed)}; to go on with other settings, "
                    "start a new one with --init"
                )
        last = self._checkpoints.last() if resume else None
        wait_for_all(self.process)
        if self.process.first:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                stored.write_text(self.config.to_json() + "\n", encoding="utf-8")
            except OSError as error:
                raise OutputError(f"{self.out}: cannot be written ({error.strerror or error})") from error
        wait_for_all(self.process)
        return last

    def _weights(self, last: Checkpoint | None) -> RunWeights:
        """The model on its device, with its first weights or those of a checkpoint."""
        config = self.config
        model = initial_trainee(config) if last is None else Trainee(config.model, config.drop_path).train()
        model.to(self.process.device)
        if last is not None:
            load_weights(model, trainee_names(last.weights))
        mean = RunningMean(model, config.ema) if config.ema else None
        if last is not None and mean is not None:
            for name, value in trainee_names(last.ema).items():
                mean.values[name].copy_(value)
        return RunWeights(model, mean)

    def _run_stage(
        self, number: int, state: RunState, weights: RunWeights, optimiser_state: Mapping[str, Tensor]
    ) -> RunState:
        """All steps of a stage that are left."""
        process, upkeep, stage = self.process, self.config.upkeep, self.config.stages[number]
        steps = stage.steps(process.world)
        learner = StageLearner(self.config, number, weights.model, process, self._distil, self.out)
        if optimiser_state:
            restore_optimiser(learner.optimiser, optimiser_state, str(self.out))
        rounds = range(state.step * stage.accumulate, steps * stage.accumulate)
        batches = Feed(self.config, number, process.device).batches(
            [turn * process.world + process.rank for turn in rounds]
        )
        since, validation = _Since(), None
        for step in range(state.step, steps):
            outcome = learner.step(step, state.total, islice(batches, stage.accumulate))
            if weights.mean is not None:
                weights.mean.update(weights.model, state.total)
            since.add(outcome.terms, stage.pairs_per_step(process.world))
            state = dataclasses.replace(state, stage=number, step=step + 1, total=state.total + 1)
            state = self._count_bad(state, outcome.bad)
            ends = step + 1 == steps
            self._interrupted = not ends and self._all_stop()
            if upkeep.validate_every and ((step + 1) % upkeep.validate_every == 0 or ends):
                validation = self._validate(weights, state)
                state = dataclasses.replace(state, best=max(state.best, validation))
            if (step + 1) % upkeep.log_every == 0 or ends:
                self._report(state, since, learner.head_rate, validation)
            if (step + 1) % upkeep.checkpoint_every == 0 or ends or self._interrupted:
                if stage.students_only:
                    renew_teachers(weights)
                after = dataclasses.replace(state, stage=number + 1, step=0) if ends else state
                self._checkpoint(after, weights, {} if ends else optimiser_tensors(learner.optimiser))
            if self._interrupted:
                return state
        return dataclasses.replace(state, stage=number + 1, step=0)

    def _all_stop(self) -> bool:
        """Whether a process of the run was asked to stop; all of them find the same after the same step."""
        asked = torch.tensor(float(self._stop.is_set()), device=self.process.device)
        return float(summed(asked, self.process)) > 0

    def _count_bad(self, state: RunState, bad: tuple[str, ...]) -> RunState:
        """Name the samples that could not be read, and end the run when they are too many."""
        if self._log is not None:
            for reason in bad[:NAMES_SHOWN]:
                self._log.write("bad sample", state.total, {"reason": reason})
        count = len(bad)
        if self.process.world > 1:
            count = int(summed(torch.tensor(float(count), device=self.process.device), self.process))
        found = state.bad_samples + count
        if found > self.config.upkeep.most_bad_samples:
            raise TrainingError(
                f"{found} samples could not be read, more than most_bad_samples={self.config.upkeep.most_bad_samples}; "
                f"the last: {bad[-1] if bad else 'in another process'}. `ckd-fast data check` lists what is wrong"
            )
        return dataclasses.replace(state, bad_samples=found)

    def _report(self, state: RunState, since: _Since, rate: float, validation: float | None) -> None:
        means, speed = since.take()
        memory, stages = memory_mb(self.process.device), self.config.stages
        if self._log is None:
            return
        name = stages[state.stage].name
        about = {"rate": rate, "pairs_per_second": speed, "memory_mb": memory, "bad_samples": state.bad_samples}
        self._log.write("step", state.total, {"stage": name, **means, **about})
        world = self.process.world
        pairs = [stage.steps(world) * stage.pairs_per_step(world) for stage in stages]
        done = sum(pairs[: state.stage]) + state.step * stages[state.stage].pairs_per_step(world)
        self._on_progress(Progress(done, sum(pairs), name, means["loss"], speed, memory, validation))

    def _validate(self, weights: RunWeights, state: RunState) -> float:
        """Mean IoU of the student on rendered pairs that it was not trained on; the best student is saved."""
        model = elimination_in(self.config.stages[state.stage], self.config.model, LAST_EPOCH)
        student = weights.student(model).student().to(self.process.device)
        iou = mean_overlap(student, self.config, self._scene, self.process.device)
        if self._log is not None:
            self._log.write("validation", state.total, {"mean_iou": iou})
        if iou > state.best and self.process.first:
            save_model(weights.student(self.config.model), self.out / BEST)
        return iou

    def _checkpoint(self, state: RunState, weights: RunWeights, optimiser_state: Mapping[str, Tensor]) -> None:
        if self.process.first:
            learned, averaged = weights.learned(self.config.model), weights.averaged(self.config.model)
            self._checkpoints.write(state, learned, averaged, optimiser_state)
        wait_for_all(self.process)


@torch.no_grad()
def mean_overlap(student: Student, config: TrainConfig, scene: SceneConfig, device: torch.device) -> float:
    """Mean IoU over rendered pairs, the same ones for every run of a scene."""
    renderer = Renderer(scene, config.sampling, config.model, device)
    overlaps: list[float] = []
    for number in range(math.ceil(config.upkeep.validation_pairs / VALIDATION_BATCH)):
        pairs = renderer.render(VALIDATION_BATCH, (seeds.VALIDATION_SEED, seeds.VALIDATION, number))
        template = student.embed_template(normalised(pairs.template))
        maps = student(template, normalised(pairs.search)).maps
        centre, size = find_peak(maps).boxes_cxcywh.split(2, dim=1)
        found_xywh = torch.cat((centre - size / 2, size), dim=1)
        overlaps += iou(found_xywh.cpu(), pairs.target_xywh.cpu()).tolist()
    return statistics.fmean(overlaps[: config.upkeep.validation_pairs])
