"""GEMV in Triton; imports triton."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..pdl import triton_options
from . import Problem


@triton.jit
def gemv_kernel(
    x,  # (1, K)
    x_scale,  # (1, ceil(K / 128)) float32, or as good as absent
    W,  # (N, K)
    W_scale,  # (ceil(N / 128), ceil(K / 128)) float32, or as good as absent
    out,  # (1, N)
    N,
    K: tl.constexpr,
    X_SCALED: tl.constexpr,
    W_SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr,  # divides 128
    BLOCK_K: tl.constexpr,
    UNROLL: tl.constexpr,  # steps whose loads are under way together
    PDL: tl.constexpr,
):
    """One row of x by the CUDA cores: products are added up per column and reduced once, at the end."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    at_W = W + tl.minimum(rows, N - 1).to(tl.int64)[:, None] * K + columns[None, :]
    groups = tl.cdiv(K, 128)
    at_W_scale = W_scale + (tl.program_id(0) * BLOCK_N // 128) * groups
    if PDL:
        tl.extra.cuda.gdc_wait()
    sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in tl.range(0, K, BLOCK_K, loop_unroll_factor=UNROLL):
        if K % BLOCK_K == 0:
            weights = tl.load(at_W + start, eviction_policy="evict_first")
            values = tl.load(x + start + columns).to(tl.float32)
        else:
            inside = start + columns < K
            weights = tl.load(at_W + start, mask=inside[None, :], other=0.0, eviction_policy="evict_first")
            values = tl.load(x + start + columns, mask=inside, other=0.0).to(tl.float32)
        if W_SCALED:
            group = tl.minimum((start + columns) // 128, groups - 1)
            values *= tl.load(at_W_scale + group)
            if X_SCALED:
                values *= tl.load(x_scale + group)
        sums += weights.to(tl.float32) * values[None, :]
    y = tl.sum(sums, axis=1)
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=rows < N)


@triton.jit
def few_rows_kernel(
    x,  # (M, K)
    x_scale,
    W,
    W_scale,
    out,  # (M, N)
    M,
    N,
    K: tl.constexpr,
    X_SCALED: tl.constexpr,
    W_SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # 128 with scales: each step's product is scaled by itself
    PDL: tl.constexpr,
):
    """Two to eight rows of x by the tensor cores, which take 16 at once."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    tokens = tl.arange(0, 16)
    at_W = W + tl.minimum(rows, N - 1).to(tl.int64)[:, None] * K + columns[None, :]
    at_x = x + tl.minimum(tokens, M - 1)[None, :] * K + columns[:, None]
    groups = tl.cdiv(K, 128)
    at_W_scale = W_scale + (tl.program_id(0) * BLOCK_N // 128) * groups
    at_x_scale = x_scale + tl.minimum(tokens, M - 1) * groups
    operand = (
        tl.float16 if X_SCALED else x.dtype.element_ty
    )  # holds every e4m3 value exactly, as bfloat16 does
    if PDL:
        tl.extra.cuda.gdc_wait()
    sums = tl.zeros((BLOCK_N, 16), tl.float32)
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            weights = tl.load(at_W + start, eviction_policy="evict_first")
            values = tl.load(at_x + start)
        else:
            inside = start + columns < K
            weights = tl.load(at_W + start, mask=inside[None, :], other=0.0, eviction_policy="evict_first")
            values = tl.load(at_x + start, mask=inside[:, None], other=0.0)
        if W_SCALED:
            scale = tl.load(at_W_scale + start // 128)
            part = tl.dot(weights.to(operand), values.to(operand))
            if X_SCALED:
                part *= tl.load(at_x_scale + start // 128)[None, :]
            sums += part * scale
        else:
            sums = tl.dot(weights, values, sums)
    mask = (rows < N)[:, None] & (tokens < M)[None, :]
    tl.store(out + tokens[None, :] * N + rows[:, None], sums.to(out.dtype.element_ty), mask=mask)


class Tile(NamedTuple):
    block_N: int
    block_K: int
    num_warps: int
    depth: int  # steps of K under way at one time: unrolled for one row, else stages of the pipeline


def tile_of(M: int, K: int, scaled: bool) -> Tile:
    """What did well on an H100: narrow tiles, so that every SM has several programs, whose loads overlap."""
    if M > 1:
        return Tile(16, 128, 4, 4) if scaled else Tile(16, 256, 4, 6)
    if not scaled:
        return Tile(1, 2048, 4, 2)
    return Tile(1, 512, 2, 4) if K > 8192 else Tile(4, 256, 2, 4)


def launch(problem: Problem) -> None:
    """As `ops.gemv.reference.launch`."""
    launch_tile(problem, tile_of(problem.M, problem.K, problem.is_fp8))


def launch_tile(problem: Problem, tile: Tile) -> None:
    x, x_scale, W, W_scale, out = problem
    arguments = (x, W if x_scale is None else x_scale, W, W if W_scale is None else W_scale, out)
    with torch.cuda.device_of(out):  # Triton launches on the current device
        grid = (triton.cdiv(problem.N, tile.block_N),)
        kernel = gemv_kernel[grid] if problem.M == 1 else few_rows_kernel[grid]
        kernel(
            *arguments,
            *((problem.N,) if problem.M == 1 else (problem.M, problem.N)),
            K=problem.K,
            X_SCALED=x_scale is not None,
            W_SCALED=W_scale is not None,
            BLOCK_N=tile.block_N,
            BLOCK_K=tile.block_K,
            num_warps=tile.num_warps,
            **({"UNROLL": tile.depth} if problem.M == 1 else {"num_stages": tile.depth}),
            **triton_options(out),
        )
