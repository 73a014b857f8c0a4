"""What the TileLang kernels share: each thread holds chunks of eight neighbouring values; imports tilelang.

A row belongs to `lanes` threads: lane l has the chunks l, l + lanes, ... so that a warp reads 512 bytes of a
bfloat16 row side by side, and sixteen lanes hold a group of 128 values. `lanes` is a power of two up to 32,
or whole warps. Written out for threads, because fragments are laid out by what divides evenly: a row of 2560
values over 256 threads would be read two bytes at a time.
"""

from functools import lru_cache

import tilelang.language as T
import torch

from ..quantize import SGLANG_LEAST_AMAX
from .arguments import GROUP, dtype_name

CHUNK = 8
# Tensors come flat, with strides in vectors of 16 bytes where rows are aligned: that a row starts at a
# multiple of its vectors is then plain to the compiler. Its own guards, a branch around each value, are
# switched off.
PASS_CONFIGS = {"tl.disable_safe_memory_legalize": True}
FAST_DIVISION = {"tl.enable_fast_math": True}  # beside PASS_CONFIGS: SGLang divides approximately
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_FLOAT32_MAX = 3.4028234663852886e38
_FLOAT32_TINY = 1.1754943508222875e-38  # the smallest normal one
_FP8_MAX = 448.0
_INVERSE_HIGH = 0.0022321429569274187  # 1 / 448 in float32
_INVERSE_LOW = -9.978456255721468e-11  # what it lacks, in float32
_TINY_GROUP = 2.0**-64  # amax below which a remainder would leave the range of normal floats


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
def amax_over_lanes(y, amax, width, finite_only):
    """amax[0] = the largest magnitude of a group: of `width` values y in each of 128 / width lanes.

    NaN takes no part: it loses every comparison, the one with the 0 that stands first included.
    """
    largest = T.alloc_local((2 * width - 1,), "float32")  # a tree: a chain would wait for each comparison
    for v in T.unroll(width):
        largest[v] = T.abs(y[v])
        if finite_only:
            largest[v] = T.if_then_else(largest[v] <= _FLOAT32_MAX, largest[v], 0.0)
    for v in T.unroll(width - 1):
        largest[width + v] = T.max(largest[2 * v], largest[2 * v + 1])
    amax[0] = T.max(largest[2 * width - 2], 0.0)
    for i in T.unroll((GROUP // width).bit_length() - 1):
        amax[0] = T.max(amax[0], T.shfl_xor(amax[0], GROUP // width >> (i + 1)))


@T.macro
def divide_with_few_calls(y, scale, quotient):
    """y[v] / scale[0] with the bits of IEEE division, in the registers that a norm has left.

    By Markstein's method: two corrections with the inverse, rounded right, and the exact remainder. Groups so
    small that remainders would underflow are lifted first. A division of each value would be a call, around
    which registers are spilt. Infinity becomes NaN.
    """
    inverse = T.alloc_local((1,), "float32")
    divisor = T.alloc_local((1,), "float32")
    lift = T.alloc_local((1,), "float32")
    lift[0] = T.if_then_else(scale[0] < 2.0**-60, 2.0**64, 1.0)
    divisor[0] = scale[0] * lift[0]
    inverse[0] = 1.0 / divisor[0]
    for v in T.unroll(CHUNK):
        y[v] = y[v] * lift[0]
        quotient[v] = y[v] * inverse[0]
        for _ in T.unroll(2):
            remainder = T.ieee_fmaf(quotient[v], divisor[0], -y[v])
            quotient[v] = T.ieee_fmaf(remainder, -inverse[0], quotient[v])
        y[v] = quotient[v]


@T.macro
def quantize_chunk(y, codes, scale, width):
    """y: `width` float32 -> codes: as many e4m3, scale[0]: that of the group; see `quantize`. y is lost.

    A group lies in 128 / width neighbouring lanes. All lanes of the warp must be here together.
    """
    amax = T.alloc_local((1,), "float32")
    inverse = T.alloc_local((1,), "float32")
    quotient = T.alloc_local((width,), "float32")
    amax_over_lanes(y, amax, width, False)
    # Rare, and so tested once a warp instead of once a value: a group of zeros, of tiny values, or with Inf.
    is_rare = T.Or(amax[0] < _TINY_GROUP, amax[0] > _FLOAT32_MAX)
    if T.call_extern("int32", "__any_sync", T.uint32(0xFFFFFFFF), T.cast(is_rare, "int32")) != 0:
        amax_over_lanes(y, amax, width, True)
        scale[0] = T.if_then_else(amax[0] > 0.0, T.max(amax[0] / _FP8_MAX, _FLOAT32_TINY), 1.0)
        if width == CHUNK:
            divide_with_few_calls(y, scale, quotient)
        else:
            for v in T.unroll(width):
                y[v] = y[v] / scale[0]
        for v in T.unroll(width):
            y[v] = T.if_then_else(T.abs(y[v]) <= _FLOAT32_MAX, y[v], T.float32(float("nan")))
    else:
        # amax / 448: a product with 1 / 448 in two parts, rounded once, has the bits of the division.
        scale[0] = T.ieee_fmaf(amax[0], _INVERSE_HIGH, amax[0] * _INVERSE_LOW)
        inverse[0] = 1.0 / scale[0]
        for v in T.unroll(width):
            # The codes of IEEE division: a quotient corrected once by its exact remainder may still miss
            # float32's last bit, but beside no boundary between two codes: tried with every significand of a
            # scale. A quotient of -0 stays -0, and NaN NaN.
            quotient[v] = y[v] * inverse[0]
            remainder = T.ieee_fmaf(quotient[v], scale[0], -y[v])
            y[v] = T.ieee_fmaf(remainder, -inverse[0], quotient[v])
    for v in T.vectorized(width):
        codes[v] = T.cast(y[v], "float8_e4m3")  # cuts off at 448


@T.macro
def quantize_chunk_as_sglang(y, codes, scale, width):
    """As `quantize_chunk` by rounding "sglang": compile with FAST_DIVISION, or the bits are others."""
    amax = T.alloc_local((1,), "float32")
    factor = T.alloc_local((1,), "float32")
    amax_over_lanes(y, amax, width, False)
    amax[0] = T.max(amax[0], SGLANG_LEAST_AMAX)
    scale[0] = amax[0] * (1.0 / _FP8_MAX)
    factor[0] = _FP8_MAX / amax[0]
    for v in T.unroll(width):
        # The smaller of NaN and 448 is 448, and so is that of Inf: no e4m3 NaN is ever written.
        y[v] = T.max(T.min(y[v] * factor[0], _FP8_MAX), -_FP8_MAX)
    for v in T.vectorized(width):
        codes[v] = T.cast(y[v], "float8_e4m3")
