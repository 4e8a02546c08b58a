"""Decoding on the device against the reference's, number for number."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch import Tensor

from ckd_fast.kernels.crop import GEOMETRY, GIVEN
from ckd_fast.kernels.decode import constants, decode
from ckd_fast.reference.boxes import Box, clip_box, find_peak, hann_window, to_frame
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.preprocess import crop_window

GRID, SIZE, FACTOR = 7, 112, 4.3
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


def tables(device: torch.device, factors: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Geometry, given and state; lost below 0.5, then searched 1.7 times as wide."""
    geometry = torch.zeros(2, GEOMETRY, dtype=torch.float64, device=device)
    geometry[0, :2] = torch.tensor([HEIGHT, WIDTH])
    rows = [[*box, factor, 0.0, 0.5, 1.7] for box, factor in zip(BOXES, factors, strict=True)]
    given = torch.tensor(rows, dtype=torch.float64, device=device)
    state = torch.full((B, 5), float("nan"), dtype=torch.float64, device=device)
    return geometry, given, state


def run(maps: Tensor, geometry: Tensor, given: Tensor, state: Tensor) -> Tensor:
    device = maps.device
    result = torch.full((len(maps), 6), float("nan"), dtype=torch.float64, device=device)
    window = hann_window(GRID).flatten().to(device)
    assert decode(maps, window, geometry, given, state, constants(FACTOR, device), result, search_size=SIZE) is result
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
    factors = [FACTOR, 5.1, FACTOR, 1.3, 16.0]
    maps = maps_of(seed, device)
    geometry, given, state = tables(device, factors)
    result = run(maps, geometry, given, state)
    for row, next_state, (box, score, cell) in zip(
        result.tolist(), state.tolist(), on_host(maps, BOXES, factors), strict=True
    ):
        assert tuple(row[:4]) == box
        assert row[4:] == [score, cell]
        assert tuple(next_state[:4]) == box
        wide = max(FACTOR, min(FACTOR * 1.7, 2 * max(HEIGHT, WIDTH) / math.sqrt(box[2] * box[3])))
        assert next_state[4] == (wide if score < 0.5 else FACTOR)


def test_lost_and_found_are_both_tried(device: torch.device) -> None:
    scores = torch.cat([run(maps_of(seed, device), *tables(device, [FACTOR] * B))[:, 4] for seed in range(4)])
    assert (scores > 0.5).any()
    low = maps_of(0, device)
    low[:, 0] *= 0.3
    geometry, given, state = tables(device, [FACTOR] * B)
    assert (run(low, geometry, given, state)[:, 4] < 0.5).all()
    assert (state[:, 4].cpu() > FACTOR).any()
    assert (state[:, 4].cpu() >= FACTOR).all()


def test_the_state_carries_on_from_frame_to_frame(device: torch.device) -> None:
    """Three frames without a word from the host are three frames with its boxes."""
    factors = [FACTOR] * B
    boxes, (geometry, given, state) = BOXES, tables(device, factors)
    for seed in range(3):
        maps = maps_of(seed, device)
        result = run(maps, geometry, given, state)
        expected = on_host(maps, boxes, factors)
        assert [tuple(row[:4]) for row in result.tolist()] == [box for box, _, _ in expected]
        boxes, factors = [box for box, _, _ in expected], state[:, 4].tolist()
        given[:, 5] = 1.0
        given[:, :5] = float("nan")


def test_first_of_equal_peaks(device: torch.device) -> None:
    maps = maps_of(0, device)
    maps[:, 0] = 0.7  # the window alone decides: the middle cell
    result = run(maps, *tables(device, [FACTOR] * B))
    assert result[:, 5].tolist() == [GRID * GRID // 2] * B
    window = hann_window(GRID).flatten()
    maps[:, 0, 0] = (0.1 / window).clamp(max=1).to(device)  # equal products but for rounding
    ranked = maps[0, 0, 0].cpu() * window
    assert run(maps, *tables(device, [FACTOR] * B))[:, 5].tolist() == [int(ranked.argmax())] * B


@pytest.mark.parametrize("place", [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(device: torch.device, place: tuple[int, int], value: float) -> None:
    maps = maps_of(1, device)
    maps[(2, *place)] = value
    score = run(maps, *tables(device, [FACTOR] * B))[:, 4]
    assert torch.isnan(score[2])
    assert torch.isfinite(score[[0, 1, 3, 4]]).all()


def test_memory_accesses(device: torch.device, guard: contextlib.AbstractContextManager) -> None:
    with guard:
        result = run(maps_of(0, device), *tables(device, [FACTOR] * B))
    assert torch.isfinite(result).all()


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    maps, (geometry, given, state) = maps_of(0, device), tables(device, [FACTOR] * B)
    fixed, window = constants(FACTOR, device), hann_window(GRID).flatten().to(device)
    result = torch.empty(B, 6, dtype=torch.float64, device=device)
    for arguments, message in (
        ((maps[:, :2], window, geometry, given, state, fixed, result), "maps is"),
        ((maps, window[1:], geometry, given, state, fixed, result), "window is"),
        ((maps, window, geometry, given[:, : GIVEN - 1], state, fixed, result), "given is"),
        ((maps, window, geometry, given, state, fixed, result.float()), "result is torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(*arguments, search_size=SIZE)
