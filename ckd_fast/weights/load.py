"""`load_model`: checked weights with their sizes, from a file, from a seed, or the packaged model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn

from ckd_fast import __version__
from ckd_fast.errors import CorruptWeightsError, InputError, MissingModelError, WeightsMismatchError, some_names
from ckd_fast.reference.config import PRESETS, ModelConfig, preset, preset_name
from ckd_fast.reference.model import Student, Trainee, initialise

from . import keys
from .calibration import PREFIX, Calibration, stored_calibration
from .files import WeightsFile, finite_or_raise, metadata_json, open_weights

FORMAT = "ckd_fast"
FORMAT_VERSION = "1"
# Settings that the shapes in a file determine. The others (heads, elimination, crop factors) come from the file's
# metadata, from the caller, or from the preset with these shapes.
SHAPE_SETTINGS = ("dim", "depth", "head_channels", "mlp_ratio", "template_size", "search_size", "patch_size")
# Settings that a user may choose freely, whatever the weights.
RUN_SETTINGS = (
    "elimination", "eliminate_at", "keep_ratio", "template_range", "template_factor", "search_factor", "share_students",
)  # fmt: skip
NAMES_SHOWN = 5
OURS = "ckd_fast"
ONE_STREAM = "initial weights, one-stream tracker"
ENCODER = "initial weights, encoder only"
PACKAGED = Path(__file__).with_name("packaged.safetensors")


@dataclass(frozen=True)
class Provenance:
    source: str  # the file's name, "random" or "packaged"
    kind: str  # what the source is, in words
    sha256: str = ""  # of the source file; empty for random weights
    not_loaded: tuple[str, ...] = ()  # pickled classes, replaced by placeholders
    seed: int | None = None  # of random weights, or of the random head for a file without one


@dataclass(frozen=True)
class LoadedModel:
    """Checked weights and their sizes.

    Attributes:
        config: sizes and choices.
        weights: the student's tensors by our names, float32.
        teachers: the teachers' tensors, empty if the source has none.
        provenance: where they came from.
        lost_threshold: with these weights, a target with a lower score counts as lost; None: not calibrated.
        calibration: what int8 needs to know; None: these weights were not quantised.
    """

    config: ModelConfig
    weights: Mapping[str, Tensor]
    teachers: Mapping[str, Tensor]
    provenance: Provenance
    lost_threshold: float | None = None
    calibration: Calibration | None = None

    def student(self) -> Student:
        """The model in evaluation mode, sharing these tensors."""
        with torch.device("meta"):
            student = Student(self.config)
        student.load_state_dict(_with_shared(self.weights, student), assign=True)
        student.requires_grad_(requires_grad=False)
        return student.eval()

    def trainee(self) -> Trainee:
        """Student and teachers for training, with weights of their own."""
        if not self.teachers:
            raise InputError(
                f"{self.provenance.source} holds no teachers: train from a 4-branch checkpoint or from initial weights"
            )
        with torch.device("meta"):
            trainee = Trainee(self.config)
        students = {f"student.{name}": value.clone() for name, value in self.weights.items()}
        teachers = {name: value.clone() for name, value in self.teachers.items()}
        trainee.load_state_dict(_with_shared(students | teachers, trainee), assign=True)
        return trainee.train()


def _with_shared(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Add what a state dict needs but our files leave out: batch counters, and a shared backbone's second name."""
    full = dict(weights)
    for name in model.state_dict():
        if name.endswith("num_batches_tracked"):
            full[name] = torch.zeros((), dtype=torch.int64)
        elif name not in full:
            full[name] = full[name.replace("tir.", "rgb.", 1)]
    return full


def load_model(
    weights: str | os.PathLike[str] | None, model: str | ModelConfig | None = None, seed: int | None = None
) -> LoadedModel:
    """Load a model.

    Args:
        weights: a file (safetensors, the authors' .pth.tar, OSTrack, DropTrack or MAE initial weights), "random", or
            None for the packaged model.
        model: a preset's name or sizes, if the file does not determine them. It must agree with the file, except in
            what can be chosen freely (elimination, template range, keep ratio, crop factors).
        seed: of "random" weights (default 0), or of the head for a file of initial weights without one.

    Raises:
        InputError: `model` or `seed` is wrong.
        WeightsError: the file cannot be used; see `ckd_fast.errors`.
    """
    config = resolve_config(model)
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63):
        raise InputError(f"seed={seed!r}: expected a whole number from 0")
    if weights is None:
        return _packaged(config)
    if not isinstance(weights, str | os.PathLike):
        raise InputError(f"weights is a {type(weights).__name__}: expected a path, 'random' or None")
    if weights == "random":
        return _random_model(config or PRESETS["base"], 0 if seed is None else seed)
    return model_from_file(open_weights(weights), config, seed)


