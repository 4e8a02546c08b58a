"""`ckd-fast train` as people type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import config

from ckd_fast import load_model
from ckd_fast.cli import main
from ckd_fast.training import recipe, this_process
from ckd_fast.training.config import read_config


def test_a_run_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.json"
    file.write_text(config().to_json())
    arguments = ["train", str(file), "--out", str(tmp_path / "run"), "--device", "cpu", "--seed", "7", "--json"]
    assert main([*arguments, "--quiet"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == 6
    assert load_model(printed["final"]).provenance.kind == "trained by ckd-fast train"
    assert read_config((tmp_path / "run" / "config.json").read_text(), "stored") == config(seed=7)
    assert main([*arguments, "--quiet"]) == 2
    assert "go on with --resume" in capsys.readouterr().err


def test_recipes_can_be_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["ckd", "ckd-paper"]
    assert main(["train", "packaged", "--print", "--data", "somewhere", "--losses", "fused"]) == 0
    printed = read_config(capsys.readouterr().out, "printed")
    assert printed.loss_engine == "fused"
    assert [source.root for source in printed.sources] == ["", "somewhere/sequences", "somewhere/pairs/msrs"]
    assert printed.stages == recipe("packaged").stages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "CONFIG is missing"),
        (["train", "nonsense", "--out", "x"], "unknown recipe 'nonsense'"),
        (["train", "ckd"], "--out"),
        (["train", "missing.json", "--out", "x"], "missing.json: cannot be read"),
        (["train", "ckd", "--out", "x", "--device", "tpu"], "expected 'auto', 'cpu', 'cuda'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_this_process_is_what_torchrun_says() -> None:
    process = this_process("cpu", {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
    assert (process.rank, process.world, process.first, str(process.device)) == (3, 4, False, "cpu")
    assert this_process("cpu", {}).first
    with pytest.raises(ValueError, match="as torchrun sets them"):
        this_process("cpu", {"RANK": "one"})
