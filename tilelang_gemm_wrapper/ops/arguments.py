"""What the ops ask of their tensors: value, expectation and remedy where one does not fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from ..quantize import TMA_ALIGNMENT, ScaleLayout, check_dense, round_up

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
GROUP = 128  # columns that share a scale


class Rows(NamedTuple):
    """A tensor (..., K) as outer * inner rows; row (i, j) starts at i * outer_stride + j * inner_stride.

    Two strides are what slices of a fused QKV need: tokens far apart, heads within a token close together.
    """

    tensor: torch.Tensor  # (outer, inner, K), a view of the argument
    outer_stride: int
    inner_stride: int

    @property
    def inner(self) -> int:
        return self.tensor.shape[1]

    @property
    def M(self) -> int:
        return self.tensor.shape[0] * self.tensor.shape[1]

    @property
    def K(self) -> int:
        return self.tensor.shape[2]

    @property
    def flat(self) -> torch.Tensor:
        return flat(self.tensor)


def check_floats(**tensors: torch.Tensor) -> None:
    """TypeError or ValueError unless all are float tensors of one dtype and pass `check_place`."""
    first = next(iter(tensors))
    device = dtype = None
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch.Tensor")
        check_dense(name, tensor)
        if device is None:
            device, dtype = tensor.device, tensor.dtype
        if tensor.dtype not in FLOATS:
            raise TypeError(
                f"{name} is {tensor.dtype}, expected bfloat16, float16 or float32; convert it first"
            )
        if tensor.dtype is not dtype:
            raise TypeError(
                f"{name} is {tensor.dtype} and {first} {dtype}, expected one dtype; convert {name}"
            )
        check_place(name, tensor, first, device)


def check_eps(eps: float, offset: float) -> None:
    """ValueError unless both are finite numbers, eps of at least 0: NaN would come of it, or no kernel."""
    for name, value, least in (("eps", eps, 0.0), ("offset", offset, -math.inf)):
        try:
            fits = least <= value < math.inf and value != -math.inf
        except (TypeError, RuntimeError):  # RuntimeError: of a tensor of several
            fits = False
        if not fits:
            expected = "a finite number" + (" of at least 0" if name == "eps" else "")
            raise ValueError(f"{name} is {value!r}, expected {expected}")


def check_place(name: str, tensor: torch.Tensor, first: str, device: torch.device) -> None:
    """ValueError unless the tensor is on the device of `first`, a CPU or CUDA, and wants no gradient."""
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device} and {first} on {device}; move them to one device")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} is on {device}, expected the CPU or a CUDA device; move it there")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} requires grad, but the op has no backward; pass {name}.detach() or run under "
            f"torch.no_grad()"
        )


def check_rows(name: str, tensor: torch.Tensor, longest: int = 65536) -> None:
    """ValueError unless tensor is (..., K) with K from 1 to `longest`."""
    if tensor.dim() == 0 or not 1 <= tensor.shape[-1] <= longest:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, expected (..., K) with K from 1 to {longest}"
        )


def check_shape(name: str, tensor: torch.Tensor, shape: Sequence[int], of: str) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)} for {of}; reshape it"
        )


def check_groups(name: str, K: int) -> None:
    if K % GROUP:
        raise ValueError(
            f"{name} has K = {K}, expected a multiple of {GROUP}: each {GROUP} columns share a scale; pad it"
        )


def rows_of(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> list[Rows]:
    """Tensors of one shape (..., K) as `Rows` with the same outer and inner. Views: nothing is copied.

    Raises ValueError where the values of a row are not side by side, or the rows lie in more than two
    strides.
    """
    *leading, K = tensors[0].shape
    for name, tensor in zip(names, tensors, strict=True):
        if K > 1 and tensor.stride(-1) != 1:
            raise ValueError(
                f"{name} has strides {tensor.stride()}, expected the last to be 1; pass {name}.contiguous()"
            )
    # Dimensions of one row step nowhere; of two neighbours that every tensor walks as one, one is made.
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in tensors]
    for dimension, size in enumerate(leading):
        if size == 1:
            continue
        steps = [tensor.stride(dimension) for tensor in tensors]
        if sizes and all(own[-1] == size * step for own, step in zip(strides, steps, strict=True)):
            sizes[-1] *= size
            for own, step in zip(strides, steps, strict=True):
                own[-1] = step
        else:
            sizes.append(size)
            for own, step in zip(strides, steps, strict=True):
                own.append(step)
    if len(sizes) > 2:
        raise ValueError(
            f"the rows of {' and '.join(names)}, shape {tuple(tensors[0].shape)} and strides "
            f"{' and '.join(str(tensor.stride()) for tensor in tensors)}, lie in more than two strides; "
            f"pass contiguous tensors"
        )
    while len(sizes) < 2:
        sizes.append(1)
        for own in strides:
            own.append(K)
    if math.prod(leading) == 0:
        sizes = [0, 1]
    return [
        Rows(tensor.as_strided((*sizes, K), (*own, 1)), *own)
        for tensor, own in zip(tensors, strides, strict=True)
    ]


def check_rows_apart(name: str, rows: Rows) -> None:
    """ValueError where rows that are written lie on one another, as `expand` makes them."""
    steps = zip(rows.tensor.shape, (rows.outer_stride, rows.inner_stride), strict=False)
    if any(size > 1 and step < rows.K for size, step in steps):
        raise ValueError(
            f"the rows of {name}, shape {tuple(rows.tensor.shape)} and strides {rows.tensor.stride()}, "
            f"overlap in memory, and they are written; pass {name}.contiguous()"
        )


def check_apart(name: str, written: torch.Tensor, **others: torch.Tensor) -> None:
    """ValueError where a tensor that is written shares memory with another."""
    for other_name, other in others.items():
        if overlap(written, other):
            raise ValueError(
                f"{name} overlaps {other_name} in memory, expected a buffer of its own; clone one"
            )


def overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the stretches of memory from first to last element meet; strided tensors may interleave."""
    (a_start, a_end), (b_start, b_end) = _stretch(a), _stretch(b)
    return a_start < b_end and b_start < a_end


