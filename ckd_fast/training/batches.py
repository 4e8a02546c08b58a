"""Batches on the device: real and rendered samples mixed, augmented and normalised.

The batches of a stage are numbered, and batch m depends on (seed, stage, m) alone. Processes take the numbers in turn,
so one process that takes two batches per step computes the same as two processes that take one each.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from ckd_fast.errors import InputError
from ckd_fast.reference.labels import visible_patches
from ckd_fast.reference.preprocess import PIXEL_MEAN, PIXEL_STD
from ckd_fast.reference.training import Batch

from . import seeds
from .config import Augmentation, Stage, TrainConfig
from .damage import Views, damage
from .rendering import Renderer
from .samples import Crops, PairDataset, collate

# Not a plain fork: workers would inherit locks that the libraries' threads hold, and might wait for ever.
_START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
GRAY = (0.299, 0.587, 0.114)
NOISE_ROOM = 64  # by how many pixels a field of noise is larger than a crop


@dataclass(frozen=True)
class Augmented:
    """A batch, and its crops before noise and damage."""

    batch: Batch
    clean: Views


@dataclass(frozen=True)
class NumberedBatch:
    """A batch, its number, and the samples that could not be read."""

    number: int
    batch: Batch
    clean: Views  # its crops before noise and damage, in levels
    bad: tuple[str, ...]


class Feed:
    """Batches of one stage, on the device that uses them; synthetic samples are rendered on the host."""

    def __init__(self, config: TrainConfig, stage: int, device: torch.device) -> None:
        self._config, self._number, self._device = config, stage, device
        self._stage: Stage = config.stages[stage]
        synthetic = [source for source in config.sources if source.kind == "synthetic"]
        if len(synthetic) > 1:
            raise InputError(f"{len(synthetic)} synthetic sources; expected at most one")
        whole = sum(source.share for source in config.sources)
        batch = self._stage.batch
        self.rendered = round(batch * sum(source.share for source in synthetic) / whole)
        self.read = batch - self.rendered
        self._renderer = Renderer(synthetic[0].scene, config.sampling, config.model, device) if synthetic else None
        self._dataset = PairDataset(config, stage) if self.read else None

    def batches(self, numbers: Sequence[int]) -> Iterator[NumberedBatch]:
        """The batches of these numbers, in order."""
        if self._dataset is None:
            for number in numbers:
                yield self._finish(number, None)
            return
        groups = [list(range(number * self.read, (number + 1) * self.read)) for number in numbers]
        loader: DataLoader[Any] = DataLoader(
            self._dataset,  # type: ignore[arg-type]  # it needs no more than __getitem__
            batch_sampler=groups,
            num_workers=self._config.workers,
            collate_fn=collate,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=_one_thread if self._config.workers else None,
            generator=torch.Generator(),  # or the loader would draw from the global one
            multiprocessing_context=_START_METHOD if self._config.workers else None,
        )
        for number, crops in zip(numbers, loader, strict=True):
            yield self._finish(number, crops)

    def _finish(self, number: int, crops: Crops | None) -> NumberedBatch:
        def stream(purpose: int) -> tuple[int, ...]:
            return (self._config.seed, purpose, self._number, number)

        parts = [] if crops is None else [self._moved(crops)]
        if self.rendered and self._renderer is not None:
            parts.append(self._renderer.render(self.rendered, stream(seeds.RENDERING)))
        joined = Crops(
            torch.cat([part.template for part in parts], dim=1),
            torch.cat([part.search for part in parts], dim=1),
            torch.cat([part.target_xywh for part in parts]),
        )
        augmented = augment(joined, self._config.augmentation, stream(seeds.AUGMENTATION))
        batch = augmented.batch
        hidden = self._stage.hidden
        if hidden:
            # On the host, so that every device hides the same patches.
            generator = torch.Generator().manual_seed(seeds.torch_seed(*stream(seeds.HIDDEN_PATCHES)))
            seen = visible_patches(self._stage.batch, self._config.model.search_tokens, hidden, generator)
            batch = Batch(batch.template, batch.search, batch.target_xywh, visible=seen.to(self._device))
        return NumberedBatch(number, batch, augmented.clean, crops.bad if crops is not None else ())

    def _moved(self, crops: Crops) -> Crops:
        tensors = (crops.template, crops.search, crops.target_xywh)
        template, search, target_xywh = (tensor.to(self._device, non_blocking=True) for tensor in tensors)
        return Crops(template, search, target_xywh)


def _one_thread(_worker: int) -> None:
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the run decides what it means
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def seed_batch(seed: int, stage: int, number: int) -> None:
    """Seed what the model itself draws (dropped paths) for one batch."""
    torch.manual_seed(seeds.torch_seed(seed, seeds.DROPPED_PATHS, stage, number))


def normalised(images: Tensor) -> Tensor:
    """[..., 3, H, W] in 0..255 -> ImageNet's mean and standard deviation, float32."""
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD))
    return (images.float() / 255.0 - mean) / std


