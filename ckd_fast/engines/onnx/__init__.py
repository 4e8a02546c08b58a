"""Exported ONNX files in ONNX Runtime: `session` opens them on a provider, `engine` is what trackers use."""
