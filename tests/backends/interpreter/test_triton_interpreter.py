"""The Triton kernel run by Triton's interpreter: indexing, masks, strides and scales, without a GPU.

The interpreter multiplies e4m3 and float16 exactly but truncates float32 to bfloat16, so C is float32 here;
rounding to bfloat16 is checked on a GPU. Run with TRITON_INTERPRET=1 in a process of its own: Triton reads it
once, at import.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process of its own with TRITON_INTERPRET=1", allow_module_level=True)

from tilelang_gemm_wrapper.backends.triton import Tile, launch
from tilelang_gemm_wrapper.core.workload import (
    Workload,
    error,
    integer_workload,
    random_workload,
    reference,
)

SMALL = Tile(block_M=16, block_N=32, group_M=2, num_warps=4, num_stages=2)


def run(workload: Workload, tile: Tile = SMALL) -> torch.Tensor:
    """The kernel's float32 result, in an output poisoned with NaN, whose surroundings must stay."""
    around = torch.full((workload.M + tile.block_M, workload.N + tile.block_N), torch.nan)
    C = around[: workload.M, : workload.N]
    launch(workload.A, workload.A_scale, workload.B, workload.B_scale, C, tile=tile)
    assert around[workload.M :].isnan().all(), "wrote rows beyond M"
    assert around[:, workload.N :].isnan().all(), "wrote columns beyond N"
    return C


@pytest.mark.parametrize("scale_layout", ["row", "column_tma"])
@pytest.mark.parametrize(
    ("M", "N", "K"),
    [
        (1, 16, 128),  # less than a tile each way
        (16, 32, 384),  # exactly a tile, several K steps
        (33, 50, 256),  # ragged M and N
        (5, 300, 256),  # N over three rows of B_scale, the last one partial
        (7, 40, 200),  # ragged K over two blocks
        (3, 9, 60),  # K below one block, not a multiple of 16
        (2, 33, 3884),  # vLLM's odd case: 30 whole blocks and 44 columns
    ],
)
def test_matches_the_reference(M: int, N: int, K: int, scale_layout: str) -> None:
    workload = random_workload(M, N, K, seed=M + N + K, scale_layout=scale_layout)
    assert error(run(workload), reference(workload)) < 1e-12
    exact = integer_workload(M, N, K, seed=M + N + K, scale_layout=scale_layout)
    assert torch.equal(run(exact), reference(exact))


@pytest.mark.parametrize("group_M", [1, 2, 3, 7, 100])
def test_grouped_order_covers_every_tile_once(group_M: int) -> None:
    workload = integer_workload(
        16 * 7 - 3, 32 * 3 + 1, 128
    )  # 7 x 4 tiles: 3 does not divide 7, 100 exceeds it
    assert torch.equal(run(workload, replace(SMALL, group_M=group_M)), reference(workload))


@pytest.mark.parametrize("block_N", [16, 32, 64, 128])
@pytest.mark.parametrize("block_M", [16, 64])
def test_tile_shapes(block_M: int, block_N: int) -> None:
    workload = integer_workload(70, 280, 256)
    tile = replace(SMALL, block_M=block_M, block_N=block_N)
    assert torch.equal(run(workload, tile), reference(workload))


def test_a_tile_across_rows_of_b_scale_is_refused() -> None:
    with pytest.raises(Exception, match="one row of B_scale"):
        run(integer_workload(1, 256, 128), replace(SMALL, block_N=256))


def as_float16(workload: Workload) -> Workload:
    """The same values in float16, which takes the same path through the kernel."""
    return replace(workload, A=workload.A.half(), B=workload.B.half())


def test_float16_inputs() -> None:
    workload = as_float16(random_workload(19, 70, 300, seed=3))
    assert error(run(workload), reference(workload)) < 1e-12


def test_any_strides_of_a_scale() -> None:
    workload = integer_workload(37, 40, 384, seed=5)
    spread = torch.full((3 * 37, 2 * 3), torch.nan)[::3, ::2]
    spread.copy_(workload.A_scale)
    strided = replace(workload, A_scale=spread)
    assert torch.equal(run(strided), reference(workload))


def test_contiguous_output() -> None:
    workload = integer_workload(19, 41, 256)
    C = torch.full((19, 41), torch.nan)
    launch(workload.A, workload.A_scale, workload.B, workload.B_scale, C, tile=SMALL)
    assert torch.equal(C, reference(workload))


def test_reads_nothing_behind_the_end_of_its_inputs() -> None:
    workload = as_float16(integer_workload(3, 5, 200))  # the interpreter reads the NaN of e4m3 as 480

    def before_nan(x: torch.Tensor) -> torch.Tensor:
        """The same values at the start of a storage that goes on with NaN."""
        storage = torch.full((x.numel() + 256,), torch.nan).to(x.dtype)
        storage[: x.numel()] = x.flatten()
        return storage[: x.numel()].view(x.shape)

    poisoned = Workload(*map(before_nan, (workload.A, workload.A_scale, workload.B, workload.B_scale)))
    assert torch.equal(run(poisoned), reference(workload))


def test_inputs_not_at_the_start_of_their_storage() -> None:
    whole = integer_workload(40, 64, 256)
    part = Workload(whole.A[8:], whole.A_scale[8:], whole.B[16:], whole.B_scale)
    assert torch.equal(run(part), reference(part))


def test_nan_and_inf_reach_their_row_alone() -> None:
    workload = as_float16(integer_workload(18, 40, 256))
    workload.A_scale[17, 1] = torch.inf
    workload.A[2, 130] = torch.nan
    C, expected = run(workload), reference(workload)
    assert C[2].isnan().all()
    assert not C[17].isfinite().any()
    clean = [row for row in range(18) if row not in (2, 17)]
    assert torch.equal(C[clean], expected[clean])


@pytest.mark.parametrize(("M", "N"), [(0, 16), (16, 0)])
def test_empty_output(M: int, N: int) -> None:
    assert run(integer_workload(M, N, 128)).shape == (M, N)
