"""`reference` computes what the authors' program computes: every number that was recorded from it."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from support import GOLDEN_CONFIG, Golden, assert_as_exact
from torch import Tensor

from ckd_fast.reference.boxes import clip_box, find_peak, hann_window, to_frame
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.elimination import template_mask
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.labels import score_targets
from ckd_fast.reference.losses import LossConfig
from ckd_fast.reference.model import Student, StudentOutput, Trainee
from ckd_fast.reference.preprocess import box_in_crop, crop, normalise, padding
from ckd_fast.reference.training import (
    Batch,
    OptimiserConfig,
    StepOutput,
    compute_losses,
    keep_ratio_at,
    make_optimiser,
    training_step,
)
from ckd_fast.weights.keys import from_authors

RECORDED = 2.0**-15  # block outputs were recorded with 15 mantissa bits, but for block 11 of the inference records
SCALAR = 1e-6  # one float32 number may be luckier in one program than in the other
MODALITIES = ("rgb", "tir")


@functools.cache
def golden(name: str) -> Golden:
    return Golden(f"ckd_{name}.npz")


def student(config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype) -> Student:
    model = Student(config)
    missing = model.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
    return model.eval().to(dtype)


@functools.cache
@torch.no_grad()
def run_student(elimination: str, dtype: torch.dtype, prefix: str = "") -> StudentOutput:
    """The small model on the recorded inputs."""
    record = golden("small_mce")
    config = dataclasses.replace(GOLDEN_CONFIG, elimination=elimination)
    model = student(config, record.state_dict(), dtype)
    template, search = (
        torch.stack([record.tensor(f"in/{crop}_{m}") for m in MODALITIES]).to(dtype) for crop in ("template", "search")
    )
    mask = torch.ones(2, 64, dtype=torch.bool) if prefix == "all/" else record.tensor(f"{prefix}in/mask")
    return model(model.embed_template(template), search, mask)


CASES = [("mce", "small_mce", ""), ("mce", "small_mce", "all/"), ("mce", "small_mce", "ctr_rec/"),
         ("ce", "small_ce", ""), ("none", "small_slow", "")]  # fmt: skip
ids = ["mce", "mce-all", "mce-ctr_rec", "ce", "none"]


@pytest.mark.parametrize(("elimination", "name", "prefix"), CASES, ids=ids)
def test_maps_and_boxes(elimination: str, name: str, prefix: str) -> None:
    record = golden(name)
    mine = run_student(elimination, torch.float32, prefix).maps
    exact = run_student(elimination, torch.float64, prefix).maps
    for key in ("score", "size", "offset"):
        recorded = record.tensor(f"{prefix}out/{key}_map")
        assert_as_exact(recorded, getattr(mine, key), getattr(exact, key))
    boxes = record.tensor(f"{prefix}out/pred_boxes")[:, 0]
    assert_as_exact(boxes, find_peak(mine).boxes_cxcywh, find_peak(exact).boxes_cxcywh)


@pytest.mark.parametrize(("elimination", "name", "prefix"), CASES, ids=ids)
def test_backbone_features(elimination: str, name: str, prefix: str) -> None:
    recorded = golden(name).tensor(f"{prefix}out/backbone_feat")
    both = [
        torch.cat(list(run_student(elimination, dtype, prefix).backbone.tokens), dim=-1)
        for dtype in (torch.float32, torch.float64)
    ]
    assert_as_exact(recorded, *both)
    if elimination != "none":
        # Dropped tokens are exactly zero; under MCE in both modalities.
        zero_rows = (both[0] == 0).all(-1).sum(-1)
        assert elimination == "ce" or zero_rows.tolist() == [167, 167]
        assert torch.equal(both[0] == 0, recorded == 0)


@pytest.mark.parametrize(("elimination", "name"), [("mce", "small_mce"), ("ce", "small_ce"), ("none", "small_slow")])
def test_block_outputs(elimination: str, name: str) -> None:
    record = golden(name)
    mine, exact = (run_student(elimination, dtype).backbone.blocks for dtype in (torch.float32, torch.float64))
    compared = 0
    for index in (3, 6, 9, 11) if name == "small_ce" else range(12):
        for branch, modality in enumerate(MODALITIES):
            recorded = record.tensor(f"out/{modality}/block{index}")
            rounding = 0.0 if index == 11 else RECORDED
            assert_as_exact(recorded, mine[index][branch], exact[index][branch], rounding=rounding)
            compared += 1
    assert compared == (8 if name == "small_ce" else 24)


@pytest.mark.parametrize(("elimination", "name", "prefix"), CASES[:4], ids=ids[:4])
def test_kept_tokens(elimination: str, name: str, prefix: str) -> None:
    record = golden(name)
    backbone = run_student(elimination, torch.float32, prefix).backbone
    assert [e.block for e in backbone.eliminations] == [3, 6, 9]
    for elimination_step, count in zip(backbone.eliminations, (180, 126, 89), strict=True):
        for branch, modality in enumerate(MODALITIES):
            recorded = record.tensor(f"{prefix}keep/{modality}/block{elimination_step.block}").long()
            kept = elimination_step.kept[branch]
            assert kept.shape == (2, count)
            if prefix:  # scores are too close in these records for the order within the set to be settled in float32
                kept, recorded = kept.sort().values, recorded.sort().values
            assert torch.equal(kept, recorded)


@pytest.mark.parametrize("prefix", ["", "all/", "ctr_rec/"], ids=ids[:3])
def test_scores(prefix: str) -> None:
    """Scores in the order of the tokens; the orders must agree for this, which `test_kept_tokens` shows."""
    record = golden("small_mce")
    pair = [run_student("mce", dtype, prefix).backbone.eliminations for dtype in (torch.float32, torch.float64)]
    for mine, exact in zip(*pair, strict=True):
        recorded = record.tensor(f"{prefix}h/block{mine.block}")
        if prefix:
            recorded, first, second = (t.sort().values for t in (recorded, mine.scores[0], exact.scores[0]))
            assert_as_exact(recorded, first, second)
        else:
            assert_as_exact(recorded, mine.scores[0], exact.scores[0])
        assert torch.equal(mine.scores[0], mine.scores[1])


def test_removed_tokens() -> None:
    record = golden("small_mce")
    for mine in run_student("mce", torch.float32).backbone.eliminations:
        assert torch.equal(mine.removed[0], record.tensor(f"removed/rgb/block{mine.block}").long())


# --- training ---------------------------------------------------------------------------------------------------


@functools.cache
def run_step(case: str, dtype: torch.dtype) -> tuple[Trainee, StepOutput]:
    """One optimiser step of the recorded training case."""
    record = golden("small_train")
    config = dataclasses.replace(GOLDEN_CONFIG, elimination="mce" if case == "mcetrain/" else "none")
    model = Trainee(config, drop_path=0.0)
    weights = {n if n.startswith("teacher_") else f"student.{n}": v for n, v in record.state_dict().items()}
    loaded = model.load_state_dict(weights, strict=False)
    assert not loaded.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in loaded.missing_keys)
    model = model.train().to(dtype)
    batch = Batch(
        template=torch.stack([record.tensor(f"in/template_{m}") for m in MODALITIES]).to(dtype),
        search=torch.stack([record.tensor(f"in/search_{m}") for m in MODALITIES]).to(dtype),
        target_xywh=record.tensor("in/gt_xywh").to(dtype),
        visible=record.tensor("mask/in/keep_mask") if case == "mask/" else None,
    )
    optimiser = make_optimiser(model, OptimiserConfig())
    return model, training_step(model, optimiser, batch, LossConfig(), OptimiserConfig())


TRAINING = pytest.mark.parametrize("case", ["", "mask/", "mcetrain/"], ids=["plain", "mask", "mce"])


@TRAINING
def test_losses(case: str) -> None:
    record = golden("small_train")
    mine, exact = (run_step(case, dtype)[1].losses for dtype in (torch.float32, torch.float64))
    # All nine together: float32 may hit one number by luck, and twice no error is no tolerance.
    values: list[list[Tensor]] = []
    for who, prefix in (("student", ""), ("teacher_rgb", "teacher_rgb_"), ("teacher_tir", "teacher_tir_")):
        for term in ("giou", "l1", "focal"):
            ours, best = (getattr(getattr(losses, who), term).detach() for losses in (mine, exact))
            values.append(
                [value.double() / best for value in (record.tensor(f"{case}loss/{prefix}{term}"), ours, best)]
            )
    recorded, plain, best = (torch.stack(column) for column in zip(*values, strict=True))
    assert_as_exact(recorded, plain, best)
    for term in ("style", "content", "total"):
        recorded = record.tensor(f"{case}loss/{term}")
        assert_as_exact(recorded, getattr(mine, term).detach(), getattr(exact, term).detach(), rounding=SCALAR)
    assert mine.student.total(LossConfig()).item() == pytest.approx(float(record[f"{case}loss/student_task"]), rel=1e-5)


def test_distillation_per_block() -> None:
    record = golden("small_train")
    mine, exact = (run_step("", dtype)[1].losses.blocks for dtype in (torch.float32, torch.float64))
    assert len(mine) == 12
    for index in range(12):
        for term in ("style", "content_rgb", "content_tir"):
            pair = [getattr(blocks[index], term).detach() for blocks in (mine, exact)]
            assert_as_exact(record.tensor(f"perlayer/{term}/{index}"), *pair, rounding=SCALAR)


def test_last_block_of_all_four_branches() -> None:
    record = golden("small_train")
    pair = [run_step("", dtype)[1].output.backbone.blocks[11].detach() for dtype in (torch.float32, torch.float64)]
    for index, name in enumerate(("t_rgb", "t_tir", "rgb", "tir")):
        assert_as_exact(record.tensor(f"feat/{name}/block11"), *(blocks[index] for blocks in pair), rounding=RECORDED)


@TRAINING
def test_training_outputs(case: str) -> None:
    record = golden("small_train")
    mine, exact = (run_step(case, dtype)[1].output for dtype in (torch.float32, torch.float64))
    for who, prefix in (("student", ""), ("teacher_rgb", "teacher_rgb_"), ("teacher_tir", "teacher_tir_")):
        maps = [getattr(output, who) for output in (mine, exact)]
        recorded = record.tensor(f"{case}out/{prefix}score_map")
        assert_as_exact(recorded, *(m.score.detach() for m in maps))
        boxes = record.tensor(f"{case}out/{prefix}pred_boxes")[:, 0]
        assert_as_exact(boxes, *(find_peak(m).boxes_cxcywh.detach() for m in maps))


def test_teachers_follow_the_students() -> None:
    record = golden("small_train")
    kept = run_step("mcetrain/", torch.float32)[1].output.backbone.eliminations[-1].kept
    for index, name in enumerate(("t_rgb", "t_tir", "rgb", "tir")):
        recorded = record.tensor(f"mcetrain/keep_final/{name}").long()
        assert torch.equal(kept[index].sort().values, recorded.sort().values)


def our_training_name(name: str) -> str | None:
    ours = from_authors(name)
    return ours if ours is None or ours.startswith("teacher_") else f"student.{ours}"


def has_true_gradient(name: str) -> bool:
    """A convolution's bias before a batch norm has none: the recorded norm is rounding noise."""
    return not (".head." in name and name.endswith(".0.bias"))


