"""What a Hopper kernel does before the kernel that precedes it in the stream has finished.

With programmatic dependent launch a kernel starts while its predecessor still runs, and may touch only after
the wait (`T.pdl_sync`) what that one reads or writes: the tokens, their scales and the memory of C. Bringing
weights into L2 need not wait, whoever writes them: writes go there too, and the loads that follow the wait
find them. Loading them into shared memory must, unless it is known that no kernel that may still run writes
them ("static weights"). Predecessors start early too, so such a kernel may be several launches back:
`configurer.static_weights` says what has to lie between.
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
        """A lap of the ring is loaded, if it may be, and half a lap prefetched: the fastest on an H200."""
        lap = min(max(1, config.num_stages), steps)
        loaded = lap if static_weights else 0
        return cls(loaded, min(lap // 2, steps - loaded))


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
