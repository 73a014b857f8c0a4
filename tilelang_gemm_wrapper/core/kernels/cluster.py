"""Splitting K on Hopper: the CTAs of a cluster sum their partial tiles through distributed shared memory."""

import tilelang.language as T

from tilelang_gemm_wrapper.core.kernels.operands import F32
from tilelang_gemm_wrapper.core.kernels.resources import PARTIAL_PAD

# TileLang can push into a peer CTA's shared memory but has no read of it; reading lets each CTA of the
# cluster sum its own share of the tile in rank order, with one buffer and no mailbox.
SUM_SOURCE = """
namespace tilelang_gemm {
template <int kRanks>
__device__ __forceinline__ void cluster_sum4(float *sum, const float *partial) {
  const unsigned local = static_cast<unsigned>(__cvta_generic_to_shared(partial));
  float4 part[kRanks];
#pragma unroll
  for (int rank = 0; rank < kRanks; ++rank) {
    unsigned remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(part[rank].x), "=f"(part[rank].y), "=f"(part[rank].z), "=f"(part[rank].w)
                 : "r"(remote) : "memory");
  }
  float4 total = part[0];
#pragma unroll
  for (int rank = 1; rank < kRanks; ++rank) {
    total.x += part[rank].x;
    total.y += part[rank].y;
    total.z += part[rank].z;
    total.w += part[rank].w;
  }
  sum[0] = total.x;
  sum[1] = total.y;
  sum[2] = total.z;
  sum[3] = total.w;
}
}  // namespace tilelang_gemm
"""


def kernel(*grid, threads: int, cluster_dims: tuple[int, int, int]):
    """`T.Kernel` with a thread-block cluster, which TileLang 0.1.12 to 0.1.14 call `T.ClusterKernel`."""
    frame = getattr(T, "ClusterKernel", T.Kernel)
    return frame(*grid, threads=threads, cluster_dims=cluster_dims)


@T.macro
def reduce_store(partial_shared, C, M, N, m_start, n_start, split_k, threads):
    """Sum the cluster's float32 partial tiles in rank order and store them as bfloat16.

    `partial_shared` is (tile_tokens, tile_weights + pad) in every CTA. Each CTA sums an equal share of the
    tile, reading its peers' shared memory, so the order of additions never depends on timing. The pad lets
    the transposing store of a swapAB accumulator (lanes walk 4 rows by 8 columns) touch 32 different banks.
    """
    tile_tokens = partial_shared.shape[0]
    quads_per_row = (partial_shared.shape[1] - PARTIAL_PAD) // 4
    share = T.ceildiv(tile_tokens * quads_per_row, split_k)
    total = T.alloc_local((4,), F32)
    T.cluster_sync()
    first = T.block_rank_in_cluster() * share
    for step in T.serial(T.ceildiv(share, threads)):
        offset = step * threads + T.get_thread_binding()
        row = (first + offset) // quads_per_row
        column = (first + offset) % quads_per_row * 4
        if offset < share and row < tile_tokens and m_start + row < M and n_start + column < N:
            T.call_extern(
                "handle",
                f"tilelang_gemm::cluster_sum4<{split_k}>",
                T.address_of(total[0]),
                T.address_of(partial_shared[row, column]),
            )
            for v in T.vectorized(4):
                C[m_start + row, n_start + column + v] = total[v]
    # A CTA that left early would take its shared memory away from peers still reading it.
    T.cluster_sync()
