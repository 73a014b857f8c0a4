"""Splitting K on Hopper: the CTAs of a cluster sum their partial tiles through distributed shared memory.

Every CTA owns a share of the tile. Its peers send what they have of that share from their registers into its
inbox, by stores that count their bytes on its barrier; it adds them to its own, in rank order, so that the
sum never depends on timing, and stores the result. Nothing waits but an owner for its peers, and no CTA ends
before all that is sent to it has come. The one barrier of the whole cluster is passed long before it is asked
for: it says that the peers have started, and their barriers with them.
"""

from typing import Any, NamedTuple

import tilelang.language as T

from tilelang_gemm_wrapper.core.kernels import instructions
from tilelang_gemm_wrapper.core.kernels.operands import F32
from tilelang_gemm_wrapper.core.kernels.resources import inbox_floats, pieces, share_floats, step_groups
from tilelang_gemm_wrapper.core.kernels.roles import units_of


class Inbox(NamedTuple):
    """Where a CTA's warpgroups receive: a run of floats for each, and a barrier that is full with them."""

    floats: Any
    full: Any
    split_k: int

    def of(self, share, units):
        """Addresses of the share's run and barrier; a piece has `units`."""
        before = sum(
            share_floats(last - first, self.split_k)
            for group in range(share.groups)
            for first, last in (share._replace(group=group).units_of(units),)
            for _ in range(share.piece + (group < share.group))
        )
        warpgroup = share.piece * share.groups + share.group
        return T.address_of(self.floats[before]), T.address_of(self.full[warpgroup])


def alloc_inbox(config):
    """(floats, full) of an `Inbox`."""
    warpgroups = pieces(config) * step_groups(config)
    return T.alloc_shared((inbox_floats(config),), F32), T.alloc_barrier([1] * warpgroups)


@T.macro
def announce():
    """Every thread, once the barriers are there: peers may send to this CTA from now on."""
    T.cluster_arrive_relaxed()


@T.macro
def reduce_store(accum, share, inbox, C, M, N, m_start, n_start, swapped):
    """A warpgroup's units of its piece, complete but for its peers' parts: this CTA's share, into C."""
    units = share.units_of(units_of(accum))
    if units[0] < units[1]:
        T.cluster_wait()
        instructions.reduce_store(
            accum, share.piece, units, C, M, N, m_start, n_start, swapped, inbox.split_k,
            inbox.of(share, units_of(accum)),
        )  # fmt: skip
