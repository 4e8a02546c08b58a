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
from ckd_fast.reference.model import MODALITIES, Student
from ckd_fast.reference.preprocess import PIXEL_MEAN, PIXEL_STD
from ckd_fast.reference.vit import LAYER_NORM_EPS, Block, Branch

from .int8 import Int8

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
        for branch, image in zip(student.branches, _halves(images), strict=True)
    ]
    return openvino.Model([op.result(_stacked(tokens))], [images], "template")


def frame_graph(
    student: Student,
    config: ModelConfig,
    targets: int = 1,
    *,
    normalised: bool = False,
    observed: bool = False,
    int8: Int8 | None = None,
) -> openvino.Model:
    """Template tokens [2, B, T, C], search crops, deciding tokens [B, T] and present modalities [2, B]
    -> maps [B, 5, cells]: score, offset x and y, width, height.

    Args:
        student: the weights.
        config: its sizes; may differ from the student's own in what is dropped.
        targets: B, or -1 for any number; a graph for exactly one is faster.
        normalised: search crops are float32 [2, B, 3, H, W], as the reference takes them; else uint8 [2, B, H, W, 3].
        observed: the steps are further outputs, by their names.
        int8: which layers run in int8, and how.
    """
    return _Frame(student, config, int8).model(targets, normalised=normalised, observed=observed)