@TRAINING
def test_gradient_norms(case: str) -> None:
    """Norms of all gradients. Clipping scaled ours; the recorded ones are from before it."""
    record = golden("small_train")
    norms = []
    for dtype in (torch.float32, torch.float64):
        model, step = run_step(case, dtype)
        unclip = max(1.0, float(step.gradient_norm) / OptimiserConfig().clip_norm)
        norms.append({n: float(p.grad.norm()) * unclip for n, p in model.named_parameters() if p.grad is not None})
    mine, exact = norms
    compared = 0
    for name, recorded in zip(record[f"{case}grad/names"], record[f"{case}grad/norms"], strict=True):
        ours = our_training_name(str(name))
        if ours is None:
            assert recorded == 0
            assert str(name).endswith(("cls_token", "pos_embed"))
        elif has_true_gradient(ours):
            assert recorded == pytest.approx(exact[ours], rel=2e-4, abs=1e-5), name
            assert mine[ours] == pytest.approx(exact[ours], rel=2e-4, abs=1e-5), name
            compared += 1
    assert compared == 770 - 8 - 36
    total = [float(run_step(case, dtype)[1].gradient_norm) for dtype in (torch.float32, torch.float64)]
    assert float(record[f"{case}grad/total_norm_before_clip"]) == pytest.approx(total[1], rel=1e-5)
    assert total[0] == pytest.approx(total[1], rel=1e-5)