def _packaged(config: ModelConfig | None) -> LoadedModel:
    if not PACKAGED.exists():
        raise MissingModelError(
            f"no weights were named, and this installation lacks the packaged model {PACKAGED.name}: give the path of "
            "a checkpoint (the authors' .pth.tar or a .safetensors file), or weights='random' to try without"
        )
    loaded = model_from_file(open_weights(PACKAGED), config, None)
    return dataclasses.replace(loaded, provenance=dataclasses.replace(loaded.provenance, source="packaged"))


def resolve_config(model: str | ModelConfig | None) -> ModelConfig | None:
    """The sizes of a preset, by its name; sizes and None stay as they are."""
    if model is None or isinstance(model, ModelConfig):
        return model
    if not isinstance(model, str):
        raise InputError(f"model is a {type(model).__name__}: expected a preset's name or a ModelConfig")
    try:
        return preset(model)
    except ValueError as error:
        raise InputError(str(error)) from error


def _random_model(config: ModelConfig, seed: int) -> LoadedModel:
    weights = _drawn(Student(config), seed)
    return LoadedModel(config, weights, {}, Provenance("random", f"random weights, seed {seed}", seed=seed))


def _drawn(model: nn.Module, seed: int) -> dict[str, Tensor]:
    initialise(model, seed)
    known = expected_shapes(model)
    return {name: value.detach() for name, value in model.state_dict().items() if name in known}


def expected_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Names and shapes that a file must have: without batch counters, and a shared backbone only once."""
    first_names: dict[int, str] = {}
    shapes: dict[str, torch.Size] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not name.endswith("num_batches_tracked") and first_names.setdefault(id(value), name) == name:
            shapes[name] = value.shape
    return shapes


def model_from_file(file: WeightsFile, config: ModelConfig | None, seed: int | None) -> LoadedModel:
    """The model in a file that is open already; see `load_model`."""
    path = file.path
    if keys.looks_like_one_stream(file.tensors):
        config = config or _one_stream_config(file)
    named, unknown, kind = _translated(file, config)
    if unknown:
        raise WeightsMismatchError(
            f"{path}: looks like {kind}, but has {len(unknown)} tensors that such a model does not: "
            f"{some_names(sorted(unknown))}"
        )
    finite_or_raise(path, named)
    observed = {name: named.pop(name) for name in list(named) if name.startswith(PREFIX)}
    if named and kind == ENCODER:
        named |= _random_heads(path, named, config, seed)
    settled = _settle(file, named, config)
    if settled.share_students:
        named = _share(path, named)
    longer = [name for name, value in named.items() if value.dtype == torch.float64]
    named = {name: value.float() for name, value in named.items()}
    finite_or_raise(path, {name: named[name] for name in longer})  # they may have overflowed
    teachers = {name: value for name, value in named.items() if name.startswith("teacher_")}
    students = {name: value for name, value in named.items() if name not in teachers}
    _compare(path, students, settled, Student, "")
    if teachers:
        _compare(path, {f"student.{n}": v for n, v in students.items()} | teachers, settled, Trainee, "student.")
    if kind == OURS:
        calibration = stored_calibration(file, observed, settled)
        return LoadedModel(settled, students, teachers, _stored_provenance(file), _stored_threshold(file), calibration)
    provenance = Provenance(path.name, kind, file.sha256, file.placeholders, seed)
    return LoadedModel(settled, students, teachers, provenance)


def _translated(file: WeightsFile, config: ModelConfig | None) -> tuple[dict[str, Tensor], list[str], str]:
    """A file's tensors by our names, those of its names that we do not know, and what kind of file it is."""
    tensors = file.tensors
    if keys.looks_like_ours(tensors):
        return dict(tensors), [], OURS
    if keys.looks_like_authors(tensors):
        ours = {name: keys.from_authors(name) for name in tensors}
        unknown = [n for n, known in ours.items() if known is None and not keys.is_unused(n.partition(".")[2])]
        named = {known: tensors[name] for name, known in ours.items() if known is not None}
        branches = 4 if any(name.startswith("teacher_rgb.") for name in tensors) else 2
        return named, unknown, f"CKD checkpoint, {branches} branches"
    if config is not None and keys.looks_like_one_stream(tensors):
        try:
            named, unknown = keys.from_one_stream(tensors, config)
        except (ValueError, RuntimeError) as error:
            raise WeightsMismatchError(f"{file.path}: {error}") from error
        return named, unknown, ONE_STREAM if "head.score.0.0.weight" in named else ENCODER
    raise WeightsMismatchError(
        f"{file.path}: not a model that ckd_fast knows (CKD, OSTrack, DropTrack, MAE encoder); "
        f"its {len(tensors)} tensors begin with {some_names(sorted(tensors))}"
    )


