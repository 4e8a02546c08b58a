"""experiments/robustness.py: what stands beside the rows."""

from __future__ import annotations

import argparse
from pathlib import Path

import robustness
from checkpoints import SMALL

from ckd_fast import load_model, save_model
from ckd_fast.datasets import open_dataset


def test_the_result_file_says_what_made_it(tmp_path: Path) -> None:
    weights = tmp_path / "small.safetensors"
    save_model(load_model("random", SMALL, seed=3), weights)
    (tmp_path / "walk").mkdir()
    (tmp_path / "walk" / "groundtruth.txt").write_text("1,2,3,4\n")
    options = argparse.Namespace(weights=str(weights), model=None, device="cpu", levels=[2, 4], corrupt_seed=7)
    about = robustness.describe(options, open_dataset("folder", tmp_path))
    assert (about["levels"], about["corrupt_seed"]) == ([2, 4], 7)
    assert about["weights"]["file"] == "small.safetensors"
    assert about["weights"]["seed"] == 3
    assert about["machine"]["device"] == robustness.machine("cpu")["device"]
