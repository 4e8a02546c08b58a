"""What the kernels need of the machine, asked before anything is compiled."""

from __future__ import annotations

import torch

OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (7, 5)


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
    about = torch.cuda.get_device_properties(device)
    if (about.major, about.minor) < OLDEST_CAPABILITY:
        oldest = ".".join(map(str, OLDEST_CAPABILITY))
        return f"needs a GPU of compute capability {oldest} or newer, {about.name} has {about.major}.{about.minor}"
    return None
