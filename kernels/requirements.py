"""Checks what the kernels need from the machine, before anything is compiled."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch

OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (8, 0)  # on older GPUs Triton uses no tensor cores, and spills


def missing(device: torch.device) -> str | None:
    """Why kernels cannot run on this CUDA device; None if they can."""
    try:
        import triton
    except ImportError:
        return "needs the package triton, which is not installed: pip install triton (Linux only)"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"needs Triton {oldest} or newer, found {triton.__version__}: upgrade torch, which brings its own"
    if triton.knobs.runtime.interpret:
        return "cannot run while TRITON_INTERPRET is set, because kernels would not run on the GPU: unset it"
    # Triton compiles a few lines of C when it first uses a GPU.
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or shutil.which(compiler) is None:
        return "needs a C compiler, with which Triton talks to the driver (on Debian: apt-get install gcc)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "needs Python.h, with which Triton talks to the driver (on Debian: apt-get install python3-dev)"
    about = torch.cuda.get_device_properties(device)
    if (about.major, about.minor) < OLDEST_CAPABILITY:
        oldest = ".".join(map(str, OLDEST_CAPABILITY))
        return f"needs a GPU of compute capability {oldest} or newer, {about.name} has {about.major}.{about.minor}"
    return None


def can_overlap(device: torch.device) -> bool:
    """Whether launches may begin before the one in front has ended, see overlap.py."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


def launch_errors() -> tuple[type[Exception], ...]:
    """The errors that a launch, a capture or a copy may raise."""
    from triton.errors import TritonError

    return (RuntimeError, TritonError)
