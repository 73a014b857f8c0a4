"""Plain reads of a weight matrix: what the memory gives when nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl

_NEVER = tl.constexpr(0x5A17C0DE)


class Choice(NamedTuple):
    """How a kernel that walks over memory once is launched."""

    warps: int
    loads: int  # 16-byte loads a thread has in flight
    programs_per_sm: int  # 0: one program a block, as many as the data needs

    @property
    def block(self) -> int:
        """int32 words that a program takes at one time."""
        return self.warps * 32 * self.loads * 4

    def programs(self, words: int, device: torch.device) -> int:
        """Programs for so many int32 words."""
        programs = triton.cdiv(words, self.block)
        if self.programs_per_sm:
            sms = torch.cuda.get_device_properties(device).multi_processor_count
            programs = min(programs, self.programs_per_sm * sms)
        return programs


# Which is fastest depends on the size: small reads want many short programs, large ones a resident grid.
_CHOICES = (
    Choice(4, 1, 0),
    Choice(4, 2, 0),
    Choice(4, 4, 0),
    Choice(4, 8, 0),
    Choice(8, 4, 0),
    Choice(8, 8, 0),
    Choice(8, 4, 4),
    Choice(8, 4, 8),
    Choice(16, 4, 4),
)


@triton.jit
def streaming_read_kernel(source, sink, words, BLOCK: tl.constexpr):
    """Read `words` int32 at `source` once. sink: (BLOCK,) int32, as good as never written."""
    lanes = tl.arange(0, BLOCK)
    folded = tl.zeros((BLOCK,), tl.int32)
    for start in range(tl.program_id(0) * BLOCK, words, tl.num_programs(0) * BLOCK):
        index = tl.multiple_of(start, BLOCK) + lanes
        folded ^= tl.load(source + index, mask=index < words, other=0)
    # A store under a condition that random data meets once in 2^32 keeps the loads; a sum over the
    # program would cost a barrier, and the floor is meant to hold nothing but the reading.
    tl.store(sink + lanes, folded, mask=folded == _NEVER)


def streaming_reads(weights: Sequence[torch.Tensor]) -> dict[str, Callable[[int], None]]:
    """Providers for `time_interleaved`: each reads weight copy i, in its own grid and block.

    weights: contiguous CUDA tensors of one size, a multiple of 16 bytes. Raises ValueError otherwise.
    """
    size = weights[0].numel() * weights[0].element_size()
    for copy in weights:
        if not copy.is_contiguous() or copy.numel() * copy.element_size() != size or size % 16:
            raise ValueError(
                f"weight copies must be contiguous and of one size that is a multiple of 16 bytes, not "
                f"{tuple(copy.shape)} with strides {copy.stride()}: pass contiguous copies of one matrix"
            )
    sources = [copy.view(torch.uint8).view(-1).view(torch.int32) for copy in weights]
    words = size // 4
    reads: dict[str, Callable[[int], None]] = {}
    for choice in _CHOICES:
        device = weights[0].device
        reads[str(choice)] = partial(
            _read,
            sources=sources,
            sink=torch.empty(choice.block, dtype=torch.int32, device=device),
            words=words,
            programs=choice.programs(words, device),
            block=choice.block,
            warps=choice.warps,
        )
    return reads


def _read(
    i: int,
    *,
    sources: Sequence[torch.Tensor],
    sink: torch.Tensor,
    words: int,
    programs: int,
    block: int,
    warps: int,
) -> None:
    streaming_read_kernel[(programs,)](sources[i], sink, words, BLOCK=block, num_warps=warps)
