"""Decoding on the device against the reference's, number for number."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import pytest
import torch
from support import PoisonedRoom, one_call
from torch import Tensor

from ckd_fast.kernels.decode import constants, decode
from ckd_fast.kernels.layout import CARRY, CELL, FACTOR, POOL_ROW, REQUEST, SCORE, STATE, Uploaded
from ckd_fast.reference.boxes import Box, clip_box, find_peak, hann_window, to_frame
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.preprocess import crop_window

GRID, SIZE, SEARCH_FACTOR = 7, 112, 4.3
HEIGHT, WIDTH = 97, 131
BOXES: list[Box] = [
    (40.0, 30.0, 24.0, 20.0),
    (-3.3, 80.1, 10.0, 17.7),
    (121.0, -7.5, 33.3, 10.0),
    (0.1, 0.2, 130.9, 96.8),
    (60.123456789, 40.987654321, 11.1, 77.7),
]
B = len(BOXES)


def maps_of(seed: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(B, 3, 2, GRID * GRID, generator=generator)
    maps[:, 1] -= 0.5
    return maps.to(device)


def tables(device: torch.device, factors: list[float] | None = None) -> tuple[Uploaded, Tensor]:
    """One call's numbers and the pool's state; lost below 0.5, then searched 1.7 times as wide."""
    factors = factors or [SEARCH_FACTOR] * B
    rows = [[*BOXES[target], factors[target], 0.0, 0.5, 1.7, target] for target in range(B)]
    uploaded = one_call(device, (HEIGHT, WIDTH), rows)
    return uploaded, torch.full((B, STATE.value), float("nan"), dtype=torch.float64, device=device)


def run(maps: Tensor, uploaded: Uploaded, state: Tensor) -> Tensor:
    device, room = maps.device, PoisonedRoom(maps.device)
    window, fixed = hann_window(GRID).flatten().to(device), constants(SEARCH_FACTOR, device)
    result = decode(maps, window, uploaded, state, fixed, search_size=SIZE, room=room).run()
    assert result is room.buffers["result"]
    return result.cpu()


def on_host(maps: Tensor, boxes: list[Box], factors: list[float]) -> list[tuple[Box, float, int]]:
    square = maps.cpu().unflatten(-1, (GRID, GRID))
    peak = find_peak(HeadMaps(square[:, 0, :1], square[:, 2], square[:, 1]), hann_window(GRID))
    found = []
    for index, (box, factor) in enumerate(zip(boxes, factors, strict=True)):
        resize = SIZE / crop_window(box, factor).side
        mapped = to_frame(peak.boxes_cxcywh[index], box, resize, SIZE)
        found.append((clip_box(mapped, HEIGHT, WIDTH), float(peak.score[index]), int(peak.cell[index])))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_the_hosts_to_the_last_bit(device: torch.device, seed: int) -> None:
    factors = [SEARCH_FACTOR, 5.1, SEARCH_FACTOR, 1.3, 16.0]
    maps = maps_of(seed, device)
    uploaded, state = tables(device, factors)
    result, expected = run(maps, uploaded, state), on_host(maps, BOXES, factors)
    for row, next_state, (box, score, cell) in zip(result.tolist(), state.tolist(), expected, strict=True):
        assert tuple(row[:4]) == box
        assert row[4:] == [score, cell]
        assert tuple(next_state[:4]) == box
        wide = max(SEARCH_FACTOR, min(SEARCH_FACTOR * 1.7, 2 * max(HEIGHT, WIDTH) / math.sqrt(box[2] * box[3])))
        assert next_state[4] == (wide if score < 0.5 else SEARCH_FACTOR)


def test_lost_and_found_are_both_tried(device: torch.device) -> None:
    scores = torch.cat([run(maps_of(seed, device), *tables(device))[:, SCORE.value] for seed in range(4)])
    assert (scores > 0.5).any()
    low = maps_of(0, device)
    low[:, 0] *= 0.3
    uploaded, state = tables(device)
    assert (run(low, uploaded, state)[:, SCORE.value] < 0.5).all()
    factors = state[:, FACTOR.value].cpu()
    assert (factors > SEARCH_FACTOR).any()
    assert (factors >= SEARCH_FACTOR).all()


def carry(uploaded: Uploaded, targets: slice = slice(None)) -> None:
    """Let targets search where their state says; the host's numbers become useless."""
    uploaded.requests[targets, CARRY.value] = 1.0
    uploaded.requests[targets, : STATE.value] = float("nan")