@TRAINING
@pytest.mark.parametrize("term", ["style", "content"])
def test_gradients_of_one_distillation_term(case: str, term: str) -> None:
    """The weighted term alone: students only, teachers and heads exactly none."""
    record = golden("small_train")
    model, step = run_step(case, torch.float64)
    model = Trainee(model.config, drop_path=0.0).train().double()
    weights = {n if n.startswith("teacher_") else f"student.{n}": v for n, v in record.state_dict().items()}
    model.load_state_dict(weights, strict=False)
    images = [
        torch.stack([record.tensor(f"in/{crop}_{m}") for m in MODALITIES]).double() for crop in ("template", "search")
    ]
    visible = record.tensor("mask/in/keep_mask") if case == "mask/" else None
    output = model(*images, visible=visible)
    config = LossConfig()
    losses = compute_losses(output, record.tensor("in/gt_xywh").double(), config)
    weighted = {"style": config.style_weight * losses.style, "content": config.content_weight * losses.content}[term]
    weighted.backward()
    norms = {n: 0.0 if p.grad is None else float(p.grad.norm()) for n, p in model.named_parameters()}
    names = [k.rpartition("/")[2] for k in record if k.startswith(f"{case}gradnorm_{term}_only/")]
    assert len(names) == 12
    for name in names:
        recorded = float(record[f"{case}gradnorm_{term}_only/{name}"])
        ours = our_training_name(name)
        assert ours is not None
        assert recorded == pytest.approx(norms[ours], rel=2e-4, abs=1e-7), name
        if name.startswith(("teacher", "box_head")):
            assert norms[ours] == recorded == 0
    assert step.losses.total.item() > 0


