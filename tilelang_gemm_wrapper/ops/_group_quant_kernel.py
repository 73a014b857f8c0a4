"""The TileLang kernel of `ops.group_quant`; imports tilelang."""

from typing import Any

import tilelang.language as T

GROUPS_PER_BLOCK = 16
THREADS = 128  # eight a group, 16 values each: one 32-byte read and one 16-byte write a thread
LEAST_AMAX = 1e-10
# Division is approximate, as in SGLang's own quantiser: the two give the same bits.
PASS_CONFIGS = {"tl.enable_fast_math": True}


def build(early: bool) -> Any:
    """The PrimFunc: groups (R, 128) bfloat16 -> values (R, 128) e4m3, scales (R / M groups, >= M) float32.

    early: let the kernel that follows start at once (programmatic dependent launch, Hopper and newer). It may
    then fetch what this one does not write, the weights of a GEMM, while the groups are read and quantised.
    """
    R, G, columns = T.dynamic("R"), T.dynamic("G"), T.dynamic("columns")

    @T.prim_func
    def per_token_group_quant(
        groups: T.Tensor((R, 128), "bfloat16"),
        values: T.Tensor((R, 128), "float8_e4m3"),
        scales: T.Tensor((G, columns), "float32"),
    ):
        with T.Kernel(T.ceildiv(R, GROUPS_PER_BLOCK), threads=THREADS) as block:
            x = T.alloc_fragment((GROUPS_PER_BLOCK, 128), "float32")
            q = T.alloc_fragment((GROUPS_PER_BLOCK, 128), "float8_e4m3")
            amax = T.alloc_fragment((GROUPS_PER_BLOCK,), "float32")
            token = T.alloc_fragment((GROUPS_PER_BLOCK,), "int32")
            first = block * GROUPS_PER_BLOCK
            if early:
                T.pdl_trigger()
                T.pdl_sync()
            T.copy(groups[first, 0], x)
            T.reduce_absmax(x, amax, dim=1)
            for i in T.Parallel(GROUPS_PER_BLOCK):
                amax[i] = T.max(amax[i], LEAST_AMAX)
            for i, j in T.Parallel(GROUPS_PER_BLOCK, 128):
                # The minimum of NaN and 448 is 448, and so is that of +Inf: no e4m3 NaN is ever written.
                q[i, j] = T.cast(T.max(T.min(x[i, j] * (448.0 / amax[i]), 448.0), -448.0), "float8_e4m3")
            T.copy(q, values[first, 0])
            for i in T.Parallel(GROUPS_PER_BLOCK):
                token[i] = T.truncdiv(first + i, G)
                if first + i < R:
                    scales[first + i - token[i] * G, token[i]] = amax[i] * (1.0 / 448.0)

    return per_token_group_quant
