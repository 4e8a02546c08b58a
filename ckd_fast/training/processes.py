"""The processes of a run: which one this is, as torchrun says, and how they wait for and add to each other."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed

from ckd_fast.engines.registry import resolve_device
from ckd_fast.errors import EngineError, InputError, OutputError
from ckd_fast.files import lock, make_folder, writing

log = logging.getLogger(__name__)
LOCK = ".lock"


@dataclass(frozen=True)
class Process:
    """This process among those of the run."""

    rank: int  # its number; process 0 alone writes files and shows progress
    world: int  # how many there are
    device: torch.device  # what it computes on

    @property
    def first(self) -> bool:
        return self.rank == 0


def this_process(device: str, environ: Mapping[str, str] = os.environ) -> Process:
    """This process, by the variables that torchrun sets; without them it is alone.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N"; under torchrun, "auto" and "cuda" give every process its own GPU.
        environ: where the variables are looked up.
    """
    try:
        rank, world, local_rank = (
            int(environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
    except ValueError as error:
        raise InputError(
            f"RANK, WORLD_SIZE and LOCAL_RANK: expected whole numbers, as torchrun sets them ({error})"
        ) from None
    return Process(rank, world, _device(device, local_rank))


def _device(name: str, local_rank: int) -> torch.device:
    device = resolve_device(name)
    if device.type == "cuda":
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise EngineError(f"{device}: this machine has {torch.cuda.device_count()} GPUs; start that many processes")
        torch.cuda.set_device(device)
    return device


@contextmanager
def joined(process: Process) -> Iterator[None]:
    """Connect to the other processes, if there are any."""
    if process.world == 1:
        yield
        return
    distributed.init_process_group("nccl" if process.device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def sole_run(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder of this one, until it ends or is killed."""
    make_folder(out)
    with writing(out / LOCK):
        handle = (out / LOCK).open("a")
    with handle:
        try:
            lock(handle.fileno(), wait=False)
        except BlockingIOError:
            raise OutputError(f"{out}: another run is writing here: choose another folder, or end that run") from None
        except OSError as error:  # a network file system without locks
            log.warning("%s: cannot be locked (%s): start no other run there", out, error)
        if sys.platform == "win32":  # where `lock` does nothing
            log.warning("%s: cannot be locked on Windows: start no other run there", out)
        yield


def summed(value: Tensor, process: Process) -> Tensor:
    """The sum over all processes."""
    if process.world > 1:
        distributed.all_reduce(value)
    return value


def wait_for_all(process: Process) -> None:
    if process.world > 1:
        distributed.barrier()
