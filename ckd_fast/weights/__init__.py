"""Weights: loading any of the field's files, checking them, converting them to safetensors with their sizes inside."""

from .convert import Conversion, convert_weights
from .inspection import Inspection, inspect_weights
from .load import LoadedModel, Provenance, load_model, save_model

__all__ = [
    "Conversion",
    "Inspection",
    "LoadedModel",
    "Provenance",
    "convert_weights",
    "inspect_weights",
    "load_model",
    "save_model",
]