def test_optimiser_step() -> None:
    """Weights and batch-norm statistics after one AdamW step with clipping."""
    record = golden("small_train")
    model, _ = run_step("", torch.float32)
    exact, _ = run_step("", torch.float64)
    mine, exact_state = model.state_dict(), exact.state_dict()
    keys = [k for k in record if k.startswith("step/")]
    assert len(keys) == 9
    for key in keys:
        ours = our_training_name(key.removeprefix("step/"))
        assert ours is not None
        before = record.tensor(f"sd/{key.removeprefix('step/')}").double()
        recorded = record.tensor(key).double()
        assert (recorded - before).abs().max() > 0
        # The step is small beside the weight: compare the steps, allowing the weights' own float32 rounding.
        ulp = float(before.abs().max()) * 2.0**-23
        step = exact_state[ours] - before
        bound = 2 * float((mine[ours].double() - before - step).abs().max()) + 2 * ulp
        assert float((recorded - before - step).abs().max()) <= bound


def test_labels_of_the_training_record() -> None:
    record = golden("small_train")
    boxes = record.tensor("in/gt_xywh")
    assert torch.equal(score_targets(boxes, 16), record.tensor("in/heatmap"))
    targets = score_targets(record.tensor("unit/heatmap_boxes"), 16)[:, 0]
    assert torch.equal(targets, record.tensor("unit/heatmaps"))


# --- the pipeline around the network ------------------------------------------------------------------------------


def test_crops_bit_for_bit() -> None:
    record = golden("pipeline")
    frame, boxes = record["frame"], record["boxes"]
    for factor, size in ((2.0, 128), (4.0, 256)):
        refused = 0
        for index, box in enumerate(boxes):
            if record[f"status{size}"][index] != "ok":
                refused += 1
                with pytest.raises(ValueError, match="too small"):
                    crop(frame, tuple(box), factor, size)
                continue
            mine = crop(frame, tuple(box), factor, size)
            assert np.array_equal(mine.image, record[f"crop{size}/{index}"]), index
            recorded = np.unpackbits(record[f"att{size}/{index}"])[: size * size].reshape(size, size).astype(bool)
            assert np.array_equal(padding(frame.shape[:2], mine.window, size), recorded), index
            assert mine.resize_factor == record[f"resize_factor{size}"][index]
        assert refused == 1
    first = crop(frame, tuple(boxes[0]), 2.0, 128)
    assert torch.equal(normalise(torch.from_numpy(first.image)[None]), record.tensor("preprocessed128/0"))


def test_template_masks() -> None:
    record = golden("pipeline")
    for name in ("CTR_POINT", "CTR_REC"):
        config = dataclasses.replace(GOLDEN_CONFIG, template_range=name)
        assert torch.equal(template_mask(config, batch=4), record.tensor(f"mask/{name}"))
    for size in (112, 192, 224):
        config = dataclasses.replace(GOLDEN_CONFIG, template_size=size)
        assert torch.equal(template_mask(config), record.tensor(f"mask/CTR_POINT_template{size}"))
    assert template_mask(dataclasses.replace(GOLDEN_CONFIG, template_range="ALL")).all()
    config = dataclasses.replace(GOLDEN_CONFIG, template_range="GT_BOX")
    boxes, recorded = record.tensor("mask/template_bbox_norm"), record.tensor("mask/GT_BOX")
    mine = template_mask(config, boxes)
    empty = ~recorded.any(-1)
    assert empty.tolist() == [False, False, True, False]
    assert torch.equal(mine[~empty], recorded[~empty])
    # Where the authors select nothing (and divide by it), the centre cell decides.
    assert mine[empty].nonzero().tolist() == [[0, 27]]


