"""GEMV in TileLang: naive, as where one begins, and with K split over the threads; imports tilelang.

A thread of the naive kernel owns a row of W: neighbours read addresses a whole row apart, two bytes at a
time, and a warp's accesses touch 32 lines each. With K split over the lanes of a warp they read 512 bytes
side by side, 16 a thread, several rows and steps at a time, and add up their shares with shuffles.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import tilelang.language as T
import torch

from ...core.device import device_of
from .. import measured
from ..compiled import compiled
from ..pdl import overlaps
from ..simt import PASS_CONFIGS, any_float32, tilelang_dtype
from . import Problem

BYTES = 16  # of W that a thread reads at a time
BLOCK = 128  # columns, and rows of W, that share a scale


@dataclass(frozen=True, slots=True)
class Config:
    """How the work on W is divided; the autotuner's search space is `CONFIGS`."""

    lanes: int  # threads that share rows, splitting K: whole warps
    groups: int  # of such threads in a block
    rows: int  # of W that a thread works on at a time; divides 128
    steps: int  # along K that are loaded before the first is used


CONFIGS = [
    Config(lanes, groups, rows, steps)
    for lanes, groups in ((32, 4), (32, 8), (64, 4), (128, 1), (128, 2), (256, 1))
    for rows, steps in ((1, 2), (1, 4), (1, 8), (2, 2), (2, 4), (4, 1), (4, 2))
]


def default_config(M: int, K: int, scaled: bool) -> Config:
    """For shapes that nobody tuned: what did well on an H100 at most of those that were.

    One row of bfloat16 wants many threads a row of W, each with little; e4m3 weights a whole row of K = 2560
    in the registers of a warp; several rows of x few threads, whose sums are then few to add up.
    """
    if M > 1:
        return Config(32, 4, 4, 2) if scaled else Config(32, 4, 1, 2)
    if not scaled:
        return Config(128, 2, 1, 4)
    return Config(32, 4, 1, 8) if K <= 4096 else Config(128, 1, 1, 2)


class Shape(NamedTuple):
    """What a kernel is built for, `Config` included."""

    M: int
    K: int
    dtype: str  # of x
    W_dtype: str
    out_dtype: str
    x_scaled: bool
    aligned: bool  # rows start at 16 bytes, and K fills whole vectors
    early: bool  # starts while the kernel before it runs, see `pdl`
    lanes: int
    groups: int
    rows: int
    steps: int


def build_naive(shape: tuple[int, str]) -> Any:
    """The PrimFunc (x (1, K), W (N, K), out (1, N)) for shape (K, dtype): a thread a row."""
    K, dtype = shape
    N = T.dynamic("N")

    @T.prim_func
    def naive_gemv(x: T.Tensor((1, K), dtype), W: T.Tensor((N, K), dtype), out: T.Tensor((1, N), dtype)):
        with T.Kernel(T.ceildiv(N, 128), threads=128) as block:
            row = block * 128 + T.get_thread_binding(0)
            total = T.alloc_local((1,), "float32")
            total[0] = 0.0
            if row < N:
                for k in T.serial(K):
                    total[0] += T.cast(x[0, k], "float32") * T.cast(W[row, k], "float32")
                out[0, row] = T.cast(total[0], dtype)

    return naive_gemv


