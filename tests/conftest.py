"""Kernels run in Triton's interpreter where there is no GPU; that is decided before triton is imported."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from commands import Command, Printed
    from exports import Case, Made

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
# Plain PyTorch is what float32 is compared with: its convolutions must be float32 too.
torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="session", autouse=True)
def _no_user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests cache, in this process and in those that they start, is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CKD_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def announcements() -> None:
    """Warnings are logged again after a test that tracked a data set in this process, which silences them."""
    logging.getLogger("ckd_fast").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of small random weights."""
    from checkpoints import SMALL

    from ckd_fast import load_model, save_model

    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(load_model("random", SMALL, seed=3), path)
    return str(path)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Made]:
    """Exported files, each made once: that takes seconds."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'ckd_fast[export]'")
    from exports import make

    done: dict[Case, Made] = {}

    def get(case: Case) -> Made:
        if case not in done:
            done[case] = make(case, tmp_path_factory.mktemp("exported"))
        return done[case]

    return get


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Call the command line in this process."""
    from commands import Printed, main

    def call(*arguments: object) -> Printed:
        capsys.readouterr()
        try:
            code: int | str | None = main([str(argument) for argument in arguments])
        except SystemExit as stopped:  # raised by the parser
            code = stopped.code
        return Printed(code, *capsys.readouterr())

    return call