def _one_stream_config(file: WeightsFile) -> ModelConfig:
    """The preset whose backbone has these sizes."""
    prefix = "backbone." if "backbone.patch_embed.proj.weight" in file.tensors else ""
    shape = tuple(file.tensors[f"{prefix}patch_embed.proj.weight"].shape)
    depth = _count_blocks(file.tensors, f"{prefix}blocks.")
    for config in PRESETS.values():
        if (config.dim, 3, config.patch_size, config.patch_size) == shape and config.depth == depth:
            return config
    raise WeightsMismatchError(
        f"{file.path}: an encoder with patch embedding {shape} and {depth} blocks is no preset: "
        "pass model=ModelConfig(...)"
    )


def _random_heads(
    path: Path, named: Mapping[str, Tensor], config: ModelConfig | None, seed: int | None
) -> dict[str, Tensor]:
    """Random heads for a pre-trained encoder."""
    if seed is None:
        raise WeightsMismatchError(
            f"{path}: an encoder without a head, which cannot track; to train from it, pass seed=... for a random head"
        )
    drawn = _drawn(Trainee(config or PRESETS["base"]), seed)
    return {n.removeprefix("student."): v for n, v in drawn.items() if ".head." in n and n not in named}


def _count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    indexes = {name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)}
    return len(indexes)


def sizes_in_file(path: Path, named: Mapping[str, Tensor]) -> dict[str, int]:
    """The settings that the shapes determine."""

    def shape(name: str, rank: int) -> torch.Size:
        if name not in named:
            raise WeightsMismatchError(f"{path}: {name} is missing")
        if named[name].dim() != rank:
            raise WeightsMismatchError(f"{path}: {name} has shape {tuple(named[name].shape)}, expected {rank} axes")
        return named[name].shape

    patch = shape("rgb.patch_embed.weight", 4)
    dim, side = patch[0], patch[-1]
    grids = []
    for name in ("rgb.pos_embed_template", "rgb.pos_embed_search"):
        tokens = shape(name, 3)[1]
        if round(tokens**0.5) ** 2 != tokens:
            raise WeightsMismatchError(f"{path}: {name} has {tokens} positions, not a square grid")
        grids.append(round(tokens**0.5))
    return {
        "dim": dim,
        "depth": _count_blocks(named, "rgb.blocks."),
        "head_channels": shape("head.score.0.0.weight", 4)[0],
        "mlp_ratio": shape("rgb.blocks.0.fc1.weight", 2)[0] // max(dim, 1),
        "template_size": grids[0] * side,
        "search_size": grids[1] * side,
        "patch_size": side,
    }


def _settle(file: WeightsFile, named: Mapping[str, Tensor], config: ModelConfig | None) -> ModelConfig:
    """Sizes by the file's shapes, its metadata and the caller; contradictions are an error."""
    path = file.path
    sizes = sizes_in_file(path, named)
    stored = _stored_config(file)
    if stored is not None and config is not None:
        fixed = [f.name for f in dataclasses.fields(ModelConfig) if f.name not in RUN_SETTINGS]
        _agree(path, "its metadata", {name: getattr(stored, name) for name in fixed}, config)
    base = config or stored
    if base is None:
        base = next((p for p in PRESETS.values() if all(getattr(p, n) == sizes[n] for n in SHAPE_SETTINGS)), None)
    if base is None:
        found = ", ".join(f"{name}={value}" for name, value in sizes.items())
        raise WeightsMismatchError(
            f"{path}: its sizes ({found}) are no preset, and a file does not say the number of heads: "
            "pass model=ModelConfig(..., heads=...)"
        )
    _agree(path, "its tensors", sizes, base)
    return base


