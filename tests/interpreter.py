"""Triton's interpreter made trustworthy: bf16, fp8 and fma repaired, and a guard against stray accesses and races.

The interpreter (3.6 to 3.9) multiplies the raw bits of bf16 in `tl.dot`, truncates float32 to bf16 and fp8, and rounds
twice in a fused multiply-add. The guard makes an access outside every tensor argument an IndexError, and a RuntimeError
of one address stored by two programs, or loaded by one after another one stored it. An atomic orders its program behind
all that used the same address before: what those had stored until then may be loaded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def _is_bf16(dtype: Any) -> bool:
    return dtype.scalar == tl.bfloat16


def _is_fp8(dtype: Any) -> bool:
    return dtype.scalar == tl.float8e4nv


def fp8_to_float32(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values.view(np.uint8).copy()).view(torch.float8_e4m3fn).float().numpy()


def float32_to_fp8(values: np.ndarray) -> np.ndarray:
    """Rounded to even, as the GPU does."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def bf16_to_float32(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def float32_to_bf16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def kernel_device() -> torch.device:
    """Where kernels run: the GPU, or without one the CPU in the interpreter, which is repaired."""
    if os.environ["TRITON_INTERPRET"] == "0":
        return torch.device("cuda")
    repair_narrow_floats()
    repair_fma()
    return torch.device("cpu")


def repair_narrow_floats() -> None:
    """Patch the interpreter, once."""
    dot, convert = interpreter.InterpreterBuilder.create_dot, interpreter._convert_float
    if getattr(dot, "repaired", False):
        return

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        def widened(handle: Any) -> Any:
            if _is_bf16(handle.dtype):
                return interpreter.TensorHandle(bf16_to_float32(handle.data), tl.float32)
            if _is_fp8(handle.dtype):
                return interpreter.TensorHandle(fp8_to_float32(handle.data), tl.float32)
            return handle

        return dot(self, widened(a), widened(b), d, *rest)

    def convert_float(values: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if _is_bf16(source) and target.scalar == tl.float32:
            return bf16_to_float32(np.ascontiguousarray(values)).reshape(values.shape)
        if source.scalar == tl.float32 and _is_bf16(target):
            return float32_to_bf16(values).reshape(values.shape)
        if _is_fp8(source) and target.scalar == tl.float32:
            return fp8_to_float32(values).reshape(values.shape)
        if source.scalar == tl.float32 and _is_fp8(target):
            return float32_to_fp8(values).reshape(values.shape)
        return convert(values, source, target, mode)

    create_dot.repaired = True
    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter._convert_float = convert_float


def repair_fma() -> None:
    """Let float32's fused multiply-add round once: in float64 the product is exact and the sum has bits to spare."""

    def create_fma(_self: Any, x: Any, y: Any, z: Any) -> Any:
        if z.dtype.scalar != tl.float32:
            raise NotImplementedError(f"fma of {z.dtype}")
        exact = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
        return interpreter.TensorHandle(exact.astype(np.float32), z.dtype.scalar)

    interpreter.InterpreterBuilder.create_fma = create_fma


@dataclass(frozen=True)
class Accesses:
    """Addresses of the tensor arguments that kernels loaded from and stored to."""

    loaded: set[int] = field(default_factory=set)
    stored: set[int] = field(default_factory=set)


@contextlib.contextmanager
def guarded() -> Iterator[Accesses]:
    """Check every access of the kernels launched inside, and say which tensors they touched."""
    seen = Accesses()
    builder, grid = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, arguments = builder.create_masked_load, builder.create_masked_store, grid._init_args_hst
    atomic = builder.create_atomic_rmw
    spans: list[tuple[int, int]] = []
    owner: dict[int, tuple[int, ...]] = {}
    # by address: what had been stored by the programs that used it in an atomic; by program: what it may load of that
    released: dict[int, set[int]] = {}
    acquired: dict[tuple[int, ...], set[int]] = {}

    def init_arguments(self: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = arguments(self, args, kwargs)
        for seen_so_far in (spans, owner, released, acquired):
            seen_so_far.clear()
        for value in [*args, *kwargs.values()]:
            tensor = getattr(value, "base", value)
            if hasattr(tensor, "data_ptr") and tensor.numel():
                extent = 1 + sum((n - 1) * abs(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))
                spans.append((tensor.data_ptr(), tensor.data_ptr() + extent * tensor.element_size()))
        return args, kwargs

    def active(pointer: Any, mask: Any, what: str, touched: set[int]) -> np.ndarray:
        addresses = np.asarray(pointer.data).ravel()
        lanes = np.broadcast_to(mask.data, pointer.data.shape).ravel().astype(bool)
        addresses = addresses[lanes]
        size = max(1, pointer.get_element_ty().primitive_bitwidth // 8)
        inside = np.zeros(addresses.shape, bool)
        for low, high in spans:
            here = (addresses >= low) & (addresses + np.uint64(size) <= high)
            inside |= here
            if here.any():
                touched.add(low)
        if not inside.all():
            raise IndexError(f"{what}: {int((~inside).sum())} of {inside.size} lanes outside every tensor argument")
        return addresses

    def masked_load(self: Any, pointer: Any, mask: Any, *rest: Any) -> Any:
        addresses = active(pointer, mask, "tl.load", seen.loaded)
        if owner:
            ordered = acquired.get(self.grid_idx, set())
            for address in addresses.tolist():
                if owner.get(address, self.grid_idx) != self.grid_idx and address not in ordered:
                    raise RuntimeError(f"race: {self.grid_idx} reads what {owner[address]} wrote")
        return load(self, pointer, mask, *rest)

    def masked_store(self: Any, pointer: Any, value: Any, mask: Any, *rest: Any) -> Any:
        for address in active(pointer, mask, "tl.store", seen.stored).tolist():
            if owner.setdefault(address, self.grid_idx) != self.grid_idx:
                raise RuntimeError(f"race: {self.grid_idx} and {owner[address]} both store to one address")
        return store(self, pointer, value, mask, *rest)

    def atomic_rmw(self: Any, operation: Any, pointer: Any, value: Any, mask: Any, *rest: Any) -> Any:
        stored = {address for address, program in owner.items() if program == self.grid_idx}
        for address in active(pointer, mask, "atomic", seen.loaded).tolist():
            released.setdefault(address, set()).update(stored)
            acquired.setdefault(self.grid_idx, set()).update(released[address])
        active(pointer, mask, "atomic", seen.stored)
        return atomic(self, operation, pointer, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
    builder.create_atomic_rmw = atomic_rmw
    grid._init_args_hst = init_arguments
    try:
        yield seen
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
        builder.create_atomic_rmw = atomic
        grid._init_args_hst = arguments
