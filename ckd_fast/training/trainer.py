"""A training run, from its configuration to a student that tracks.

What is random in a batch depends on the seed, the stage and the batch's number (see batches.py). So a run that is
killed and resumed ends with the weights of one that was not, and several processes compute what one computes that
accumulates.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ckd_fast.boxes import iou
from ckd_fast.errors import InputError, OutputError, TrainingError
from ckd_fast.reference.boxes import find_peak
from ckd_fast.reference.model import Student, Trainee
from ckd_fast.reference.training import (
    Distillation,
    Losses,
    OptimiserConfig,
    compute_losses,
    freeze_backbones,
    make_optimiser,
)
from ckd_fast.weights import LoadedModel, save_model
from ckd_fast.weights.files import write_safetensors

from .batches import Feed, NumberedBatch, make_renderer, normalised, rate_factor, seed_batch
from .checkpoints import Checkpoint, Checkpoints, Standing, optimiser_tensors, restore_optimiser
from .config import SceneConfig, TrainConfig, read_config
from .distillation import distillation_of
from .logs import Board, RunLog, memory_mb
from .model import (
    RunningMean,
    StudentsAlone,
    as_loaded,
    elimination_in,
    freeze_teachers,
    initial_trainee,
    load_weights,
    prefixed,
    renew_teachers,
    set_elimination,
    stored_weights,
    students_losses,
)
from .processes import Place, joined, summed, wait_for_all

CONFIG = "config.json"
FINAL = "final.safetensors"
BEST = "best.safetensors"
VALIDATION_BATCH = 32
NAMES_SHOWN = 5
FREE = ("upkeep", "workers", "init")  # what may change when a run is resumed


@dataclass(frozen=True)
class Progress:
    """What a run says with every line of its log, for a progress bar.

    Attributes:
        done, of: pairs of all stages.
        stage: its name.
        loss: mean since the last line of the log.
        pairs_per_second: over all processes, since the last line of the log.
        memory_mb: peak.
        validation: mean IoU on rendered pairs, if it was asked for.
    """

    done: int
    of: int
    stage: str
    loss: float
    pairs_per_second: float
    memory_mb: float
    validation: float | None


@dataclass(frozen=True)
class Trained:
    """What a run ends with: the student's file, the best validation and the number of steps."""

    final: Path
    best: float
    steps: int
    bad_samples: int


class _Means:
    """Running means of the losses between two lines of the log; kept on the device."""

    NAMES = ("loss", "giou", "l1", "focal", "teacher_rgb", "teacher_tir", "style", "content", "gradient_norm")

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._count = 0

    def add(self, values: Tensor) -> None:
        self._sums = values if self._sums is None else self._sums + values
        self._count += 1

    def take(self) -> dict[str, float]:
        if self._sums is None:
            return {}
        means = (self._sums / self._count).tolist()
        self._sums, self._count = None, 0
        return dict(zip(self.NAMES, means, strict=True))


class _Pace:
    """Pairs per second between two lines of the log."""

    def __init__(self) -> None:
        self.pairs = 0
        self._began = time.perf_counter()

    def take(self) -> float:
        now = time.perf_counter()
        speed = self.pairs / max(now - self._began, 1e-9)
        self.pairs, self._began = 0, now
        return speed