class _Frame:
    """Builds the graph of one frame.

    Tokens go through it as streams: one per branch [B, N, C] or, if the branches share their weights, one for both
    [2 B, N, C], so that each product is one.
    """

    def __init__(self, student: Student, config: ModelConfig, int8: Int8 | None) -> None:
        self.student, self.config, self.int8 = student, config, int8
        self.branches = student.branches[:1] if config.share_students else student.branches  # of each stream
        self.names = MODALITIES[: len(self.branches)]
        self.steps: list[tuple[str, Node]] = []

    def model(self, targets: int, *, normalised: bool, observed: bool) -> openvino.Model:
        config, size = self.config, self.config.search_size
        tokens_in = _input("template", [BRANCHES, targets, config.template_tokens, config.dim])
        if normalised:
            crops = _input("search", [BRANCHES, targets, 3, size, size])
        else:
            crops = _input("search", [BRANCHES, targets, size, size, 3], np.uint8)
        deciding = _input("deciding", [targets, config.template_tokens])
        present = _input("present", [BRANCHES, targets])

        images = crops if normalised else self._normalise(crops, present)
        tokens = [
            op.concat([template, _embedded(branch, image, branch.pos_embed_search)], axis=1)  # [B, T + L, C]
            for branch, template, image in zip(
                self.branches, self._streams(tokens_in), self._streams(images), strict=True
            )
        ]
        self._show("patch_embed", tokens)
        batch = op.gather(op.shape_of(deciding), _whole([0]), _whole(0))  # [B] as a tensor of one number
        count = config.search_tokens
        raster = op.broadcast(_whole(range(count)), op.concat([batch, _whole([count])], 0))
        cells = [raster] * BRANCHES  # [B, L]
        for index in range(config.depth):
            tokens, cells = self._block(index, tokens, cells, deciding, present)
        maps = self._head(tokens, cells, batch)

        outputs = [("maps", maps), *(self.steps if observed else [])]
        for name, node in outputs:
            _output(node).set_names({name})
        return openvino.Model([op.result(node) for _, node in outputs], [tokens_in, crops, deciding, present], "frame")

    # --- streams -------------------------------------------------------------------------------------------------

    def _streams(self, stacked: Node) -> list[Node]:
        """[2, B, ...] -> [B, ...] of each stream."""
        if len(self.branches) == BRANCHES:
            return list(_halves(stacked))
        rest = [dimension.get_length() for dimension in list(_output(stacked).get_partial_shape())[2:]]
        return [op.reshape(stacked, _whole([-1, *rest]), special_zero=False)]

    def _joined(self, parts: Sequence[Node]) -> list[Node]:
        """Of each branch -> of each stream."""
        return list(parts) if len(self.branches) == BRANCHES else [op.concat(list(parts), axis=0)]

    def _apart(self, streams: Sequence[Node]) -> list[Node]:
        """Of each stream -> of each branch."""
        return list(streams) if len(streams) == BRANCHES else op.split(streams[0], _whole(0), BRANCHES).outputs()

    def _show(self, name: str, streams: Sequence[Node]) -> None:
        self.steps.append((name, _stacked(self._apart(streams))))

    # --- parts of a frame ----------------------------------------------------------------------------------------

    def _normalise(self, crops: Node, present: Node) -> Node:
        """[2, B, H, W, 3] uint8 -> [2, B, 3, H, W]; a missing modality is zeros. See `reference.preprocess`."""
        mean, std = (np.array(values) * 255.0 for values in (PIXEL_MEAN, PIXEL_STD))
        centred = op.subtract(op.convert(crops, "f32"), _constant(mean))
        here = op.reshape(present, _whole([0, 0, 1, 1, 1]), special_zero=True)
        images = op.transpose(op.multiply(op.multiply(centred, _constant(1 / std)), here), _whole([0, 1, 4, 2, 3]))
        self.steps.append(("crop", images))
        return images

    def _block(
        self, index: int, tokens: list[Node], cells: list[Node], deciding: Node, present: Node
    ) -> tuple[list[Node], list[Node]]:
        """One transformer block: tokens [B, N, C] of each stream and the cells of their search tokens [B, L]."""
        config = self.config
        blocks: list[Block] = [branch.blocks[index] for branch in self.branches]  # type: ignore[misc]
        layers = [f"{name}.blocks.{index}" for name in self.names]
        heads = [self._heads(block, x, layer) for block, x, layer in zip(blocks, tokens, layers, strict=True)]
        attended = [_flat(config, op.scaled_dot_product_attention(q, k, v)) for q, k, v in heads]
        if config.eliminates_at(index):
            scores = self._scores([(q, k) for q, k, _ in heads], deciding, present)  # [B, L] each
            keep = _whole(config.search_tokens_after(index))
            # Sorted by value and stable: of equal scores the lower index wins, which is the reference's rule.
            kept = [op.topk(each, keep, 1, "max", "value", "i32", stable=True).output(1) for each in scores]  # [B, K]
            kept, scores = kept * (BRANCHES // len(kept)), scores * (BRANCHES // len(scores))
            cells = [op.gather(c, k, _whole(1), batch_dims=1) for c, k in zip(cells, kept, strict=True)]
            tokens, attended = (
                [_kept_tokens(config, x, k) for x, k in zip(both, self._joined(kept), strict=True)]
                for both in (tokens, attended)
            )
            self.steps += [(f"block{index}.scores", _stacked(scores)), (f"block{index}.eliminate", _stacked(cells))]
        between, after = [], []
        for block, before, attention, layer in zip(blocks, tokens, attended, layers, strict=True):
            x = op.add(before, self._linear(attention, *_plain(block.proj), f"{layer}.proj"))
            between.append(x)
            hidden = op.gelu(self._linear(_normed(x), *_folded(block.fc1, block.norm2), f"{layer}.fc1"), "erf")
            after.append(op.add(x, self._linear(hidden, *_plain(block.fc2), f"{layer}.fc2")))
        self._show(f"block{index}.attention", between)
        self._show(f"block{index}.mlp", after)
        return after, cells

    def _heads(self, block: Block, x: Node, layer: str) -> tuple[Node, Node, Node]:
        """Queries, keys and values [B, H, N, d]."""
        config = self.config
        qkv = self._linear(_normed(x), *_folded(block.qkv, block.norm1), f"{layer}.qkv")
        split = op.reshape(qkv, _whole([0, 0, 3, config.heads, config.head_dim]), special_zero=True)
        apart = op.transpose(split, _whole([2, 0, 3, 1, 4]))
        q, k, v = _parts(apart, 3)
        return q, k, v

    def _scores(self, heads: Sequence[tuple[Node, Node]], deciding: Node, present: Node) -> list[Node]:
        """Scores of the current search tokens [B, L]: of each branch, or one for both. See `reference.elimination`."""
        config, deciders = self.config, _whole(_may_decide(self.config))
        weight = op.reshape(op.gather(deciding, deciders, _whole(1)), _whole([0, 1, -1, 1]), special_zero=True)
        shown = [op.reshape(here, _whole([-1, 1, 1, 1]), special_zero=False) for here in _halves(present)]
        probabilities = [_probabilities(config, q, k, deciders) for q, k in heads]  # [B, H, T, L]
        votes = [op.multiply(p, here) for p, here in zip(self._apart(probabilities), shown, strict=True)]

        def scored(vote: Node) -> Node:
            per_head = op.divide(op.reduce_sum(op.multiply(vote, weight), _whole(2)), op.reduce_sum(weight, _whole(2)))
            return op.reduce_mean(per_head, _whole(1))

        together = op.maximum(*votes)
        if config.elimination == "mce":
            return [scored(together)]
        # A branch whose modality is missing follows the other one.
        there = [op.greater(here, _constant(np.array(0.0))) for here in shown]
        return [scored(op.select(here, vote, together)) for here, vote in zip(there, votes, strict=True)]

    def _head(self, tokens: list[Node], cells: list[Node], batch: Node) -> Node:
        """Final norm and centre head on live search tokens [B, T + K, C] of each stream -> maps [B, 5, cells]."""
        config, head = self.config, self.student.head
        towers = (head.score, head.offset, head.size)
        x = op.relu(self._first_stage(towers, tokens, cells, batch))  # [B, g, g, 3 F]
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
        return op.reshape(op.concat(outputs, axis=1), _whole([-1, 5, config.search_tokens]), special_zero=False)

    def _first_stage(self, towers: Sequence[Tower], tokens: list[Node], cells: list[Node], batch: Node) -> Node:
        """The first convolutions of all towers as one product of live tokens with all nine taps -> [B, g, g, 3 F].

        A dropped token is zero, so it adds nothing to any cell.
        """
        config, grid = self.config, self.config.search_grid
        first, bias = (np.concatenate(parts) for parts in zip(*(_stage(tower, 0) for tower in towers), strict=True))
        features, live = first.shape[0], config.search_tokens_after(config.depth - 1)
        start, end, one = _whole([config.template_tokens]), _whole([LAST]), _whole([1])
        normed = self._apart([_normed(op.slice(x, start, end, one, one)) for x in tokens])
        weights = np.split(first, BRANCHES, axis=1)
        sums: Node | None = None
        names = self.names * (BRANCHES // len(self.names))
        for name, branch, x, c, weight in zip(names, self.student.branches, normed, cells, weights, strict=True):
            taps = weight.reshape(features, config.dim, TAPS).transpose(2, 0, 1).reshape(TAPS * features, config.dim)
            products = self._linear(x, *_fold(taps, np.zeros(len(taps)), branch.norm), f"{name}.head")  # [B, K, 9 F]
            if live < config.search_tokens:  # back to the cells that the tokens stand for, zeros elsewhere
                products = _scattered(products, c, batch, [config.search_tokens, TAPS * features])
            sums = products if sums is None else op.add(sums, products)
        image = op.pad(
            op.reshape(sums, _whole([-1, grid, grid, TAPS * features]), special_zero=False),
            _whole([0, 1, 1, 0]), _whole([0, 1, 1, 0]), "constant", _constant(np.array(0.0)),
        )  # fmt: skip
        total = _constant(bias)
        for tap in range(TAPS):
            row, column = divmod(tap, 3)
            part = op.slice(
                image, _whole([row, column, tap * features]), _whole([row + grid, column + grid, (tap + 1) * features]),
                _whole([1, 1, 1]), _whole([1, 2, 3]),
            )  # fmt: skip
            total = op.add(total, part)
        return total

    def _linear(self, x: Node, weight: Values, bias: Values, layer: str) -> Node:
        """[..., C] times a weight [F, C], plus a bias [F]; in int8 if the layer of this name is."""
        factors = x, _constant(weight)
        if self.int8 is not None and self.int8.takes(layer):
            factors = self.int8.rounded(layer, x, weight)
        return op.add(op.matmul(*factors, transpose_a=False, transpose_b=True), _constant(bias))


def _embedded(branch: Branch, image: Node, positions: Tensor) -> Node:
    """[B, 3, H, W] -> [B, tokens, C]."""
    convolution = branch.patch_embed
    stride = list(convolution.stride)
    patches = op.convolution(image, _values(convolution.weight), stride, [0, 0], [0, 0], [1, 1])
    channels = convolution.out_channels
    rows = op.transpose(op.reshape(patches, _whole([0, channels, -1]), special_zero=True), _whole([0, 2, 1]))
    bias = _exact(convolution.bias)
    return op.add(rows, _constant(_exact(positions) + bias))


def _flat(config: ModelConfig, attended: Node) -> Node:
    """[B, H, N, d] -> [B, N, H d]."""
    return op.reshape(op.transpose(attended, _whole([0, 2, 1, 3])), _whole([0, 0, config.dim]), special_zero=True)


def _probabilities(config: ModelConfig, q: Node, k: Node, deciders: Node) -> Node:
    """Attention of deciding template tokens to search tokens [B, H, T, L]."""
    scaled = op.multiply(op.gather(q, deciders, _whole(2)), _constant(np.array(config.head_dim**-0.5)))
    probabilities = op.softmax(op.matmul(scaled, k, transpose_a=False, transpose_b=True), axis=3)  # [B, H, T, N]
    return op.slice(probabilities, _whole([config.template_tokens]), _whole([LAST]), _whole([1]), _whole([3]))


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


def _scattered(rows: Node, places: Node, batch: Node, shape: Sequence[int]) -> Node:
    """Rows [B, K, C] at their places [B, K] among zeros, [B, *shape]."""
    zeros = op.broadcast(_constant(np.array(0.0)), op.concat([batch, _whole(shape)], 0))
    count = op.squeeze(batch, _whole(0))
    samples = op.reshape(op.range(_whole(0), count, _whole(1), "i64"), _whole([-1, 1]), special_zero=False)
    samples = op.broadcast(samples, op.shape_of(places))  # [B, K]
    index = op.concat([op.unsqueeze(each, _whole(2)) for each in (samples, op.convert(places, "i64"))], axis=2)
    return op.scatter_nd_update(zeros, index, rows)


def _stage(tower: Tower, number: int) -> tuple[Values, Values]:
    """A convolution with its batch norm folded in: weight [F, C, 3, 3], bias [F]."""
    convolution, norm = tower[number][0], tower[number][1]  # type: ignore[index]
    scale = _exact(norm.weight) / np.sqrt(_exact(norm.running_var) + norm.eps)
    bias = (_exact(convolution.bias) - _exact(norm.running_mean)) * scale + _exact(norm.bias)
    return _exact(convolution.weight) * scale[:, None, None, None], bias


def _plain(layer: nn.Linear) -> tuple[Values, Values]:
    return _exact(layer.weight), _exact(layer.bias)


def _folded(layer: nn.Linear, norm: nn.LayerNorm) -> tuple[Values, Values]:
    return _fold(_exact(layer.weight), _exact(layer.bias), norm)


def _fold(weight: Values, bias: Values, norm: nn.LayerNorm) -> tuple[Values, Values]:
    """A layer [F, C] with the scale and shift of the norm in front of it."""
    return weight * _exact(norm.weight)[None, :], bias + weight @ _exact(norm.bias)


def _normed(x: Node) -> Node:
    """LayerNorm without its scale and shift."""
    return op.mvn(x, _whole([2]), normalize_variance=True, eps=LAYER_NORM_EPS, eps_mode="inside_sqrt")


def _input(name: str, shape: Sequence[int], dtype: type[np.generic] = np.float32) -> Node:
    node = op.parameter(list(shape), dtype, name)
    node.output(0).set_names({name})
    return node


def _output(node: Node | openvino.Output) -> openvino.Output:
    return node if isinstance(node, openvino.Output) else node.output(0)


def _parts(stacked: Node, count: int) -> Iterator[Node]:
    """[count, ...] -> each [...]."""
    return (op.squeeze(part, _whole(0)) for part in op.split(stacked, _whole(0), count).outputs())


def _halves(stacked: Node) -> Iterator[Node]:
    """Of both branches [2, ...] -> of each."""
    return _parts(stacked, BRANCHES)


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


def _whole(values: int | Sequence[int]) -> Node:
    return op.constant(np.asarray(values, np.int64))