def _agree(path: Path, source: str, found: Mapping[str, object], config: ModelConfig) -> None:
    """Raise if sizes found in a file contradict the configuration."""
    expected = {name: getattr(config, name) for name in found}
    wrong = [f"{name}={value} (expected {expected[name]})" for name, value in found.items() if value != expected[name]]
    if wrong:
        name = preset_name(config)
        model = f"model {name!r}" if name else "the given model"
        raise WeightsMismatchError(f"{path}: not {model}: by {source} {', '.join(wrong)}")


def _stored_config(file: WeightsFile) -> ModelConfig | None:
    if file.metadata.get("format") != FORMAT:
        return None
    if file.metadata.get("format_version") != FORMAT_VERSION:
        raise WeightsMismatchError(
            f"{file.path}: written in format version {file.metadata.get('format_version')!r}; "
            f"this ckd_fast ({__version__}) reads version {FORMAT_VERSION}: update ckd_fast"
        )
    try:
        return ModelConfig.from_dict(metadata_json(file.metadata, "config", file.path))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        if isinstance(error, CorruptWeightsError):
            raise
        raise CorruptWeightsError(f"{file.path}: its metadata describes no model ({error})") from error


def _stored_provenance(file: WeightsFile) -> Provenance:
    if "provenance" not in file.metadata:
        return Provenance(file.path.name, "ckd_fast weights", file.sha256)
    known = {field.name for field in dataclasses.fields(Provenance)}
    values = metadata_json(file.metadata, "provenance", file.path)
    kept = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in known}
    if not kept.get("sha256") and kept.get("seed") is None:
        kept["sha256"] = file.sha256  # trained weights have no other source than this file
    try:
        return Provenance(**kept)  # type: ignore[arg-type]
    except TypeError as error:
        raise CorruptWeightsError(f"{file.path}: its provenance is incomplete ({error})") from error


def _stored_threshold(file: WeightsFile) -> float | None:
    if "calibration" not in file.metadata:
        return None
    value = metadata_json(file.metadata, "calibration", file.path).get("lost_threshold")
    if not is_threshold(value):
        raise CorruptWeightsError(f"{file.path}: its calibration has lost_threshold={value!r}; expected one in [0, 1]")
    return value


def is_threshold(value: object) -> TypeGuard[float]:
    """Whether a value can be a threshold of scores."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _share(path: Path, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep one copy of a shared backbone; if a file has two, they must be equal."""
    for name, value in named.items():
        if name.startswith("tir.") and not torch.equal(value, named.get("rgb." + name[4:], value.new_empty(0))):
            raise WeightsMismatchError(f"{path}: share_students=True, but {name} differs between the two branches")
    return {name: value for name, value in named.items() if not name.startswith("tir.")}


def _compare(path: Path, named: Mapping[str, Tensor], config: ModelConfig, model: type[nn.Module], prefix: str) -> None:
    """Raise unless these are exactly the model's tensors, in its shapes."""
    with torch.device("meta"):
        expected = expected_shapes(model(config))
    missing = [name for name in expected if name not in named]
    extra = [name for name in named if name not in expected]
    shaped = [name for name in expected if name in named and named[name].shape != expected[name]]
    if not (missing or extra or shaped):
        return
    lines = [f"{path}: does not fit the model"]
    if missing:
        names = some_names([name.removeprefix(prefix) for name in missing])
        lines.append(f"missing {len(missing)} of {len(expected)}: {names}")
    if extra:
        lines.append(f"unexpected {len(extra)}: {some_names([name.removeprefix(prefix) for name in extra])}")
    lines += [
        f"{name.removeprefix(prefix)} is {tuple(named[name].shape)}, expected {tuple(expected[name])}"
        for name in shaped[:NAMES_SHOWN]
    ]
    raise WeightsMismatchError("; ".join(lines))
