"""Open and save figures. Needs the extra `plot` (matplotlib)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import EngineError
from .files import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Raise if matplotlib is missing, and say how to install it."""
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise EngineError("plots need matplotlib: pip install 'ckd_fast[plot]'") from error


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches. Opens no window and leaves pyplot's global state alone."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    with writing(path):
        figure.savefig(path)
