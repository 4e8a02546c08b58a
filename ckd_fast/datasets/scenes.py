"""What a scene looks like, and how both cameras see it: the one renderer of clips and of training pairs.

Everything is drawn for B scenes at once, on any device; a clip is B = 1. A picture is a canvas [B, 4, H, W] of levels
0..255: three visible channels and warmth. Positions are in pixels of the scene's frame; a `View` says which part of the
frame a canvas shows.

Every shape is a disc whose radius varies with the angle. In the shape's own coordinates (u, v), with (r, phi) polar,

    inside where r < 1 + a2 cos(2 phi) + b2 sin(2 phi) + a3 cos(3 phi) + b3 sin(3 phi)

cos(k phi) and sin(k phi) are polynomials of u/r and v/r, so no pixel needs trigonometry. The ground truth's box comes
from the same boundary, not from pixels.

To change what scenes look like, change `ground` and the `..._texture` functions; `render` puts the parts together.
Callers say where things are, how they move and how large they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

Floats = NDArray[np.float64]

BOUNDARY_ANGLES = 256
TEXTURE_CELLS = 12
TEXTURE_REACH = 1.5  # a texture spans u and v from -1.5 to 1.5; no outline leaves 1.4
EDGE_PX = 1.2  # width of the soft edge of a shape
GROUND_OCTAVES = ((4, 55), (14, 40), (60, 25))  # features along the height, strength in levels
HIDDEN_CONTRAST = 0.1  # what is left of the texture of a target that looks like its background


@dataclass(frozen=True)
class Outline:
    """Where one shape is in each scene."""

    x: Floats  # of the centre [B]
    y: Floats
    half_width: Floats  # half an axis [B]
    half_height: Floats
    angle: Floats  # radians [B]
    shape: Floats  # a2, b2, a3, b3 of the boundary [4, B]

    @classmethod
    def single(
        cls, x: float, y: float, half_width: float, half_height: float, angle: float, shape: ArrayLike
    ) -> Outline:
        """A shape in one scene."""
        return cls(
            np.array([x]), np.array([y]), np.array([half_width]), np.array([half_height]), np.array([angle]),
            np.asarray(shape)[:, None],
        )  # fmt: skip

    def only(self, scenes: NDArray[np.int64]) -> Outline:
        """The same in some of the scenes."""
        return Outline(*(getattr(self, field.name)[..., scenes] for field in dataclasses.fields(self)))

    def boxes(self) -> Floats:
        """Rectangles around the outlines [B, 4]: x, y, w, h."""
        phi = np.linspace(0, 2 * np.pi, BOUNDARY_ANGLES, endpoint=False)[:, None]
        a2, b2, a3, b3 = self.shape
        radius = 1 + a2 * np.cos(2 * phi) + b2 * np.sin(2 * phi) + a3 * np.cos(3 * phi) + b3 * np.sin(3 * phi)
        u, v = radius * np.cos(phi) * self.half_width, radius * np.sin(phi) * self.half_height  # [angles, B]
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        xs, ys = self.x + cos * u - sin * v, self.y + sin * u + cos * v
        left, top = xs.min(0), ys.min(0)
        return np.stack([left, top, xs.max(0) - left, ys.max(0) - top], axis=1)

    def bounds(self) -> Floats:
        """Rectangles that contain the outlines [B, 4]; cheaper and larger than `boxes`."""
        a2, b2, a3, b3 = self.shape
        reach = 1 + np.hypot(a2, b2) + np.hypot(a3, b3)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        width = reach * np.hypot(cos * self.half_width, sin * self.half_height)
        height = reach * np.hypot(sin * self.half_width, cos * self.half_height)
        return np.stack([self.x - width, self.y - height, 2 * width, 2 * height], axis=1)


@dataclass(frozen=True)
class View:
    """The part of each scene that a canvas shows."""

    left: Floats  # of the canvas's corner [B]
    top: Floats
    pixel: Floats  # side of a canvas pixel in the scene [B]

    def only(self, scenes: NDArray[np.int64]) -> View:
        """The same in some of the scenes."""
        return View(self.left[scenes], self.top[scenes], self.pixel[scenes])

    def pixel_centres(self, rows: range, columns: range, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions in the scene of a part of the canvas: xs [B, 1, W] and ys [B, H, 1]."""
        left, top, pixel = torch.from_numpy(np.stack([self.left, self.top, self.pixel])).float().to(device)[..., None]
        across, down = (
            torch.arange(span.start, span.stop, device=device, dtype=torch.float32) + 0.5 for span in (columns, rows)
        )
        return (left + across * pixel)[:, None], (top + down * pixel)[:, :, None]

    def windows(self, boxes: Floats, canvas: Tensor) -> NDArray[np.int64]:
        """Rows and columns of the canvas that boxes [B, 4] can touch, edges included: top, bottom, left, right [4, B].

        Empty (top >= bottom or left >= right) where a box is out of view.
        """
        x, y, w, h = boxes.T
        margin = 2 * np.maximum(self.pixel / EDGE_PX, 1)
        height, width = canvas.shape[-2:]
        spans = [
            np.clip(np.floor((y - margin - self.top) / self.pixel), 0, height),
            np.clip(np.ceil((y + h + margin - self.top) / self.pixel), 0, height),
            np.clip(np.floor((x - margin - self.left) / self.pixel), 0, width),
            np.clip(np.ceil((x + w + margin - self.left) / self.pixel), 0, width),
        ]
        return np.stack(spans).astype(np.int64)


