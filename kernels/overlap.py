"""Launches that begin before the one in front of them has ended (programmatic dependent launch, sm_90 and newer).

A launch with this option is placed on the GPU as soon as every program of its producer has said that dependents may
come, so that its start-up hides behind the producer's end. `await_producer` stands first in such a kernel: nothing is
read or written before the producer is complete and its writes are visible. Since every launch in the chain waits so,
completion carries through the chain: what an older launch wrote is there too, and what an older launch still reads is
not overwritten.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def await_producer(OVERLAP: tl.constexpr):
    """Wait for the launch before this one, then let the next one come."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