def test_box_in_template_crop() -> None:
    record = golden("pipeline")
    for box, recorded in zip(record["mask/init_boxes"], record["mask/template_bbox_norm"], strict=True):
        factor = 128 / np.ceil(np.sqrt(box[2] * box[3]) * 2.0)
        assert box_in_crop(tuple(box), tuple(box), factor, 128) == pytest.approx(recorded.tolist(), abs=2e-7)


def test_box_in_search_crop() -> None:
    record = golden("pipeline")
    around, box = tuple(record["label/box_extract"]), tuple(record["label/box_in"])
    factor = 256 / np.ceil(np.sqrt(around[2] * around[3]) * 4.0)
    assert box_in_crop(box, around, factor, 256) == pytest.approx(record["label/norm_xywh"].tolist(), abs=1e-7)


def test_hann_window() -> None:
    assert torch.equal(hann_window(16), golden("pipeline").tensor("hann16"))


def test_peaks() -> None:
    record = golden("pipeline")
    maps = HeadMaps(*(record.tensor(f"calbbox/{name}") for name in ("score", "size", "offset")))
    assert torch.equal(find_peak(maps).boxes_cxcywh, record.tensor("calbbox/out"))
    windowed = find_peak(maps, hann_window(16))
    assert torch.equal(windowed.boxes_cxcywh, record.tensor("calbbox/out_hann"))
    # The score is the one before the window.
    assert torch.equal(windowed.score, maps.score.flatten(1).gather(1, windowed.cell[:, None])[:, 0])


def test_boxes_in_the_frame() -> None:
    rows = golden("pipeline")["mapback/rows"]
    assert len(rows) == 40
    for row in rows:
        state, factor, prediction = tuple(row[:4].tolist()), float(row[4]), torch.tensor(row[5:9]).float()
        mapped = to_frame(prediction, state, factor, 256)
        assert mapped == tuple(row[13:17].tolist())
        assert clip_box(mapped, 240, 320) == tuple(row[17:21].tolist())


def test_clipping() -> None:
    record = golden("pipeline")
    for given, clipped, bare in zip(record["clip/in"], record["clip/out"], record["clip/out_margin0"], strict=True):
        assert clip_box(tuple(given), 240, 320) == tuple(clipped)
        assert clip_box(tuple(given), 240, 320, margin=0.0) == tuple(bare)


def test_keep_ratio_schedule() -> None:
    for epoch, start, total, recorded in golden("pipeline")["keep_rate_schedule"]:
        assert keep_ratio_at(int(epoch), int(start), int(total), 0.7) == pytest.approx(recorded, abs=5e-9)


# --- a whole track ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["mce", "slow"])
@torch.no_grad()
def test_track(case: str) -> None:
    """Twenty frames by hand: crop, network, window, peak, box, clip."""
    record = golden("small_track")
    config = dataclasses.replace(GOLDEN_CONFIG, elimination="mce" if case == "mce" else "none")
    model = student(config, record.state_dict(), torch.float32)
    frames = list(zip(record["rgb"], record["tir"], strict=True))
    box = tuple(record["init_box"].tolist())
    assert torch.equal(template_mask(config), record.tensor("mask"))

    def crops(pair: tuple[np.ndarray, np.ndarray], factor: float, size: int) -> tuple[Tensor, float]:
        both = [crop(frame, box, factor, size) for frame in pair]
        images = torch.from_numpy(np.stack([c.image for c in both]))
        return normalise(images).unsqueeze(1), both[0].resize_factor

    template = model.embed_template(crops(frames[0], config.template_factor, config.template_size)[0])
    window = hann_window(config.search_grid)
    for index, pair in enumerate(frames[1:]):
        search, factor = crops(pair, config.search_factor, config.search_size)
        assert factor == record[f"{case}/resize_factor"][index]
        output = model(template, search)
        peak = find_peak(output.maps, window)
        for elimination in output.backbone.eliminations:
            recorded = record.tensor(f"mce/keep/block{elimination.block}")[index].long()
            assert torch.equal(elimination.kept[0, 0].sort().values, recorded.sort().values)
        assert torch.allclose(output.maps.score[0, 0], record.tensor(f"{case}/score_map")[index], atol=2e-5, rtol=0)
        box = clip_box(to_frame(peak.boxes_cxcywh[0], box, factor, config.search_size), 140, 180)
        assert box == pytest.approx(record[f"{case}/boxes"][index + 1].tolist(), abs=0.01)
