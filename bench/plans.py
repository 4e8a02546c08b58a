"""Plans of a frame for programs that look at launches: on a GPU with random weights, elsewhere on empty memory.

The plan is the engine's own (`ckd_fast/engines/triton/plan.py`), so what is tuned, compiled, counted and timed is what
a frame launches.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import BOX

from ckd_fast.config import TrackerConfig
from ckd_fast.engines import Search, Target
from ckd_fast.engines.triton.plan import (
    BRANCHES,
    Build,
    FrameMemory,
    Plan,
    Workspace,
    empty_crops,
    frame_memory,
    measured_memory,
    most_deciding,
    plan_frame,
    plan_measured,
    plan_template,
    rehearsed,
)
from ckd_fast.engines.triton.upload import FrameBuffer
from ckd_fast.engines.triton.weights import PackedStudent, pack
from ckd_fast.frames import FrameForm, RawPair
from ckd_fast.kernels.launch import Choose, Launch, LaunchSettings
from ckd_fast.kernels.layout import STATE, FrameKind
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.model import Student
from ckd_fast.weights import Agreement, Calibration, layer_inputs, load_model

SIZE = (480, 640)
FRAME_BYTES = 640 * 480 * 3
CLIP = FrameKind(tir_channels=1)  # the frames of `common.clip`, which the programs track


@dataclass(frozen=True)
class FramePlanner:
    """Weights and memory for so many targets, on which frames can be planned with any settings."""

    build: Build  # weights, sizes, and the settings to start from
    # what a plan reads and writes beside its workspace
    memory: FrameMemory
    buffer: FrameBuffer
    state: torch.Tensor

    def plan(self, choose: Choose | None = None, kind: FrameKind | None = None) -> Plan:
        """A frame's launches, perhaps with other tiles."""
        build = self.build
        if choose is not None:
            build = dataclasses.replace(build, settings=dataclasses.replace(build.settings, choose=choose))
        uploaded = self.buffer.uploaded(self.memory.targets, kind or CLIP)

        def planned(workspace: Workspace) -> Plan:
            return plan_frame(build, self.memory, workspace, uploaded, self.state)

        return planned(rehearsed(build, planned))

    def others(self) -> list[Launch]:
        """What the engine launches beside a frame: a new target's template, and the network alone."""
        build, config = self.build, self.build.config
        uploaded = self.buffer.uploaded(1, CLIP)
        template = plan_template(build, uploaded, self.state, build.embedded(BRANCHES, 1, config.template_tokens))
        memory, crops = measured_memory(build, 1), empty_crops(build, 1)

        def planned(workspace: Workspace) -> Plan:
            return plan_measured(build, memory, workspace, build.packed.patch, crops)

        return [*template, *planned(rehearsed(build, planned)).launches]


def frame_planner(build: Build, targets: int = 1) -> FramePlanner:
    """Room for so many targets, and a pair of noise in which each searches around the same box."""
    config, device = build.config, build.device
    buffer = FrameBuffer(FRAME_BYTES, 2 * FRAME_BYTES, targets, device)
    rgb, tir = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    tir = tir[:, :, : CLIP.tir_channels]
    searches = [Search(Target(owner=None), BOX, config.search_factor)] * targets
    buffer.fill(RawPair(rgb, tir, FrameForm(SIZE, SIZE, None), TrackerConfig()), searches, range(targets), targets)
    buffer.upload()
    state = torch.zeros(targets, STATE.value, dtype=torch.float64, device=device)
    return FramePlanner(build, frame_memory(build, targets, most_deciding(config)), buffer, state)


def random_build(config: ModelConfig, dtype: torch.dtype, settings: LaunchSettings, device: torch.device) -> Build:
    """What an engine with random weights builds."""
    student = load_model("random", config).student()
    wide, calibration = _wide(config, dtype)
    return Build(config, pack(student, device, wide, calibration), device, wide, settings)


def _wide(config: ModelConfig, dtype: torch.dtype) -> tuple[torch.dtype, Calibration | None]:
    """The precision of what is not in float8, and ranges that put all layers of the blocks into it if that is asked."""
    if dtype != torch.float8_e4m3fn:
        return dtype, None
    inputs = {name: torch.tensor([[-4.0], [4.0]]).expand(2, size) for name, size in layer_inputs(config).items()}
    return torch.bfloat16, Calibration(inputs, (), 1, "made up", Agreement(1, 1.0, 1.0))


def empty_build(config: ModelConfig, dtype: torch.dtype, settings: LaunchSettings) -> Build:
    """The same without weights, for launches that are only looked at."""
    with torch.device("meta"):
        student = Student(config).eval().requires_grad_(requires_grad=False)
        wide, calibration = _wide(config, dtype)
        packed: PackedStudent = _on_cpu(pack(student, torch.device("meta"), wide, calibration))
    return Build(config, packed, torch.device("cpu"), wide, settings)


def _on_cpu(packed: Any) -> Any:
    """The same nested dataclasses with memory in place of meta tensors."""
    if isinstance(packed, torch.Tensor):
        return torch.empty(packed.shape, dtype=packed.dtype)
    if isinstance(packed, tuple):
        return tuple(_on_cpu(part) for part in packed)
    if dataclasses.is_dataclass(packed) and not isinstance(packed, type):
        values = {field.name: _on_cpu(getattr(packed, field.name)) for field in dataclasses.fields(packed)}
        return type(packed)(**values)
    return packed
