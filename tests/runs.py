"""What the tests of training share: a model that trains in milliseconds, and data on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np

from ckd_fast import ModelConfig
from ckd_fast.training.config import SceneConfig, Source, Stage, TrainConfig, Upkeep

MODEL = ModelConfig(dim=16, depth=2, heads=1, head_channels=8, eliminate_at=(1,), template_size=32, search_size=64)
SYNTHETIC = Source("synthetic", scene=SceneConfig(clutter=1, distractors=1))
DISTIL = Stage("distil", epochs=1, pairs=16, batch=4, hidden=0.25, head_rate=1e-3, backbone_rate=1e-3)
ELIMINATE = Stage(
    "eliminate", epochs=1, pairs=8, batch=4, hidden=0.0, elimination=True, heads_only=True, head_rate=1e-3
)


def config(**changes: object) -> TrainConfig:
    """Four steps of distillation, two of the head alone."""
    made = TrainConfig(
        model=MODEL,
        stages=(DISTIL, ELIMINATE),
        sources=(SYNTHETIC,),
        clip_norm=1.0,
        ema=0.9,
        workers=0,
        upkeep=Upkeep(log_every=1, checkpoint_every=2, validate_every=0, validation_pairs=32),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def write_sequence(folder: Path, frames: int = 6, size: tuple[int, int] = (96, 72), seed: int = 0) -> list[list[float]]:
    """A bright box that moves over noise, as PNG; its boxes."""
    random = np.random.default_rng(seed)
    boxes = []
    for name in ("visible", "infrared"):
        (folder / name).mkdir(parents=True)
    for index in range(frames):
        x, y, w, h = 20 + 5 * index, 18 + 2 * index, 24, 20
        boxes.append([float(x), float(y), float(w), float(h)])
        for name in ("visible", "infrared"):
            image = random.integers(0, 90, (size[1], size[0], 3), dtype=np.uint8)
            image[y : y + h, x : x + w] = (40, 120, 240) if name == "visible" else 250
            assert cv2.imwrite(str(folder / name / f"{index:06d}.png"), image)
    (folder / "groundtruth.txt").write_text("\n".join(",".join(map(str, box)) for box in boxes) + "\n")
    return boxes
