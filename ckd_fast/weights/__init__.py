"""Weights: load and check any of the field's files, convert them to safetensors with their sizes inside."""

from .calibration import Agreement, Calibration, layer_inputs
from .exported import ExportedModel, open_model
from .inspection import Inspection, inspect_weights
from .load import LoadedModel, Provenance, load_model
from .save import convert_weights, save_model

__all__ = [
    "Agreement",
    "Calibration",
    "ExportedModel",
    "Inspection",
    "LoadedModel",
    "Provenance",
    "convert_weights",
    "inspect_weights",
    "layer_inputs",
    "load_model",
    "open_model",
    "save_model",
]
