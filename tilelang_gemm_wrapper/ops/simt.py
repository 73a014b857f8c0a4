"""What the TileLang kernels share: each thread holds chunks of eight neighbouring values; imports tilelang.

A row belongs to `lanes` threads: lane l has the chunks l, l + lanes, ... so that a warp reads 512 bytes of a
bfloat16 row side by side, and sixteen lanes hold a group of 128 values. `lanes` is a power of two up to 32,
or whole warps. Written out for threads, because fragments are laid out by what divides evenly: a row of 2560
values over 256 threads would be read two bytes at a time.
"""

from functools import lru_cache

import tilelang.language as T
import torch

from .arguments import dtype_name

CHUNK = 8
# Tensors come flat, with strides in vectors of 16 bytes where rows are aligned: that a row starts at a
# multiple of its vectors is then plain to the compiler. Its own guards, a branch around each value, are
# switched off.
PASS_CONFIGS = {"tl.disable_safe_memory_legalize": True}
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_FLOAT32_MAX = 3.4028234663852886e38
_FLOAT32_TINY = 1.1754943508222875e-38  # the smallest normal one
_FP8_MAX = 448.0


def vector(dtype: str, aligned: bool) -> int:
    """How many values one access moves: 16 bytes of them, one where rows start anywhere."""
    return 16 // _BYTES[dtype] if aligned else 1


def tilelang_dtype(tensor: torch.Tensor) -> str:
    """TileLang's name of the tensor's dtype."""
    return dtype_name(tensor).removesuffix("fn")


@lru_cache(maxsize=64)
def any_float32(device: torch.device) -> torch.Tensor:
    """What a kernel is given in the place of scales that there are none of: (1, 1) float32."""
    return torch.empty((1, 1), device=device)


@T.macro
def load_chunk(source, start, column, K, local, at, width):
    """local[at : at + 8] = source[start + column : start + column + 8], zero beyond column K."""
    for part in T.unroll(CHUNK // width):
        if column + part * width < K:
            for v in T.vectorized(width):
                local[at + part * width + v] = source[start + column + part * width + v]
        else:
            for v in T.vectorized(width):
                local[at + part * width + v] = 0


@T.macro
def store_chunk(target, start, column, K, local, at, width):
    """target[start + column : start + column + 8] = local[at : at + 8] as far as column K."""
    for part in T.unroll(CHUNK // width):
        if column + part * width < K:
            for v in T.vectorized(width):
                target[start + column + part * width + v] = local[at + part * width + v]


@T.macro
def sum_over_lanes(value, lanes, lane, slot, partial):
    """value[0] summed over the lanes of a row, in all of them; partial: (rows, warps of a row) shared."""
    width = min(lanes, 32)
    for i in T.unroll(width.bit_length() - 1):
        value[0] += T.shfl_xor(value[0], width >> (i + 1))
    if lanes > 32:
        if lane % 32 == 0:
            partial[slot, lane // 32] = value[0]
        T.sync_threads()
        value[0] = 0.0
        for warp in T.unroll(lanes // 32):
            value[0] += partial[slot, warp]


@T.macro
def quantise_chunk(y, codes, scale):
    """y: eight float32 -> codes: eight e4m3, scale[0] that of the group in sixteen lanes; see `quantize`."""
    divisor = T.alloc_local((1,), "float32")
    inverse = T.alloc_local((1,), "float32")
    quotient = T.alloc_local((CHUNK,), "float32")
    scale[0] = 0.0
    for v in T.unroll(CHUNK):
        # false for NaN
        scale[0] = T.max(scale[0], T.if_then_else(T.abs(y[v]) <= _FLOAT32_MAX, T.abs(y[v]), 0.0))
    for i in T.unroll(4):
        scale[0] = T.max(scale[0], T.shfl_xor(scale[0], 8 >> i))
    scale[0] = T.if_then_else(scale[0] > 0.0, T.max(scale[0] / _FP8_MAX, _FLOAT32_TINY), 1.0)
    # Quotients rounded as IEEE division rounds them, by Markstein's method: two corrections with the inverse,
    # rounded right, and the exact remainder. Groups so small that remainders would underflow are lifted
    # first. A quotient of -0 stays -0, one of infinity becomes NaN, and the conversion cuts off at 448.
    divisor[0] = scale[0]
    if scale[0] < 2.0**-60:
        divisor[0] = scale[0] * 2.0**64
        for v in T.unroll(CHUNK):
            y[v] = y[v] * 2.0**64
    inverse[0] = 1.0 / divisor[0]
    for v in T.unroll(CHUNK):
        quotient[v] = y[v] * inverse[0]
        for _ in T.unroll(2):
            remainder = T.ieee_fmaf(quotient[v], divisor[0], -y[v])
            quotient[v] = T.ieee_fmaf(remainder, -inverse[0], quotient[v])
    for v in T.vectorized(CHUNK):
        codes[v] = T.cast(quotient[v], "float8_e4m3")
