"""The student as graphs of OpenVINO's operations: template crops to tokens, and a frame from search crops to maps.

Built from the weights, not exported from PyTorch, so that the graph does less work than the network as it is written:
the scales and shifts of norms are folded into the layers behind them, and the three first convolutions of the head are
one layer that multiplies live tokens only; dropped tokens leave before the projection. Everything folded is computed in
float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset15 as op
from torch import Tensor, nn

from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.elimination import template_mask
from ckd_fast.reference.head import SCORE_MARGIN, Tower
from ckd_fast.reference.model import Student
from ckd_fast.reference.vit import LAYER_NORM_EPS, Block, Branch

Node: TypeAlias = openvino.Node
Values = NDArray[np.float64]
BRANCHES = 2
TAPS = 9
LAST = 2**31 - 1  # end of a slice that goes on to the end


def template_graph(student: Student) -> openvino.Model:
    """Normalised template crops [2, B, 3, h, w] -> tokens [2, B, T, C]."""
    config = student.config
    images = _input("images", [BRANCHES, -1, 3, config.template_size, config.template_size])
    tokens = [
        _embedded(branch, image, branch.pos_embed_template)
        for branch, image in zip(student.branches, _each(images), strict=True)
    ]
    return openvino.Model([op.result(_stacked(tokens))], [images], "template")


def frame_graph(student: Student, config: ModelConfig, targets: int = 1, *, observed: bool = False) -> openvino.Model:
    """Template tokens [2, B, T, C], search crops [2, B, 3, H, W], deciding tokens [B, T] and present modalities [2, B]
    -> maps [B, 5, cells]: score, offset x and y, width, height. `observed` adds the steps as outputs, by their names.
    """
    steps: list[tuple[str, Node]] = []
    template, size = config.template_tokens, config.search_size
    tokens_in = _input("template", [BRANCHES, targets, template, config.dim])
    images = _input("search", [BRANCHES, targets, 3, size, size])
    deciding = _input("deciding", [targets, template])
    present = _input("present", [BRANCHES, targets])
    tokens = [
        op.concat([first, _embedded(branch, image, branch.pos_embed_search)], axis=1)  # [B, T + L, C]
        for branch, first, image in zip(student.branches, _each(tokens_in), _each(images), strict=True)
    ]
    steps.append(("patch_embed", _stacked(tokens)))
    cells = [_whole(np.arange(config.search_tokens)[None].repeat(targets, 0))] * BRANCHES  # [B, L]
    for index in range(config.depth):
        blocks: list[Block] = [branch.blocks[index] for branch in student.branches]  # type: ignore[misc]
        tokens, cells = _block(config, index, blocks, tokens, cells, deciding, present, steps)
    maps = _head(student, config, tokens, cells, targets)
    outputs = [("maps", maps), *(steps if observed else [])]
    for name, node in outputs:
        _output(node).set_names({name})
    return openvino.Model([op.result(node) for _, node in outputs], [tokens_in, images, deciding, present], "frame")


def _embedded(branch: Branch, image: Node, positions: Tensor) -> Node:
    """[B, 3, H, W] -> [B, tokens, C]."""
    convolution = branch.patch_embed
    stride = list(convolution.stride)
    patches = op.convolution(image, _values(convolution.weight), stride, [0, 0], [0, 0], [1, 1])
    channels = convolution.out_channels
    rows = op.transpose(op.reshape(patches, _whole([0, channels, -1]), special_zero=True), _whole([0, 2, 1]))
    bias = _exact(convolution.bias)
    return op.add(rows, _constant(_exact(positions) + bias))


def _block(
    config: ModelConfig,
    index: int,
    blocks: Sequence[Block],
    tokens: list[Node],
    cells: list[Node],
    deciding: Node,
    present: Node,
    steps: list[tuple[str, Node]],
) -> tuple[list[Node], list[Node]]:
    """One transformer block of both branches: tokens [B, N, C] and the cells of their search tokens [B, L]."""
    heads = [_heads(config, block, x) for block, x in zip(blocks, tokens, strict=True)]
    attended = [_joined(config, op.scaled_dot_product_attention(q, k, v)) for q, k, v in heads]
    if config.eliminates_at(index):
        scores = _scores(config, [(q, k) for q, k, _ in heads], deciding, present)  # [B, L] each
        # Sorted by value and stable: of equal scores the lower index wins, which is the reference's rule.
        keep = _whole(config.search_tokens_after(index))
        kept = [op.topk(each, keep, 1, "max", "value", "i32", stable=True).output(1) for each in scores]  # [B, K] each
        cells = [op.gather(c, k, _whole(1), batch_dims=1) for c, k in zip(cells, kept, strict=True)]
        tokens, attended = (
            [_kept_tokens(config, x, k) for x, k in zip(both, kept, strict=True)] for both in (tokens, attended)
        )
        steps += [(f"block{index}.scores", _stacked(scores)), (f"block{index}.eliminate", _stacked(cells))]
    between, after = [], []
    for block, before, attention in zip(blocks, tokens, attended, strict=True):
        x = op.add(before, _linear(attention, _exact(block.proj.weight), _exact(block.proj.bias)))
        between.append(x)
        hidden = op.gelu(_linear(_normed(x), *_folded(block.fc1, block.norm2)), "erf")
        after.append(op.add(x, _linear(hidden, _exact(block.fc2.weight), _exact(block.fc2.bias))))
    steps += [(f"block{index}.attention", _stacked(between)), (f"block{index}.mlp", _stacked(after))]
    return after, cells


def _heads(config: ModelConfig, block: Block, x: Node) -> tuple[Node, Node, Node]:
    """Queries, keys and values [B, H, N, d]."""
    qkv = _linear(_normed(x), *_folded(block.qkv, block.norm1))
    split = op.reshape(qkv, _whole([0, 0, 3, config.heads, config.head_dim]), special_zero=True)
    apart = op.transpose(split, _whole([2, 0, 3, 1, 4]))
    q, k, v = (op.squeeze(part, _whole(0)) for part in op.split(apart, _whole(0), 3).outputs())
    return q, k, v


def _joined(config: ModelConfig, attended: Node) -> Node:
    """[B, H, N, d] -> [B, N, H d]."""
    return op.reshape(op.transpose(attended, _whole([0, 2, 1, 3])), _whole([0, 0, config.dim]), special_zero=True)


def _scores(config: ModelConfig, heads: Sequence[tuple[Node, Node]], deciding: Node, present: Node) -> list[Node]:
    """Scores of the current search tokens [B, L] of each branch, see `reference.elimination`."""
    template, deciders = config.template_tokens, _whole(_may_decide(config))
    votes = []
    for (q, k), here in zip(heads, _each(present), strict=True):
        scaled = op.multiply(op.gather(q, deciders, _whole(2)), _constant(np.array(config.head_dim**-0.5)))
        probabilities = op.softmax(op.matmul(scaled, k, transpose_a=False, transpose_b=True), axis=3)  # [B, H, T, N]
        search = op.slice(probabilities, _whole([template]), _whole([LAST]), _whole([1]), _whole([3]))
        votes.append(op.multiply(search, op.reshape(here, _whole([-1, 1, 1, 1]), special_zero=False)))
    weight = op.reshape(op.gather(deciding, deciders, _whole(1)), _whole([0, 1, -1, 1]), special_zero=True)

    def scored(vote: Node) -> Node:
        per_head = op.divide(op.reduce_sum(op.multiply(vote, weight), _whole(2)), op.reduce_sum(weight, _whole(2)))
        return op.reduce_mean(per_head, _whole(1))

    together = op.maximum(*votes)
    if config.elimination == "mce":
        return [scored(together)] * BRANCHES
    # A branch whose modality is missing follows the other one.
    there = [
        op.greater(op.reshape(here, _whole([-1, 1, 1, 1]), special_zero=False), _constant(np.array(0.0)))
        for here in _each(present)
    ]
    return [scored(op.select(here, vote, together)) for here, vote in zip(there, votes, strict=True)]


def _may_decide(config: ModelConfig) -> list[int]:
    """Template tokens that may decide: those that the range names, or all where the target's box does."""
    if config.template_range in ("GT_BOX", "ALL"):
        return list(range(config.template_tokens))
    return [int(token) for token in template_mask(config)[0].nonzero()[:, 0]]


