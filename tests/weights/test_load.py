"""Every kind of file of the field loads, with the same numbers under our names."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SMALL, Settings, authors_names, one_stream, published_shapes
from safetensors.torch import load_file, save_file
from support import GOLDEN_CONFIG, Golden

from ckd_fast import (
    PRESETS,
    CorruptWeightsError,
    InputError,
    LoadedModel,
    MissingModelError,
    ModelConfig,
    OutputError,
    WeightsMismatchError,
    load_model,
    save_model,
)
from ckd_fast.reference.model import Student, Trainee, initialise
from ckd_fast.weights import convert_weights, inspect_weights
from ckd_fast.weights.files import open_weights, write_safetensors
from ckd_fast.weights.keys import from_authors, is_unused
from ckd_fast.weights.load import expected_shapes


def loaded_from(path: Path, content: object, model: ModelConfig | None = SMALL, **more: Any) -> LoadedModel:
    torch.save(content, path, **more)
    return load_model(path, model)


def test_every_published_key_has_a_home() -> None:
    """The key lists of the full-size model against ours: names and shapes."""
    for name, model in (("infer", Student), ("train", Trainee)):
        published = published_shapes(teachers=name == "train")
        with torch.device("meta"):
            expected = expected_shapes(model(PRESETS["base"]))
        found = {}
        for key, shape in published.items():
            ours = from_authors(key)
            if ours is None:
                assert is_unused(key.partition(".")[2]), key
                continue
            found[ours if name == "infer" or ours.startswith("teacher_") else f"student.{ours}"] = torch.Size(shape)
        assert found == expected


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapping", ["net", "bare", "module"])
def test_authors_checkpoint(tmp_path: Path, wrapping: str, *, legacy: bool) -> None:
    state = authors_names(SMALL)
    content: dict = {
        "net": {"epoch": 25, "net": state, "stats": OrderedDict(loss=Settings()), "settings": Settings()},
        "bare": state,
        "module": {"model": {f"module.{name}": value for name, value in state.items()}},
    }[wrapping]  # fmt: skip
    loaded = loaded_from(tmp_path / "CKD_ep0025.pth.tar", content, _use_new_zipfile_serialization=not legacy)
    assert loaded.config == SMALL
    assert loaded.provenance.kind == "CKD checkpoint, 2 branches"
    assert len(loaded.provenance.sha256) == 64
    assert bool(loaded.provenance.not_loaded) == (wrapping == "net")
    same = [torch.equal(loaded.weights[ours], value) for name, value in state.items() if (ours := from_authors(name))]
    assert all(same)
    assert len(same) == len(loaded.weights) == len(expected_shapes(Student(SMALL)))
    maps = loaded.student()(torch.zeros(2, 1, 64, 32), torch.zeros(2, 1, 3, 256, 256)).maps
    assert torch.isfinite(maps.score).all()
    with pytest.raises(InputError, match="holds no teachers"):
        loaded.trainee()


def test_four_branches(tmp_path: Path) -> None:
    state = authors_names(SMALL, teachers=True)
    loaded = loaded_from(tmp_path / "stage1.pth.tar", {"net": state})
    assert loaded.provenance.kind == "CKD checkpoint, 4 branches"
    trainee = loaded.trainee()
    assert torch.equal(trainee.teacher_tir.head.size[4].weight, state["box_head_i.conv5_size.weight"])
    assert torch.equal(trainee.student.tir.blocks[1].fc1.bias, state["tir_branch.blocks.1.mlp.fc1.bias"])
    assert trainee.training
    with torch.no_grad():
        trainee.student.rgb.norm.weight.add_(1)
    assert torch.equal(loaded.weights["rgb.norm.weight"], state["rgb_branch.norm.weight"])


def test_golden_weights_track_alike_after_conversion(tmp_path: Path) -> None:
    golden = Golden("ckd_small_mce.npz")
    torch.save({"net": golden.authors_weights()}, tmp_path / "golden.pth.tar")
    convert_weights(tmp_path / "golden.pth.tar", tmp_path / "golden.safetensors", model=GOLDEN_CONFIG)
    loaded = load_model(tmp_path / "golden.safetensors")
    assert loaded.config == GOLDEN_CONFIG
    student = loaded.student()
    template, search = (
        torch.stack([golden.tensor(f"in/{c}_{m}") for m in ("rgb", "tir")]) for c in ("template", "search")
    )
    with torch.no_grad():
        score = student(student.embed_template(template), search).maps.score
    assert torch.allclose(score, golden.tensor("out/score_map"), atol=2e-5, rtol=0)


def test_ostrack_starts_every_branch(tmp_path: Path) -> None:
    state = one_stream(SMALL)
    loaded = loaded_from(tmp_path / "OSTrack_ep0300.pth.tar", {"net": state})
    assert loaded.provenance.kind == "initial weights, one-stream tracker"
    trainee = loaded.trainee()
    for branch in (*trainee.student.branches, trainee.teacher_rgb.branch, trainee.teacher_tir.branch):
        assert torch.equal(branch.pos_embed_search, state["backbone.pos_embed_x"])
        assert torch.equal(branch.blocks[1].qkv.weight, state["backbone.blocks.1.attn.qkv.weight"])
    first = state["box_head.conv1_offset.0.weight"]
    assert torch.equal(trainee.student.head.offset[0][0].weight, torch.cat([first, first], dim=1))
    assert torch.equal(trainee.teacher_rgb.head.offset[0][0].weight, first)


def test_droptrack_positions(tmp_path: Path) -> None:
    """Tables are resized bilinearly, then the temporal embedding is added."""
    state = one_stream(SMALL, template_grid=12, search_grid=24)
    state |= {f"backbone.temporal_pos_embed_{crop}": torch.randn(1, 1, 32) for crop in "zx"}
    loaded = loaded_from(tmp_path / "DropTrack.pth.tar", {"net": state})
    for crop, name, side, grid in (("z", "template", 12, 8), ("x", "search", 24, 16)):
        table = state[f"backbone.pos_embed_{crop}"].reshape(1, side, side, 32).permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(table, (grid, grid), mode="bilinear").permute(0, 2, 3, 1)
        expected = resized.reshape(1, grid * grid, 32) + state[f"backbone.temporal_pos_embed_{crop}"]
        for modality in ("rgb", "tir"):
            assert torch.allclose(loaded.weights[f"{modality}.pos_embed_{name}"], expected, atol=1e-6)


def test_encoder_without_a_head(tmp_path: Path) -> None:
    state = {n.removeprefix("backbone."): v for n, v in one_stream(SMALL, head=False).items() if "pos_embed_" not in n}
    state["pos_embed"] = torch.randn(1, 197, 32)
    state["decoder_embed.weight"] = torch.zeros(3)
    with pytest.raises(WeightsMismatchError, match="without a head, which cannot track"):
        loaded_from(tmp_path / "mae.pth", {"model": state})
    first, again, other = (load_model(tmp_path / "mae.pth", SMALL, seed=seed) for seed in (3, 3, 4))
    assert first.provenance.seed == 3
    assert torch.equal(first.weights["head.score.0.0.weight"], again.weights["head.score.0.0.weight"])
    assert not torch.equal(first.weights["head.score.0.0.weight"], other.weights["head.score.0.0.weight"])
    assert first.trainee().student.rgb.pos_embed_search.shape == (1, 256, 32)


def test_sizes_that_the_file_settles_need_not_be_said(tmp_path: Path) -> None:
    tiny = PRESETS["tiny"]
    assert loaded_from(tmp_path / "tiny.pth.tar", {"net": authors_names(tiny)}, None).config == tiny
    with pytest.raises(WeightsMismatchError, match=r"dim=32.*does not say the number of heads"):
        loaded_from(tmp_path / "odd.pth.tar", {"net": authors_names(SMALL)}, None)


def test_run_settings_are_free_sizes_are_not(tmp_path: Path) -> None:
    save_model(load_model("random", SMALL, seed=1), tmp_path / "small.safetensors")
    chosen = dataclasses.replace(SMALL, elimination="none", template_range="ALL", search_factor=5.0)
    assert load_model(tmp_path / "small.safetensors", chosen).config == chosen
    with pytest.raises(WeightsMismatchError, match=r"by its metadata heads=2 \(expected 4\)"):
        load_model(tmp_path / "small.safetensors", dataclasses.replace(SMALL, heads=4))
    with pytest.raises(WeightsMismatchError, match=r"not model 'base'.*dim=32 \(expected 768\)"):
        load_model(tmp_path / "small.safetensors", "base")


def test_random_weights() -> None:
    first, second = load_model("random", "tiny", seed=5), load_model("random", PRESETS["tiny"], seed=5)
    assert all(torch.equal(first.weights[n], second.weights[n]) for n in first.weights)
    assert first.provenance.kind == "random weights, seed 5"
    assert first.student().training is False


def test_calibration_is_kept(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_model(load_model("random", SMALL), first)
    assert load_model(first).lost_threshold is None
    convert_weights(first, second, lost_threshold=0.25)
    assert load_model(second).lost_threshold == 0.25
    convert_weights(second, first, half="float16", force=True)
    assert inspect_weights(first).lost_threshold == 0.25
    for wrong in (1.5, True):
        with pytest.raises(InputError, match=f"lost_threshold={wrong}"):
            convert_weights(first, second, lost_threshold=wrong, force=True)
    for broken in ('{"lost_threshold": "0.2"}', '{"lost_threshold": 7}', "{}"):
        file = open_weights(first)
        write_safetensors(second, file.tensors, {**file.metadata, "calibration": broken})
        with pytest.raises(CorruptWeightsError, match="its calibration has lost_threshold="):
            load_model(second)


def test_an_installation_without_the_packaged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckd_fast.weights.load.PACKAGED", tmp_path / "packaged.safetensors")
    with pytest.raises(MissingModelError, match="give the path of a checkpoint"):
        load_model(None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": 3}, "weights is a int"),
        ({"weights": "random", "model": "huge"}, "known are base"),
        ({"weights": "random", "model": 3}, "model is a int"),
        ({"weights": "random", "seed": -1}, "seed=-1"),
        ({"weights": "random", "seed": 1.5}, "seed=1.5"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(**arguments)


@pytest.mark.parametrize("half", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("share", [False, True])
def test_saving_and_loading(tmp_path: Path, half: str | None, *, share: bool) -> None:
    config = dataclasses.replace(SMALL, share_students=share)
    trainee = Trainee(config)
    initialise(trainee, 1)
    teachers = {
        n: v.detach() for n, v in trainee.state_dict().items() if n.startswith("teacher") and "_tracked" not in n
    }
    model = dataclasses.replace(load_model("random", config), teachers=teachers)
    path = tmp_path / "model.safetensors"
    save_model(model, path, half=half, teachers=True)
    stored = load_file(path)
    kept = {name: str(value.dtype) for name, value in stored.items()}
    assert kept["rgb.norm.weight"] == f"torch.{half or 'float32'}"
    assert kept["head.score.0.1.running_mean"] == "torch.float32"
    assert any(name.startswith("tir.") for name in stored) != share
    loaded = load_model(path)
    assert loaded.config == model.config
    assert loaded.provenance == model.provenance
    for name, value in {**model.weights, **model.teachers}.items():
        expected = value.to(stored[name].dtype).float()
        assert torch.equal({**loaded.weights, **loaded.teachers}[name], expected)
    assert loaded.trainee().config.share_students == share


def test_a_shared_model_from_a_file_with_both_names(tmp_path: Path) -> None:
    shared = dataclasses.replace(SMALL, share_students=True)
    state = authors_names(SMALL)
    with pytest.raises(WeightsMismatchError, match="share_students=True, but tir"):
        loaded_from(tmp_path / "two.pth", state, shared)
    for name in list(state):
        if name.startswith("tir_branch."):
            state[name] = state["rgb_branch." + name.removeprefix("tir_branch.")]
    student = loaded_from(tmp_path / "one.pth", state, shared).student()
    assert student.rgb is student.tir


def test_saving_is_atomic_and_careful(tmp_path: Path) -> None:
    model = load_model("random", SMALL)
    path, other = tmp_path / "model.safetensors", tmp_path / "other.safetensors"
    save_model(model, path)
    before = path.read_bytes()
    wide = dataclasses.replace(model, weights={**model.weights, "rgb.norm.weight": torch.full((32,), 1e6)})
    for attempt, error, message in (
        (lambda: save_model(wide, path, half="float16"), OutputError, "beyond the range of float16"),
        (lambda: save_model(model, path, half="int8"), InputError, "half='int8'"),
        (lambda: save_model(model, tmp_path), OutputError, "a directory"),
        (lambda: save_model(model, tmp_path / "nowhere" / "model.safetensors"), OutputError, "does not exist"),
        (lambda: convert_weights(path, path), OutputError, "exists; write elsewhere or use --force"),
        (lambda: convert_weights(path, tmp_path / "model.pth"), InputError, r"ends in \.safetensors"),
        (lambda: convert_weights(path, other, teachers=True), InputError, "holds no teachers"),
    ):
        with pytest.raises(error, match=message):
            attempt()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_inspection(tmp_path: Path) -> None:
    state = authors_names(SMALL, teachers=True)
    torch.save({"net": state, "settings": Settings()}, tmp_path / "stage1.pth.tar")
    found = inspect_weights(tmp_path / "stage1.pth.tar", SMALL)
    assert (found.container, found.preset, found.teachers, found.config) == ("checkpoint", None, True, SMALL)
    assert found.tensors == len(state)
    assert found.parameters == sum(value.numel() for value in state.values())
    assert found.dtypes["float32"] + found.dtypes["int64"] == len(state)
    assert found.not_loaded == ("argparse.Namespace", f"{Settings.__module__}.Settings")


def test_plain_safetensors_under_the_authors_names(tmp_path: Path) -> None:
    state = {name: value.contiguous() for name, value in authors_names(SMALL).items()}
    save_file(state, tmp_path / "plain.safetensors")
    loaded = load_model(tmp_path / "plain.safetensors", SMALL)
    assert torch.equal(loaded.weights["head.size.4.bias"], state["box_head.conv5_size.bias"])
