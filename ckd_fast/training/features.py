"""Features of a public network that the students imitate, so that their tokens soon know what an object is.

    T   features of an undamaged crop, [B, N, 256] for FEAR-XS: one vector per patch
    Z   standardised(T) R    per channel over the batch; R [256, c] has orthonormal columns from a fixed seed
    L   mean (tokens[..., :c] - standardised(Z))^2    after `imitate_after` blocks

R has no weights to learn and keeps distances nearly, so nothing but the students' tokens has to be stored. The other
channels of the tokens are free for what the public network does not know: where things are, and the template.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ckd_fast.errors import InputError
from ckd_fast.reference.preprocess import PIXEL_MEAN

IMITATED = 2 / 3  # share of the students' channels


class FeatureTeacher:
    """A backbone in an ONNX file: RGB levels less ImageNet's mean [B, 3, H, W] -> features [B, C, H / s, W / s]."""

    def __init__(self, path: str, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(
                "feature_teacher needs the package onnxruntime, which is not installed: pip install 'ckd_fast[onnx]'"
            ) from error
        if not Path(path).is_file():
            raise InputError(f"feature_teacher={path!r}: no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class of their own
            raise InputError(f"feature_teacher={path!r}: not a network that ONNX Runtime reads ({error})") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise InputError(f"feature_teacher={path!r}: expected one input of images [B, 3, H, W]")
        self._name: str = inputs[0].name
        self._path = path

    def tokens(self, images: Tensor) -> Tensor:
        """Levels of both modalities [2, B, 3, H, W] -> features in raster order [2, B, N, C]."""
        mean = torch.tensor(PIXEL_MEAN)[:, None, None] * 255
        pixels = (images.flatten(0, 1).cpu().float() - mean).numpy()
        try:
            features = torch.from_numpy(self._session.run(None, {self._name: pixels})[0])
        except Exception as error:  # as above
            raise InputError(f"feature_teacher={self._path!r}: does not take {pixels.shape} ({error})") from error
        if features.dim() != 4:
            raise InputError(f"feature_teacher={self._path!r}: gives {tuple(features.shape)}, expected [B, C, H, W]")
        tokens: Tensor = features.flatten(2).transpose(1, 2).unflatten(0, images.shape[:2])
        return tokens.to(images.device)


def imitation_loss(tokens: Tensor, features: Tensor) -> Tensor:
    """How far the students' tokens are from the features, in units of their variance.

    Args:
        tokens: template and search tokens of the students [2, B, N, C].
        features: of the same patches [2, B, N, channels].
    """
    if tokens.shape[:3] != features.shape[:3]:
        raise InputError(
            f"the feature teacher makes {features.shape[2]} vectors of the crops' {tokens.shape[2]} patches: "
            "it needs a stride equal to patch_size"
        )
    count = min(round(tokens.shape[-1] * IMITATED), features.shape[-1])
    target = _standardised(_standardised(features) @ projection(features.shape[-1], count).to(features))
    return functional.mse_loss(tokens[..., :count].float(), target)


def projection(channels: int, count: int) -> Tensor:
    """Orthonormal columns [channels, count], always the same."""
    random = np.random.default_rng(0).standard_normal((channels, count))
    return torch.from_numpy(np.linalg.qr(random)[0]).float()


def _standardised(features: Tensor) -> Tensor:
    """Mean 0 and variance 1 per channel, over all patches of the batch."""
    axes = tuple(range(features.dim() - 1))
    return (features - features.mean(axes)) / features.std(axes).clamp(min=1e-4)
