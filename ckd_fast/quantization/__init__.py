"""Int8: observe a model's layers on footage, keep the sensitive ones in float, measure how well it follows float32."""

from .agreement import Clip, FrameAgreement, Seen, compare, generated_clip, search_again, summary, track
from .calibrate import Wanted, costs_alone, group_of, observe, quantize

__all__ = [
    "Clip",
    "FrameAgreement",
    "Seen",
    "Wanted",
    "compare",
    "costs_alone",
    "generated_clip",
    "group_of",
    "observe",
    "quantize",
    "search_again",
    "summary",
    "track",
]