def _kept_tokens(config: ModelConfig, tokens: Node, kept: Node) -> Node:
    """Template tokens and the search tokens that stay: [B, T + L, C] -> [B, T + K, C]."""
    template = config.template_tokens
    first, search = op.variadic_split(tokens, _whole(1), _whole([template, -1])).outputs()
    return op.concat([first, op.gather(search, kept, _whole(1), batch_dims=1)], axis=1)


def _head(student: Student, config: ModelConfig, tokens: list[Node], cells: list[Node], targets: int) -> Node:
    """Final norm and centre head on live search tokens [B, T + K, C] -> maps [B, 5, cells]."""
    head = student.head
    template, count, grid = config.template_tokens, config.search_tokens, config.search_grid
    towers = (head.score, head.offset, head.size)
    first, bias = (np.concatenate(parts) for parts in zip(*(_stage(tower, 0) for tower in towers), strict=True))
    features = first.shape[0]
    live = config.search_tokens_after(config.depth - 1)
    empty = _constant(np.zeros((targets, count, TAPS * features)))
    batch = _whole(np.arange(targets)[:, None, None].repeat(live, 1))
    sums: Node | None = None
    for branch, x, c, weight in zip(student.branches, tokens, cells, np.split(first, BRANCHES, axis=1), strict=True):
        search = op.slice(x, _whole([template]), _whole([LAST]), _whole([1]), _whole([1]))
        taps = weight.reshape(features, config.dim, TAPS).transpose(2, 0, 1).reshape(TAPS * features, config.dim)
        products = _linear(_normed(search), *_fold(taps, np.zeros(len(taps)), branch.norm))  # [B, K, 9 F]
        if live < count:  # back to the cells that the tokens stand for, zeros elsewhere
            place = op.concat([batch, op.unsqueeze(op.convert(c, "i64"), _whole(2))], axis=2)  # [B, K, 2]
            products = op.scatter_nd_update(empty, place, products)
        sums = products if sums is None else op.add(sums, products)
    image = op.pad(
        op.reshape(sums, _whole([targets, grid, grid, TAPS * features]), special_zero=False),
        _whole([0, 1, 1, 0]), _whole([0, 1, 1, 0]), "constant", _constant(np.array(0.0)),
    )  # fmt: skip
    total: Node | None = None
    for tap in range(TAPS):
        row, column = divmod(tap, 3)
        part = op.slice(
            image, _whole([row, column, tap * features]), _whole([row + grid, column + grid, (tap + 1) * features]),
            _whole([1, 1, 1]), _whole([1, 2, 3]),
        )  # fmt: skip
        total = part if total is None else op.add(total, part)
    x = op.relu(op.add(total, _constant(bias)))  # [B, g, g, 3 F]
    x = op.transpose(x, _whole([0, 3, 1, 2]))
    for stage in (1, 2, 3):
        weights, biases = zip(*(_stage(tower, stage) for tower in towers), strict=True)
        grouped = op.group_convolution(x, _constant(np.stack(weights)), [1, 1], [1, 1], [1, 1], [1, 1])
        x = op.relu(op.add(grouped, _constant(np.concatenate(biases)[None, :, None, None])))
    outputs = []
    for tower, part in zip(towers, op.split(x, _whole(1), len(towers)).outputs(), strict=True):
        last: nn.Conv2d = tower[-1]  # type: ignore[assignment]
        value = op.convolution(part, _values(last.weight), [1, 1], [0, 0], [0, 0], [1, 1])
        value = op.add(value, _constant(_exact(last.bias)[None, :, None, None]))
        if tower is not head.offset:
            value = op.clamp(op.sigmoid(value), SCORE_MARGIN, 1 - SCORE_MARGIN)
        outputs.append(value)
    return op.reshape(op.concat(outputs, axis=1), _whole([targets, 5, count]), special_zero=False)


