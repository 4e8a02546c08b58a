"""The configuration of a run: the published values, files, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from support import ROOT

from ckd_fast import PRESETS, InputError
from ckd_fast.reference.losses import LossConfig
from ckd_fast.training.config import Stage, TrainConfig, read_config
from ckd_fast.training.recipes import HELD_OUT, RECIPES, TRAINED_ON, config_from_file, recipe


def test_the_default_is_what_the_authors_ran() -> None:
    config = TrainConfig()
    distil, head = config.stages
    sizes = (distil.epochs, distil.pairs, distil.batch, distil.hidden)
    assert (*sizes, distil.elimination, distil.heads_only) == (30, 60000, 10, 0.25, False, False)
    assert (distil.head_rate, distil.backbone_rate, distil.schedule) == (5e-5, 5e-6, "constant")
    assert (head.epochs, head.pairs, head.batch, head.hidden) == (10, 30000, 64, 0.0)
    assert head.elimination
    assert head.heads_only
    assert (config.clip_norm, config.weight_decay, config.drop_path, config.precision) == (0.1, 1e-4, 0.1, "float32")
    assert (config.losses.style_weight, config.losses.content_weight) == (0.01, 0.1)
    sampling, changes = config.sampling, config.augmentation
    assert (sampling.longest_gap, sampling.centre_jitter, sampling.scale_jitter) == (200, 3.0, 0.25)
    assert (changes.grayscale, changes.flip, changes.brightness, changes.rotation_degrees) == (0.05, 0.5, 0.2, 0.0)
    assert config.model == PRESETS["base"]
    assert distil.steps_per_epoch(2) == 3000


def test_recipes_differ_in_what_they_are_named_for() -> None:
    weights = {name: (RECIPES[name].losses.style_weight, RECIPES[name].losses.content_weight) for name in RECIPES}
    assert weights["baseline"] == (0, 0)
    assert weights["sd"] == (0.01, 0)
    assert weights["sd-cd"] == weights["sd-cd-mm"] == (0.01, 0.1)
    assert weights["in"] == weights["fd"] == (0, 0.1)
    assert RECIPES["fd"].distillation == "features"
    assert [RECIPES[f"mask-{share}"].stages[0].hidden for share in (0, 25, 50, 75)] == [0, 0.25, 0.5, 0.75]
    assert [RECIPES[f"eliminate-{kind}"].model.elimination for kind in ("none", "ce", "mce")] == ["none", "ce", "mce"]
    paper = RECIPES["ckd-paper"]
    assert paper.losses == LossConfig.paper()
    assert paper.stages[0].batch * 2 == 40
    assert paper.augmentation.rotation_degrees > 0
    assert (RECIPES["ckd-vtuav"].stages[0].epochs, RECIPES["ckd-vtuav"].sources[0].name) == (5, "vtuav-train")


def test_the_packaged_recipe_never_sees_what_is_held_out() -> None:
    sources = recipe("packaged").sources
    seen = {name for source in sources for name in source.sequences}
    assert seen == set(TRAINED_ON)
    assert not seen & set(HELD_OUT)
    assert not [name for name in seen if name.startswith("tno")]
    assert all(source.sequences for source in sources if source.kind == "dataset")


def test_the_next_packaged_model_never_sees_what_judges_it() -> None:
    config = config_from_file(ROOT / "experiments" / "packaged.json")
    footage = [source for source in config.sources if source.kind == "footage"]
    assert len(footage) == 2
    for source in footage:
        assert set(source.exclude) == {"0117_1605", "0111_1753", "0111_1803"}  # tests are not among the recordings
        assert not source.sequences
    assert {source.root for source in config.sources if source.kind == "stills"} == {"pairs/msrs", "footage/hit_uav"}
    assert not [source for source in config.sources if source.kind == "dataset"]


@pytest.mark.parametrize("name", RECIPES)
def test_json_gives_the_same_run(name: str) -> None:
    config = recipe(name)
    assert read_config(config.to_json(), "file") == config


def test_a_file_names_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(
        '{"recipe": "sd", "model": "tiny", "losses": {"style_weight": 0.5}, "sampling": {"longest_gap": 30}}'
    )
    config = config_from_file(file)
    assert config.model == PRESETS["tiny"]
    assert (config.losses.style_weight, config.losses.content_weight) == (0.5, 0.0)
    assert (config.sampling.longest_gap, config.sampling.centre_jitter) == (30, 3.0)
    assert config.stages == recipe("sd").stages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"sed": 1}', "unknown setting 'sed'"),
        ('{"seed": "1"}', "seed: '1'; expected int"),
        ('{"seed": true}', "expected int"),
        ('{"losses": {"style": 1}}', "losses: unknown setting 'style'"),
        ('{"precision": "float16"}', "known are 'float32', 'bfloat16'"),
        ('{"stages": [{"batch": 1}]}', "batch norm"),
        ('{"stages": []}', "at least one stage"),
        ('{"sources": [{"kind": "film"}]}', r"sources\[0\]: kind: 'film'"),
        ('{"model": "huge"}', "model: unknown model 'huge'"),
        ('{"model": {"dim": 7}}', "not a multiple"),
        ('{"losses": {"style_gradient": "up"}}', "style_gradient: 'up'"),
        ('{"sources": [{"kind": "stills"}]}', "needs its folder"),
        ('{"loss_engine": "fused", "distillation": "features"}', "coupled"),
    ],
)
def test_what_is_refused_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_config(text, "run.json")


def test_an_unknown_recipe_lists_the_known(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"recipe": "ckb"}))
    with pytest.raises(InputError, match=r"'ckb': known are ckd, ckd-paper"):
        config_from_file(file)


def test_schedules() -> None:
    stage = Stage(schedule="cosine", warmup=0.1)
    factors = [stage.rate_factor(step, 100) for step in range(100)]
    assert factors[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.505)  # halfway down
    assert factors[99] == pytest.approx(0.0103, abs=1e-4)
    assert max(factors) == factors[10]
    constant = dataclasses.replace(stage, schedule="constant", warmup=0.0)
    assert {constant.rate_factor(step, 100) for step in range(100)} == {1.0}
