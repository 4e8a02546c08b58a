"""Launches that begin before the one in front of them has ended (programmatic dependent launch, sm_90 and newer).

Such a launch is placed on the GPU as soon as every program of the launch before it, its producer, allows it. So its
start-up hides behind the producer's end. `await_producer` comes first in such a kernel: before it returns, the producer
is complete and its writes are visible. Because every launch waits like this, all older launches are complete too:
nothing is read too early, and nothing is overwritten that an older launch still reads.
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