def augment(crops: Crops, config: Augmentation, seed: tuple[int, ...]) -> Augmented:
    """Augment a whole batch. Random numbers are drawn on the host, the same for every device."""
    random, device = np.random.default_rng(seed), crops.template.device
    count = crops.target_xywh.shape[0]

    def chosen(probability: float) -> Tensor:
        return torch.from_numpy(random.random(count) < probability).to(device)

    gray, both = chosen(config.grayscale), chosen(config.flip)
    target = crops.target_xywh
    views = []
    for images in (crops.template, crops.search):
        pixels = images.float()  # [2, B, 3, H, W]
        weights = torch.tensor(GRAY, device=device)[:, None, None]
        shade = (pixels * weights).sum(2, keepdim=True).expand_as(pixels)
        pixels = torch.where(gray[None, :, None, None, None], shade, pixels)
        flip = both ^ chosen(config.flip)
        pixels = torch.where(flip[None, :, None, None, None], pixels.flip(-1), pixels)
        if images is crops.search:
            x, y, w, h = target.unbind(-1)
            target = torch.stack([torch.where(flip, 1 - x - w, x), y, w, h], dim=-1)
        factor = torch.from_numpy(random.uniform(1 - config.brightness, 1 + config.brightness, count)).float()
        views.append((pixels * factor.to(device)[None, :, None, None, None]).clamp(0, 255))
    template, search = views
    if config.rotation_degrees:
        angles = np.deg2rad(random.uniform(-config.rotation_degrees, config.rotation_degrees, count))
        search, target = rotated(search, target, torch.from_numpy(angles).float().to(device))
    clean = Views(template, search)
    if config.noise:
        template, search = (noisy(images, config.noise, random) for images in (template, search))
    if config.damage:
        template, search = damage(Views(template, search), config.damage, random)
    return Augmented(Batch(normalised(template), normalised(search), target), clean)


def noisy(images: Tensor, most: float, random: np.random.Generator) -> Tensor:
    """Add noise to every crop of [2, B, 3, H, W]: pieces of one field, each with its own strength up to `most`."""
    modalities, count, channels, height, width = images.shape
    field = random.standard_normal((channels, height + NOISE_ROOM, width + NOISE_ROOM), np.float32)
    places = random.integers(0, NOISE_ROOM, (modalities, count, 2))
    pieces = np.stack([[field[:, y : y + height, x : x + width] for x, y in row] for row in places])
    strength = torch.from_numpy(random.uniform(0, most, (modalities, count, 1, 1, 1))).float()
    noise: Tensor = torch.from_numpy(pieces) * strength
    return (images + noise.to(images.device)).clamp(0, 255)


def rotated(images: Tensor, target_xywh: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """Turn crops about their centres; the new box is the upright one around the turned corners.

    Args:
        images: both modalities [2, B, 3, H, W]; they turn alike.
        target_xywh: in units of the crop [B, 4].
        angles: radians, clockwise on the screen [B].
    """
    cos, sin = angles.cos(), angles.sin()
    zero = torch.zeros_like(cos)
    # Where each pixel of the result comes from: the inverse turn.
    matrix = torch.stack([torch.stack([cos, sin, zero], -1), torch.stack([-sin, cos, zero], -1)], dim=1)  # [B, 2, 3]
    turned = []
    for modality in images:
        grid = functional.affine_grid(matrix, list(modality.shape), align_corners=False)
        turned.append(functional.grid_sample(modality, grid, align_corners=False))
    x, y, w, h = (target_xywh - torch.tensor([0.5, 0.5, 0, 0], device=angles.device)).unbind(-1)
    corner_x = torch.stack([x, x + w, x, x + w], dim=-1)  # [B, 4]
    corner_y = torch.stack([y, y, y + h, y + h], dim=-1)
    new_x = cos[:, None] * corner_x - sin[:, None] * corner_y
    new_y = sin[:, None] * corner_x + cos[:, None] * corner_y
    left, top = new_x.amin(-1), new_y.amin(-1)
    box = torch.stack([left + 0.5, top + 0.5, new_x.amax(-1) - left, new_y.amax(-1) - top], dim=-1)
    return torch.stack(turned), box
