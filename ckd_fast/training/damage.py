"""What goes wrong with one camera of two: nothing, darkness, glare, smoke, noise, blur, or a view that does not fit.

A network that always sees both modalities well never learns which one to believe. So a share of the samples has one
damaged modality, in the search view always and in the template view sometimes. The other one stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ckd_fast.reference.preprocess import PIXEL_MEAN

KINDS = ("missing", "blank", "dark", "glare", "smoke", "noise", "blur", "shift")
IN_TEMPLATE = 0.25  # share of the damaged samples whose template is damaged too; a user starts on what can be seen
NEVER_IN_TEMPLATE = ("missing", "shift")


@dataclass(frozen=True)
class Views:
    """Crops of a batch in levels 0..255."""

    template: Tensor  # rgb and tir [2, B, 3, h, w]
    search: Tensor  # [2, B, 3, H, W]


def damage(views: Views, share: float, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Damage one modality of a share of the samples; the template and the search crops afterwards."""
    template, search = views.template.clone(), views.search.clone()
    for sample in np.flatnonzero(random.random(search.shape[1]) < share):
        modality, kind = int(random.integers(2)), str(random.choice(KINDS))
        strength = float(random.random())
        search[modality, sample] = _DAMAGES[kind](search[modality, sample], strength, random)
        if random.random() < IN_TEMPLATE and kind not in NEVER_IN_TEMPLATE:
            template[modality, sample] = _DAMAGES[kind](template[modality, sample], strength, random)
    return template, search


def _missing(image: Tensor, _strength: float, _random: np.random.Generator) -> Tensor:
    """What the tracker puts in place of a frame that is not there: the mean image, zeros when normalised."""
    return (torch.tensor(PIXEL_MEAN, device=image.device) * 255)[:, None, None].expand_as(image)


def _blank(image: Tensor, strength: float, _random: np.random.Generator) -> Tensor:
    return torch.full_like(image, 255 * strength)


def _dark(image: Tensor, strength: float, random: np.random.Generator) -> Tensor:
    return _noise(image * (0.02 + 0.25 * strength), 0.1, random)


def _glare(image: Tensor, strength: float, _random: np.random.Generator) -> Tensor:
    return ((image - 128) * (1.5 + 2.5 * strength) + 128 + 160 * strength).clamp(0, 255)


def _smoke(image: Tensor, strength: float, random: np.random.Generator) -> Tensor:
    """A bright veil of uneven thickness."""
    coarse = torch.from_numpy(random.random((1, 1, 4, 4), dtype=np.float32)).to(image.device)
    fine = functional.interpolate(coarse, image.shape[-2:], mode="bicubic", align_corners=False)[0]
    thickness = (0.45 + 0.5 * strength + 0.5 * (fine - 0.5)).clamp(0, 1)
    return image * (1 - thickness) + float(random.uniform(90, 230)) * thickness


def _noise(image: Tensor, strength: float, random: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(random.standard_normal(tuple(image.shape), dtype=np.float32)).to(image.device)
    return (image + (8 + 40 * strength) * noise).clamp(0, 255)


def _blur(image: Tensor, strength: float, _random: np.random.Generator) -> Tensor:
    side = image.shape[-1]
    small = functional.interpolate(image[None], size=max(8, round(side * (0.25 - 0.19 * strength))), mode="area")
    return functional.interpolate(small, size=side, mode="bilinear", align_corners=False)[0]


def _shift(image: Tensor, strength: float, random: np.random.Generator) -> Tensor:
    """The view of a camera that is not quite aligned."""
    side = image.shape[-1]
    reach = max(1, round(side * (0.02 + 0.05 * strength)))
    down, right = (int(random.integers(-reach, reach + 1)) for _ in range(2))
    padded = functional.pad(image[None], [reach] * 4, mode="replicate")[0]
    return padded[:, reach + down : reach + down + side, reach + right : reach + right + side]


_DAMAGES = {
    "missing": _missing, "blank": _blank, "dark": _dark, "glare": _glare, "smoke": _smoke, "noise": _noise,
    "blur": _blur, "shift": _shift,
}  # fmt: skip
