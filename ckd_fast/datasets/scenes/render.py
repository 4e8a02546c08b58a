"""A moment of a scene, seen by both cameras: the one renderer of clips and of training pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .backdrop import Backdrop
from .cameras import Exposure, expose
from .canvas import View, cast_shadow, cover, draw
from .figures import Bytes, Floats, Standing
from .tiles import Tiles

HIDDEN_CONTRAST = 0.1  # what is left of the contrast of something that looks like its background


@dataclass(frozen=True)
class Moment:
    """Everything in a scene at one moment."""

    backdrop: Backdrop
    scenery: tuple[Standing, ...]  # what does not move
    others: tuple[Standing, ...]  # what moves, the target aside
    target: Standing
    exposure: Exposure
    # how much the target differs from what is behind it in red, green, blue and warmth: 1 is as it is, 0 as little as
    # may be
    contrast: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    crossover: float = 0.0  # the same for the warmth of all that moves: 1 is as warm as what is behind it
    # slant and length of shadows, as `cast_shadow` takes them; None: the sky is covered
    shadows: tuple[float, float] | None = None
    target_in_front: bool = False  # nothing covers the target

    def drawn(self) -> list[Standing]:
        """All that stands, from back to front."""
        return sorted((*self.scenery, *self.others, self.target), key=self._nearness)

    def _nearness(self, standing: Standing) -> float:
        return float("inf") if self.target_in_front and standing is self.target else standing.pose.y


def render(moment: Moment, view: View, size: tuple[int, int], tiles: Tiles, noise_seed: int) -> Bytes:
    """What both cameras see [H, W, 4]: red, green, blue and warmth as levels.

    Args:
        moment: the scene.
        view: the part of it.
        size: H, W.
        tiles: textures.
        noise_seed: equal seeds give equal noise.
    """
    pixels = np.empty((*size, 4), np.uint8)
    moment.backdrop.paint(pixels, view, tiles)
    for standing in moment.drawn():
        if not view.shows(standing.around(), size):
            continue
        figure = standing.figure
        if moment.shadows is not None:
            cast_shadow(pixels, view, figure, standing.pose.y, *moment.shadows)
        palette, cloth = standing.actor.palette, standing.actor.cloth
        contrast = np.ones(4)
        if standing is moment.target:
            contrast = np.array(moment.contrast)
        if moment.crossover and (standing is moment.target or standing in moment.others):
            contrast[3] = min(contrast[3], 1 - moment.crossover)
        if (contrast < 1).any():
            palette, cloth = _faded(pixels, view.box(figure.box()), palette, cloth, contrast)
        draw(pixels, view, figure, palette, cloth, tiles)
    return expose(pixels, view, moment.exposure, tiles, noise_seed)


def visible_share(moment: Moment, view: View, size: tuple[int, int], tiles: Tiles) -> float:
    """How much of the target a frame shows, from 0 to 1: the rest is covered or beyond the frame's edge."""
    figure = moment.target.figure
    x, y, w, h = view.box(figure.box())
    # Around the target alone, on pixels small enough for a small one.
    pixel = view.pixel * min(1.0, max(w, h) / 64)
    left, top = view.left + view.pixel * (x - 1), view.top + view.pixel * (y - 1)
    near = View(left, top, pixel)
    shape = tuple(int(np.ceil((side + 2) * view.pixel / pixel)) for side in (h, w))
    mask = np.zeros(shape, np.uint8)
    cover(mask, near, figure, tiles, 1)
    whole = int(mask.sum())
    drawn = moment.drawn()
    for standing in drawn[drawn.index(moment.target) + 1 :]:
        if near.shows(standing.around(), mask.shape):
            cover(mask, near, standing.figure, tiles, 0)
    rows, columns = np.nonzero(mask)
    xs, ys = (
        (left + pixel * (columns + 0.5) - view.left) / view.pixel,
        (top + pixel * (rows + 0.5) - view.top) / view.pixel,
    )
    seen = int(((xs >= 0) & (xs < size[1]) & (ys >= 0) & (ys < size[0])).sum())
    return seen / max(whole, 1)


def _faded(
    pixels: Bytes, box: tuple[float, float, float, float], palette: Floats, cloth: Bytes | None, contrast: Floats
) -> tuple[Floats, Bytes | None]:
    """Colours and cloth, nearer to what a picture shows in a box."""
    x, y, w, h = box
    top, bottom = (int(np.clip(value, 0, pixels.shape[0])) for value in (y, y + h + 1))
    left, right = (int(np.clip(value, 0, pixels.shape[1])) for value in (x, x + w + 1))
    around = pixels[top:bottom, left:right] if top < bottom and left < right else pixels
    level = around.mean((0, 1))
    middle = palette.mean(0)
    steep = np.maximum(contrast, HIDDEN_CONTRAST)

    def faded(levels: Floats) -> Floats:
        near: Floats = np.clip(middle + steep * (levels - middle) + (1 - contrast) * (level - middle), 0, 255)
        return near

    return faded(palette), None if cloth is None else np.rint(faded(cloth.astype(np.float64))).astype(np.uint8)
