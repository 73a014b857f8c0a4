"""Splitting K on Hopper: the CTAs of a cluster sum their partial tiles through distributed shared memory."""

import tilelang.language as T

from tilelang_gemm_wrapper.core.kernels import instructions
from tilelang_gemm_wrapper.core.kernels.operands import F32

READS_AT_A_TIME = 16  # of four floats each, that a thread has under way before it adds


def kernel(*grid, threads: int, cluster_dims: tuple[int, int, int]):
    """`T.Kernel` with a thread-block cluster, which TileLang 0.1.12 to 0.1.14 call `T.ClusterKernel`."""
    frame = getattr(T, "ClusterKernel", T.Kernel)
    return frame(*grid, threads=threads, cluster_dims=cluster_dims)


@T.macro
def sum_rows(parts, peers, row, below, stride, row_floats, end):
    """parts[b, 0, :] = the sum over the cluster of four columns of row `row` + `below` + b * `stride`."""
    batch, split_k = int(parts.shape[0]), int(parts.shape[1])
    for b in T.unroll(batch):
        if row + below + b * stride < end[0]:
            for rank in T.unroll(split_k):
                instructions.read_peer(
                    parts[b, rank, 0],
                    peers[rank] + T.cast((below + b * stride) * row_floats * 4, "uint32"),
                )
    for b in T.unroll(batch):
        if row + below + b * stride < end[0]:
            for rank in T.unroll(split_k - 1):
                for v in T.unroll(4):
                    parts[b, 0, v] += parts[b, rank + 1, v]


@T.macro
def store_rows(parts, C, m_start, first_column, row, below, stride, end):
    """What `sum_rows` summed, as bfloat16."""
    for b in T.unroll(parts.shape[0]):
        token = row + below + b * stride
        if token < end[0]:
            for v in T.vectorized(4):
                C[m_start + token, first_column + v] = parts[b, 0, v]


@T.macro
def reduce_store(partial_shared, tile_weights, C, M, N, m_start, n_start, split_k, threads):
    """All multiplying warps: sum the cluster's float32 partial tiles in rank order, store them as bfloat16.

    `partial_shared` is (tile_tokens, partial_row(config)) in every CTA. Each CTA sums an equal share of the
    rows, reading its peers' shared memory, so the order of additions never depends on timing. A thread keeps
    to four columns and walks down the rows: all that changes is one offset. A read takes long, so a thread
    has several under way. None may be left when it tells its peers that they can go, and with them their
    shared memory; the last stores come after that, because telling waits for what was stored before.
    """
    tile_tokens, row_floats = int(partial_shared.shape[0]), int(partial_shared.shape[1])
    quads_per_row = tile_weights // 4
    stride = threads // quads_per_row
    rows = -(-tile_tokens // split_k)
    laps = -(-rows // stride)
    batch = min(laps, max(1, READS_AT_A_TIME // split_k))
    last_batch = -(-laps // batch) - 1
    peers = T.alloc_local((split_k,), "uint32")
    parts = T.alloc_local((batch, split_k, 4), F32)
    end = T.alloc_local((1,), "int32")
    first = T.get_thread_binding() // quads_per_row
    column = T.get_thread_binding() % quads_per_row * 4
    row = T.block_rank_in_cluster() * rows + first
    # The rows of this CTA's share that are tokens: none for threads left over beside the rows.
    end[0] = T.if_then_else(
        first < stride and n_start + column < N,
        T.min(T.min((T.block_rank_in_cluster() + 1) * rows, tile_tokens), M - m_start),
        0,
    )
    for rank in T.unroll(split_k):
        peers[rank] = instructions.peer_address(partial_shared[row, column], rank)
    T.cluster_sync()
    for step in T.serial(last_batch):
        sum_rows(parts, peers, row, step * batch * stride, stride, row_floats, end)
        store_rows(parts, C, m_start, n_start + column, row, step * batch * stride, stride, end)
    sum_rows(parts, peers, row, last_batch * batch * stride, stride, row_floats, end)
    instructions.done_reading()
    store_rows(parts, C, m_start, n_start + column, row, last_batch * batch * stride, stride, end)
    T.cluster_wait()
