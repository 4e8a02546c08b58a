"""Packaging of ckd_fast: packages, dependencies, extras, entry point (tool settings live in pyproject.toml)."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "ckd_fast/__init__.py").read_text())[1]

TEST = ["pytest>=8", "pytest-benchmark>=5", "pytest-timeout>=2.3", "pytest-xdist>=3.5"]
CPU = ["openvino>=2025.4"]
# The package onnx checks files before ONNX Runtime gets them.
ONNX = ["onnx>=1.16", "onnxruntime>=1.18"]
EXPORT = [*ONNX, "onnxscript>=0.5"]
PEERS = ["nncf>=2.14", *CPU, *EXPORT]  # of `bench/fps.py --peers`
PLOT = ["matplotlib>=3.7"]
COMPLETION = ["shtab"]
# attributee, which the VOT toolkit builds on, cannot be imported in its version 0.1.10.
VOT = ["vot-toolkit>=0.7.3", "vot-trax>=4.0.2", "attributee!=0.1.10"]
LINT = ["ruff>=0.15", "mypy>=1.15", "types-tqdm"]

setup(
    name="ckd_fast",
    version=VERSION,
    description="Fast, tested RGB-thermal single-object tracking: CKD in plain PyTorch and in fused Triton kernels",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # Listed one by one: `ckd_fast/kernels` and `ckd_fast/reference` are committed links to the folders at the top,
    # so that the same import works from a checkout, an editable install and a wheel (docs/architecture.md).
    packages=[
        "ckd_fast",
        "ckd_fast.adapters",
        "ckd_fast.cli",
        "ckd_fast.datasets",
        "ckd_fast.datasets.scenes",
        "ckd_fast.engines",
        "ckd_fast.engines.onnx",
        "ckd_fast.engines.openvino",
        "ckd_fast.engines.triton",
        "ckd_fast.evaluation",
        "ckd_fast.exporting",
        "ckd_fast.quantization",
        "ckd_fast.training",
        "ckd_fast.video",
        "ckd_fast.weights",
        "ckd_fast.kernels",
        "ckd_fast.reference",
    ],
    package_data={
        "ckd_fast": ["py.typed"],
        "ckd_fast.evaluation": ["report.css", "report.js"],
        "ckd_fast.kernels": ["tiles.json"],
        "ckd_fast.weights": ["packaged.safetensors"],
    },
    # Lower bounds only, and none for triton: every torch release pins the triton it was built with, and an upper bound
    # here would make pip replace the torch that a GPU machine already has. Exact versions live in constraints.txt.
    install_requires=[
        "torch>=2.6",
        "triton; platform_system == 'Linux'",
        "numpy",
        "opencv-python",
        "safetensors>=0.4",
        "tqdm",  # progress of everything that takes long
        "nvtx; platform_system != 'Darwin'",
    ],
    extras_require={
        "cpu": CPU,
        "quantize": CPU,  # `ckd-fast quantize` measures on engine `openvino`
        "onnx": ONNX,
        "export": EXPORT,
        "peers": PEERS,
        "plot": PLOT,
        "completion": COMPLETION,
        "vot": VOT,
        "cluster": ["ray>=2.9"],
        "tensorboard": ["tensorboard"],
        "test": [*TEST, *CPU, *EXPORT, *PLOT, *COMPLETION],
        "lint": LINT,
        "dev": [*TEST, *CPU, *EXPORT, *PLOT, *COMPLETION, *LINT],
    },
    entry_points={"console_scripts": ["ckd-fast = ckd_fast.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Operating System :: OS Independent",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
