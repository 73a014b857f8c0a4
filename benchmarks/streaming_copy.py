"""Plain copies of memory: what it gives to a kernel that writes as much as it reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl


class _Choice(NamedTuple):
    warps: int
    loads: int  # 16-byte loads a thread has in flight
    programs_per_sm: int  # 0: one program a block, as many as the data needs


_CHOICES = (
    _Choice(4, 1, 0),
    _Choice(4, 4, 0),
    _Choice(8, 2, 0),
    _Choice(8, 4, 0),
    _Choice(8, 4, 4),
    _Choice(8, 4, 8),
    _Choice(16, 4, 4),
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
    sms = torch.cuda.get_device_properties(source.device).multi_processor_count
    words = source.numel()
    copies: dict[str, Callable[[int], object]] = {"torch": lambda i: target.copy_(source)}
    for choice in _CHOICES:
        block = choice.warps * 32 * choice.loads * 4
        programs = triton.cdiv(words, block)
        if choice.programs_per_sm:
            programs = min(programs, choice.programs_per_sm * sms)
        copies[str(choice)] = partial(
            _copy, source=source, target=target, programs=programs, block=block, warps=choice.warps
        )
    return copies


def _copy(
    i: int, *, source: torch.Tensor, target: torch.Tensor, programs: int, block: int, warps: int
) -> None:
    streaming_copy_kernel[(programs,)](source, target, source.numel(), BLOCK=block, num_warps=warps)
