"""Building blocks of the Hopper (sm_90a) kernels: a TMA producer warp feeding WGMMA warpgroups.

Every variant is one CTA of `threads` math threads plus one producer warp. The producer keeps a ring of
`num_stages` shared-memory slots filled, one slot a 128-wide K step; `full[slot]` tells the math warps that
both tiles arrived, `empty[slot]` tells the producer that every math warp has read them. A WGMMA of e4m3
keeps only about 14 bits of mantissa in its accumulator, so each K step starts from zero and its partial is
scaled and added in float32 ("promotion").

The layout of the roles follows DeepGEMM's sm90 1D2D kernel and TileOPs' FP8 kernels; one producer warp
instead of a warpgroup leaves enough registers for the math threads without reallocating them.
"""

import tilelang.language as T
from tilelang.layout import make_swizzled_layout

from tilelang_gemm_wrapper.core.kernels.operands import F32
from tilelang_gemm_wrapper.core.kernels.resources import K_STEP, PARTIAL_PAD

PRODUCER_THREADS = 32

# TileLang can push into a peer CTA's shared memory but has no read of it; reading lets each CTA of the
# cluster sum its own share of the tile in rank order, with one buffer and no mailbox.
CLUSTER_SUM_SOURCE = """
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


def warp_policy(block_M: int, threads: int) -> T.GemmWarpPolicy:
    """Give each warpgroup its own rows where there are 64 for each, else its own columns."""
    return T.GemmWarpPolicy.FullRow if block_M >= 64 * (threads // 128) else T.GemmWarpPolicy.FullCol


def swizzled(*buffers):
    """Layout annotation for shared tiles that TMA writes and WGMMA reads (128-byte swizzle)."""
    return T.annotate_layout({buffer: make_swizzled_layout(buffer) for buffer in buffers})


def cluster_kernel(*grid, threads: int, cluster_dims: tuple[int, int, int]):
    """`T.Kernel` with a thread-block cluster, which TileLang 0.1.12 to 0.1.14 call `T.ClusterKernel`."""
    kernel = getattr(T, "ClusterKernel", T.Kernel)
    return kernel(*grid, threads=threads, cluster_dims=cluster_dims)


@T.macro
def load_tile(operand, tiles, full, slot, start, k, read_once):
    """Put the tile of K step `k` on its way into its slot; `read_once`: it need not stay in the L2 cache."""
    T.tma_copy(
        operand[start : start + tiles.shape[1], k * K_STEP : (k + 1) * K_STEP],
        tiles[slot, :, :],
        barrier=full[slot],
        eviction_policy="evict_first" if read_once else None,
    )


@T.macro
def all_loads_issued(full, slot, threads):
    if T.get_thread_binding() == threads:
        T.barrier_arrive(full[slot])


@T.macro
def fill_ring(
    A, B, A_shared, B_shared, full, empty, m_start, n_start, first_step, steps, threads, weights_once, early=0
):
    """Producer warp: load each K step's token tile and weight tile into the next free slot.

    `weights_once`: no later CTA will read these weights again, so they need not stay in the L2 cache.

    With programmatic dependent launch a kernel starts while its predecessor in the stream still runs. What
    that one writes may be read only after `pdl_sync`: the tokens, their scales, and the memory that C
    overwrites. Weights that were there before it need not wait: the first `early` tiles of them go ahead.
    """
    num_stages = A_shared.shape[0]
    if early > 0:
        for k in T.serial(early):
            load_tile(B, B_shared, full, k, n_start, first_step + k, weights_once)
        T.pdl_sync()
        for k in T.serial(early):
            load_tile(A, A_shared, full, k, m_start, first_step + k, False)
            all_loads_issued(full, k, threads)
    for k in T.serial(early, steps):
        slot = k % num_stages
        T.barrier_wait(empty[slot], ((k // num_stages) & 1) ^ 1)
        load_tile(B, B_shared, full, slot, n_start, first_step + k, weights_once)
        load_tile(A, A_shared, full, slot, m_start, first_step + k, False)
        all_loads_issued(full, slot, threads)


@T.macro
def multiply_step(rows_shared, columns_shared, partial, full, empty, k, policy):
    """Math warps: `partial = rows @ columns.T` for K step `k`, then give the slot back."""
    slot = k % rows_shared.shape[0]
    T.barrier_wait(full[slot], (k // rows_shared.shape[0]) & 1)
    T.wgmma_gemm(
        rows_shared[slot, :, :],
        columns_shared[slot, :, :],
        partial,
        transpose_B=True,
        policy=policy,
        clear_accum=True,
    )
    T.wait_wgmma(0)
    if T.get_thread_binding() % 32 == 0:
        T.barrier_arrive(empty[slot])


@T.macro
def accumulate_rows(
    A_scale, B_scale, A_shared, B_shared, scale, partial, accum, full, empty,
    M, m_start, n_start, first_step, steps, policy,
):  # fmt: skip
    """Math warps of base and splitK: accum[token, weight] over `steps` K steps.

    Each thread reads the scales of the rows it accumulates into registers before it waits for the step's
    tiles. Reading them a step ahead, under the WGMMA, helps column-major scales and hurts row-major ones,
    which have their next steps in L1 already.
    """
    tile_tokens, tile_weights = accum.shape
    T.clear(accum)
    for k in T.serial(steps):
        for i in T.Parallel(tile_tokens):
            scale[i] = T.if_then_else(
                m_start + i < M,
                A_scale[m_start + i, first_step + k] * B_scale[n_start // 128, first_step + k],
                0.0,
            )
        multiply_step(A_shared, B_shared, partial, full, empty, k, policy)
        for i, j in T.Parallel(tile_tokens, tile_weights):
            accum[i, j] += partial[i, j] * scale[i]


@T.macro
def accumulate_columns(
    A_scale, B_scale, A_shared, B_shared, scale_shared, partial, accum, full, empty,
    M, m_start, n_start, first_step, threads, policy, early,
):  # fmt: skip
    """Math warps of the swapAB kinds: accum[weight, token] over all K steps of `scale_shared`.

    Where weights went ahead (`early`, see `fill_ring`), the math warps wait for the preceding kernel here.

    scale_shared[k, token] = A_scale * B_scale is staged once, up front: a thread promotes two of every eight
    tokens, too many scales for registers. Neighbouring threads stage neighbouring tokens whatever the layout
    of A_scale: walking along K where that is contiguous was slower on an H200, not faster.
    """
    tile_weights, tile_tokens = accum.shape
    steps = scale_shared.shape[0]
    if early > 0:
        T.pdl_sync()
    for k, j in T.Parallel(steps, tile_tokens):
        scale_shared[k, j] = T.if_then_else(
            m_start + j < M,
            A_scale[m_start + j, first_step + k] * B_scale[n_start // 128, first_step + k],
            0.0,
        )
    T.sync_threads(1, threads)
    T.clear(accum)
    for k in T.serial(steps):
        multiply_step(B_shared, A_shared, partial, full, empty, k, policy)
        for i, j in T.Parallel(tile_weights, tile_tokens):
            accum[i, j] += partial[i, j] * scale_shared[k, j]


@T.macro
def cluster_reduce_store(partial_shared, C, M, N, m_start, n_start, split_k, threads):
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