@dataclass(frozen=True)
class Thing:
    """A shape with its texture [B, 4, n, m] in levels."""

    outline: Outline
    texture: Tensor


@dataclass(frozen=True)
class Moment:
    """Everything in B scenes at one moment but the ground, and how the cameras see it."""

    view: View  # what the canvas shows
    behind: Sequence[Thing]  # what the target covers, back to front
    target: Thing  # the object to track
    # channels in which the target looks like what is behind it [B, 4]: three visible ones and warmth
    hidden: NDArray[np.bool_]
    in_front: Sequence[Thing]  # what covers the target
    light: Floats  # factor of the visible levels [B]; near 0 in the dark
    thermal: Floats  # gain and offset of the thermal camera, which shows gain * warmth + offset [2, B]
    noise: Floats  # standard deviation of the sensors' noise in levels [B]
    noise_seed: int  # equal seeds give equal noise
    # west, east, north and south end of the frame [4, B], beyond which pictures are black; None: no end
    frame: Floats | None = None


def render(canvas: Tensor, moment: Moment) -> Tensor:
    """Paint a moment over its ground [B, 4, H, W], in place; what the cameras show of it, uint8."""
    for thing in moment.behind:
        paint(canvas, moment.view, thing)
    paint(canvas, moment.view, _hidden(canvas, moment))
    for thing in moment.in_front:
        paint(canvas, moment.view, thing)
    values = np.stack([moment.light, *moment.thermal, moment.noise])
    light, gain, offset, noise = torch.from_numpy(values).to(canvas)[:, :, None, None, None]
    canvas[:, :3] *= light
    canvas[:, 3:] = canvas[:, 3:] * gain + offset
    generator = torch.Generator().manual_seed(moment.noise_seed)  # on the host: every device has the same noise
    canvas += noise * torch.randn(canvas.shape, generator=generator).to(canvas.device)
    if moment.frame is not None:
        xs, ys = moment.view.pixel_centres(range(canvas.shape[2]), range(canvas.shape[3]), canvas.device)
        west, east, north, south = torch.from_numpy(moment.frame).to(canvas)[:, :, None, None]
        canvas *= ((xs > west) & (xs < east) & (ys > north) & (ys < south))[:, None]
    return canvas.clamp(0, 255).round().to(torch.uint8)


def smooth_noise(random: np.random.Generator, count: int, channels: int, cells: int, size: tuple[int, int]) -> Tensor:
    """Smooth noise in -1..1 with about `cells` features along the height [B, channels, H, W]."""
    across = max(2, round(cells * size[1] / size[0]))
    coarse = torch.from_numpy(random.uniform(-1, 1, (count, channels, max(cells, 2), across))).float()
    return functional.interpolate(coarse, size, mode="bicubic", align_corners=True)


def ground(
    random: np.random.Generator,
    tint: Floats,
    size: tuple[int, int],
    contrast: ArrayLike = 1.0,
    warmth: ArrayLike = 70.0,
) -> Tensor:
    """Background [B, 4, H, W].

    Args:
        random: draws the patterns.
        tint: mean visible levels [B, 3].
        size: H, W.
        contrast: factor of all patterns [B].
        warmth: mean level [B].
    """
    count = len(tint)
    colours = torch.from_numpy(tint).float()[:, :, None, None]
    strength, level = (torch.tensor(v).float().reshape(-1, 1, 1, 1) for v in (contrast, warmth))
    light = sum(smooth_noise(random, count, 1, cells, size) * levels for cells, levels in GROUND_OCTAVES)
    colour = sum(smooth_noise(random, count, 3, cells, size) * levels * 0.4 for cells, levels in GROUND_OCTAVES)
    visible = colours + light * strength + colour * strength
    shared = visible.mean(1, keepdim=True)
    warm = level + 0.25 * (shared - shared.mean((2, 3), keepdim=True))
    for cells, levels in ((5, 25), (24, 14)):
        warm = warm + smooth_noise(random, count, 1, cells, size) * levels * strength
    return torch.cat([visible, warm], dim=1)


