"""The device of kernel tests."""

from __future__ import annotations

import contextlib

import pytest
import torch
from interpreter import guarded, kernel_device
from support import INTERPRETED


@pytest.fixture(scope="session")
def device() -> torch.device:
    return kernel_device()


@pytest.fixture
def guard() -> contextlib.AbstractContextManager[None]:
    """Checks every memory access under the interpreter; nothing on a GPU, where compute-sanitizer does it."""
    return guarded() if INTERPRETED else contextlib.nullcontext()
