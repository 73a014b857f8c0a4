"""What a Hopper kernel does before the kernel that precedes it in the stream has finished.

With programmatic dependent launch a kernel starts while its predecessor still runs, and may read what that
writes only after `wait`: the tokens, their scales, and the memory that C overwrites. Bringing weights into L2
need not wait, whoever wrote them: writes go there too, and the loads that follow the wait find them. Loading
them into shared memory must, unless it is known that no preceding kernel writes them ("static weights").
"""

from typing import NamedTuple

import tilelang.language as T

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.kernels import instructions
from tilelang_gemm_wrapper.core.kernels.resources import K_STEP


class Ahead(NamedTuple):
    """Of how many K steps the weights go ahead of the wait."""

    loaded: int  # into the ring, and the scales of these weights with them
    prefetched: int  # of those that follow, into L2

    @classmethod
    def of(cls, config: KernelConfig, steps: int, static_weights: bool) -> "Ahead":
        """A lap of the ring, and the next one too where that was found to pay (docs/hopper-speed.md)."""
        lap = min(max(1, config.num_stages), steps)
        if static_weights:
            return cls(lap, 0 if config.kernel_type == "base" else min(lap, steps - lap))
        return cls(0, 0 if config.kernel_type == "splitK_swapAB" else lap)

    @property
    def starts_early(self) -> bool:
        return self.loaded + self.prefetched > 0


@T.macro
def start(ahead):
    """Every thread, first of all: the kernel that follows may start early, too."""
    if ahead.starts_early:
        T.pdl_trigger()


@T.macro
def wait(ahead):
    """Until what the preceding kernel wrote can be read."""
    if ahead.starts_early:
        T.pdl_sync()


@T.macro
def prefetch_weights(ring, m_start, n_start, first_step, ahead):
    """One warp: the steps of the tile's weights that follow the loaded ones. Other token tiles share them."""
    pieces, rows = int(ring.B.shape[1]), int(ring.B.shape[2])
    if m_start == 0 and T.get_thread_binding() % 32 == 0:
        for k in T.serial(ahead.prefetched):
            for piece in T.unroll(pieces):
                instructions.prefetch_B((first_step + ahead.loaded + k) * K_STEP, n_start + piece * rows)


@T.macro
def prefetch_scales(B_scale, block, blocks, first_step, steps, thread):
    """Threads 0 and on: the scales of `steps` K steps of `blocks` blocks of weights, a line a thread."""
    lines = -(-steps // 32) + 1  # they may begin in the middle of one
    if thread < lines * blocks:
        step = first_step + T.min(thread % lines * 32, steps - 1)
        instructions.prefetch_line(B_scale[T.min(block + thread // lines, B_scale.shape[0] - 1), step])
