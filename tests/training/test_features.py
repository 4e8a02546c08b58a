"""Imitating a public network's features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import MODEL, config

from ckd_fast.errors import InputError
from ckd_fast.training import Trainer
from ckd_fast.training.config import Stage, Upkeep
from ckd_fast.training.features import FeatureTeacher, imitation_loss, projection
from ckd_fast.training.processes import Process


def test_the_projection_keeps_distances_and_never_changes() -> None:
    columns = projection(256, 128)
    assert torch.allclose(columns.T @ columns, torch.eye(128), atol=1e-5)
    assert torch.equal(columns, projection(256, 128))
    points = torch.randn(50, 256, generator=torch.Generator().manual_seed(0))
    ratio = torch.pdist(points @ columns) / torch.pdist(points)
    assert ratio.mean() == pytest.approx(0.5**0.5, abs=0.01)
    assert ratio.std() < 0.05


def test_the_loss_by_hand() -> None:
    generator = torch.Generator().manual_seed(1)
    features = 5 + 3 * torch.randn(2, 4, 30, 16, generator=generator)
    features[..., 3] = 7.0  # a channel that says nothing
    tokens = torch.randn(2, 4, 30, 12, generator=generator)  # eight of them imitate

    def standardised(values: np.ndarray) -> np.ndarray:
        flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
        spread = np.maximum(flat.std(0, ddof=1), 1e-4)
        return ((flat - flat.mean(0)) / spread).reshape(values.shape)

    target = standardised(standardised(features.numpy()) @ projection(16, 8).numpy())
    expected = np.mean((tokens.numpy()[..., :8] - target) ** 2)
    assert float(imitation_loss(tokens, features)) == pytest.approx(expected, rel=1e-5)
    perfect = torch.cat([torch.from_numpy(target).float(), tokens[..., 8:]], dim=-1)
    assert float(imitation_loss(perfect, features)) < 1e-9


def test_the_gradient_reaches_the_imitating_channels_alone() -> None:
    tokens = torch.randn(2, 3, 10, 12, requires_grad=True)
    imitation_loss(tokens, torch.randn(2, 3, 10, 16)).backward()
    assert tokens.grad is not None
    assert tokens.grad[..., :8].abs().min() > 0
    assert tokens.grad[..., 8:].abs().max() == 0


def test_another_grid_is_refused() -> None:
    with pytest.raises(InputError, match=r"makes 9 vectors of the crops' 10 patches: it needs a stride equal to"):
        imitation_loss(torch.zeros(2, 3, 10, 12), torch.zeros(2, 3, 9, 16))


def network(path: Path, stride: int = 4) -> Path:
    """A network that takes means over square patches, twice: six channels."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'ckd_fast[export]'")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'ckd_fast[onnx]'")
    weight = np.zeros((6, 3, stride, stride), np.float32)
    for channel in range(6):
        weight[channel, channel % 3] = (1 + channel // 3) / stride**2
    helper = onnx.helper
    value = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight"], ["features"], strides=[stride, stride])],
        "means",
        [helper.make_tensor_value_info("image", value, ["b", 3, "h", "w"])],
        [helper.make_tensor_value_info("features", value, ["b", 6, "y", "x"])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_features_are_those_of_the_network_in_raster_order(tmp_path: Path) -> None:
    teacher = FeatureTeacher(str(network(tmp_path / "means.onnx")), threads=1)
    images = torch.rand(2, 3, 3, 8, 12) * 255
    tokens = teacher.tokens(images)
    assert tokens.shape == (2, 3, 6, 6)
    mean = torch.tensor([123.675, 116.28, 103.53])
    patch = images[1, 2, :, 4:8, 8:12].mean((1, 2)) - mean  # the last one
    assert torch.allclose(tokens[1, 2, 5], torch.cat([patch, 2 * patch]), atol=1e-3)
    second = images[0, 1, :, 0:4, 4:8].mean((1, 2)) - mean
    assert torch.allclose(tokens[0, 1, 1, :3], second, atol=1e-3)


def test_what_is_no_network(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'ckd_fast[onnx]'")
    with pytest.raises(InputError, match=r"feature_teacher='none\.onnx': no such file"):
        FeatureTeacher("none.onnx", 1)
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(InputError, match="not a network that ONNX Runtime reads"):
        FeatureTeacher(str(tmp_path / "text.onnx"), 1)


def test_students_learn_to_imitate(tmp_path: Path) -> None:
    stage = Stage("students", epochs=1, pairs=240, batch=4, hidden=0.0, students_only=True, imitation=1.0,
                  head_rate=1e-3, backbone_rate=3e-3)  # fmt: skip
    upkeep = Upkeep(log_every=10, checkpoint_every=100, validate_every=0)
    teacher = str(network(tmp_path / "means.onnx", MODEL.patch_size))
    settings = config(stages=(stage,), feature_teacher=teacher, imitate_after=1, upkeep=upkeep)
    Trainer(settings, tmp_path / "run", Process(0, 1, torch.device("cpu"))).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    terms = [line["imitation"] for line in lines if line["kind"] == "step"]
    assert terms[0] > 1
    assert terms[-1] < 0.6 * terms[0]
    assert lines[-1]["loss"] > lines[-1]["imitation"]  # it is a part of the whole


@pytest.mark.parametrize(("stage", "changes", "message"), [
    ({"imitation": 1.0}, {}, r"imitation=1\.0: expected a number from 0, with students_only"),
    ({"imitation": -1.0, "students_only": True}, {}, r"imitation=-1\.0: expected a number from 0"),
    ({"imitation": 1.0, "students_only": True}, {"imitate_after": 3}, "imitate_after=3: the model has 2 blocks"),
    ({"imitation": 1.0, "students_only": True, "elimination": True}, {"imitate_after": 2}, "block 1 drops and"),
    ({"imitation": 1.0, "students_only": True}, {"imitate_after": 1}, "feature_teacher is empty: name its ONNX file"),
])  # fmt: skip
def test_what_imitation_needs(tmp_path: Path, stage: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trainer(config(stages=(Stage(**stage),), **changes), tmp_path / "run", Process(0, 1, torch.device("cpu")))
    assert not (tmp_path / "run").exists()
