"""`TrainConfig`: everything that decides what a training run computes, read from and written to JSON.

JSON, because checkpoints, logs and metadata are JSON already and Python 3.10 reads it without another package. A file
names only what differs from the recipe it starts from (see `recipes`):

    {"recipe": "ckd", "model": "tiny", "sources": [{"kind": "dataset", "name": "lasher-train", "root": "LasHeR"}]}
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ckd_fast.errors import InputError
from ckd_fast.reference.config import ModelConfig, preset
from ckd_fast.reference.losses import LossConfig

Schedule = Literal["constant", "cosine"]
Precision = Literal["float32", "bfloat16"]
SourceKind = Literal["dataset", "stills", "footage", "synthetic"]


def _check_range(settings: object, names: str, low: float, high: float = math.inf, where: str = "") -> None:
    for name in names.split():
        value = getattr(settings, name)
        if not low <= value <= high:
            allowed = f"in [{low:g}, {high:g}]" if high < math.inf else f"from {low:g}"
            raise InputError(f"{where}{name}={value}: expected a number {allowed}")


@dataclass(frozen=True)
class Sampling:
    """How template and search frames are chosen and cropped; the defaults are the published ones."""

    longest_gap: int = 200  # the search frame is 1 to longest_gap - 1 frames after the template
    widen_by: int = 5  # frames added to the gap until a frame with a box is found
    centre_jitter: float = 3.0  # the search crop's centre moves by up to half of this, in multiples of sqrt(w h)
    scale_jitter: float = 0.25  # w and h are each multiplied by exp(scale_jitter * normal)

    def __post_init__(self) -> None:
        _check_range(self, "longest_gap", 2)
        _check_range(self, "widen_by", 1)
        _check_range(self, "centre_jitter", 0, 4)  # with more, the target leaves the search crop
        _check_range(self, "scale_jitter", 0, 1)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the crops. Grayscale is drawn once per sample, brightness and flip once per crop."""

    grayscale: float = 0.05  # probability
    flip: float = 0.5  # probability of mirroring both modalities
    brightness: float = 0.2  # factors are drawn from 1 - brightness to 1 + brightness
    damage: float = 0.0  # probability that one modality is damaged, see `damage`
    noise: float = 0.0  # largest standard deviation of noise on every crop, in levels
    # the search crop turns by up to this about its centre; the authors' program does not rotate
    rotation_degrees: float = 0.0

    def __post_init__(self) -> None:
        _check_range(self, "grayscale flip brightness damage", 0, 1)
        _check_range(self, "noise", 0, 64)
        _check_range(self, "rotation_degrees", 0, 180)


@dataclass(frozen=True)
class SceneConfig:
    """What rendered pairs contain.

    `clutter` and `distractors` count things, `noise` is in levels, `dark` to `glare` are probabilities per sample.
    """

    clutter: int = 6  # things that stand around the target
    distractors: int = 3  # others of the target's kind
    dark: float = 0.15  # the visible camera sees nearly nothing; always in the search view, sometimes in the template
    crossover: float = 0.12  # the target is as warm as what is behind it, in the search view
    camouflage: float = 0.1  # in visible light the target looks nearly like what is behind it, in both views
    occlusion: float = 0.15  # something is in front of the target in the search view
    smoke: float = 0.05  # smoke hides most of what the visible camera sees in the search view
    glare: float = 0.05  # so does light
    noise: float = 5.0  # of the sensors
    # how much gain and offset of the thermal camera vary, from 0 to 1. A thermal camera stretches what it sees to its
    # own range, so a scene may come out dark or light, flat or steep; some cameras show warm as black (a tenth of the
    # samples at 1).
    thermal_range: float = 0.0

    def __post_init__(self) -> None:
        _check_range(self, "clutter distractors", 0)
        _check_range(self, "noise", 0, 64)
        _check_range(self, "dark crossover camouflage occlusion smoke glare thermal_range", 0, 1)


@dataclass(frozen=True)
class Source:
    # "dataset": sequences of a published layout or own folders; "stills": single pairs of images with boxes
    # (`visible/`, `infrared/`, `boxes.json`), each giving both views; "footage": recordings of one or both cameras with
    # tracklets; "synthetic": rendered pairs
    kind: SourceKind
    share: float = 1.0  # weight among all sources
    name: str = "folder"  # the layout of a "dataset", see `ckd_fast.datasets.DATASETS`
    root: str = ""  # the folder; a data set with an environment variable needs none
    sequences: tuple[str, ...] = ()  # use only these; empty for all
    exclude: tuple[str, ...] = ()  # leave these out
    # of "footage": share of the draws in which the target is any region with texture, in one frame
    regions: float = 0.0
    scene: SceneConfig = field(default_factory=SceneConfig)  # what "synthetic" renders

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise InputError(f"share={self.share}: expected a positive number")
        if self.kind in ("stills", "footage") and not self.root:
            raise InputError(f"a source of {self.kind} needs its folder: set root")
        _check_range(self, "regions", 0, 1)


