"""One target's life: `Tracker`, the drop-in for the authors' tracker."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .config import TrackerConfig
from .engines import Engine, Slot, build_engine
from .errors import InputError, NotInitialisedError
from .frames import FrameForm, FramePair, check_box, prepare, settle_form
from .reference.config import ModelConfig
from .types import Box, Timings, TrackResult
from .weights import LoadedModel, load_model

if TYPE_CHECKING:
    import torch

    from .frames import Frame


class Tracker:
    """Follows one target through paired visible and thermal frames.

    Frames are numpy arrays or torch tensors [height, width, channels]: the visible one uint8 with three channels (RGB,
    or BGR by `TrackerConfig.color`), the thermal one uint8 or uint16 with one or three. After `init` one of them may be
    None. A call that fails leaves the tracker as it was.

    Args:
        weights: a file, a `LoadedModel`, "random", or None for the packaged model.
        model: a preset's name or sizes, where the weights do not settle them.
        engine: "auto", "reference", "compiled", "triton", or an engine of another tracker to share its weights.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "float32", "float16", "bfloat16" or torch's; None is the engine's default.
        config: behaviour.
        seed: of "random" weights.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | LoadedModel | None = None,
        model: str | ModelConfig | None = None,
        engine: str | Engine = "auto",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        config: TrackerConfig | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        if config is not None and not isinstance(config, TrackerConfig):
            raise InputError(f"config is a {type(config).__name__}: expected a TrackerConfig")
        self.config = config or TrackerConfig()
        if isinstance(engine, Engine):
            if weights is not None or model is not None or dtype is not None or device != "auto":
                raise InputError("an engine brings its weights, device and precision: pass it alone, with config only")
            self.engine = engine
        else:
            if isinstance(weights, LoadedModel):
                if model is not None:
                    raise InputError("a LoadedModel brings its sizes: pass it without model=")
                loaded = weights
            else:
                loaded = load_model(weights, model, seed)
            self.engine = build_engine(engine, loaded, device, dtype)
        self._slot: Slot | None = None
        self._form: FrameForm | None = None
        self._box: Box | None = None
        self._last: TrackResult | None = None

    def __repr__(self) -> str:
        state = "not initialised" if self._box is None else f"frame {self.frame}, box {self._box}"
        return f"<Tracker: {self.engine}; {state}>"

    # --- the authors' call shape ---------------------------------------------------------------------------------

    def initialize(self, rgb: Frame, tir: Frame, info: Mapping[str, object]) -> dict[str, object]:
        """Start on a target: `info["init_bbox"]` is (x, y, w, h). Other entries are ignored."""
        if not isinstance(info, Mapping) or "init_bbox" not in info:
            raise InputError("info: expected a dict with 'init_bbox': [x, y, w, h]")
        self.init(rgb, tir, info["init_bbox"])  # type: ignore[arg-type]
        return {}

    def track(self, rgb: Frame | None, tir: Frame | None, info: object = None) -> dict[str, object]:  # noqa: ARG002
        """Find the target in the next frames: {"target_bbox": [x, y, w, h], "best_score": s}. `info` is ignored."""
        result = self.update(rgb, tir)
        return {"target_bbox": list(result.box), "best_score": result.score}

    # --- ours ----------------------------------------------------------------------------------------------------

    def init(self, rgb: Frame, tir: Frame, box: Sequence[float]) -> None:
        """Start on a target.

        Args:
            rgb: visible frame.
            tir: thermal frame.
            box: the target (x, y, w, h) in pixels of the visible frame; it must show something of the frame.
        """
        form = settle_form(rgb, tir, self.config)
        start = check_box(box, form.rgb_size)
        pair, form = prepare(rgb, tir, form, self.config)
        slot = self.engine.remember(pair, start)
        self._slot, self._form, self._box, self._last = slot, form, start, None

    def update(self, rgb: Frame | None, tir: Frame | None) -> TrackResult:
        """Find the target in the next frames; one of them may be None."""
        begin = time.perf_counter()
        if self._slot is None or self._form is None or self._box is None:
            raise NotInitialisedError("the tracker has no target yet: call init(rgb, tir, box) first")
        pair, form = prepare(rgb, tir, self._form, self.config)
        box = self._box
        if form.rgb_size != self._form.rgb_size:
            box = _scaled(box, self._form.rgb_size, form.rgb_size)
        factor = self.engine.config.search_factor
        if self._last is not None and self._last.lost:
            factor = max(factor, min(factor * self.config.lost_search_scale, _widest(box, form.rgb_size)))
        prepared = time.perf_counter()
        (found,) = self.engine.find([self._slot], pair, [box], [factor])
        result = TrackResult(
            box=found.box,
            score=found.score,
            lost=found.score < self.config.lost_threshold,
            frame=self.frame + 1,
            rgb_used=pair.rgb is not None,
            tir_used=pair.tir is not None,
            timings=Timings(
                prepare_ms=(prepared - begin) * 1e3,
                crop_ms=found.crop_ms,
                network_ms=found.network_ms,
                decode_ms=found.decode_ms,
                total_ms=(time.perf_counter() - begin) * 1e3,
            ),
        )
        self._form, self._box, self._last = form, result.box, result
        return result

    def reset(self) -> None:
        """Forget the target; the engine stays."""
        self._slot = self._form = self._box = self._last = None

    @property
    def frame(self) -> int:
        """Frames tracked since `init`."""
        return self._last.frame if self._last is not None else 0

    @property
    def last(self) -> TrackResult | None:
        """The last result, None right after `init`."""
        return self._last

    def registered(self, rgb: Frame | None, tir: Frame | None) -> FramePair:
        """Frames of the current track as the network sees them: RGB order, 8 bits, thermal on the visible grid."""
        if self._form is None:
            raise NotInitialisedError("the tracker has no target yet: call init(rgb, tir, box) first")
        return prepare(rgb, tir, self._form, self.config)[0]

    @property
    def box(self) -> Box | None:
        """The target's last box; None before `init`. Setting it is an operator's correction: the next search starts
        there. The template stays that of `init`."""
        return self._box

    @box.setter
    def box(self, value: Sequence[float]) -> None:
        if self._form is None:
            raise NotInitialisedError("the tracker has no target yet: call init(rgb, tir, box) first")
        self._box = check_box(value, self._form.rgb_size)


def _widest(box: Box, size: tuple[int, int]) -> float:
    """The search factor at which a crop is twice as wide as the frame: there is nothing to see beyond."""
    return 2 * max(size) / math.sqrt(box[2] * box[3])


def _scaled(box: Box, before: tuple[int, int], after: tuple[int, int]) -> Box:
    """The same place in a frame of another size (height, width)."""
    across, down = after[1] / before[1], after[0] / before[0]
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down
