"""Ways of running the network, by name; all give the same answers."""

from .base import Engine, Found, Slot, step_names
from .registry import ENGINES, build_engine

__all__ = ["ENGINES", "Engine", "Found", "Slot", "build_engine", "step_names"]
