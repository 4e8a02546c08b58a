"""Recipes by name: the authors' training, the paper's text, the paper's ablations, and the packaged model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ckd_fast.errors import InputError
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.losses import LossConfig

from .config import Augmentation, Sampling, SceneConfig, Source, Stage, TrainConfig, Upkeep, read_config

AUTHORS = TrainConfig()
_DISTIL, _ELIMINATE = AUTHORS.stages
# An ablation gives the terms it leaves out weight zero. The teachers stay, so that nothing else differs.
_NO_STYLE = dataclasses.replace(AUTHORS.losses, style_weight=0.0)
_NO_CONTENT = dataclasses.replace(AUTHORS.losses, content_weight=0.0)
_NEITHER = dataclasses.replace(AUTHORS.losses, style_weight=0.0, content_weight=0.0)


def _masked(share: float, losses: LossConfig = AUTHORS.losses) -> TrainConfig:
    return dataclasses.replace(AUTHORS, losses=losses, stages=(dataclasses.replace(_DISTIL, hidden=share), _ELIMINATE))


def _eliminating(kind: str) -> TrainConfig:
    model = ModelConfig.from_dict({**AUTHORS.model.to_dict(), "elimination": kind})
    return dataclasses.replace(AUTHORS, model=model)


# What two cores can train in an hour or two: crops of half the published side, four blocks of 128 channels. Without
# elimination: with 64 tokens it would save little, and it costs this model much accuracy (docs/model-card.md).
PACKAGED_MODEL = ModelConfig(
    elimination="none", dim=128, depth=4, heads=2, head_channels=64, eliminate_at=(2,),
    template_size=64, search_size=128, search_factor=3.0,
)  # fmt: skip
HELD_OUT = ("m3svd_0111_1716", "m3svd_0113_1714_black", "m3svd_0113_1714_red")
TRAINED_ON = ("m3svd_0111_1753", "m3svd_0111_1803", "m3svd_0117_1605_a", "m3svd_0117_1605_b")

RECIPES: Mapping[str, TrainConfig] = MappingProxyType(
    {
        "ckd": AUTHORS,
        # The paper's text: 1/N, 1/L, 2:1, rotation (it names no angle), and 40 pairs per step on two GPUs.
        "ckd-paper": dataclasses.replace(
            AUTHORS,
            losses=LossConfig.paper(),
            augmentation=Augmentation(rotation_degrees=10.0),
            stages=(dataclasses.replace(_DISTIL, batch=20), _ELIMINATE),
        ),
        "ckd-vtuav": dataclasses.replace(
            AUTHORS,
            sources=(Source("dataset", name="vtuav-train"),),
            stages=(dataclasses.replace(_DISTIL, epochs=5), _ELIMINATE),
        ),
        "baseline": _masked(0.0, _NEITHER),
        "sd": _masked(0.0, _NO_CONTENT),
        "sd-cd": _masked(0.0),
        "sd-cd-mm": _masked(0.25),
        # Content through instance norm without the style term; and imitation of raw features.
        "in": _masked(0.0, _NO_STYLE),
        "fd": dataclasses.replace(_masked(0.0, _NO_STYLE), distillation="features"),
        "mask-0": _masked(0.0),
        "mask-25": _masked(0.25),
        "mask-50": _masked(0.5),
        "mask-75": _masked(0.75),
        "eliminate-none": _eliminating("none"),
        "eliminate-ce": _eliminating("ce"),
        "eliminate-mce": _eliminating("mce"),
        "packaged": TrainConfig(
            model=PACKAGED_MODEL,
            stages=(
                # First the students alone learn to find a template; the published recipe starts from a tracker.
                Stage(
                    "students", epochs=1, pairs=192000, batch=24, hidden=0.0, warmup=0.02, students_only=True,
                    head_rate=2.5e-3, backbone_rate=1.75e-3,
                ),
                Stage(
                    "distil", epochs=1, pairs=80000, batch=16, hidden=0.1, schedule="cosine", warmup=0.05,
                    head_rate=1.5e-3, backbone_rate=1e-3,
                ),
            ),
            # Features that grew from random weights are larger than ViT-B's: at its published weight the style term
            # starts at over a hundred times all others together, and undoes what the students learned.
            losses=LossConfig(style_weight=1e-4, content_weight=0.02),
            sources=(
                Source("synthetic", share=0.75, scene=SceneConfig(distractors=4, thermal_range=1.0)),
                Source("dataset", share=0.13, name="folder", root="sequences", sequences=TRAINED_ON),
                Source("stills", share=0.12, root="pairs/msrs"),
            ),
            sampling=Sampling(centre_jitter=1.3, scale_jitter=0.5),
            augmentation=Augmentation(grayscale=0.15),
            clip_norm=1.0,
            drop_path=0.0,
            ema=0.999,
            precision="bfloat16",
            workers=0,
            upkeep=Upkeep(log_every=50, checkpoint_every=500, validate_every=500, validation_pairs=256),
        ),
    }
)  # fmt: skip


def config_from_file(path: Path) -> TrainConfig:
    """A configuration file; "recipe" in it names what it starts from (default "ckd")."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    return read_config(text, str(path), recipe)


def recipe(name: str) -> TrainConfig:
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}: known are {', '.join(RECIPES)}")
    return RECIPES[name]
