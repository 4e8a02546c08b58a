"""One process or many: what torchrun says, and what the processes of a run tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from ckd_fast.engines.registry import resolve_device
from ckd_fast.errors import EngineError, InputError


@dataclass(frozen=True)
class Place:
    """This process among those of the run.

    Attributes:
        rank: its number; process 0 writes files and talks.
        world: how many there are.
        device: what it computes on.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether it writes files and talks."""
        return self.rank == 0


def find_place(device: str, environ: Mapping[str, str] = os.environ) -> Place:
    """Where this process stands, by the variables that torchrun sets.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N"; under torchrun, "auto" and "cuda" give every process its own GPU.
        environ: where the variables are looked up.
    """
    try:
        rank, world, local = (int(environ.get(name, fallback)) for name, fallback in _VARIABLES)
    except ValueError as error:
        raise InputError(
            f"RANK, WORLD_SIZE and LOCAL_RANK: expected whole numbers, as torchrun sets them ({error})"
        ) from None
    place = resolve_device(device)
    if place.type == "cuda":
        place = torch.device("cuda", local if place.index is None else place.index)
        if place.index >= torch.cuda.device_count():
            raise EngineError(f"{place}: this machine has {torch.cuda.device_count()} GPUs; start that many processes")
        torch.cuda.set_device(place)
    return Place(rank, world, place)


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


@contextmanager
def joined(place: Place) -> Iterator[None]:
    """Join the other processes for a while; alone, do nothing."""
    if place.world == 1:
        yield
        return
    distributed.init_process_group("nccl" if place.device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def summed(value: Tensor, place: Place) -> Tensor:
    """The sum over all processes."""
    if place.world > 1:
        distributed.all_reduce(value)
    return value


def wait_for_all(place: Place) -> None:
    """Go on when every process is here."""
    if place.world > 1:
        distributed.barrier()
