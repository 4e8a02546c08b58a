"""Score result files as the benchmarks do, and report the scores."""

from .metrics import Curves, Metrics
from .results import Problem, TrackerResults, read_results
from .rules import PROTOCOLS, QUIRKS, Protocol, Quirks
from .scores import Benchmark, Evaluation, ScoringOptions, TrackerScore, evaluate, load_benchmark, score_tracker

__all__ = [
    "PROTOCOLS",
    "QUIRKS",
    "Benchmark",
    "Curves",
    "Evaluation",
    "Metrics",
    "Problem",
    "Protocol",
    "Quirks",
    "ScoringOptions",
    "TrackerResults",
    "TrackerScore",
    "evaluate",
    "load_benchmark",
    "read_results",
    "score_tracker",
]
