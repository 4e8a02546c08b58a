"""Launches that begin before the one in front of them has ended (programmatic dependent launch, sm_90 and newer).

Such a launch is placed on the GPU as soon as every program of the launch before it, its producer, allows it. So its
start-up hides behind the producer's end. `await_producer` comes first in such a kernel: before it returns, the producer
is complete and its writes are visible. Because every launch waits like this, all older launches are complete too:
nothing is read too early, and nothing is overwritten that an older launch still reads.

Weights are never written, so they need not wait: `prefetch_to_l2` in front of `await_producer` has them brought from
memory while the producer still computes.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def await_producer(OVERLAP: tl.constexpr):
    """Wait for the launch before this one, then allow the next one."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch_to_l2(address, BYTES: tl.constexpr):
    """Have so many bytes from each address brought into L2; both must be multiples of 16. Nothing waits for it."""
    tl.inline_asm_elementwise(
        "{ cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }", "=r,l,r",
        [address.to(tl.int64, bitcast=True), BYTES], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
