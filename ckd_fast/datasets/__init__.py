"""Where clips come from: the generator of synthetic ones; readers of published layouts join it here."""

from .synthetic import ClipConfig, SyntheticClip, SyntheticFrame

__all__ = ["ClipConfig", "SyntheticClip", "SyntheticFrame"]
