"""`ckd-fast train` as people type it."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command
from runs import config

from ckd_fast import load_model
from ckd_fast.training import recipe, this_process
from ckd_fast.training.config import read_config


def test_a_run_from_a_file(tmp_path: Path, command: Command) -> None:
    file = tmp_path / "run.json"
    file.write_text(config().to_json())
    arguments = ["train", file, "--out", tmp_path / "run", "--device", "cpu", "--seed", "7", "--json", "--quiet"]
    told = command(*arguments)
    assert (told.code, told.json["steps"]) == (0, 6)
    assert load_model(told.json["final"]).provenance.kind == "trained by ckd-fast train"
    assert read_config((tmp_path / "run" / "config.json").read_text(), "stored") == config(seed=7)
    assert command(*arguments).refuses("go on with --resume")


def test_recipes_can_be_listed_and_printed(command: Command) -> None:
    told = command("train", "--list")
    assert (told.code, told.out.splitlines()[:2]) == (0, ["ckd", "ckd-paper"])
    told = command("train", "packaged", "--print", "--data", "somewhere", "--losses", "fused")
    assert told.code == 0
    printed = read_config(told.out, "printed")
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
    arguments: list[str], message: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = command(*arguments)
    assert told.refuses(message)
    assert told.err.count("\n") == 1


def test_this_process_is_what_torchrun_says() -> None:
    process = this_process("cpu", {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
    assert (process.rank, process.world, process.first, str(process.device)) == (3, 4, False, "cpu")
    assert this_process("cpu", {}).first
    with pytest.raises(ValueError, match="as torchrun sets them"):
        this_process("cpu", {"RANK": "one"})
