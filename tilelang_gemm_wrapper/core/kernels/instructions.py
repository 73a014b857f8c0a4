"""The PTX that TileLang has no operation for; a Hopper kernel imports `SOURCE`, whatever it uses of it."""

import tilelang.language as T

# - Summing over a cluster: TileLang can copy shared memory into a peer's, but not registers, and has no
#   8 x 8 transposition in registers. What it has costs two more passes and barriers (docs/hopper-speed.md).
# - Reads of four scales at once: TileLang would have to know that they are aligned.
# - Prefetches into L2. By TMA, a tile is one instruction; it names the descriptor that TileLang gives B.
SOURCE = """
#define TILELANG_GEMM_PREFETCH_B(k, n) tilelang_gemm::prefetch_tile(B_desc, k, n)

namespace tilelang_gemm {
__device__ __forceinline__ unsigned shared_address(const void *shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// WGMMA's layout: a thread has four values of every unit, which is 8 columns of 64 rows. Warpgroups that took
// turns at the K steps of a piece share out its units; `parts` is [writer][unit][thread] float4. Every loop
// over registers has constant bounds: with others nvcc keeps the registers in memory.
template <int Units, int Groups> __device__ constexpr int group_of(int unit) {
  return ((unit + 1) * Groups - 1) / Units;
}

template <int Units, int Groups, int Group>
__device__ __forceinline__ void give_units(const float *sums, void *parts) {
#pragma unroll
  for (int unit = 0; unit < Units; ++unit) {
    const int to = group_of<Units, Groups>(unit);
    if (to != Group)
      static_cast<float4 *>(parts)[((Group - (Group > to)) * Units + unit) * 128 + threadIdx.x % 128] =
          make_float4(sums[unit * 4], sums[unit * 4 + 1], sums[unit * 4 + 2], sums[unit * 4 + 3]);
  }
}

template <int Units, int Groups, int Group>
__device__ __forceinline__ void take_units(float *sums, const void *parts) {
#pragma unroll
  for (int unit = 0; unit < Units; ++unit)
    if (group_of<Units, Groups>(unit) == Group)
#pragma unroll
      for (int other = 0; other < Groups - 1; ++other) {
        const float4 more =
            static_cast<const float4 *>(parts)[(other * Units + unit) * 128 + threadIdx.x % 128];
        sums[unit * 4] += more.x;
        sums[unit * 4 + 1] += more.y;
        sums[unit * 4 + 2] += more.z;
        sums[unit * 4 + 3] += more.w;
      }
}

// How the CTAs of a cluster share out the summing of `Units` units: an item is what one warp has of one unit;
// a CTA owns a run of them, and every CTA has them all.
template <int Units, int Split> struct Shares {
  static constexpr int items = 4 * Units, most = (items + Split - 1) / Split;
  static __device__ __forceinline__ unsigned first(unsigned rank) { return items * rank / Split; }
  static __device__ __forceinline__ unsigned owner(unsigned item) { return ((item + 1) * Split - 1) / items; }
};

// A warpgroup sends its partial to the owners' `inbox`, [peer][item of the share][lane] float4, straight from
// registers; each store tells the owner's barrier `received` of its bytes.
template <int Units, int Split>
__device__ __forceinline__ void send_shares(const float *partial, void *inbox, void *received, unsigned rank,
                                            unsigned warp, unsigned lane) {
  using Of = Shares<Units, Split>;
  if (threadIdx.x % 128 == 0)
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 ::"r"(shared_address(received)),
                   "r"((Split - 1) * 512 * (Of::first(rank + 1) - Of::first(rank))) : "memory");
#pragma unroll
  for (int unit = 0; unit < Units; ++unit) {
    const unsigned item = unit * 4 + warp, to = Of::owner(item);
    if (to != rank) {
      const unsigned place = ((rank - (rank > to)) * Of::most + item - Of::first(to)) * 32 + lane;
      asm volatile("{.reg .b32 value, barrier;"
                   "mapa.shared::cluster.u32 value, %0, %2;"
                   "mapa.shared::cluster.u32 barrier, %1, %2;"
                   "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [value], {%3, %4, %5, %6}, "
                   "[barrier];}"
                   ::"r"(shared_address(inbox) + place * 16), "r"(shared_address(received)), "r"(to),
                     "f"(partial[unit * 4]), "f"(partial[unit * 4 + 1]), "f"(partial[unit * 4 + 2]),
                     "f"(partial[unit * 4 + 3]) : "memory");
    }
  }
}

// The peers' values of this warpgroup's share are added to its own, in rank order whoever owns them.
template <int Units, int Split>
__device__ __forceinline__ void sum_shares(float *partial, const void *inbox, const void *received,
                                           unsigned rank, unsigned warp, unsigned lane) {
  using Of = Shares<Units, Split>;
  asm volatile("{.reg .pred there;WAIT: "
               "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 there, [%0], 0;"
               "@!there bra WAIT;}" ::"r"(shared_address(received)) : "memory");
#pragma unroll
  for (int unit = 0; unit < Units; ++unit) {
    const unsigned item = unit * 4 + warp;
    if (Of::owner(item) == rank) {
      const float4 *from = static_cast<const float4 *>(inbox) + (item - Of::first(rank)) * 32 + lane;
      float4 peers[Split];
#pragma unroll
      for (int peer = 0; peer < Split - 1; ++peer) peers[peer] = from[peer * Of::most * 32];
      peers[Split - 1] = peers[Split - 2];
      float4 sum, own = make_float4(partial[unit * 4], partial[unit * 4 + 1], partial[unit * 4 + 2],
                                    partial[unit * 4 + 3]);
#pragma unroll
      for (int of = 0; of < Split; ++of) {
        const float4 next = of < rank ? peers[of] : of == rank ? own : peers[of - (of > 0)];
        sum = of == 0 ? next : make_float4(sum.x + next.x, sum.y + next.y, sum.z + next.z, sum.w + next.w);
      }
      partial[unit * 4] = sum.x;
      partial[unit * 4 + 1] = sum.y;
      partial[unit * 4 + 2] = sum.z;
      partial[unit * 4 + 3] = sum.w;
    }
  }
}

__device__ __forceinline__ unsigned as_bfloat16(float first, float second) {
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}

__device__ __forceinline__ unsigned transposed(unsigned block) {  // of 8 x 8 bfloat16, two a lane
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(block));
  return block;
}

// Four lanes that have four pairs of a row each, `pairs[i]` of block i: lane i gets the row of block i.
__device__ __forceinline__ uint4 row_of_a_block(const unsigned *pairs, bool odd, bool upper) {
  const unsigned near0 = __shfl_xor_sync(~0u, odd ? pairs[0] : pairs[1], 1);
  const unsigned near1 = __shfl_xor_sync(~0u, odd ? pairs[2] : pairs[3], 1);
  const unsigned first0 = odd ? near0 : pairs[0], first1 = odd ? pairs[1] : near0;
  const unsigned second0 = odd ? near1 : pairs[2], second1 = odd ? pairs[3] : near1;
  const unsigned far0 = __shfl_xor_sync(~0u, upper ? first0 : second0, 2);
  const unsigned far1 = __shfl_xor_sync(~0u, upper ? first1 : second1, 2);
  return upper ? make_uint4(far0, far1, second0, second1) : make_uint4(first0, first1, far0, far1);
}

// The warpgroup's share of units `First` and on as bfloat16, into `C`, where the first row and column of its
// piece of the tile go; rows and columns from `rows_left` and `columns_left` on are not stored. Swapped: C
// has the tile's columns as its rows.
template <int Units, int First, int Columns, int Split, bool Swapped>
__device__ __forceinline__ void store_share(const float *sums, void *C, int N, int rows_left,
                                            int columns_left, unsigned rank, unsigned warp, unsigned lane) {
  constexpr int blocks = Columns / 8;
  constexpr bool in_fours = !Swapped && Units % (4 * Split) == 0 && First % 4 == 0 && blocks % 4 == 0;
  unsigned short *const to = static_cast<unsigned short *>(C);
  const int in_block = lane / 4, pair = lane % 4 * 2;
  unsigned short *const swapped_to =
      to + static_cast<long long>(in_block) * N + lane % 2 * 8 + lane % 4 / 2 * 4;
#pragma unroll
  for (int unit = 0; unit < Units; ++unit)
    if (Split == 1 || Shares<Units, Split>::owner(unit * 4 + warp) == rank) {
      const int row = (First + unit) / blocks * 64 + warp * 16, column = (First + unit) % blocks * 8;
      if (in_fours) {
        if (unit % 4 == 0) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            unsigned pairs[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
              pairs[i] = as_bfloat16(sums[(unit + i) * 4 + half * 2], sums[(unit + i) * 4 + half * 2 + 1]);
            const uint4 values = row_of_a_block(pairs, lane & 1, lane & 2);
            const int of_C = row + half * 8 + in_block, first = column + lane % 4 * 8;
            if (of_C < rows_left && first < columns_left)
              *reinterpret_cast<uint4 *>(to + static_cast<long long>(of_C) * N + first) = values;
          }
        }
        continue;
      }
      const unsigned upper = as_bfloat16(sums[unit * 4], sums[unit * 4 + 1]);
      const unsigned lower = as_bfloat16(sums[unit * 4 + 2], sums[unit * 4 + 3]);
      if (Swapped) {
        // Neighbouring lanes have two pairs of the upper block and two of the lower: one lane takes either.
        const bool odd = lane & 1;
        const unsigned above = transposed(upper), below = transposed(lower);
        const unsigned near = __shfl_xor_sync(~0u, odd ? above : below, 1);
        if (column < columns_left - in_block && row < rows_left)
          *reinterpret_cast<uint2 *>(swapped_to + static_cast<long long>(column) * N + row) =
              odd ? make_uint2(near, below) : make_uint2(above, near);
      } else if (column < columns_left) {
        unsigned short *const at = to + static_cast<long long>(row + in_block) * N + column + pair;
        if (row + in_block < rows_left) *reinterpret_cast<unsigned *>(at) = upper;
        if (row + in_block + 8 < rows_left) *reinterpret_cast<unsigned *>(at + 8LL * N) = lower;
      }
    }
}

// A warpgroup with units `First` to `Last` of a piece, complete but for its peers' parts: all of it.
template <int First, int Last, int Columns, int Split, bool Swapped>
__device__ __forceinline__ void reduce_store(float *partial, void *inbox, void *received, void *C, int N,
                                             int rows_left, int columns_left) {
  constexpr int units = Last - First;
  const unsigned warp = __shfl_sync(~0u, threadIdx.x / 32, 0) % 4, lane = threadIdx.x % 32;
  unsigned rank = 0;
  if constexpr (Split > 1) {
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    send_shares<units, Split>(partial + First * 4, inbox, received, rank, warp, lane);
    sum_shares<units, Split>(partial + First * 4, inbox, received, rank, warp, lane);
  }
  store_share<units, First, Columns, Split, Swapped>(partial + First * 4, C, N, rows_left, columns_left,
                                                     rank, warp, lane);
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


def give_units(sums, parts, units, share):
    """What this warpgroup has of the units of others that take turns with it, into `parts`."""
    return _of_turns("give_units", sums, parts, units, share)


def take_units(sums, parts, units, share):
    """Its own units += what the others gave."""
    return _of_turns("take_units", sums, parts, units, share)


def _of_turns(name, sums, parts, units, share):
    return T.call_extern(
        "handle",
        f"tilelang_gemm::{name}<{units}, {share.groups}, {share.group}>",
        sums.access_ptr("rw"),
        T.address_of(parts),
    )


def reduce_store(sums, piece, units, C, M, N, m_start, n_start, swapped, split_k=1, inbox=(0, 0)):
    """A warpgroup's `units` (first, last) of its piece of the tile at (m_start, n_start), as bfloat16 into C.

    sums: (tokens, weights), or (weights, tokens) where `swapped`. Where K is split, first this CTA's share of
    them is summed over the cluster, through `inbox`: addresses of its floats and of its barrier.
    """
    rows, columns = map(int, sums.shape)
    first_row = piece * rows
    if swapped:
        C_at, rows_left, columns_left = C[m_start, n_start + first_row], N - n_start - first_row, M - m_start
    else:
        C_at, rows_left, columns_left = C[m_start + first_row, n_start], M - m_start - first_row, N - n_start
    return T.call_extern(
        "handle",
        f"tilelang_gemm::reduce_store<{units[0]}, {units[1]}, {columns}, {split_k}, {str(swapped).lower()}>",
        sums.access_ptr("rw"),
        *inbox,
        T.address_of(C_at),
        N,
        rows_left,
        columns_left,
    )


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
