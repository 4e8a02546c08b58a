"""Follow many targets through the same frames: `MultiTracker`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from .errors import InputError, NotInitialisedError
from .frames import FrameForm, FramePair, RawPair, check_box, check_pair, first_pair, register
from .tracker import Follower, Track
from .types import Box, TrackResult

if TYPE_CHECKING:
    from .engines import Found
    from .frames import Frame

NO_TARGETS = "the tracker has no targets yet: call init(rgb, tir, boxes) or add(...) first"


class MultiTracker(Follower):
    """Follows any number of targets through the same frames, each as a `Tracker` of its own would.

    The network runs for all targets at once, and the engine takes the frames once (engine "triton": once per 32
    targets). Targets come and go at any time. A target keeps its number, and no other target ever gets it. Arguments
    and frames as for `Tracker`. A call that fails leaves everything as it was.
    """

    def _start_over(self) -> None:
        self._form: FrameForm | None = None  # of the latest frames
        self._tracks: dict[int, Track] = {}
        self._next = 0

    def __repr__(self) -> str:
        return f"<MultiTracker: {self.engine}; {len(self._tracks)} targets>"

    def __len__(self) -> int:
        return len(self._tracks)

    def init(self, rgb: Frame, tir: Frame, boxes: Sequence[Sequence[float]]) -> list[int]:
        """Forget all targets and start on these, (x, y, w, h) in pixels of the visible frame; returns their numbers."""
        frames = first_pair(rgb, tir, self.config)
        self._tracks = dict(enumerate([self._begin(frames, box) for box in boxes], self._next))
        self._form, self._next = frames.form, self._next + len(self._tracks)
        return list(self._tracks)

    def add(self, rgb: Frame, tir: Frame, box: Sequence[float]) -> int:
        """Start on one more target, with its template from these frames; returns its number."""
        frames = first_pair(rgb, tir, self.config, self._form)
        number = self._next
        self._tracks[number] = self._begin(frames, box)
        self._form, self._next = frames.form, number + 1
        return number

    def drop(self, number: int) -> None:
        """Forget one target."""
        self._known(number)
        del self._tracks[number]

    def update(self, rgb: Frame | None, tir: Frame | None) -> dict[int, TrackResult]:
        """Find every target in the next frames; one of them may be None. Results by the targets' numbers."""
        begin = time.perf_counter()
        frames = self._checked(rgb, tir)
        searches = [self._search(track, frames) for track in self._tracks.values()]
        prepare_ms = (time.perf_counter() - begin) * 1e3
        most = self.engine.most_targets or max(len(searches), 1)
        found: list[Found] = []
        for start in range(0, len(searches), most):
            found += self.engine.start(searches[start : start + most], frames).result()
        self._form = frames.form
        return {
            number: self._accept(track, target, frames, begin, prepare_ms)
            for (number, track), target in zip(self._tracks.items(), found, strict=True)
        }

    def reset(self) -> None:
        """Forget all targets and what the frames look like; numbers go on from the last one."""
        self._tracks, self._form = {}, None

    @property
    def boxes(self) -> Mapping[int, Box]:
        """Last box of every target, by number."""
        return MappingProxyType({number: track.box for number, track in self._tracks.items()})

    def set_box(self, number: int, box: Sequence[float]) -> None:
        """Correct the tracker by hand: the next search for this target starts there; its template stays."""
        track = self._known(number)
        if self._form is not None:
            track.box, track.size = check_box(box, self._form.rgb_size), self._form.rgb_size

    def registered(self, rgb: Frame | None, tir: Frame | None) -> FramePair:
        """Frames as the network sees them: RGB order, 8 bits, thermal on the visible grid."""
        return register(self._checked(rgb, tir))

    def _checked(self, rgb: Frame | None, tir: Frame | None) -> RawPair:
        if self._form is None:
            raise NotInitialisedError(NO_TARGETS)
        return check_pair(rgb, tir, self._form, self.config)

    def _known(self, number: int) -> Track:
        if number not in self._tracks:
            known = ", ".join(map(str, self._tracks)) or "none"
            raise InputError(f"target {number!r}: there is no such target; there are {known}")
        return self._tracks[number]
