"""The distillation part of a training step, fused against eager: milliseconds and peak memory, forward and backward.

    python bench/losses.py --json out/losses.json
    python bench/losses.py --models tiny --batches 16 --engines reference --device cpu

Features are float32, as the residual stream of a training step is, also under mixed precision.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from common import Times, machine, need_gpu, percentiles, program, write_json
from torch import Tensor

from ckd_fast.reference.config import ModelConfig, preset
from ckd_fast.reference.losses import LossConfig, distillation, over_blocks
from ckd_fast.reference.training import Distillation
from ckd_fast.training.distillation import fused_distillation

ENGINES: dict[str, Distillation] = {"reference": distillation, "fused": fused_distillation}


@dataclass(frozen=True)
class Row:
    """One model, batch and engine; memory beyond the features themselves, None without a GPU."""

    model: str
    batch: int
    engine: str
    times: Times
    peak_mb: float | None


def features(config: ModelConfig, batch: int, device: torch.device) -> list[Tensor]:
    """Outputs of every block, all tokens kept [4, B, N, C]."""
    tokens = config.template_tokens + config.search_tokens
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(4, batch, tokens, config.dim, generator=generator)
    return [one.to(device, copy=True).requires_grad_() for _ in range(config.depth)]


def step(distil: Distillation, blocks: Sequence[Tensor], config: LossConfig) -> Tensor:
    """Values and gradients of all blocks."""
    terms = distil(blocks, config)
    style = over_blocks([term.style for term in terms], config)
    content = over_blocks([term.content_rgb + term.content_tir for term in terms], config)
    total = config.style_weight * style + config.content_weight * content
    total.backward()
    return total.detach()


def measure(name: str, config: ModelConfig, batch: int, engine: str, device: torch.device, turns: int) -> Row:
    """Times of a step after three that warm up."""
    blocks, losses, times = features(config, batch, device), LossConfig(), []
    peak = None
    for turn in range(turns + 3):
        for block in blocks:
            block.grad = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        begin = time.perf_counter()
        step(ENGINES[engine], blocks, losses)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            peak = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        if turn >= 3:
            times.append((time.perf_counter() - begin) * 1e3)
    return Row(name, batch, engine, percentiles(times), peak)


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--models", nargs="+", default=["base", "tiny"])
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 40])
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        need_gpu("; --device cpu measures the reference")
    rows = []
    for model in options.models:
        for batch in options.batches:
            for engine in options.engines:
                row = measure(model, preset(model), batch, engine, device, options.turns)
                rows.append(row)
                memory = f", peak {row.peak_mb:.0f} MB" if row.peak_mb is not None else ""
                print(f"{model} batch {batch} {engine}: median {row.times.median_ms:.2f} ms{memory}", flush=True)
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    if options.json:
        write_json(options.json, {"machine": machine(options.device), "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
