"""Score result files as the benchmarks do, and report the scores."""

from .scores import Evaluation, ScoringOptions, evaluate

__all__ = ["Evaluation", "ScoringOptions", "evaluate"]