def build(shape: Shape) -> Any:
    """The PrimFunc (x (M, K), x_scale (M, groups), W (N, K), W_scale (blocks, groups), out (M, N)).

    What has no scale gets any float32 tensor of two dimensions in its place.
    """
    M, K, dtype, W_dtype, out_dtype, x_scaled, aligned, early, lanes, groups, rows, steps = shape
    scaled = W_dtype == "float8_e4m3"
    count = (BYTES if scaled else BYTES // 2) if aligned else 1  # values a thread takes at a time
    span = lanes * count
    loops = -(-K // (span * steps))
    whole = K % (span * steps) == 0
    N, blocks, columns = T.dynamic("N"), T.dynamic("blocks"), T.dynamic("columns")
    x_blocks, x_columns = T.dynamic("x_blocks"), T.dynamic("x_columns")

    @T.prim_func
    def gemv(
        x: T.Tensor((M, K), dtype),
        x_scale: T.Tensor((x_blocks, x_columns), "float32"),
        W: T.Tensor((N, K), W_dtype),
        W_scale: T.Tensor((blocks, columns), "float32"),
        out: T.Tensor((M, N), out_dtype),
    ):
        with T.Kernel(T.ceildiv(N, groups * rows), threads=(lanes, groups)) as block:
            lane, group = T.get_thread_binding(0), T.get_thread_binding(1)
            weights = T.alloc_local((steps * rows * count,), W_dtype)
            values = T.alloc_local((count,), dtype)
            w = T.alloc_local((rows * count,), "float32")
            v = T.alloc_local((count,), "float32")
            part = T.alloc_local((1,), "float32")
            sums = T.alloc_local((M * rows,), "float32")
            partial = T.alloc_shared((groups, lanes // 32, M * rows), "float32")
            first = (block * groups + group) * rows
            if early:
                T.pdl_trigger()
                T.pdl_sync()
            for i in T.unroll(M * rows):
                sums[i] = 0.0
            for loop in T.serial(loops):
                for s in T.unroll(steps):
                    for r in T.unroll(rows):
                        k = ((loop * steps + s) * lanes + lane) * count
                        # Rows beyond N are read as the last one, and not written.
                        row = T.min(first + r, N - 1)
                        if whole or k < K:
                            for j in T.vectorized(count):
                                weights[(s * rows + r) * count + j] = W[row, k + j]
                for s in T.unroll(steps):
                    k = ((loop * steps + s) * lanes + lane) * count
                    if whole or k < K:
                        for r in T.unroll(rows):
                            for j in T.vectorized(count):
                                w[r * count + j] = T.cast(weights[(s * rows + r) * count + j], "float32")
                        for m in T.unroll(M):
                            for j in T.vectorized(count):
                                values[j] = x[m, k + j]
                            for j in T.vectorized(count):
                                v[j] = T.cast(values[j], "float32")
                            for r in T.unroll(rows):
                                if scaled:
                                    part[0] = 0.0
                                    for j in T.unroll(count):
                                        part[0] += v[j] * w[r * count + j]
                                    part[0] *= W_scale[T.min(first, N - 1) // BLOCK, k // BLOCK]
                                    if x_scaled:
                                        part[0] *= x_scale[m, k // BLOCK]
                                    sums[m * rows + r] += part[0]
                                else:
                                    for j in T.unroll(count):
                                        sums[m * rows + r] += v[j] * w[r * count + j]
            for i in T.unroll(M * rows):
                for step in T.unroll(5):
                    sums[i] += T.shfl_xor(sums[i], 16 >> step)
            if lanes > 32:
                if lane % 32 == 0:
                    for i in T.unroll(M * rows):
                        partial[group, lane // 32, i] = sums[i]
                T.sync_threads()
                for i in T.unroll(M * rows):
                    sums[i] = 0.0
                    for warp in T.unroll(lanes // 32):
                        sums[i] += partial[group, warp, i]
            for i in T.unroll(M * rows):
                if lane == i % 32 and first + i % rows < N:
                    out[i // rows, first + i % rows] = T.cast(sums[i], out_dtype)

    return gemv


def build_config(*shape: Any) -> Any:
    """`build` of the fields of a `Shape`, for TileLang's autotuner, which fills in those of a `Config`."""
    return build(Shape(*shape))


def naive(x: torch.Tensor, W: torch.Tensor, out: torch.Tensor) -> None:
    """out = x @ W.T, all bfloat16 or all float16, x of one row: unchecked, the baseline."""
    compiled(build_naive, (W.shape[1], tilelang_dtype(x)), x.get_device())(x, W, out)


def split_k(x: torch.Tensor, W: Any, out: torch.Tensor) -> None:
    """`gemv(x, W, out)` by the default configuration, whatever was tuned: unchecked, x not e4m3."""
    weights, W_scale = W if isinstance(W, tuple) else (W, None)
    config = default_config(x.shape[0], x.shape[1], W_scale is not None)
    launch_config(Problem(x, None, weights, W_scale, out), config)


def launch(problem: Problem) -> None:
    """As `ops.gemv.reference.launch`, by the configuration tuned for such a shape, else the default one."""
    index = problem.out.get_device()
    launch_config(problem, _config_for(problem.dtype, problem.M, problem.N, problem.K, problem.is_fp8, index))


@lru_cache(maxsize=4096)
def _config_for(dtype: str, M: int, N: int, K: int, scaled: bool, index: int) -> Config:
    tuned = measured.config("gemv", dtype, M, N, K, device_of(index))
    return Config(**tuned) if tuned else default_config(M, K, scaled)


measured.ON_FORGET.append(_config_for.cache_clear)


def launch_config(problem: Problem, config: Config) -> None:
    kernel = compiled(build, shape_of(problem, config), problem.out.get_device(), PASS_CONFIGS)
    kernel(*arguments_of(problem))


def shape_of(problem: Problem, config: Config) -> Shape:
    x, x_scale, W, _, out = problem
    count = BYTES // W.element_size()
    aligned = problem.K % count == 0 and (x.data_ptr() | W.data_ptr()) % BYTES == 0
    return Shape(
        problem.M,
        problem.K,
        tilelang_dtype(x),
        tilelang_dtype(W),
        tilelang_dtype(out),
        x_scale is not None,
        aligned,
        overlaps(out),
        **asdict(config),
    )


def arguments_of(problem: Problem) -> tuple[torch.Tensor, ...]:
    """What the kernel of `build` takes."""
    x, x_scale, W, W_scale, out = problem
    unused = any_float32(out.device)
    return x, unused if x_scale is None else x_scale, W, unused if W_scale is None else W_scale, out
