"""Splitting K on Hopper: the CTAs of a cluster sum their partial tiles through distributed shared memory."""

import tilelang.language as T

from tilelang_gemm_wrapper.core.kernels.operands import F32
from tilelang_gemm_wrapper.core.kernels.resources import PARTIAL_PAD

# TileLang can push into a peer CTA's shared memory but has no read of it; reading lets each CTA of the
# cluster sum its own share of the tile in rank order, with one buffer and no mailbox.
READ_SOURCE = """
namespace tilelang_gemm {
template <int kRanks>
__device__ __forceinline__ void cluster_read4(float *parts, const float *partial) {
  const unsigned local = static_cast<unsigned>(__cvta_generic_to_shared(partial));
#pragma unroll
  for (int rank = 0; rank < kRanks; ++rank) {
    unsigned remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(parts[4 * rank]), "=f"(parts[4 * rank + 1]), "=f"(parts[4 * rank + 2]),
                   "=f"(parts[4 * rank + 3])
                 : "r"(remote) : "memory");
  }
}
}  // namespace tilelang_gemm
"""

PARTS_AT_A_TIME = 16  # groups of four floats that a thread reads before it adds


def kernel(*grid, threads: int, cluster_dims: tuple[int, int, int]):
    """`T.Kernel` with a thread-block cluster, which TileLang 0.1.12 to 0.1.14 call `T.ClusterKernel`."""
    frame = getattr(T, "ClusterKernel", T.Kernel)
    return frame(*grid, threads=threads, cluster_dims=cluster_dims)


@T.macro
def reduce_store(partial_shared, C, M, N, m_start, n_start, split_k, threads):
    """All multiplying warps: sum the cluster's float32 partial tiles in rank order, store them as bfloat16.

    `partial_shared` is (tile_tokens, tile_weights + pad) in every CTA. Each CTA sums an equal share of the
    tile, reading its peers' shared memory, so the order of additions never depends on timing. A read takes
    long, so a thread has several under way; and it adds up every one, since with a read still on its way it
    must not leave. The pad lets the transposing store of a swapAB accumulator (lanes walk 4 rows by 8
    columns) touch 32 different banks.
    """
    tile_tokens = partial_shared.shape[0]
    quads_per_row = (partial_shared.shape[1] - PARTIAL_PAD) // 4
    share = -(-int(tile_tokens * quads_per_row) // split_k)
    batch = min(-(-share // threads), max(1, PARTS_AT_A_TIME // split_k))
    parts = T.alloc_local((batch, split_k, 4), F32)
    T.cluster_sync()
    first = T.block_rank_in_cluster() * share + T.get_thread_binding()
    end = T.min((T.block_rank_in_cluster() + 1) * share, tile_tokens * quads_per_row)
    for step in T.serial(-(-share // (threads * batch))):
        for b in T.unroll(batch):
            read = first + (step * batch + b) * threads
            row, column = read // quads_per_row, read % quads_per_row * 4
            if read < end and m_start + row < M and n_start + column < N:
                T.call_extern(
                    "handle",
                    f"tilelang_gemm::cluster_read4<{split_k}>",
                    T.address_of(parts[b, 0, 0]),
                    T.address_of(partial_shared[row, column]),
                )
        for b in T.unroll(batch):
            quad = first + (step * batch + b) * threads
            token, weight = m_start + quad // quads_per_row, n_start + quad % quads_per_row * 4
            if quad < end and token < M and weight < N:
                for rank in T.unroll(split_k - 1):
                    for v in T.unroll(4):
                        parts[b, 0, v] += parts[b, rank + 1, v]
                for v in T.vectorized(4):
                    C[token, weight + v] = parts[b, 0, v]
    # A CTA that left early would take its shared memory away from peers still reading it.
    T.cluster_sync()
