"""The driver's own counter of the energy that a GPU has taken, since the driver was loaded."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import torch
from common import refuse

WATTS_OF_A_REHEARSAL = 10.0


def joules_meter() -> Callable[[], float]:
    """A function that reads the counter of torch's GPU; in a rehearsal one that counts seconds."""
    if not torch.cuda.is_available():
        return lambda: WATTS_OF_A_REHEARSAL * time.perf_counter()
    try:
        driver = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        refuse(f"energy is read by the driver's library, which does not load: {error}")
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()

    def ask(name: str, *arguments: object) -> None:
        code = getattr(driver, name)(*arguments)
        if code:
            refuse(f"energy: the driver's {name} answers with error {code}")

    ask("nvmlInit_v2")
    uuid = f"GPU-{torch.cuda.get_device_properties().uuid}".encode()
    ask("nvmlDeviceGetHandleByUUID", ctypes.c_char_p(uuid), ctypes.byref(handle))

    def joules() -> float:
        ask("nvmlDeviceGetTotalEnergyConsumption", handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    joules()
    return joules
