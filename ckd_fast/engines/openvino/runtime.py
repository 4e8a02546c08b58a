"""OpenVINO itself, once per process."""

from __future__ import annotations

from functools import cache

import openvino


@cache
def openvino_core() -> openvino.Core:
    """The one core of this process, which never ends.

    Where the processor has AVX-512, OpenVINO's CPU plugin gives the thread that loads it a stack of its own for
    signals. When the last core ends, the plugin frees that stack, on whatever thread that happens. If it is another
    thread, the next signal that Python handles, such as Ctrl-C or the end of a child process, kills the whole process.
    """
    return openvino.Core()
