"""Exported files as tests use them: made once, and spoilt on purpose."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from both import TWO_BLOCKS
from support import enliven

from ckd_fast import LoadedModel, ModelConfig, load_model
from ckd_fast.exporting import export_model

PREFIX = "ckd_fast."


@dataclass(frozen=True)
class Case:
    """What to export: a change of `TWO_BLOCKS`, and the arguments of `export_model`."""

    change: tuple[tuple[str, Any], ...] = ()
    targets: int | str = 1
    crops: str = "uint8"

    @property
    def config(self) -> ModelConfig:
        return dataclasses.replace(TWO_BLOCKS, **dict(self.change))


PLAIN = Case()
ANY_NUMBER = Case((("elimination", "ce"),), "dynamic", "normalised")
THREE = Case((("elimination", "none"), ("share_students", True)), 3)
CASES = [PLAIN, ANY_NUMBER, THREE]


@dataclass(frozen=True)
class Made:
    """An export and the weights in it."""

    path: Path
    model: LoadedModel

    @property
    def template(self) -> Path:
        return self.path.with_name(f"{self.path.stem}.template.onnx")


def model(config: ModelConfig, seed: int = 3) -> LoadedModel:
    loaded = dataclasses.replace(load_model("random", config, seed=seed), lost_threshold=0.25)
    enliven(loaded.student(), seed)  # it shares its tensors
    return loaded


def make(case: Case, folder: Path) -> Made:
    loaded = model(case.config)
    path = folder / "model.onnx"
    export_model(loaded, path, targets=case.targets, crops=case.crops)  # type: ignore[arg-type]
    return Made(path, loaded)


def copied(made: Made, folder: Path) -> Made:
    """The same files in another folder, to be changed."""
    for file in (made.path, made.template):
        shutil.copy(file, folder / file.name)
    return dataclasses.replace(made, path=folder / made.path.name)


def changed(file: Path, change: Callable[[Any], object]) -> None:
    """Rewrite one file with a change of its protobuf message."""
    import onnx

    proto = onnx.ModelProto.FromString(file.read_bytes())
    change(proto)
    file.write_bytes(proto.SerializeToString())


def put(proto: Any, **about: str | None) -> None:
    """Set entries of the metadata; None removes one."""
    kept = {entry.key: entry.value for entry in proto.metadata_props}
    kept |= {f"{PREFIX}{name}": value for name, value in about.items()}
    del proto.metadata_props[:]
    for key, value in kept.items():
        if value is not None:
            proto.metadata_props.add(key=key, value=value)


def describe_again(made: Made, **about: str | None) -> None:
    """Change the metadata of both files, so that they still belong together."""
    changed(made.template, lambda proto: put(proto, **about))
    digest = hashlib.sha256(made.template.read_bytes()).hexdigest()
    changed(made.path, lambda proto: put(proto, **about, template_sha256=digest))