def texture(random: np.random.Generator, warmth: Floats) -> Tensor:
    """Two colours in a random pattern, and warmth about a level [B] -> [B, 4, cells, cells]."""
    level = torch.from_numpy(warmth).float()[:, None, None, None]
    count, size = len(level), (TEXTURE_CELLS, TEXTURE_CELLS)
    colours = torch.from_numpy(random.uniform(20, 235, (2, count, 3, 1, 1))).float()
    pattern = (smooth_noise(random, count, 1, 4, size) * 1.5).clamp(-1, 1) * 0.5 + 0.5
    visible = colours[0] * pattern + colours[1] * (1 - pattern) + smooth_noise(random, count, 3, 6, size) * 25
    return torch.cat([visible, level + smooth_noise(random, count, 1, 5, size) * 22], dim=1)


def distractor_texture(random: np.random.Generator, target: Tensor) -> Tensor:
    """Something between the target's texture [B, 4, n, n] and a new one."""
    count = len(target)
    difference = torch.from_numpy(random.uniform(0.15, 0.6, count)).float()[:, None, None, None]
    return target.lerp(texture(random, random.uniform(140, 220, count)), difference)


def clutter_texture(random: np.random.Generator, count: int) -> Tensor:
    """One thing in five is about as warm as a target."""
    cold, warm = random.uniform(40, 110, count), random.uniform(120, 190, count)
    return texture(random, np.where(random.random(count) < 0.8, cold, warm))


def occluder_texture(random: np.random.Generator, count: int) -> Tensor:
    return texture(random, random.uniform(60, 120, count))


def paint(canvas: Tensor, view: View, thing: Thing) -> None:
    """Paint a thing over a canvas, in place. Scenes in which it is out of view cost nothing."""
    windows = view.windows(thing.outline.bounds(), canvas)
    (seen,) = np.nonzero((windows[0] < windows[1]) & (windows[2] < windows[3]))
    if len(seen) == 0:
        return
    top, left = windows[[0, 2]][:, seen].min(1)
    bottom, right = windows[[1, 3]][:, seen].max(1)
    near = view.only(seen)
    xs, ys = near.pixel_centres(range(top, bottom), range(left, right), canvas.device)
    alpha, u, v = coverage(thing.outline.only(seen), xs, ys, near.pixel)
    scenes = torch.from_numpy(seen).to(canvas.device)
    grid = torch.stack([u, v], dim=-1) / TEXTURE_REACH
    painted = functional.grid_sample(
        thing.texture.to(canvas.device)[scenes], grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    part = canvas[scenes, :, top:bottom, left:right]
    canvas[scenes, :, top:bottom, left:right] = part.lerp_(painted, alpha[:, None])


def coverage(outline: Outline, xs: Tensor, ys: Tensor, pixel: Floats) -> tuple[Tensor, Tensor, Tensor]:
    """How much of each pixel a shape covers, in 0..1, and the shape's coordinates u, v there; [B, H, W] each.

    Args:
        outline: where the shape is.
        xs, ys: pixel centres in the scene [B, 1, W] and [B, H, 1].
        pixel: side of a pixel in the scene [B]; edges are at least that soft.
    """
    softness = np.maximum(pixel, EDGE_PX) / np.minimum(outline.half_width, outline.half_height)
    values = (outline.x, outline.y, outline.half_width, outline.half_height)
    rotation = (np.cos(outline.angle), np.sin(outline.angle))
    x, y, half_width, half_height, cos, sin, a2, b2, a3, b3, soft = torch.from_numpy(
        np.stack([*values, *rotation, *outline.shape, softness])
    ).to(xs)[:, :, None, None]
    # The temporaries are the cost of this renderer: whole pictures are changed in place.
    dx, dy = xs - x, ys - y
    u = (cos * dx + sin * dy).div_(half_width)
    v = (cos * dy - sin * dx).div_(half_height)
    radius = (u * u).add_(v * v).sqrt_().clamp_(min=1e-6)
    c, s = u / radius, v / radius
    c2, s2 = c * c, s * s
    edge = (c2 - s2).mul_(a2).add_(1).add_((c * s).mul_(2 * b2))
    edge.add_((a3 * c).mul_(c2 - (3 * s).mul_(s)))
    edge.add_((b3 * s).mul_((3 * c).mul_(c).sub_(s2)))
    return edge.sub_(radius).div_(soft).add_(0.5).clamp_(0, 1), u, v


def _hidden(canvas: Tensor, moment: Moment) -> Thing:
    """The target; where it is hidden, nearly in the colour or warmth of what it will cover."""
    look = moment.target.texture.to(canvas.device).clone()
    windows = moment.view.windows(moment.target.outline.boxes(), canvas)
    for scene, channel in np.argwhere(moment.hidden):
        top, bottom, left, right = windows[:, scene]
        in_view = top < bottom and left < right
        behind = canvas[scene, channel, top:bottom, left:right] if in_view else canvas[scene, channel]
        own = look[scene, channel]
        look[scene, channel] = behind.mean() + HIDDEN_CONTRAST * (own - own.mean())
    return dataclasses.replace(moment.target, texture=look)
