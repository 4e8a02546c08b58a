"""Ways of running the network, by name; all give the same answers."""

from .base import Engine, Found, Search, Target, step_names
from .registry import ENGINES, build_engine

__all__ = ["ENGINES", "Engine", "Found", "Search", "Target", "build_engine", "step_names"]
