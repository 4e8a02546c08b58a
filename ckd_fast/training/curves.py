"""What training runs came to, from their folders: curves, what the runs differ in, and sweeps over one setting."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckd_fast.errors import InputError

from .logs import LOG

CONFIG = "config.json"
# Settings that do not make a run another experiment: what is written when, and repetitions of the same.
ASIDE = re.compile(r"upkeep\.(?!validation_pairs$)|workers$|loss_engine$|seed$")
# Settings that change the pairs on which a run is validated: scores under two values of them cannot be compared.
MEASURE = re.compile(
    r"sources|sampling|upkeep\.validation_pairs|model\.(template|search)_(size|factor)|model\.patch_size"
)
# Settings that change how many steps a run has; in all other sweeps runs must have gone equally far.
LENGTH = re.compile(r"stages\[\d+\]\.(pairs|epochs|batch|accumulate)$")
FEWEST_POINTS = 3
Setting = str | int | float | bool | None


@dataclass(frozen=True)
class Curve:
    """A quantity over the steps of the optimiser."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        name: of its folder.
        settings: of its configuration, by dotted path ("stages[0].hidden").
        curves: losses, rates and speeds of the log by name.
        validation: mean IoU on rendered pairs.
        torn: lines of the log that could not be read; a run that was killed leaves one.
    """

    name: str
    settings: Mapping[str, Setting]
    curves: Mapping[str, Curve]
    validation: Curve
    torn: int

    @property
    def last(self) -> float:
        """The last validation; NaN for a run without."""
        return self.validation.values[-1] if self.validation.values else math.nan

    @property
    def best(self) -> float:
        """The best validation; NaN for a run without."""
        return max(self.validation.values, default=math.nan)


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in one number alone.

    Attributes:
        setting: dotted path of the number.
        values: of the setting, ascending; runs that only their seeds tell apart share one.
        runs: those with each value.
    """

    setting: str
    values: tuple[float, ...]
    runs: tuple[tuple[RunRecord, ...], ...]

    def means(self) -> tuple[float, ...]:
        """The mean last validation at each value."""
        return tuple(sum(run.last for run in some) / len(some) for some in self.runs)


@dataclass
class _Points:
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def curve(self) -> Curve:
        return Curve(tuple(self.steps), tuple(self.values))


def read_run(folder: Path) -> RunRecord:
    """The run in a folder that `ckd-fast train` wrote."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no run of `ckd-fast train`, {CONFIG} and {LOG} are expected ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG}: expected a JSON object of settings, as `ckd-fast train` writes it")
    points: dict[tuple[str, str], _Points] = {}
    torn = 0
    for line in lines:
        try:
            entry = json.loads(line)
            kind, step = str(entry.pop("kind")), int(entry.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            torn += 1
            continue
        for name, value in entry.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                one = points.setdefault((kind, name), _Points())
                one.steps.append(step)
                one.values.append(float(value))
    if ("step", "loss") not in points:
        raise InputError(f"{folder / LOG}: holds no losses; the run ended before its first line of them")
    curves = {name: found.curve() for (kind, name), found in points.items() if kind == "step"}
    validation = points.get(("validation", "mean_iou"), _Points()).curve()
    return RunRecord(folder.resolve().name, flat(config), curves, validation, torn)


def flat(values: object, path: str = "") -> dict[str, Setting]:
    """Plain JSON by dotted path."""
    if isinstance(values, dict):
        parts = [flat(value, f"{path}.{name}" if path else str(name)) for name, value in values.items()]
    elif isinstance(values, list):
        parts = [flat(value, f"{path}[{index}]") for index, value in enumerate(values)]
    else:
        return {path: values}  # type: ignore[dict-item]  # json.loads makes nothing else
    return {name: value for part in parts for name, value in part.items()}


def differing(runs: Sequence[RunRecord]) -> list[str]:
    """Settings that are not the same in all runs, but for those in `ASIDE`."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if not ASIDE.match(name) and len({_key(run.settings.get(name)) for run in runs}) > 1]


def sweeps(runs: Sequence[RunRecord]) -> list[Sweep]:
    """Every series of runs that differ in one number alone and have at least three values of it.

    Runs count as comparable where they were validated on the same pairs, last after equally many steps.
    """
    names = differing(runs)
    found = []
    for name in names:
        if MEASURE.match(name):
            continue
        alike: dict[tuple[Any, ...], dict[float, list[RunRecord]]] = {}
        for run in runs:
            value = run.settings.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(run.last):
                continue
            others = [_key(run.settings.get(other)) for other in names if other != name]
            if not LENGTH.match(name):
                others.append(_key(run.validation.steps[-1]))
            alike.setdefault(tuple(others), {}).setdefault(float(value), []).append(run)
        for values in alike.values():
            if len(values) >= FEWEST_POINTS:
                order = sorted(values)
                found.append(Sweep(name, tuple(order), tuple(tuple(values[value]) for value in order)))
    return found


def _key(value: Setting) -> tuple[str, Setting]:
    """Tells 1 from true and from a setting that is not there."""
    return type(value).__name__ if not isinstance(value, int | float) or isinstance(value, bool) else "number", value