def _stage(tower: Tower, number: int) -> tuple[Values, Values]:
    """A convolution with its batch norm folded in: weight [F, C, 3, 3], bias [F]."""
    convolution, norm = tower[number][0], tower[number][1]  # type: ignore[index]
    scale = _exact(norm.weight) / np.sqrt(_exact(norm.running_var) + norm.eps)
    bias = (_exact(convolution.bias) - _exact(norm.running_mean)) * scale + _exact(norm.bias)
    return _exact(convolution.weight) * scale[:, None, None, None], bias


def _folded(layer: nn.Linear, norm: nn.LayerNorm) -> tuple[Values, Values]:
    return _fold(_exact(layer.weight), _exact(layer.bias), norm)


def _fold(weight: Values, bias: Values, norm: nn.LayerNorm) -> tuple[Values, Values]:
    """A layer [F, C] with the scale and shift of the norm in front of it."""
    return weight * _exact(norm.weight)[None, :], bias + weight @ _exact(norm.bias)


def _normed(x: Node) -> Node:
    """LayerNorm without its scale and shift."""
    return op.mvn(x, _whole([2]), normalize_variance=True, eps=LAYER_NORM_EPS, eps_mode="inside_sqrt")


def _linear(x: Node, weight: Values, bias: Values) -> Node:
    return op.add(op.matmul(x, _constant(weight), transpose_a=False, transpose_b=True), _constant(bias))


def _input(name: str, shape: Sequence[int]) -> Node:
    node = op.parameter(list(shape), np.float32, name)
    node.output(0).set_names({name})
    return node


def _output(node: Node | openvino.Output) -> openvino.Output:
    return node if isinstance(node, openvino.Output) else node.output(0)


def _each(stacked: Node) -> Iterator[Node]:
    """Parts of [2, ...]."""
    return (op.squeeze(part, _whole(0)) for part in op.split(stacked, _whole(0), BRANCHES).outputs())


def _stacked(parts: Sequence[Node]) -> Node:
    return op.concat([op.unsqueeze(part, _whole(0)) for part in parts], axis=0)


def _exact(tensor: Tensor | None) -> Values:
    if tensor is None:
        raise ValueError("a layer of the model has no bias")
    return tensor.detach().double().numpy()


def _values(tensor: Tensor) -> Node:
    return _constant(_exact(tensor))


def _constant(values: NDArray[np.floating]) -> Node:
    return op.constant(values.astype(np.float32))


def _whole(values: int | Sequence[int] | NDArray[np.integer]) -> Node:
    return op.constant(np.asarray(values, np.int64))
