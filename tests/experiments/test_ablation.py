"""experiments/ablation.py: rows differ only in what their names say; a finished run is not taken for another."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import ablation
import pytest
from curves import flat

from ckd_fast.training import recipe

PLANS = {plan.name: plan for plan in ablation.plan_rows(6400, recipe("packaged"))}


def changes(name: str) -> dict[str, object]:
    """Settings of a row that are not those of the base row."""
    base, row = (flat(json.loads(PLANS[one].config.to_json())) for one in (ablation.BASE, name))
    return {key: value for key, value in row.items() if base[key] != value}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("baseline", {"stages[0].hidden": 0, "losses.style_weight": 0, "losses.content_weight": 0}),
        ("sd", {"stages[0].hidden": 0, "losses.content_weight": 0}),
        ("sd-cd", {"stages[0].hidden": 0}),
        ("sd-cd-mm", {}),
        ("in", {"stages[0].hidden": 0, "losses.style_weight": 0}),
        ("fd", {"stages[0].hidden": 0, "losses.style_weight": 0, "distillation": "features"}),
        ("mask-75", {"stages[0].hidden": 0.75}),
        ("style-x0.1", {"losses.style_weight": pytest.approx(1e-5)}),
        ("content-x10", {"losses.content_weight": pytest.approx(0.2)}),
    ],
)
def test_rows_differ_in_what_their_names_say(name: str, expected: dict[str, object]) -> None:
    assert changes(name) == expected
    assert PLANS[name].after is None
    assert PLANS[name].config.stages[0].pairs == 6400


def test_rows_of_elimination_go_on_with_heads_alone() -> None:
    for kind in ("none", "ce", "mce"):
        plan = PLANS[f"eliminate-{kind}"]
        assert plan.after == ablation.BASE
        (stage,) = plan.config.stages
        assert (stage.elimination, stage.heads_only, plan.config.model.elimination) == (True, True, kind)
    assert list(PLANS).index(ablation.BASE) < list(PLANS).index("eliminate-none")


def test_a_finished_run_is_kept_and_another_is_refused(tmp_path: Path) -> None:
    plan = PLANS["sd"]
    (tmp_path / "config.json").write_text(dataclasses.replace(plan.config, init="start.safetensors").to_json())
    (tmp_path / "final.safetensors").write_bytes(b"trained")
    assert ablation.train(plan, "start.safetensors", tmp_path) == tmp_path / "final.safetensors"
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        ablation.train(plan, "other.safetensors", tmp_path)
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        ablation.train(PLANS["sd-cd"], "start.safetensors", tmp_path)