def _stretch(tensor: torch.Tensor) -> tuple[int, int]:
    start = tensor.data_ptr()
    if tensor.numel() == 0:
        return start, start
    return start, start + flat(tensor).numel() * tensor.element_size()


def is_vectorisable(width: int, *rows: Rows) -> bool:
    """Whether every row of all starts at a multiple of `width` bytes, and K fills whole vectors."""
    for tensor, outer_stride, inner_stride in rows:
        bits = (outer_stride | inner_stride | tensor.shape[2]) * tensor.element_size() | tensor.data_ptr()
        if bits % width:
            return False
    return True


def dtype_name(tensor: torch.Tensor) -> str:
    """ "bfloat16" of a tensor of torch.bfloat16."""
    return _name(tensor.dtype)


@lru_cache(maxsize=64)
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The memory from first to last element as one dimension, for kernels that are told the strides."""
    elements = 1
    for size, step in zip(tensor.shape, tensor.stride(), strict=True):
        elements += (size - 1) * step
    return tensor.as_strided((elements,), (1,))


def empty_fp8(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Where the codes of (..., K) go: contiguous."""
    return torch.empty(shape, dtype=torch.float8_e4m3fn, device=device)


def empty_scale(M: int, groups: int, scale_layout: ScaleLayout, device: torch.device) -> torch.Tensor:
    """(M, groups) float32 for the scales, laid out as `quantize.convert_scale_layout` has it.

    Of "column_tma" the rows up to the next multiple of 4 stay unwritten. Raises ValueError for another
    layout.
    """
    return scale_and_memory(M, groups, scale_layout, device)[0]


def scale_and_memory(
    M: int, groups: int, scale_layout: ScaleLayout, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `empty_scale`, and all of its memory as one dimension."""
    if scale_layout == "row":
        stride, size = (groups, 1), M * groups
    elif scale_layout == "column_tma":
        rows = round_up(M, TMA_ALIGNMENT)
        stride, size = (1, rows), groups * rows
    else:
        raise ValueError(f"scale_layout is {scale_layout!r}; expected 'row' or 'column_tma'")
    memory = torch.empty(size, dtype=torch.float32, device=device)
    return memory.as_strided((M, groups), stride), memory
