"""The PTX that TileLang has no operation for; a Hopper kernel imports `SOURCE`, whatever it uses of it."""

import tilelang.language as T

# - Reads of a peer's shared memory: TileLang can push into it but not read it; reading lets each CTA of a
#   cluster sum its own share of a tile in rank order, with one buffer and no mailbox.
# - Reads of four scales at once: TileLang would have to know that they are aligned.
# - Prefetches into L2. By TMA, a tile is one instruction; it names the descriptor that TileLang gives B.
SOURCE = """
#define TILELANG_GEMM_PREFETCH_B(k, n) tilelang_gemm::prefetch_tile(B_desc, k, n)

namespace tilelang_gemm {
// Where the CTA `rank` of the cluster has what this one has at `shared`.
__device__ __forceinline__ unsigned peer_address(const float *shared, unsigned rank) {
  unsigned address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))), "r"(rank)
               : "memory");  // the barrier that follows holds back no store of the compiler's
  return address;
}

__device__ __forceinline__ void read_peer(float *values, unsigned address) {
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(values[0]), "=f"(values[1]), "=f"(values[2]), "=f"(values[3])
               : "r"(address) : "memory");
}

// This thread has read all it wants of its peers. What it stores from here on, nobody waits for.
__device__ __forceinline__ void done_reading() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ int is_aligned(const float *first) {
  return reinterpret_cast<unsigned long long>(first) % 16 == 0;
}

__device__ __forceinline__ void read_four(float *values, const float *row, int first) {
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(values[0]), "=f"(values[1]), "=f"(values[2]), "=f"(values[3])
               : "l"(row + first) : "memory");
}

__device__ __forceinline__ void prefetch_line(const float *in_it) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(in_it) : "memory");
}

template <typename Map> __device__ __forceinline__ void prefetch_tile(const Map &map, int k, int n) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];"
               ::"l"(&map), "r"(k), "r"(n) : "memory");
}
}  // namespace tilelang_gemm
"""


def peer_address(shared, rank):
    """Address in the cluster's shared memory of what CTA `rank` has where this one has `shared`."""
    return T.call_extern("uint32", "tilelang_gemm::peer_address", T.address_of(shared), rank)


def read_peer(values, address):
    """Four float32 of a peer, from `values` on."""
    return T.call_extern("handle", "tilelang_gemm::read_peer", T.address_of(values), address)


def done_reading():
    """Tell the peers of the cluster that they can go; what is stored after it, nobody waits for."""
    return T.call_extern("handle", "tilelang_gemm::done_reading")


def is_aligned(first):
    """Whether four float32 can be read at once from `first` on."""
    return T.call_extern("int32", "tilelang_gemm::is_aligned", T.address_of(first)) != 0


def read_four(values, row, first):
    """Four float32, the ones `first` after `row`, from `values` on."""
    return T.call_extern("handle", "tilelang_gemm::read_four", T.address_of(values), T.address_of(row), first)


def prefetch_line(in_it):
    """The 128 bytes of L2 that have the float32 `in_it`."""
    return T.call_extern("handle", "tilelang_gemm::prefetch_line", T.address_of(in_it))


def prefetch_B(k, n):
    """What a TMA load of B's tile at column `k`, row `n` would bring, into L2."""
    return T.call_extern("handle", "TILELANG_GEMM_PREFETCH_B", k, n)
