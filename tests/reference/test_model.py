"""Properties of the model that the golden numbers do not show."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support import assert_as_exact
from torch.nn import functional

from ckd_fast import ModelConfig
from ckd_fast.reference.cost import model_cost
from ckd_fast.reference.elimination import eliminate, restore, token_scores
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.labels import visible_patches
from ckd_fast.reference.losses import LossConfig, content_loss, distillation, focal_loss, over_blocks, style_loss
from ckd_fast.reference.model import Student, Trainee, initialise
from ckd_fast.reference.training import OptimiserConfig, freeze_backbones, make_optimiser
from ckd_fast.reference.vit import attention

SMALL = ModelConfig(dim=32, depth=3, heads=2, head_channels=16, eliminate_at=(1,), template_size=64, search_size=112)


def random_student(config: ModelConfig = SMALL, seed: int = 0) -> Student:
    student = Student(config)
    initialise(student, seed)
    return student.eval()


def inputs(config: ModelConfig, batch: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    template = torch.randn(2, batch, 3, config.template_size, config.template_size, generator=generator)
    return template, torch.randn(2, batch, 3, config.search_size, config.search_size, generator=generator)


@pytest.mark.parametrize("elimination", ["mce", "ce", "none"])
@torch.no_grad()
def test_a_batch_is_its_samples(elimination: str) -> None:
    config = dataclasses.replace(SMALL, elimination=elimination)
    student, (template, search) = random_student(config), inputs(config, 3)
    together = student(student.embed_template(template), search).maps
    for index in range(3):
        one = slice(index, index + 1)
        alone = student(student.embed_template(template[:, one]), search[:, one]).maps
        for name in ("score", "size", "offset"):
            assert torch.allclose(getattr(alone, name), getattr(together, name)[one], atol=1e-6)


@torch.no_grad()
def test_modalities_meet_only_in_elimination() -> None:
    student, (template, search) = random_student(dataclasses.replace(SMALL, elimination="none")), inputs(SMALL, 1)
    tokens = student.embed_template(template)
    before = student(tokens, search).backbone.tokens
    other = search.clone()
    other[1] += 1
    after = student(tokens, other).backbone.tokens
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("elimination", ["mce", "ce"])
@torch.no_grad()
def test_a_missing_modality_has_no_vote(elimination: str) -> None:
    """What the missing branch sees must not change what is kept, and it follows the present one."""
    config = dataclasses.replace(SMALL, elimination=elimination)
    student, (template, search) = random_student(config), inputs(config, 2)
    tokens = student.embed_template(template)
    present = torch.tensor([[True, True], [False, True]])  # thermal missing for the first target
    kept = student(tokens, search, present=present).backbone.eliminations[0].kept
    assert torch.equal(kept[0, 0], kept[1, 0])
    changed = search.clone()
    changed[1, 0] = torch.randn(changed[1, 0].shape)
    again = student(tokens, changed, present=present).backbone.eliminations[0].kept
    assert torch.equal(kept[:, 0], again[:, 0])
    alone = student(tokens, search).backbone.eliminations[0].kept
    assert torch.equal(alone[:, 1], kept[:, 1])


def test_ties_go_to_the_lower_position() -> None:
    scores = torch.tensor([[[0.5, 0.7, 0.5, 0.7, 0.1, 0.5, 0.5]]])
    positions = torch.tensor([[[9, 8, 7, 6, 5, 4, 3]]])
    done = eliminate(0, scores, positions, 0.7)
    assert done.kept_index.tolist() == [[[1, 3, 0, 2, 5]]]
    assert done.kept.tolist() == [[[8, 6, 9, 7, 4]]]
    assert done.removed.tolist() == [[[3, 5]]]


def test_restore_scatters_to_raster_order() -> None:
    config = dataclasses.replace(SMALL, template_size=16, search_size=48)
    tokens = torch.arange(1.0, 4.0).reshape(1, 1, 3, 1).expand(1, 1, 3, 32)
    restored = restore(tokens, torch.tensor([[[7, 2]]]), config)
    assert restored[0, 0, :, 0].tolist() == [1, 0, 0, 3, 0, 0, 0, 0, 2, 0]


def test_scores_are_means_of_maxima() -> None:
    probabilities = torch.rand(2, 3, 4, 5, 6, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
    scores = token_scores(probabilities, mask, SMALL, slice(None))
    for sample in range(3):
        chosen = probabilities[:, sample].amax(0)[:, mask[sample]]
        assert torch.allclose(scores[0, sample], chosen.mean(1).mean(0))
        assert torch.equal(scores[0, sample], scores[1, sample])


def test_shared_students_are_one_module() -> None:
    config = dataclasses.replace(SMALL, share_students=True)
    student = Student(config)
    assert student.rgb is student.tir
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in Student(SMALL).parameters())
    trainee = Trainee(config, drop_path=0.0)
    template, search = inputs(config, 2)
    assert trainee(template, search).student.score.shape == (2, 1, 7, 7)


def test_cost_is_what_the_layers_do() -> None:
    """The formula against a count by hooks on every layer, with elimination."""
    student, (template, search) = random_student(), inputs(SMALL, 1)
    macs = norms = 0

    def count(module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal macs, norms
        if isinstance(module, torch.nn.Linear):
            macs += output.numel() * module.in_features
        elif isinstance(module, torch.nn.Conv2d):
            macs += output.numel() * module.weight[0].numel()
        elif isinstance(module, torch.nn.LayerNorm | torch.nn.BatchNorm2d):
            norms += 4 * output.numel()

    for module in student.modules():
        module.register_forward_hook(count)
    student(student.embed_template(template), search)
    cost = model_cost(SMALL)
    assert sum(part.macs for part in cost.parts) == macs
    assert sum(part.norm_operations for part in cost.parts) == norms
    assert cost.parameters == sum(p.numel() for p in student.parameters())
    by_hand = 2 * 2 * 32 * ((16 + 49) ** 2 * 2 + (16 + 35) ** 2)
    assert sum(part.attention_macs for part in cost.parts) == by_hand


def test_initialise_is_seeded_and_complete() -> None:
    first, second, third = random_student(seed=1), random_student(seed=1), random_student(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.rgb.patch_embed.weight, third.rgb.patch_embed.weight)
    assert not torch.equal(first.rgb.patch_embed.weight, first.tir.patch_embed.weight)


# --- training ---------------------------------------------------------------------------------------------------


def test_the_two_readings_of_the_losses() -> None:
    program, paper = LossConfig(), LossConfig.paper()
    blocks = torch.randn(3, 4, 2, 11, 5, dtype=torch.float64)
    rgb, tir = blocks[0, 2], blocks[0, 3]
    mean_gap = (rgb.mean(1) - tir.mean(1)) ** 2
    by_hand = {
        unbiased: (mean_gap + (rgb.std(1, unbiased) - tir.std(1, unbiased)) ** 2).mean() for unbiased in (True, False)
    }
    assert torch.allclose(style_loss(rgb, tir, program), by_hand[True])
    assert torch.allclose(style_loss(rgb, tir, paper), by_hand[False])
    assert paper.style_weight / paper.content_weight == 2
    assert program.style_weight / program.content_weight == pytest.approx(0.1)
    terms = [block.style for block in distillation(list(blocks), program)]
    assert torch.allclose(over_blocks(terms, program), 3 * over_blocks(terms, paper))


def test_gradient_switches() -> None:
    rgb, tir = (torch.randn(2, 7, 3, requires_grad=True) for _ in range(2))
    for direction, moved in (("both", (True, True)), ("rgb", (True, False)), ("tir", (False, True))):
        rgb.grad = tir.grad = None
        style_loss(rgb, tir, LossConfig(style_gradient=direction)).backward()
        assert (rgb.grad is not None, tir.grad is not None) == moved
    rgb.grad = tir.grad = None
    content_loss(rgb, tir, LossConfig(detach_teachers=False)).backward()
    assert tir.grad is not None
    with pytest.raises(ValueError, match="style_gradient='up'"):
        LossConfig(style_gradient="up")


def test_focal_loss_without_a_positive_cell() -> None:
    """A centre on the far edge rounds outside the map: the loss stays finite."""
    score = torch.full((1, 1, 4, 4), 0.3)
    loss = focal_loss(score, torch.full((1, 1, 4, 4), 0.5))
    assert loss == pytest.approx(-16 * torch.tensor(0.7).log().item() * 0.09 * 0.0625, rel=1e-5)


def test_visible_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    visible = visible_patches(400, 256, 0.25, generator)
    assert visible.float().mean().item() == pytest.approx(0.75, abs=0.005)
    assert visible_patches(2, 256, 0.0, generator).all()


def test_hidden_patches_do_not_reach_the_students() -> None:
    trainee = Trainee(dataclasses.replace(SMALL, elimination="none"), drop_path=0.0)
    initialise(trainee, 0)
    template, search = inputs(SMALL, 1)
    visible = torch.ones(1, 49, dtype=torch.bool)
    visible[0, 10] = False
    row, column = divmod(10, 7)
    changed = search.clone()
    changed[..., row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 5.0
    first, second = (trainee(template, images, visible=visible).backbone.tokens for images in (search, changed))
    assert torch.equal(first[2:], second[2:])
    assert not torch.equal(first[:2], second[:2])


def test_drop_path_grows_linearly_and_only_in_training() -> None:
    trainee = Trainee(SMALL)
    assert [block.drop_path for block in trainee.student.rgb.blocks] == [0.0, 0.05, 0.1]
    template, search = inputs(SMALL, 2)
    trainee.eval()
    assert torch.equal(trainee(template, search).student.score, trainee(template, search).student.score)
    block = trainee.student.rgb.blocks[2].train()
    residual = torch.ones(4000, 1, 1)
    kept = block._drop_path(residual)
    assert sorted(set(kept.flatten().tolist())) == pytest.approx([0.0, 1 / 0.9])
    assert kept.mean().item() == pytest.approx(1, abs=0.03)


def test_parameter_groups_and_stage_two() -> None:
    trainee = Trainee(SMALL)
    optimiser = make_optimiser(trainee, OptimiserConfig())
    heads, backbones = optimiser.param_groups
    assert (heads["lr"], backbones["lr"], heads["weight_decay"]) == (5e-5, 5e-6, 1e-4)
    counted = sum(p.numel() for group in optimiser.param_groups for p in group["params"])
    assert counted == sum(p.numel() for p in trainee.parameters())
    freeze_backbones(trainee)
    (only,) = make_optimiser(trainee, OptimiserConfig()).param_groups
    heads_alone = sum(p.numel() for name, p in trainee.named_parameters() if ".head." in name)
    assert sum(p.numel() for p in only["params"]) == heads_alone


def test_head_maps_are_clamped() -> None:
    student = random_student()
    with torch.no_grad():
        maps: HeadMaps = student.head(torch.randn(2, 64, 7, 7) * 1e4)
    for name in ("score", "size"):
        values = getattr(maps, name)
        assert values.min() >= 1e-4
        assert values.max() <= 1 - 1e-4


def test_attention_in_training_is_attention() -> None:
    """On the CPU, training in bfloat16 takes another way; values and gradients are as exact as torch's routine."""
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, 3, 2, 7, 16, generator=generator, dtype=torch.float64) for _ in range(3)]
    weight = torch.randn(2, 3, 2, 7, 16, generator=generator)

    def outcome(dtype: torch.dtype, *, fused: bool) -> list[torch.Tensor]:
        inputs = [value.to(dtype).requires_grad_() for value in exact]
        if fused:
            flat = [value.reshape(-1, *value.shape[-3:]) for value in inputs]
            made = functional.scaled_dot_product_attention(*flat).reshape(weight.shape)
        else:
            made = attention(*inputs)
        return [made.detach(), *torch.autograd.grad((made * weight.to(dtype)).sum(), inputs)]

    rounded = [value.to(torch.bfloat16).double() for value in exact]
    exact = rounded
    ours, torchs = outcome(torch.bfloat16, fused=False), outcome(torch.bfloat16, fused=True)
    for value, plain, truth in zip(ours, torchs, outcome(torch.float64, fused=True), strict=True):
        assert_as_exact(value, plain, truth)
