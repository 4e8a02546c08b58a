"""Ways of running the network, by name; all give the same answers."""

from .base import Engine, Found, Pending, Search, Slot, step_names
from .registry import ENGINES, build_engine

__all__ = ["ENGINES", "Engine", "Found", "Pending", "Search", "Slot", "build_engine", "step_names"]
