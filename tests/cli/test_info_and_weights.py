"""`ckd-fast info` and `ckd-fast weights`, as typed in a shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from checkpoints import Settings, authors_names
from commands import Command, by_module, unheard

from ckd_fast import PRESETS, __version__, load_model, save_model


@pytest.mark.parametrize(
    ("more", "figures"),
    [((), ["183,871,365", "42.735", "44.982"]), (("--elimination", "none"), ["183,871,365", "57.802", "61.526"])],
)
def test_info_gives_the_published_figures(command: Command, more: tuple[str, ...], figures: list[str]) -> None:
    told = command("info", "--model", "base", *more)
    assert told.code == 0
    (total,) = [line for line in told.out.splitlines() if line.startswith("total")]
    assert total.split() == ["total", *figures]
    assert "Of these, 304,128 are unused" in told.out


def test_info_in_json(command: Command) -> None:
    for name in PRESETS:
        told = command("info", "--model", name, "--json").json
        used = sum(part["parameters"] for part in told["parts"].values())
        assert told["total"]["parameters"] == used + told["total"]["unused_parameters"]
        if name == "base":
            assert told["total"]["published_macs"] == pytest.approx(42.735456e9, abs=1e3)
        if name == "tiny":
            assert 6.2e6 < told["total"]["parameters"] < 6.8e6


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, command: Command) -> None:
    absent = tmp_path / "no.pth"
    for arguments, message in (
        (("info", "--model", "huge"), "unknown model 'huge': known are base, base-shared, small, tiny"),
        (("weights", "inspect", tmp_path), "a directory"),
        (("weights", "inspect", absent), "no such file"),
        (("weights", "convert", absent, tmp_path / "x.pth"), "ends in .safetensors"),
        (("sample", tmp_path / "o", "--size", "161x120", "--video"), "even sides"),
        (("sample", tmp_path / "l", "--size", "900000x900000"), ""),
    ):
        told = command(*arguments)
        assert told.refuses(message)
        assert told.out == ""
        assert told.err.startswith("ckd-fast: ")
        assert told.err.count("\n") == 1


def test_inspect_and_convert(tmp_path: Path, command: Command) -> None:
    source, target = tmp_path / "CKD_ep0025.pth.tar", tmp_path / "ckd.safetensors"
    tiny = PRESETS["tiny"]
    torch.save({"net": authors_names(tiny), "settings": Settings()}, source)
    told = command("weights", "inspect", source)
    assert told.code == 0
    assert "CKD checkpoint, 2 branches" in told.out
    assert "tiny: 192 channels, 6 blocks, 3 heads" in told.out
    assert "checkpoints.Settings" in told.out
    assert command("weights", "convert", source, target, "--half", "float16").code == 0
    assert target.stat().st_size < 14e6
    assert load_model(target).config == tiny
    assert command("weights", "convert", source, target).refuses("--force")
    assert command("weights", "convert", source, target, "--force").code == 0
    told = command("weights", "inspect", target, "--json").json
    assert (told["preset"], told["container"]) == ("tiny", "safetensors")
    assert told["provenance"]["source"] == "CKD_ep0025.pth.tar"


@pytest.mark.parametrize(
    "name", ["info", "weights", "weights inspect", "weights convert", "track", "sample", "completion"]
)
def test_help_has_examples(command: Command, name: str) -> None:
    told = command(*name.split(), "--help")
    assert told.code == 0
    assert "ckd-fast " in told.out.partition("examples:\n  ")[2]


def test_version_and_no_subcommand(command: Command) -> None:
    told = command("--version")
    assert (told.code, told.out) == (0, f"ckd-fast {__version__}\n")
    assert subprocess.run(by_module("--version"), check=True, capture_output=True, text=True).stdout == told.out
    assert command().code == 2


def test_a_closed_pipe_is_no_error() -> None:
    """Nobody reads: the first flush fails."""
    done = unheard(by_module("info", "--json"), broken=("stdout",))
    assert (done.returncode, done.stderr) == (0, b"")


def test_json_of_conversion_and_sample(tmp_path: Path, command: Command) -> None:
    source, target = tmp_path / "tiny.safetensors", tmp_path / "half.safetensors"
    save_model(load_model("random", "tiny"), source)
    told = command("weights", "convert", source, target, "--half", "float16", "--json").json
    assert told["bytes"] == target.stat().st_size
    told = command("sample", tmp_path / "s", "--frames", "2", "--size", "64x64", "--json").json
    assert (told["frames"], told["size"], len(told["first_box"])) == (2, [64, 64], 4)
