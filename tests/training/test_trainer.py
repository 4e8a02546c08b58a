"""Runs: they learn, they can be killed and resumed, they can be spread over processes, and they stop on bad numbers."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import by_module
from runs import DISTIL, ELIMINATE, MODEL, SYNTHETIC, config, write_sequence
from support import ROOT
from torch import Tensor

from ckd_fast import InputError, OutputError, load_model, save_model
from ckd_fast.errors import CorruptWeightsError, TrainingError
from ckd_fast.reference.training import OptimiserConfig, make_optimiser
from ckd_fast.training import Process, TrainConfig, Trained, Trainer
from ckd_fast.training.checkpoints import Checkpoints, optimiser_tensors, read_checkpoint, restore_optimiser
from ckd_fast.training.config import Source, Stage, Upkeep
from ckd_fast.training.distillation import fused_distillation
from ckd_fast.training.first_weights import initial_trainee
from ckd_fast.training.logs import RunLog
from ckd_fast.training.run_weights import RunningMean, stored_weights

HERE = Process(0, 1, torch.device("cpu"))


def train(settings: TrainConfig, out: Path, *, resume: bool = False) -> Trained:
    return Trainer(settings, out, HERE).run(resume=resume)


def log(out: Path, kind: str = "step") -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def newest(out: Path) -> Path:
    return Checkpoints(out, 9).all()[-1]


def last_weights(out: Path) -> dict[str, Tensor]:
    """Weights and running mean of the last checkpoint."""
    found = read_checkpoint(newest(out))
    return {**found.weights, **{f"ema.{name}": value for name, value in found.ema.items()}}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert len(one) > 100
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == []


def moved(out: Path, name: str, first: dict[str, Tensor]) -> float:
    return float((last_weights(out)[name] - first[name]).abs().max())


def test_a_run_leaves_what_it_says(tmp_path: Path) -> None:
    upkeep = Upkeep(log_every=1, checkpoint_every=2, keep_last=2, validate_every=2, validation_pairs=32)
    trained = train(config(upkeep=upkeep), tmp_path)
    assert trained.steps == 6
    assert [path.name for path in Checkpoints(tmp_path, 2).all()] == ["step-00000004", "step-00000006"]
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4, 5, 6]
    scores = [line["mean_iou"] for line in log(tmp_path, "validation")]
    assert len(scores) == 3
    assert trained.best == max(scores)
    final, best = load_model(tmp_path / "final.safetensors"), load_model(tmp_path / "best.safetensors")
    assert final.config == best.config == MODEL
    assert not final.teachers
    assert final.provenance.sha256 != best.provenance.sha256  # `ckd-fast run` can tell them apart
    mean = read_checkpoint(newest(tmp_path)).ema
    assert all(torch.equal(value, mean[name]) for name, value in final.weights.items())
    assert load_model(tmp_path / "checkpoints/step-00000006/weights.safetensors").teachers


def test_stages_train_what_they_should(tmp_path: Path) -> None:
    first = stored_weights(initial_trainee(config()))
    train(config(stages=(DISTIL,)), tmp_path / "one")
    assert moved(tmp_path / "one", "rgb.blocks.0.qkv.weight", first) > 1e-4
    assert moved(tmp_path / "one", "teacher_tir.branch.blocks.0.qkv.weight", first) > 1e-4
    train(config(stages=(ELIMINATE,)), tmp_path / "two")
    assert moved(tmp_path / "two", "rgb.blocks.0.qkv.weight", first) == 0
    assert moved(tmp_path / "two", "teacher_rgb.branch.norm.weight", first) == 0
    assert moved(tmp_path / "two", "head.score.0.0.weight", first) > 1e-4
    assert moved(tmp_path / "two", "teacher_rgb.head.score.0.0.weight", first) > 1e-4


def test_students_alone_and_the_teachers_that_follow(tmp_path: Path) -> None:
    alone = dataclasses.replace(DISTIL, name="alone", students_only=True)
    first = stored_weights(initial_trainee(config()))
    train(config(stages=(alone,)), tmp_path / "one")
    assert moved(tmp_path / "one", "rgb.blocks.0.qkv.weight", first) > 1e-4
    found = last_weights(tmp_path / "one")
    assert torch.equal(found["teacher_tir.branch.blocks.0.qkv.weight"], found["tir.blocks.0.qkv.weight"])
    assert torch.equal(found["ema.teacher_tir.branch.norm.weight"], found["ema.tir.norm.weight"])
    last = log(tmp_path / "one")[-1]
    assert (last["teacher_rgb"], last["style"], last["content"]) == (0, 0, 0)
    # The next stage starts from the student: at a rate of nothing its teachers are still the student's halves.
    still = dataclasses.replace(DISTIL, head_rate=1e-30, backbone_rate=1e-30)
    train(config(stages=(alone, still), ema=0.5), tmp_path / "two")
    # So does whoever starts from its checkpoint.
    begun = stored_weights(initial_trainee(config(init=str(newest(tmp_path / "one") / "weights.safetensors"))))
    assert torch.equal(begun["teacher_rgb.branch.norm.weight"], begun["rgb.norm.weight"])
    assert not torch.equal(begun["rgb.norm.weight"], first["rgb.norm.weight"])
    found = last_weights(tmp_path / "two")
    for prefix in ("", "ema."):
        student, teacher = found[prefix + "tir.norm.weight"], found[prefix + "teacher_tir.branch.norm.weight"]
        assert torch.allclose(student, teacher, rtol=1e-6)
        student, teacher = (found[f"{prefix}{who}head.score.0.0.weight"] for who in ("", "teacher_tir."))
        assert torch.allclose(student[:, MODEL.dim :], teacher, rtol=1e-6)
    assert log(tmp_path / "two")[-1]["teacher_rgb"] > 0


def test_teachers_that_would_be_replaced_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(config(), tmp_path)
    weights = str(newest(tmp_path) / "weights.safetensors")
    alone = dataclasses.replace(DISTIL, name="alone", students_only=True)
    with caplog.at_level(logging.WARNING, logger="ckd_fast"):
        initial_trainee(config(init=weights))
        assert caplog.text == ""
        initial_trainee(config(init=weights, stages=(alone, DISTIL)))
    assert "stage 'alone' trains the student alone and replaces them" in caplog.text


@pytest.mark.parametrize("frozen", ["heads_only", "students_only"])
def test_resume_at_the_border_of_a_stage_that_freezes(tmp_path: Path, frozen: str) -> None:
    """What the stage before left in memory must not matter."""
    second = dataclasses.replace(DISTIL, name="second", **{frozen: True})
    settings = config(stages=(DISTIL, second))
    train(settings, tmp_path / "whole")
    upkeep = dataclasses.replace(settings.upkeep, checkpoint_every=10**6, keep_last=9)
    border = dataclasses.replace(settings, upkeep=upkeep)
    train(border, tmp_path / "border")
    last = Checkpoints(tmp_path / "border", 9).all()
    assert [path.name for path in last] == ["step-00000004", "step-00000008"]
    shutil.rmtree(last[-1])
    train(border, tmp_path / "border", resume=True)
    assert_equal(last_weights(tmp_path / "whole"), last_weights(tmp_path / "border"))


def test_attention_starts_by_similarity() -> None:
    """Equal tokens attend to one another more than to others from the first step."""
    block = initial_trainee(config()).student.rgb.blocks[0]
    tokens = torch.randn(4, 6, MODEL.dim, generator=torch.Generator().manual_seed(0))
    queries, keys, _ = block.queries_keys_values(torch.cat([tokens, tokens], dim=1))
    scores = (queries @ keys.transpose(-1, -2))[:, 0, :6, 6:]  # one head
    own = scores.diagonal(dim1=-2, dim2=-1)
    assert (own > scores.sum(-1) / 6 + scores.std(-1)).all()


def test_it_learns(tmp_path: Path) -> None:
    stage = Stage("distil", epochs=1, pairs=960, batch=8, hidden=0.0, head_rate=3e-3, backbone_rate=2e-3)
    upkeep = Upkeep(log_every=10, checkpoint_every=10**6, validate_every=0)
    train(config(stages=(stage,), upkeep=upkeep), tmp_path)
    lines = log(tmp_path)
    assert lines[-1]["focal"] < 0.5 * lines[0]["focal"]
    assert lines[-1]["l1"] < lines[0]["l1"]


def test_equal_seeds_give_equal_runs_and_others_do_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(config(seed=seed, drop_path=0.3), tmp_path / name)
        torch.manual_seed(len(name))  # what others draw must not matter
    assert_equal(last_weights(tmp_path / "a"), last_weights(tmp_path / "b"))
    name = "rgb.blocks.0.qkv.weight"
    assert not torch.equal(last_weights(tmp_path / "a")[name], last_weights(tmp_path / "c")[name])


def test_accumulation_is_the_mean_over_its_batches(tmp_path: Path) -> None:
    """Two batches in one step: the loss in the log is the mean of both, and one step is made."""
    stage = dataclasses.replace(DISTIL, pairs=8, accumulate=2)
    train(config(stages=(stage,)), tmp_path / "two")
    (line,) = log(tmp_path / "two")
    frozen = dataclasses.replace(DISTIL, pairs=8, head_rate=1e-30, backbone_rate=1e-30)
    train(config(stages=(frozen,)), tmp_path / "each")
    each = log(tmp_path / "each")
    assert len(each) == 2
    assert line["loss"] == pytest.approx((each[0]["loss"] + each[1]["loss"]) / 2, rel=1e-5)


def test_the_fused_losses_give_the_same_curve(tmp_path: Path) -> None:
    if os.environ["TRITON_INTERPRET"] != "1":
        pytest.skip("compares on the CPU, in Triton's interpreter")
    settings = config(stages=(dataclasses.replace(DISTIL, pairs=12, batch=2), ELIMINATE))
    Trainer(settings, tmp_path / "plain", HERE).run()
    Trainer(settings, tmp_path / "fused", HERE, distil=fused_distillation).run()
    plain, fused = log(tmp_path / "plain"), log(tmp_path / "fused")
    assert len(plain) == len(fused) == 8
    for one, other in zip(plain, fused, strict=True):
        for name in ("loss", "style", "content", "gradient_norm"):
            assert other[name] == pytest.approx(one[name], rel=2e-4), (one["step"], name)


def command(file: Path, out: Path, *more: str) -> list[str]:
    return by_module("train", file, "--out", out, "--device", "cpu", "--quiet", *more)


def test_killed_and_resumed_is_the_unbroken_run(tmp_path: Path) -> None:
    """kill -9 somewhere in the second half of the first stage, in real samples read by a worker."""
    write_sequence(tmp_path / "data" / "walk")
    sources = (Source("dataset", name="folder", root=str(tmp_path / "data")), SYNTHETIC)
    stages = (dataclasses.replace(DISTIL, pairs=160), ELIMINATE)
    upkeep = Upkeep(log_every=1, checkpoint_every=5, validate_every=7, validation_pairs=32)
    settings = config(sources=sources, stages=stages, drop_path=0.2, workers=1, upkeep=upkeep)
    file = tmp_path / "run.json"
    file.write_text(settings.to_json())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(file, tmp_path / "whole"), check=True, cwd=ROOT, env=environment)
    out = tmp_path / "broken"
    broken = subprocess.Popen(command(file, out), cwd=ROOT, env=environment)
    while not Checkpoints(out, 9).all():
        assert broken.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    broken.send_signal(signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL
    assert 0 < read_checkpoint(newest(out)).state.total < 42
    # What a killed writer leaves behind must not disturb.
    (out / "checkpoints" / ".writing-torn").mkdir()
    with (out / "log.jsonl").open("a") as handle:
        handle.write('{"kind": "step", "st')
    subprocess.run(command(file, out, "--resume"), check=True, cwd=ROOT, env=environment)
    assert_equal(last_weights(tmp_path / "whole"), last_weights(out))
    curves = [[(line["step"], line["loss"]) for line in log(run)] for run in (tmp_path / "whole", out)]
    assert curves[0] == curves[1]
    assert not list((out / "checkpoints").glob(".writing-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_loses_no_step(tmp_path: Path, number: signal.Signals) -> None:
    """Samples are read by a process of its own, which a Ctrl-C in a terminal reaches too."""
    write_sequence(tmp_path / "data" / "walk")
    upkeep = Upkeep(log_every=1, checkpoint_every=10_000, validate_every=0)
    stages = (dataclasses.replace(DISTIL, pairs=4000, accumulate=2),)
    sources = (Source("dataset", name="folder", root=str(tmp_path / "data")), SYNTHETIC)
    settings = config(stages=stages, sources=sources, workers=1, upkeep=upkeep)
    file, out = tmp_path / "run.json", tmp_path / "run"
    file.write_text(settings.to_json())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        command(file, out), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (out / "log.jsonl").exists() or len(log(out)) < 2:
        assert run.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.01)
    with pytest.raises(OutputError, match="another run is writing here: choose another folder"):
        train(settings, out, resume=True)
    (os.killpg if number == signal.SIGINT else os.kill)(run.pid, number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    steps = len(log(out))
    newest_step = read_checkpoint(newest(out)).state.total
    assert newest_step == steps
    assert errors.endswith(f"step-{steps:08d} is complete: go on with --resume\n")
    assert not (out / "final.safetensors").exists()


def test_what_resume_refuses(tmp_path: Path) -> None:
    train(config(), tmp_path)
    with pytest.raises(OutputError, match=r"holds a run \(step-00000006\): go on with --resume"):
        train(config(), tmp_path)
    with pytest.raises(InputError, match="started with other seed, clip_norm"):
        train(config(seed=5, clip_norm=2.0), tmp_path, resume=True)
    again = train(config(workers=0), tmp_path, resume=True)
    assert again.steps == 6  # nothing was left to do


def test_a_foreign_optimiser_is_refused() -> None:
    model = initial_trainee(config())
    optimiser = make_optimiser(model, OptimiserConfig())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    state = optimiser_tensors(optimiser)
    fresh = make_optimiser(model, OptimiserConfig())
    restore_optimiser(fresh, state, "here")
    copied = optimiser_tensors(fresh)
    assert all(torch.equal(copied[name], value) for name, value in state.items())
    for foreign, message in (
        (state | {"9999.exp_avg": torch.zeros(1)}, "belongs to no parameter"),
        (state | {"0.exp_avg": torch.zeros(3)}, r"is \(3,\), expected \("),
        ({"0.step": torch.ones(())}, "moments of 1 parameters"),
    ):
        with pytest.raises(CorruptWeightsError, match=message):
            restore_optimiser(fresh, foreign, "here")


def test_init_goes_on_from_a_file(tmp_path: Path) -> None:
    train(config(), tmp_path / "first")
    teachers = tmp_path / "first/checkpoints/step-00000006/weights.safetensors"
    loaded = load_model(teachers)
    model = initial_trainee(config(init=str(teachers)))
    weights = stored_weights(model)
    assert all(torch.equal(weights[name], value) for name, value in {**loaded.weights, **loaded.teachers}.items())


def test_a_student_alone_gives_its_teachers(tmp_path: Path) -> None:
    """Fine-tuning a shipped model: branches are copied, heads keep the half that saw their modality."""
    file = tmp_path / "student.safetensors"
    save_model(load_model("random", MODEL, 5), file)
    weights = stored_weights(initial_trainee(config(init=str(file))))
    assert torch.equal(weights["teacher_tir.branch.blocks.1.fc1.weight"], weights["tir.blocks.1.fc1.weight"])
    assert torch.equal(weights["teacher_rgb.head.score.1.0.weight"], weights["head.score.1.0.weight"])
    both = weights["head.size.0.0.weight"]
    assert torch.equal(weights["teacher_rgb.head.size.0.0.weight"], both[:, : MODEL.dim])
    assert torch.equal(weights["teacher_tir.head.size.0.0.weight"], both[:, MODEL.dim :])


def test_the_running_mean() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    mean = RunningMean(model, 0.9)
    torch.nn.init.constant_(model.weight, 1.0)
    mean.update(model, 0)  # the decay begins at 0.1
    assert float(mean.values["weight"]) == pytest.approx(0.9)
    torch.nn.init.constant_(model.weight, 2.0)
    mean.update(model, 10**6)
    assert float(mean.values["weight"]) == pytest.approx(0.9 * 0.9 + 0.1 * 2)


def test_bad_numbers_stop_the_run_and_save_the_batch(tmp_path: Path) -> None:
    stage = dataclasses.replace(DISTIL, head_rate=1e30, backbone_rate=1e30)
    with pytest.raises(TrainingError, match=r"is not finite; its batch is in .*bad-batch"):
        train(config(stages=(stage,)), tmp_path)
    (saved,) = tmp_path.glob("bad-batch-*.safetensors")
    from safetensors.torch import load_file

    tensors = load_file(saved)
    assert tensors["search"].shape == (2, 4, 3, 64, 64)
    assert torch.isfinite(tensors["search"]).all()
    assert set(tensors) == {"template", "search", "target_xywh", "visible"}


def test_bad_samples_are_bounded(tmp_path: Path) -> None:
    write_sequence(tmp_path / "data" / "good", seed=1)
    write_sequence(tmp_path / "data" / "torn", seed=2)
    for path in (tmp_path / "data" / "torn" / "visible").iterdir():
        path.write_bytes(b"torn")
    sources = (Source("dataset", name="folder", root=str(tmp_path / "data")),)
    patient = Upkeep(log_every=1, validate_every=0, most_bad_samples=1000)
    trained = train(config(sources=sources, upkeep=patient), tmp_path / "patient")
    assert 5 < trained.bad_samples < 100
    named = log(tmp_path / "patient", "bad sample")
    assert all("torn/visible" in str(line["reason"]) for line in named)
    assert log(tmp_path / "patient")[-1]["bad_samples"] == trained.bad_samples
    strict = dataclasses.replace(patient, most_bad_samples=3)
    with pytest.raises(TrainingError, match="more than most_bad_samples=3"):
        train(config(sources=sources, upkeep=strict), tmp_path / "strict")


def test_lines_after_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    first = RunLog(tmp_path, 0)
    for step in (1, 2, 3):
        first.write("step", step, {"loss": step / 2})
    first.close()
    again = RunLog(tmp_path, 2)
    again.write("step", 3, {"loss": 9.0})
    again.close()
    assert [(line["step"], line["loss"]) for line in log(tmp_path)] == [(1, 0.5), (2, 1.0), (3, 9.0)]


def test_mixed_precision_follows_float32(tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        train(config(precision=precision), tmp_path / precision)
    plain, half = log(tmp_path / "float32"), log(tmp_path / "bfloat16")
    for name in ("focal", "content", "style"):  # the others jump with the predicted cell
        assert half[0][name] != plain[0][name]
        assert half[0][name] == pytest.approx(plain[0][name], rel=0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    """One process that accumulates two batches makes the steps of two processes with a batch each."""
    upkeep = Upkeep(log_every=1, checkpoint_every=1, validate_every=0)
    stages = (dataclasses.replace(DISTIL, pairs=24), dataclasses.replace(ELIMINATE, pairs=16))
    pair = config(stages=stages, drop_path=0.2, upkeep=upkeep)
    twice = tuple(dataclasses.replace(stage, accumulate=2) for stage in stages)
    train(dataclasses.replace(pair, stages=twice), tmp_path / "alone")
    file = tmp_path / "run.json"
    file.write_text(pair.to_json())
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    arguments = command(file, tmp_path / "pair")[1:]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, *arguments], check=True, cwd=ROOT, env=environment)
    one, two = log(tmp_path / "alone"), log(tmp_path / "pair")
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4, 5]
    for a, b in zip(one, two, strict=True):
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-4), a["step"]
    first, *_, last = (read_checkpoint(path).weights for path in Checkpoints(tmp_path / "alone", 9).all())
    others = read_checkpoint(newest(tmp_path / "pair")).weights
    # Statistics of batch norm are those of the first process; a bias before one has a gradient of rounding noise, which
    # AdamW blows up to whole steps. All others together: single ones may have next to no gradient.
    unstable = {name for name in last if "running_" in name or (".head." in f".{name}" and name.endswith(".0.bias"))}
    compared = [name for name in last if name not in unstable]
    apart, way = (
        sum(float((w[n] - last[n]).double().square().sum()) for n in compared) ** 0.5 for w in (others, first)
    )
    assert way > 0.01
    assert apart < 0.01 * way
    assert len(compared) > 80


@pytest.mark.timeout(120)
def test_two_processes_stop_after_the_same_step(tmp_path: Path) -> None:
    upkeep = Upkeep(log_every=1, checkpoint_every=10_000, validate_every=0)
    settings = config(stages=(dataclasses.replace(DISTIL, pairs=4000),), upkeep=upkeep)
    file, out = tmp_path / "run.json", tmp_path / "run"
    file.write_text(settings.to_json())
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    run = subprocess.Popen([*launch, *command(file, out)[1:]], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (out / "log.jsonl").exists() or len(log(out)) < 2:
        assert run.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    run.wait(timeout=60)
    assert read_checkpoint(newest(out)).state.total == len(log(out))
