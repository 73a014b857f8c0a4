"""Plain copies of memory: what it gives to a kernel that writes as much as it reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl

from tilelang_gemm_wrapper.core._streaming_read import Choice

_CHOICES = (
    Choice(4, 1, 0),
    Choice(4, 4, 0),
    Choice(8, 2, 0),
    Choice(8, 4, 0),
    Choice(8, 4, 4),
    Choice(8, 4, 8),
    Choice(16, 4, 4),
)


@triton.jit
def streaming_copy_kernel(source, target, words, BLOCK: tl.constexpr):
    """Copy `words` int32 from `source` to `target`, each read and written once."""
    lanes = tl.arange(0, BLOCK)
    for start in range(tl.program_id(0) * BLOCK, words, tl.num_programs(0) * BLOCK):
        index = tl.multiple_of(start, BLOCK) + lanes
        tl.store(target + index, tl.load(source + index, mask=index < words), mask=index < words)


def streaming_copies(source: torch.Tensor, target: torch.Tensor) -> dict[str, Callable[[int], object]]:
    """Providers for `time_interleaved`, of one rotation index: each copies source to target in its own way.

    source, target: int32 CUDA tensors of one size, contiguous, fewer than 2^31 elements, much larger than L2.
    """
    copies: dict[str, Callable[[int], object]] = {"torch": lambda i: target.copy_(source)}
    for choice in _CHOICES:
        copies[str(choice)] = partial(_copy, source, target, choice)
    return copies


def _copy(source: torch.Tensor, target: torch.Tensor, choice: Choice, i: int) -> None:
    words = source.numel()
    programs = choice.programs(words, source.device)
    streaming_copy_kernel[(programs,)](source, target, words, BLOCK=choice.block, num_warps=choice.warps)
