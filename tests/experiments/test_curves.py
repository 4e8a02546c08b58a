"""experiments/curves.py: training runs read back, their differences and sweeps, and what the program writes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from curves import differing, flat, main, read_run, sweeps

from ckd_fast import InputError
from ckd_fast.training import recipe


def write_run(folder: Path, hidden: float, style: float, scores: list[float], seed: int = 0) -> Path:
    """A run of two settings with made-up numbers."""
    config = recipe("sd-cd-mm")
    stages = (dataclasses.replace(config.stages[0], hidden=hidden),)
    losses = dataclasses.replace(config.losses, style_weight=style)
    config = dataclasses.replace(config, stages=stages, losses=losses, seed=seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    lines = [
        {"kind": "step", "step": step, "stage": "distil", "loss": 10 / step, "style": style * step, "focal": 1 / step}
        for step in range(1, 5)
    ]
    lines += [{"kind": "validation", "step": 2 * n, "mean_iou": score} for n, score in enumerate(scores, 1)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    home = tmp_path / "runs"
    return [
        write_run(home / "mask-0", 0.0, 0.01, [0.3, 0.40]),
        write_run(home / "mask-25", 0.25, 0.01, [0.3, 0.46]),
        write_run(home / "mask-25-again", 0.25, 0.01, [0.3, 0.44], seed=1),
        write_run(home / "mask-50", 0.5, 0.01, [0.5, 0.42]),
        write_run(home / "style", 0.25, 0.1, [0.3, 0.2]),
    ]


def test_a_run_is_read(runs: list[Path]) -> None:
    run = read_run(runs[3])
    assert run.name == "mask-50"
    assert run.curves["loss"].steps == [1, 2, 3, 4]
    assert run.curves["loss"].values == pytest.approx((10, 5, 10 / 3, 2.5))
    assert "stage" not in run.curves
    assert (run.last, run.best, run.unreadable_lines) == (0.42, 0.5, 0)
    assert run.settings["stages[0].hidden"] == 0.5


def test_settings_that_differ_without_seeds(runs: list[Path]) -> None:
    assert differing([read_run(path) for path in runs]) == ["stages[0].hidden", "losses.style_weight"]
    assert differing([read_run(runs[1]), read_run(runs[2])]) == []


def test_a_sweep_is_runs_that_differ_in_one_number(runs: list[Path]) -> None:
    (sweep,) = sweeps([read_run(path) for path in reversed(runs)])
    assert sweep.setting == "stages[0].hidden"
    assert sweep.values == (0.0, 0.25, 0.5)
    assert [sorted(run.name for run in some) for some in sweep.runs] == [
        ["mask-0"], ["mask-25", "mask-25-again"], ["mask-50"],
    ]  # fmt: skip
    assert sweep.means() == pytest.approx((0.40, 0.45, 0.42))
    assert sweeps([read_run(path) for path in runs[:3]]) == []  # two values are no series


def test_runs_that_cannot_be_compared_are_no_sweep(runs: list[Path]) -> None:
    log = runs[3] / "log.jsonl"
    log.write_text(log.read_text().replace('"step": 4, "mean_iou"', '"step": 3, "mean_iou"'))
    assert sweeps([read_run(path) for path in runs]) == []  # one of three values ended earlier


@pytest.mark.parametrize(
    ("setting", "value"), [("upkeep", {"validation_pairs": 7}), ("sampling", {"centre_jitter": 1.0})]
)
def test_other_validation_pairs_are_other_runs(runs: list[Path], setting: str, value: dict[str, float]) -> None:
    config = json.loads((runs[3] / "config.json").read_text())
    config[setting] |= value
    (runs[3] / "config.json").write_text(json.dumps(config))
    assert sweeps([read_run(path) for path in runs]) == []
    assert f"{setting}.{next(iter(value))}" in differing([read_run(path) for path in runs])
    for number, path in enumerate(runs[:4]):  # and are never swept over
        own = json.loads((runs[1] / "config.json").read_text())
        own[setting] |= {next(iter(value)): number + 1}
        (path / "config.json").write_text(json.dumps(own))
    assert sweeps([read_run(path) for path in runs[:4]]) == []


def test_flat_names() -> None:
    assert flat({"a": {"b": [1, {"c": None}]}, "d": True}) == {"a.b[0]": 1, "a.b[1].c": None, "d": True}


def test_a_run_that_was_killed_while_it_wrote(
    runs: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = runs[0] / "log.jsonl"
    log.write_text(log.read_text() + '{"kind": "step", "ste')
    assert read_run(runs[0]).unreadable_lines == 1
    main([str(runs[0]), "--out", str(tmp_path / "out")])
    assert "mask-0: unreadable lines in log.jsonl: 1" in capsys.readouterr().err


def test_never_validated(runs: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = runs[0] / "log.jsonl"
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines() if "validation" not in line))
    assert math.isnan(read_run(runs[0]).last)
    out = tmp_path / "out"
    main([str(runs[0]), "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["curves.json", "losses.png"]
    assert json.loads((out / "curves.json").read_text())["runs"]["mask-0"]["validation"] is None
    assert "never validated" in capsys.readouterr().err


@pytest.mark.parametrize(("file", "content"), [
    ("config.json", None), ("log.jsonl", None), ("config.json", "{"), ("config.json", "[1]"), ("log.jsonl", ""),
    ("log.jsonl", '{"kind": "validation", "step": 2, "mean_iou": 0.5}\n'),
])  # fmt: skip
def test_what_is_no_run(
    runs: list[Path], file: str, content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs[0]
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(InputError, match=folder.name):
        read_run(folder)
    with pytest.raises(SystemExit, match="2"):
        main([str(folder), "--out", str(tmp_path / "out")])
    assert folder.name in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def refused(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    """What the program says about bad arguments."""
    with pytest.raises(SystemExit, match="2"):
        main(command)
    return capsys.readouterr().err


def test_the_program(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cv2

    out = tmp_path / "out"
    command = [*map(str, runs), "--out", str(out)]
    main(command)
    printed = capsys.readouterr().out
    assert "| mask-25 | 4 | 0.460 | 0.460 | 0.25 | 0.01 |" in printed
    names = ["curves.json", "losses.png", "sweep-1-stages-0-hidden.png", "validation.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names[1:]:
        picture = cv2.imread(str(out / name))
        assert picture is not None
        assert picture.std() > 5  # something is drawn
    content = json.loads((out / "curves.json").read_text())
    assert content["runs"]["style"]["settings"] == {"stages[0].hidden": 0.25, "losses.style_weight": 0.1}
    assert content["sweeps"][0]["validation"] == pytest.approx([0.40, 0.45, 0.42])
    assert "--force" in refused(capsys, command)
    main([*command, "--force"])
    (out / "losses.png").unlink()
    (out / "curves.json").unlink()
    (out / "validation.png").unlink()
    assert "sweep-1" in refused(capsys, [str(runs[0]), "--out", str(out)])  # a sweep of other runs is there
    main([str(runs[0]), "--out", str(out), "--force"])
    assert sorted(path.name for path in out.iterdir()) == ["curves.json", "losses.png", "validation.png"]
    twice = [str(runs[0]), str(runs[0]), "--out", str(tmp_path / "twice")]
    assert "several runs have this name" in refused(capsys, twice)
