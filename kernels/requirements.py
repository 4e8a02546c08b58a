"""What the kernels need of the machine, asked before anything is compiled."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch

OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (8, 0)  # Triton's products use no tensor cores on older ones, and spill


def missing(device: torch.device) -> str | None:
    """Why kernels cannot run on a CUDA device, None if they can."""
    try:
        import triton
    except ImportError:
        return "needs the package triton, which is not installed: pip install triton (Linux only)"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"needs Triton {oldest} or newer, found {triton.__version__}: upgrade torch, which brings its own"
    if triton.knobs.runtime.interpret:
        return "cannot run while TRITON_INTERPRET is set, because kernels would not run on the GPU: unset it"
    # Triton builds a few lines of C when it meets a GPU for the first time.
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


def launch_errors() -> tuple[type[Exception], ...]:
    """What a launch, a capture or a copy may raise."""
    from triton.runtime.errors import OutOfResources

    return (RuntimeError, OutOfResources)