def test_the_state_carries_on_from_frame_to_frame(device: torch.device) -> None:
    """Three frames without a word from the host are three frames with its boxes."""
    factors = [SEARCH_FACTOR] * B
    boxes, (uploaded, state) = BOXES, tables(device, factors)
    for seed in range(3):
        maps = maps_of(seed, device)
        result = run(maps, uploaded, state)
        expected = on_host(maps, boxes, factors)
        assert [tuple(row[:4]) for row in result.tolist()] == [box for box, _, _ in expected]
        boxes, factors = [box for box, _, _ in expected], state[:, FACTOR.value].tolist()
        carry(uploaded)


def test_pool_in_another_order_than_the_batch(device: torch.device, guard: contextlib.AbstractContextManager) -> None:
    """State is read and written by pool row, also of a pool larger than the batch; an empty row touches none."""
    maps = maps_of(3, device)
    in_order, ordered_state = tables(device)
    expected = [run(maps, in_order, ordered_state)]
    after_one = ordered_state.clone()
    carry(in_order)
    expected.append(run(maps, in_order, ordered_state))
    uploaded, _ = tables(device)
    pool_rows = torch.tensor([6, 2, -1, 7, 0])
    empty = pool_rows < 0
    uploaded.requests[:, POOL_ROW.value] = pool_rows.double().to(device)
    uploaded.requests[2, : POOL_ROW.value] = 0
    state = torch.full((9, STATE.value), -1234.5, dtype=torch.float64, device=device)
    untouched = sorted(set(range(9)) - set(pool_rows.tolist()))
    with guard:
        for frame, wanted_state in enumerate((after_one, ordered_state)):
            result = run(maps, uploaded, state)
            assert torch.equal(result[~empty], expected[frame][~empty])
            assert torch.isfinite(result).all()
            assert torch.equal(state[pool_rows[~empty]].cpu(), wanted_state[~empty].cpu())
            assert (state[untouched] == -1234.5).all()
            carry(uploaded, slice(0, 2))
            carry(uploaded, slice(3, 5))


def test_first_of_equal_peaks(device: torch.device) -> None:
    maps = maps_of(0, device)
    maps[:, 0] = 0.7  # the window alone decides: the middle cell
    result = run(maps, *tables(device))
    assert result[:, CELL.value].tolist() == [GRID * GRID // 2] * B
    window = hann_window(GRID).flatten()
    maps[:, 0, 0] = (0.1 / window).clamp(max=1).to(device)  # equal products but for rounding
    ranked = maps[0, 0, 0].cpu() * window
    assert run(maps, *tables(device))[:, CELL.value].tolist() == [int(ranked.argmax())] * B


@pytest.mark.parametrize("place", [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(device: torch.device, place: tuple[int, int], value: float) -> None:
    maps = maps_of(1, device)
    maps[(2, *place)] = value
    score = run(maps, *tables(device))[:, SCORE.value]
    assert torch.isnan(score[2])
    assert torch.isfinite(score[[0, 1, 3, 4]]).all()


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    uploaded, state = tables(device)
    fitting = {
        "maps": maps_of(0, device), "window": hann_window(GRID).flatten().to(device), "uploaded": uploaded,
        "state": state, "fixed": constants(SEARCH_FACTOR, device),
    }  # fmt: skip
    narrow = replace(uploaded, requests=uploaded.requests[:, : REQUEST.value - 1].contiguous())
    for change, message in (
        ({"maps": fitting["maps"][:, :2]}, r"maps is non-contiguous torch\.float32 \(5, 2, 2, 49\)"),
        ({"window": fitting["window"][1:]}, r"window is torch\.float32 \(48,\)"),
        ({"uploaded": narrow}, r"requests is torch\.float64 \(5, 8\)"),
        ({"uploaded": replace(uploaded, geometry=uploaded.geometry.float())}, r"geometry is torch\.float32"),
        ({"state": state.float()}, r"state is torch\.float32"),
        ({"state": state[:, :4]}, r"state is non-contiguous torch\.float64 \(5, 4\)"),
        ({"fixed": fitting["fixed"][:1]}, r"fixed is torch\.float64 \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(**(fitting | change), search_size=SIZE)
