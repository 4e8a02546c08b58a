"""Times on a GPU that do not flatter: caches flushed between runs, medians."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch

from ckd_fast.engines.triton.plan import Plan


def queued_ms(call: Callable[[], object], count: int) -> list[float]:
    """Milliseconds on the device of calls that queue behind each other, on the current stream."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(marks)]


@contextmanager
def captured(plan: Plan) -> Iterator[torch.cuda.CUDAGraph]:
    """A frame's launches in a graph, as the engine captures them; inside the block its stream is current."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        plan.run()  # compiles
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            plan.run()
        yield graph


def median_us(call: Callable[[], object], warmup_ms: int = 5, measure_ms: int = 25) -> float:
    """Median microseconds of a call's work on the GPU; the L2 cache is flushed before each."""
    from triton.testing import do_bench

    return 1e3 * float(do_bench(call, warmup=warmup_ms, rep=measure_ms, return_mode="median"))


def matmul_ceiling_tflops(dtype: torch.dtype = torch.bfloat16, size: int = 8192) -> float:
    """What the vendor's library reaches on a large product of random matrices."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    operations = 2.0 * float(size) ** 3
    return operations / median_us(lambda: a @ b, 100, 300) / 1e6
