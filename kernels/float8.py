"""Rounding to float8 (e4m3): four bits of exponent, three of mantissa, largest value 448."""

from __future__ import annotations

import triton
import triton.language as tl

FLOAT8_LARGEST = 448.0


@triton.jit
def to_float8(x, scale):
    """x / scale in float8; what is too large becomes the largest value, and NaN stays NaN."""
    divided = x / scale
    bounded = tl.minimum(tl.maximum(divided, -448.0), 448.0)
    return tl.where(divided != divided, divided, bounded).to(tl.float8e4nv)