class Trainer:
    """One run.

    Args:
        config: what is computed.
        out: folder of the run.
        place: this process.
        board: TensorBoard writer of the first process.
        on_progress: called with every line of the log in the first process.
        distil: instead of what the configuration names.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        place: Place,
        *,
        board: Board | None = None,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
        distil: Distillation | None = None,
    ) -> None:
        self.config, self.out, self.place = config, out, place
        self._board, self._on_progress = board, on_progress
        self._distil = distil or distillation_of(config, place.device)
        self._checkpoints = Checkpoints(out, config.upkeep.keep_last)
        self._scene = next((s.scene for s in config.sources if s.kind == "synthetic"), SceneConfig())

    def run(self, *, resume: bool = False) -> Trained:
        """Train to the end, from the start or from the last checkpoint."""
        config = self.config
        with joined(self.place):
            last = self._open(resume=resume)
            standing = last.standing if last is not None else Standing()
            model = initial_trainee(config) if last is None else Trainee(config.model, config.drop_path).train()
            model.to(self.place.device)
            if last is not None:
                load_weights(model, prefixed(last.weights))
            ema = RunningMean(model, config.ema) if config.ema else None
            if last is not None and ema is not None:
                for name, value in prefixed(last.ema).items():
                    ema.values[name].copy_(value)
            self._log = RunLog(self.out, standing.total, self._board) if self.place.first else None
            try:
                for number in range(standing.stage, len(config.stages)):
                    moments = last.optimiser if last is not None and number == last.standing.stage else {}
                    standing = self._run_stage(number, standing, model, ema, moments)
                final = self._final(model, ema)
            finally:
                if self._log is not None:
                    self._log.close()
        return Trained(final, standing.best, standing.total, standing.bad_samples)

    def _open(self, *, resume: bool) -> Checkpoint | None:
        """Prepare the folder; the checkpoint to go on from, if any."""
        stored, there = self.out / CONFIG, self._checkpoints.all()
        if there and not resume:
            raise OutputError(
                f"{self.out}: holds a run ({there[-1].name}): go on with --resume, or choose another folder"
            )
        if resume and stored.exists():
            before = read_config(stored.read_text(encoding="utf-8"), str(stored))
            changed = [
                field.name
                for field in dataclasses.fields(before)
                if field.name not in FREE and getattr(before, field.name) != getattr(self.config, field.name)
            ]
            if changed:
                raise InputError(
                    f"{stored}: the run was started with other {', '.join(changed)}; to go on with other settings, "
                    "start a new one with --init"
                )
        last = self._checkpoints.last() if resume else None
        wait_for_all(self.place)
        if self.place.first:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                stored.write_text(self.config.to_json() + "\n", encoding="utf-8")
            except OSError as error:
                raise OutputError(f"{self.out}: cannot be written ({error.strerror or error})") from error
        wait_for_all(self.place)
        return last

    def _run_stage(
        self, number: int, standing: Standing, model: Trainee, ema: RunningMean | None, moments: Mapping[str, Tensor]
    ) -> Standing:
        """All steps of a stage that are left."""
        config, place = self.config, self.place
        stage, upkeep = config.stages[number], config.upkeep
        steps = stage.steps_per_epoch(place.world) * stage.epochs
        model.requires_grad_(requires_grad=True)
        model.zero_grad(set_to_none=True)  # of what is frozen from here on, gradients of the last stage would stay
        if stage.heads_only:
            freeze_backbones(model)
        if stage.students_only:
            freeze_teachers(model)
        rates = OptimiserConfig(stage.head_rate, stage.backbone_rate, config.weight_decay, config.clip_norm)
        optimiser = make_optimiser(model, rates, fused=True)
        base_rates = [float(group["lr"]) for group in optimiser.param_groups]
        if moments:
            restore_optimiser(optimiser, moments, str(self.out))
        network: nn.Module = StudentsAlone(model) if stage.students_only else model
        if place.world > 1:
            on = [place.device.index] if place.device.type == "cuda" else None
            network = DistributedDataParallel(network, device_ids=on)
        each = stage.accumulate
        numbers = [
            (step * each + i) * place.world + place.rank for step in range(standing.step, steps) for i in range(each)
        ]
        feed = iter(Feed(config, number, place.device).batches(numbers))
        means, pace = _Means(), _Pace()
        validation: float | None = None
        for step in range(standing.step, steps):
            set_elimination(model, elimination_in(stage, config.model, step // stage.steps_per_epoch(place.world)))
            factor = rate_factor(stage, step, steps)
            for group, rate in zip(optimiser.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            optimiser.zero_grad(set_to_none=True)
            bad: list[str] = []
            row = torch.zeros(len(_Means.NAMES), device=place.device)
            for index in range(each):
                item = next(feed)
                bad += item.bad
                quiet = (
                    network.no_sync()
                    if index + 1 < each and isinstance(network, DistributedDataParallel)
                    else nullcontext()
                )
                with quiet:
                    terms = self._forward(network, item, number)
                    (terms.total / each).backward()
                row[:-1] += _row(terms) / each
                if not math.isfinite(float(terms.total.detach())):
                    self._stop(item, standing.total, "loss")
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            if not math.isfinite(float(norm)):
                self._stop(item, standing.total, "gradient")
            row[-1] = norm.detach()
            optimiser.step()
            if ema is not None:
                ema.update(model, standing.total)
            means.add(row)
            standing = self._counted(
                dataclasses.replace(standing, stage=number, step=step + 1, total=standing.total + 1), bad
            )
            pace.pairs += stage.batch * each * place.world
            ends = step + 1 == steps
            if upkeep.validate_every and ((step + 1) % upkeep.validate_every == 0 or ends):
                validation = self._validate(model, ema, number, standing.total)
                standing = self._keep_best(standing, validation, model, ema)
            if (step + 1) % upkeep.log_every == 0 or ends:
                self._report(standing, means.take(), float(optimiser.param_groups[0]["lr"]), pace, validation)
            if (step + 1) % upkeep.checkpoint_every == 0 or ends:
                if stage.students_only:
                    renew_teachers(model, ema)
                after = dataclasses.replace(standing, stage=number + 1, step=0) if ends else standing
                self._checkpoint(after, model, ema, {} if ends else optimiser_tensors(optimiser))
        return dataclasses.replace(standing, stage=number + 1, step=0)

    def _forward(self, network: nn.Module, item: NumberedBatch, stage: int) -> Losses:
        """Losses of one batch."""
        seed_batch(self.config.seed, stage, item.number)
        batch = item.batch
        half = self.config.precision == "bfloat16"
        mixed: AbstractContextManager[None] = (
            torch.autocast(self.place.device.type, torch.bfloat16) if half else nullcontext()
        )
        with mixed:
            output = network(batch.template, batch.search, batch.mask, batch.visible)
        if self.config.stages[stage].students_only:
            return students_losses(output, batch.target_xywh, self.config.losses)
        return compute_losses(output, batch.target_xywh, self.config.losses, self._distil)

    def _stop(self, item: NumberedBatch, step: int, what: str) -> None:
        """Numbers went bad: save what they were computed from, and end."""
        path = self.out / f"bad-batch-{step:08d}-rank{self.place.rank}.safetensors"
        batch = item.batch
        tensors = {"template": batch.template, "search": batch.search, "target_xywh": batch.target_xywh}
        if batch.visible is not None:
            tensors["visible"] = batch.visible
        write_safetensors(path, {name: value.cpu() for name, value in tensors.items()}, {"batch": str(item.number)})
        raise TrainingError(
            f"step {step}: the {what} is not finite; its batch is in {path}. The last checkpoint is from before: start "
            "from it by --init with a lower learning rate, or look at the batch"
        )

    def _counted(self, standing: Standing, bad: list[str]) -> Standing:
        """Count, name and bound what could not be read."""
        if bad and self._log is not None:
            for name in bad[:NAMES_SHOWN]:
                self._log.write("bad sample", standing.total, {"reason": name})
        count = len(bad)
        if self.place.world > 1:
            count = int(summed(torch.tensor(float(count), device=self.place.device), self.place))
        found = standing.bad_samples + count
        if found > self.config.upkeep.most_bad_samples:
            raise TrainingError(
                f"{found} samples could not be read, more than most_bad_samples={self.config.upkeep.most_bad_samples}; "
                f"the last: {bad[-1] if bad else 'in another process'}. `ckd-fast data check` lists what is wrong"
            )
        return dataclasses.replace(standing, bad_samples=found)

    def _report(
        self, standing: Standing, means: Mapping[str, float], rate: float, pace: _Pace, validation: float | None
    ) -> None:
        """One line of the log."""
        speed, memory = pace.take(), memory_mb(self.place.device)
        name = self.config.stages[standing.stage].name
        if self._log is None:
            return
        about = {"rate": rate, "pairs_per_second": speed, "memory_mb": memory, "bad_samples": standing.bad_samples}
        self._log.write("step", standing.total, {"stage": name, **means, **about})
        done, whole = self._pairs_done(standing)
        self._on_progress(Progress(done, whole, name, means["loss"], speed, memory, validation))

    def _pairs_done(self, standing: Standing) -> tuple[int, int]:
        world = self.place.world
        per_step = [stage.batch * stage.accumulate * world for stage in self.config.stages]
        steps = [stage.steps_per_epoch(world) * stage.epochs for stage in self.config.stages]
        whole = sum(pairs * count for pairs, count in zip(per_step, steps, strict=True))
        before = sum(pairs * count for pairs, count in list(zip(per_step, steps, strict=True))[: standing.stage])
        return before + per_step[standing.stage] * standing.step, whole

    def _student(self, model: Trainee, ema: RunningMean | None) -> LoadedModel:
        """The student as it would be shipped now: of the running mean if there is one."""
        weights = {n: v for n, v in self._mean_weights(model, ema).items() if not n.startswith("teacher_")}
        return as_loaded(weights, self.config.model, "trained by ckd-fast train")

    def _mean_weights(self, model: Trainee, ema: RunningMean | None) -> dict[str, Tensor]:
        names = stored_weights(model)
        if ema is None:
            return names
        own = prefixed(dict.fromkeys(names, torch.empty(0)))
        return {short: ema.values[full] for short, full in zip(names, own, strict=True)}

    def _validate(self, model: Trainee, ema: RunningMean | None, stage: int, total: int) -> float:
        """Mean IoU of the student on rendered pairs that it was not trained on."""
        loaded = self._student(model, ema)
        loaded = dataclasses.replace(loaded, config=elimination_in(self.config.stages[stage], self.config.model, 10**9))
        student = loaded.student().to(self.place.device)
        overlap = mean_overlap(student, self.config, self._scene, self.place.device)
        if self._log is not None:
            self._log.write("validation", total, {"mean_iou": overlap})
        return overlap

    def _keep_best(self, standing: Standing, overlap: float, model: Trainee, ema: RunningMean | None) -> Standing:
        if overlap <= standing.best:
            return standing
        if self.place.first:
            save_model(self._student(model, ema), self.out / BEST)
        return dataclasses.replace(standing, best=overlap)

    def _checkpoint(
        self, standing: Standing, model: Trainee, ema: RunningMean | None, moments: dict[str, Tensor]
    ) -> None:
        if self.place.first:
            kind = "training checkpoint"
            weights = as_loaded(stored_weights(model), self.config.model, kind)
            mean = as_loaded(self._mean_weights(model, ema), self.config.model, kind) if ema is not None else None
            self._checkpoints.write(standing, weights, mean, moments)
        wait_for_all(self.place)

    def _final(self, model: Trainee, ema: RunningMean | None) -> Path:
        if self.place.first:
            save_model(self._student(model, ema), self.out / FINAL)
        return self.out / FINAL


def _row(terms: Losses) -> Tensor:
    """The terms of a batch in the order of `_Means.NAMES`, without the gradient's norm."""
    student = terms.student
    teachers = [sum_of.giou + sum_of.l1 + sum_of.focal for sum_of in (terms.teacher_rgb, terms.teacher_tir)]
    values = [terms.total, student.giou, student.l1, student.focal, *teachers, terms.style, terms.content]
    return torch.stack([value.detach().float() for value in values])


@torch.no_grad()
def mean_overlap(student: Student, config: TrainConfig, scene: SceneConfig, device: torch.device) -> float:
    """Mean IoU over rendered pairs, the same ones for every run of a scene."""
    renderer = make_renderer(config, scene, device)
    overlaps: list[float] = []
    for number in range(math.ceil(config.upkeep.validation_pairs / VALIDATION_BATCH)):
        pairs = renderer.render(VALIDATION_BATCH, (0, 9, number))
        template = student.embed_template(normalised(pairs.template))
        maps = student(template, normalised(pairs.search)).maps
        centre, size = find_peak(maps).boxes_cxcywh.split(2, dim=1)
        found_xywh = torch.cat((centre - size / 2, size), dim=1)
        overlaps += iou(found_xywh.cpu(), pairs.target_xywh.cpu()).tolist()
    return statistics.fmean(overlaps[: config.upkeep.validation_pairs])
