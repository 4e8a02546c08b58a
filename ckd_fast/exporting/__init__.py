"""Models as ONNX files: `graphs` is what they compute, `export` writes them, `verify` compares with the reference."""

from .export import Exported, check_export, export_model, export_network

__all__ = ["Exported", "check_export", "export_model", "export_network"]
