"""The fast path on NVIDIA GPUs: `plan` lists a frame's launches, `graph` sends them, `engine` is what trackers use."""

from .engine import TritonEngine

__all__ = ["TritonEngine"]
