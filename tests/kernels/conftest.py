"""The device of kernel tests, and the interpreter's repairs."""

from __future__ import annotations

import contextlib
import os

import pytest
import torch
from interpreter import guarded, repair_bf16, repair_fma

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
if INTERPRETED:
    repair_bf16()
    repair_fma()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run: the CPU under the interpreter, else the GPU."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def guard() -> contextlib.AbstractContextManager[None]:
    """Checks every memory access under the interpreter; nothing on a GPU, where compute-sanitizer does it."""
    return guarded() if INTERPRETED else contextlib.nullcontext()
