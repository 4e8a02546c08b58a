"""`ckd-fast info` and `ckd-fast weights`, as typed in a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import Settings, authors_names

from ckd_fast import PRESETS, __version__, load_model, save_model
from ckd_fast.cli import main


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_info_gives_the_published_figures(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("info", "--model", "base", capsys=capsys)
    assert code == 0
    (total,) = [line for line in out.splitlines() if line.startswith("total")]
    assert total.split() == ["total", "183,871,365", "42.735", "44.982"]
    assert "Of these, 304,128 are unused" in out
    _, out, _ = run("info", "--model", "base", "--elimination", "none", capsys=capsys)
    (total,) = [line for line in out.splitlines() if line.startswith("total")]
    assert total.split() == ["total", "183,871,365", "57.802", "61.526"]


def test_info_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    for name in PRESETS:
        _, out, _ = run("info", "--model", name, "--json", capsys=capsys)
        told = json.loads(out)
        assert (
            told["total"]["parameters"]
            == sum(p["parameters"] for p in told["parts"].values()) + (told["total"]["unused_parameters"])
        )
        if name == "base":
            assert told["total"]["published_macs"] == pytest.approx(42.735456e9, abs=1e3)
        if name == "tiny":
            assert 6.2e6 < told["total"]["parameters"] < 6.8e6


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["info", "--model", "huge"], "unknown model 'huge': known are base, base-shared, small, tiny"),
        (["weights", "inspect", str(tmp_path)], "a directory"),
        (["weights", "inspect", str(tmp_path / "no.pth")], "no such file"),
        (["weights", "convert", str(tmp_path / "no.pth"), str(tmp_path / "x.pth")], "ends in .safetensors"),
    ):
        code, out, err = run(*arguments, capsys=capsys)
        assert (code, out) == (2, "")
        assert err.startswith("ckd-fast: ")
        assert message in err
        assert err.count("\n") == 1


def test_inspect_and_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "CKD_ep0025.pth.tar", tmp_path / "ckd.safetensors"
    tiny = PRESETS["tiny"]
    torch.save({"net": authors_names(tiny), "settings": Settings()}, source)
    code, out, _ = run("weights", "inspect", str(source), capsys=capsys)
    assert code == 0
    assert "CKD checkpoint, 2 branches" in out
    assert "tiny: 192 channels, 6 blocks, 3 heads" in out
    assert "checkpoints.Settings" in out
    code, out, _ = run("weights", "convert", str(source), str(target), "--half", "float16", capsys=capsys)
    assert code == 0
    assert target.stat().st_size < 14e6
    assert load_model(target).config == tiny
    code, _, err = run("weights", "convert", str(source), str(target), capsys=capsys)
    assert (code, "--force" in err) == (2, True)
    code, _, _ = run("weights", "convert", str(source), str(target), "--force", capsys=capsys)
    assert code == 0
    _, out, _ = run("weights", "inspect", str(target), "--json", capsys=capsys)
    told = json.loads(out)
    assert (told["preset"], told["container"]) == ("tiny", "safetensors")
    assert told["provenance"]["source"] == "CKD_ep0025.pth.tar"


def test_help_has_examples() -> None:
    for arguments in (["info"], ["weights"], ["weights", "inspect"], ["weights", "convert"]):
        command = [sys.executable, "-m", "ckd_fast", *arguments, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "examples:\n  ckd-fast " in done.stdout


def test_version_and_no_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"ckd-fast {__version__}\n"
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2


def test_a_closed_pipe_is_no_error() -> None:
    """Nobody reads: the first flush fails."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "ckd_fast", "info", "--json"]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_json_of_conversion_and_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(load_model("random", "tiny"), tmp_path / "tiny.safetensors")
    target = tmp_path / "half.safetensors"
    command = ("weights", "convert", str(tmp_path / "tiny.safetensors"), str(target), "--half", "float16", "--json")
    _, out, _ = run(*command, capsys=capsys)
    assert json.loads(out)["bytes"] == target.stat().st_size
    _, out, _ = run("sample", str(tmp_path / "s"), "--frames", "2", "--size", "64x64", "--json", capsys=capsys)
    told = json.loads(out)
    assert (told["frames"], told["size"], len(told["first_box"])) == (2, [64, 64], 4)
    code, _, err = run("sample", str(tmp_path / "o"), "--size", "161x120", "--video", capsys=capsys)
    assert (code, "even sides" in err) == (2, True)
    code, _, err = run("sample", str(tmp_path / "l"), "--size", "900000x900000", capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
