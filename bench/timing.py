"""Times on a GPU that do not flatter: work in captured graphs, medians, caches as a frame finds them.

Without a GPU, in a rehearsal, the same calls are made and the host's clock stands in.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice, pairwise

import torch

from ckd_fast.engines.registry import left_out

CHAIN = 48  # calls that follow each other in one graph
REPLAYS = 20

Call = Callable[[], object]


def queued_ms(call: Call, count: int) -> list[float]:
    """Milliseconds on the device of calls that queue behind each other, on the current stream."""
    if not torch.cuda.is_available():
        return [_host_ms(call) for _ in range(count)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    marks[-1].synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(marks)]


def _host_ms(call: Call) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


@contextmanager
def captured(work: Call) -> Iterator[Call]:
    """Work in a graph, as the engine captures it; yields its replay. Inside the block its stream is current.

    Where graphs are left out, the replay is the work itself.
    """
    if not torch.cuda.is_available() or "graphs" in left_out():
        yield work
        return
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()  # compiles
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            work()
        yield graph.replay


def replayed_us(work: Call, replays: int = REPLAYS) -> float:
    """Median microseconds of some work in a graph, replays following each other."""
    if not torch.cuda.is_available():
        return 1e3 * _host_ms(work)
    with captured(work) as replay:
        for _ in range(3):
            replay()
        return 1e3 * statistics.median_high(queued_ms(replay, replays))


def chained_us(calls: Sequence[Call]) -> float:
    """Microseconds of a call in a graph in which the calls follow each other, round and round."""
    chain = list(islice(cycle(calls), max(CHAIN, len(calls)) if torch.cuda.is_available() else len(calls)))
    return replayed_us(partial(_call_all, chain)) / len(chain)


def spoiled_us(calls: Sequence[Call]) -> float:
    """The same with every call behind one that fills the L2 cache with other values, whose time is taken off."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spoil = torch.empty(4 * l2_bytes(), dtype=torch.uint8, device=device).zero_
    return 2 * chained_us([each for call in calls for each in (spoil, call)]) - chained_us([spoil])


def _call_all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def l2_bytes() -> int:
    """Size of the GPU's L2 cache."""
    return int(torch.cuda.get_device_properties().L2_cache_size) if torch.cuda.is_available() else 2**16


def median_us(call: Call, warmup_ms: int = 5, measure_ms: int = 25) -> float:
    """Median microseconds of a call's work on the GPU; the L2 cache is flushed before each."""
    if not torch.cuda.is_available():
        return 1e3 * _host_ms(call)
    from triton.testing import do_bench

    return 1e3 * float(do_bench(call, warmup=warmup_ms, rep=measure_ms, return_mode="median"))


def matmul_ceiling_tflops(dtype: torch.dtype = torch.bfloat16) -> float:
    """What the vendor's library reaches on a large product of random matrices."""
    gpu = torch.cuda.is_available()
    size, device = (8192, torch.device("cuda")) if gpu else (64, torch.device("cpu"))
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    operations = 2.0 * float(size) ** 3
    return operations / median_us(lambda: a @ b, 100, 300) / 1e6
