"""Many targets in one pair of frames: `MultiTracker`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from .errors import InputError, NotInitialisedError
from .frames import FrameForm, FramePair, RawPair, check_box, check_pair, register, settle_form
from .tracker import Follower, Target
from .types import Box, TrackResult

if TYPE_CHECKING:
    from .engines import Found
    from .frames import Frame


class MultiTracker(Follower):
    """Follows any number of targets through the same frames; each as a `Tracker` of its own would.

    The network runs for all targets at once and the frames are handed to the engine once (on engine "triton" once per
    32 targets). Targets come and go at any time; a number that `add` gave stays with its target and is not given again.
    Arguments and frames as for `Tracker`. A call that fails leaves everything as it was.
    """

    def _start_over(self) -> None:
        self._form: FrameForm | None = None
        self._targets: dict[int, Target] = {}
        self._next = 0

    def __repr__(self) -> str:
        return f"<MultiTracker: {self.engine}; {len(self._targets)} targets>"

    def __len__(self) -> int:
        return len(self._targets)

    def init(self, rgb: Frame, tir: Frame, boxes: Sequence[Sequence[float]]) -> list[int]:
        """Forget all targets and start on these, (x, y, w, h) in pixels of the visible frame; returns their numbers."""
        form = settle_form(rgb, tir, self.config)
        frames = check_pair(rgb, tir, form, self.config)
        targets = [self._remembered(frames, box) for box in boxes]
        first = self._next
        self._targets = dict(enumerate(targets, first))
        self._form, self._next = form, first + len(targets)
        return list(self._targets)

    def add(self, rgb: Frame, tir: Frame, box: Sequence[float]) -> int:
        """Start on one more target, whose template these frames show; returns its number."""
        own = settle_form(rgb, tir, self.config)  # a target starts with both modalities
        form = self._form or own
        frames = check_pair(rgb, tir, form, self.config)
        if frames.form.rgb_size != form.rgb_size:
            raise InputError(
                f"the frames have another size than those of the last update, {form.rgb_size[1]}x{form.rgb_size[0]}: "
                "update with them first"
            )
        target = self._remembered(frames, box)
        number, self._next, self._form = self._next, self._next + 1, frames.form
        self._targets[number] = target
        return number

    def drop(self, number: int) -> None:
        """Forget one target."""
        self._known(number)
        del self._targets[number]

    def update(self, rgb: Frame | None, tir: Frame | None) -> dict[int, TrackResult]:
        """Find every target in the next frames; one of them may be None. Results by the targets' numbers."""
        begin = time.perf_counter()
        if self._form is None:
            raise NotInitialisedError("the tracker has no targets yet: call init(rgb, tir, boxes) or add(...) first")
        frames = check_pair(rgb, tir, self._form, self.config)
        searches = [self._search(target, frames, self._form) for target in self._targets.values()]
        prepare_ms = (time.perf_counter() - begin) * 1e3
        most = self.engine.most_targets or max(len(searches), 1)
        found: list[Found] = []
        for start in range(0, len(searches), most):
            found += self.engine.find(searches[start : start + most], frames)
        results = {
            number: self._accept(target, one, frames, begin, prepare_ms)
            for (number, target), one in zip(self._targets.items(), found, strict=True)
        }
        self._form = frames.form
        return results

    def reset(self) -> None:
        """Forget all targets and the form of the frames; numbers are not given again."""
        self._targets, self._form = {}, None

    @property
    def boxes(self) -> Mapping[int, Box]:
        """Last box of every target, by number."""
        return MappingProxyType({number: target.box for number, target in self._targets.items()})

    def set_box(self, number: int, box: Sequence[float]) -> None:
        """An operator's correction: the next search for this target starts there; its template stays."""
        target = self._known(number)
        if self._form is not None:
            target.box = check_box(box, self._form.rgb_size)

    def registered(self, rgb: Frame | None, tir: Frame | None) -> FramePair:
        """Frames as the network sees them: RGB order, 8 bits, thermal on the visible grid."""
        if self._form is None:
            raise NotInitialisedError("the tracker has no targets yet: call init(rgb, tir, boxes) or add(...) first")
        return register(check_pair(rgb, tir, self._form, self.config))

    def _remembered(self, frames: RawPair, box: Sequence[float]) -> Target:
        start = check_box(box, frames.form.rgb_size)
        return Target(self.engine.remember(frames, start), start)

    def _known(self, number: int) -> Target:
        if number not in self._targets:
            known = ", ".join(map(str, self._targets)) or "none"
            raise InputError(f"target {number!r}: there is no such target; there are {known}")
        return self._targets[number]
