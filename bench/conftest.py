"""Kernels run in Triton's interpreter where there is no GPU; that is decided before triton is imported."""

import os

import torch

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
