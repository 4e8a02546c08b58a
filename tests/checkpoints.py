"""Checkpoints as the field's programs write them, with random weights."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict

import torch
from support import ROOT

from ckd_fast import ModelConfig
from ckd_fast.reference.model import Trainee
from ckd_fast.weights.keys import from_authors
from ckd_fast.weights.load import expected_shapes

SMALL = ModelConfig(dim=32, depth=2, heads=2, head_channels=16, eliminate_at=(1,))


class Settings:
    """Stands for the objects that the authors' trainer pickles beside the tensors."""

    def __init__(self) -> None:
        self.epoch, self.lists = 25, [argparse.Namespace(a=1)]


def published_shapes(*, teachers: bool) -> dict[str, list[int]]:
    """Key names and shapes of the authors' full-size checkpoint."""
    path = ROOT / "tests" / "golden" / f"ckd_keys_{'train' if teachers else 'infer'}.json"
    shapes: dict[str, list[int]] = json.loads(path.read_text())
    return shapes


def authors_names(config: ModelConfig, *, teachers: bool = False, seed: int = 0) -> OrderedDict[str, torch.Tensor]:
    """A state dict as the authors' program writes it, unused entries and batch counters included."""
    names = published_shapes(teachers=teachers)
    shapes = expected_shapes(Trainee(config))
    generator = torch.Generator().manual_seed(seed)
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name in names:
        ours = from_authors(name)
        if ours is None:
            state[name] = torch.tensor(7) if name.endswith("tracked") else torch.zeros(1, 3, config.dim)
            continue
        ours = ours if ours.startswith("teacher_") else f"student.{ours}"
        if ours in shapes:
            state[name] = torch.randn(shapes[ours], generator=generator)
            if "running_var" in name:
                state[name] = state[name].abs()
    return state


def one_stream(config: ModelConfig, *, template_grid: int = 8, search_grid: int = 16, head: bool = True) -> dict:
    """A state dict as OSTrack writes it."""
    source = authors_names(config, teachers=True)
    state = {f"backbone.{n.removeprefix('teacher_rgb.')}": v for n, v in source.items() if n.startswith("teacher_rgb.")}
    if head:
        state |= {f"box_head.{n.partition('.')[2]}": v for n, v in source.items() if n.startswith("box_head_v.")}
    state["backbone.pos_embed_z"] = torch.randn(1, template_grid**2, config.dim)
    state["backbone.pos_embed_x"] = torch.randn(1, search_grid**2, config.dim)
    return state