@dataclass(frozen=True)
class Stage:
    """A part of a run; each begins with a new optimiser."""

    name: str = "distil"  # in logs
    epochs: int = 30
    pairs: int = 60000  # per epoch, over all processes
    batch: int = 10  # pairs per process and forward pass
    accumulate: int = 1  # forward passes per step of the optimiser
    elimination: bool = False  # tokens are dropped as the model's configuration says; otherwise all are kept
    hidden: float = 0.25  # probability that a search patch is hidden from the students
    heads_only: bool = False  # the backbones are frozen
    # the teachers neither run nor learn; the next stage's teachers are made from the student. For the time before there
    # is anything to teach.
    students_only: bool = False
    # weight of the term by which the students imitate the features of a public network, see `features`; students_only
    imitation: float = 0.0
    head_rate: float = 5e-5
    backbone_rate: float = 5e-6
    schedule: Schedule = "constant"  # "constant", as published, or "cosine" down to a hundredth
    warmup: float = 0.0  # share of the stage in which the rates grow linearly from zero
    # epochs between which the share of kept tokens falls from 1 to `keep_ratio`; at once where they are equal (as
    # published)
    eliminate_from: int = 0
    eliminate_fully_at: int = 0

    def __post_init__(self) -> None:
        where = f"stage {self.name!r}: "
        _check_range(self, "epochs pairs accumulate", 1, where=where)
        if self.batch < 2:
            raise InputError(f"{where}batch={self.batch}: batch norm in the heads needs at least 2 samples")
        if not 0 <= self.hidden < 1 or not 0 <= self.warmup < 1:
            raise InputError(f"{where}hidden and warmup: expected numbers in [0, 1)")
        if not (self.head_rate > 0 and self.backbone_rate > 0):
            raise InputError(f"{where}head_rate and backbone_rate: expected positive numbers")
        if self.imitation < 0 or (self.imitation and not self.students_only):
            raise InputError(f"{where}imitation={self.imitation}: expected a number from 0, with students_only")

    def pairs_per_step(self, world: int) -> int:
        """Pairs in a step of the optimiser, over `world` processes."""
        return self.batch * self.accumulate * world

    def steps_per_epoch(self, world: int) -> int:
        return max(1, self.pairs // self.pairs_per_step(world))

    def steps(self, world: int) -> int:
        """Steps of the whole stage."""
        return self.steps_per_epoch(world) * self.epochs

    def rate_factor(self, step: int, steps: int) -> float:
        """What the learning rates are multiplied with in one of the stage's steps."""
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        if self.schedule == "constant":
            return 1.0
        progress = (step - warm) / max(steps - warm, 1)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Upkeep:
    """Logs, checkpoints, validation and caches; nothing here changes what is learned."""

    log_every: int = 50  # steps between lines of the log
    checkpoint_every: int = 1000  # steps between checkpoints; one more is written at the end of every stage
    keep_last: int = 2  # how many of the newest checkpoints stay
    validate_every: int = 1000  # steps between validations; 0: never
    validation_pairs: int = 256  # number of rendered pairs, the same ones every time
    most_bad_samples: int = 100  # the run ends when more samples than this could not be read
    cache_mb: int = 512  # memory for decoded frames in each process that reads samples

    def __post_init__(self) -> None:
        _check_range(self, "log_every checkpoint_every keep_last validation_pairs", 1)
        _check_range(self, "validate_every most_bad_samples cache_mb", 0)


@dataclass(frozen=True)
class TrainConfig:
    """A training run; the defaults are the authors' recipe."""

    model: ModelConfig = field(default_factory=ModelConfig)  # sizes, or in a file a preset's name
    # "random", or a file of weights (a CKD checkpoint with or without teachers, OSTrack, DropTrack, MAE)
    init: str = "random"
    seed: int = 0  # of everything random; equal seeds give equal runs
    stages: tuple[Stage, ...] = (
        Stage(),
        Stage(name="eliminate", epochs=10, pairs=30000, batch=64, elimination=True, hidden=0.0, heads_only=True),
    )
    sources: tuple[Source, ...] = (Source("dataset", name="lasher-train"),)  # where samples come from
    sampling: Sampling = field(default_factory=Sampling)
    augmentation: Augmentation = field(default_factory=Augmentation)
    # weights of the loss terms, and which reading of the paper they follow
    losses: LossConfig = field(default_factory=LossConfig)
    # "coupled", the paper's method, or "features": students imitate their teachers' raw features (FD)
    distillation: Literal["coupled", "features"] = "coupled"
    # "reference" (PyTorch) or "fused" (one kernel per block and direction; needs a GPU)
    loss_engine: Literal["reference", "fused"] = "reference"
    weight_decay: float = 1e-4  # of AdamW
    clip_norm: float = 0.1  # largest norm of all gradients together
    drop_path: float = 0.1  # stochastic depth of the last block
    precision: Precision = "float32"  # of the backbones; heads and losses are always float32
    ema: float = 0.0  # decay of the running mean of all weights, which is validated and shipped; 0: no mean
    # ONNX file of the network whose features the students imitate: a backbone of stride `patch_size`
    feature_teacher: str = ""
    imitate_after: int = 3  # number of blocks after which the students' tokens imitate it
    workers: int = 4  # processes that read samples
    upkeep: Upkeep = field(default_factory=Upkeep)  # logs, checkpoints, validation

    def __post_init__(self) -> None:
        if not self.stages or not self.sources:
            raise InputError("a run needs at least one stage and one source of samples")
        _check_range(self, "seed workers", 0)
        if not 0 <= self.ema < 1 or not 0 <= self.drop_path < 1:
            raise InputError(f"ema={self.ema}, drop_path={self.drop_path}: expected numbers in [0, 1)")
        if not self.clip_norm > 0 or self.weight_decay < 0:
            raise InputError(f"clip_norm={self.clip_norm}: expected a positive number; weight_decay: one from 0")
        if self.loss_engine == "fused" and self.distillation != "coupled":
            raise InputError(
                "loss_engine='fused' computes the coupled distillation alone: use distillation='coupled' with it"
            )
        if self.imitates and not 1 <= self.imitate_after <= self.model.depth:
            raise InputError(f"imitate_after={self.imitate_after}: the model has {self.model.depth} blocks")
        mixed = [block for block in self.model.eliminate_at if block < self.imitate_after]
        if mixed and any(stage.imitation and stage.elimination for stage in self.stages):
            raise InputError(
                f"imitate_after={self.imitate_after}: block {mixed[0]} drops and reorders tokens before that, so "
                "features of other patches would be imitated: imitate after fewer blocks, or without elimination"
            )
        if self.model.template_range == "GT_BOX":
            raise InputError("template_range='GT_BOX' has no meaning for a batch: use CTR_POINT, CTR_REC or ALL")

    @property
    def imitates(self) -> bool:
        """Whether a stage needs the feature teacher."""
        return any(stage.imitation for stage in self.stages)

    def to_json(self) -> str:
        """All values; `read_config` reads them back."""
        return json.dumps(dataclasses.asdict(self), indent=2)


def read_config(text: str, where: str, find_recipe: Callable[[str], TrainConfig] | None = None) -> TrainConfig:
    """A configuration in JSON; `where` names it in messages.

    `find_recipe` finds what the file's "recipe" (default "ckd") names, to start from; None: start from the defaults.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected a JSON object of settings")
    base = find_recipe(str(values.pop("recipe", "ckd"))) if find_recipe else None
    config: TrainConfig = _read(TrainConfig, values, where, base)
    return config


def _read(kind: Any, value: Any, where: str, base: Any = None) -> Any:  # noqa: ANN401
    """Check a plain JSON value against a type hint and convert it; messages name its place in the file."""
    origin = get_origin(kind)
    if kind is ModelConfig:
        return _read_model(value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, value, where, base)
    if origin is Literal:
        if value not in get_args(kind):
            raise InputError(f"{where}: {value!r}; known are {', '.join(map(repr, get_args(kind)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where}: expected a list")
        return tuple(_read(get_args(kind)[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin in (Union, types.UnionType):
        inner = [part for part in get_args(kind) if part is not type(None)]
        return None if value is None else _read(inner[0], value, where)
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
        raise InputError(f"{where}: {value!r}; expected {kind.__name__}")
    return value


def _read_dataclass(kind: type, value: Any, where: str, base: Any) -> Any:  # noqa: ANN401
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object of settings")
    hints = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise InputError(f"{where}: unknown setting {unknown[0]!r}; known are {', '.join(known)}")
    made = {
        name: _read(hints[name], item, f"{where}: {name}", getattr(base, name, None)) for name, item in value.items()
    }
    try:
        return dataclasses.replace(base, **made) if base is not None else kind(**made)
    except TypeError as error:
        raise InputError(f"{where}: a setting is missing ({error})") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: {error}") from error


def _read_model(value: Any, where: str) -> ModelConfig:  # noqa: ANN401
    try:
        if isinstance(value, str):
            return preset(value)
        if isinstance(value, Mapping):
            return ModelConfig.from_dict(value)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    raise InputError(f"{where}: expected a preset's name or an object of sizes")
