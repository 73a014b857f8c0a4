"""The PyTorch backend against sums written out in Python, and its behaviour at the edges."""

from __future__ import annotations

import pytest
import torch

from tilelang_gemm_wrapper.backends import torch_reference
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, cpu_device
from tilelang_gemm_wrapper.core.workload import Workload, integer_workload, random_workload


def gemm(workload: Workload, C: torch.Tensor | None = None) -> torch.Tensor:
    C = workload.empty_output() if C is None else C
    torch_reference.gemm(workload.A, workload.A_scale, workload.B, workload.B_scale, C)
    return C


def written_out(workload: Workload) -> torch.Tensor:
    """The definition, element by element, in Python's own arithmetic."""
    A, A_scale = workload.A.double().tolist(), workload.A_scale.tolist()
    B, B_scale = workload.B.double().tolist(), workload.B_scale.tolist()

    def element(m: int, n: int) -> float:
        return sum(
            A[m][k] * A_scale[m][k // 128] * B[n][k] * B_scale[n // 128][k // 128] for k in range(workload.K)
        )

    return torch.tensor([[element(m, n) for n in range(workload.N)] for m in range(workload.M)])


@pytest.mark.parametrize("scale_layout", ["row", "column_tma"])
@pytest.mark.parametrize(("M", "N", "K"), [(1, 1, 1), (3, 130, 128), (5, 131, 200), (2, 257, 300)])
def test_matches_the_definition(M: int, N: int, K: int, scale_layout: str) -> None:
    workload = random_workload(M, N, K, seed=K, scale_layout=scale_layout)
    C = gemm(workload, torch.full((M, N), torch.nan, dtype=torch.float64))
    torch.testing.assert_close(C, written_out(workload).double(), rtol=1e-6, atol=1e-6)


def test_bfloat16_is_the_exact_sum_rounded_to_nearest_even() -> None:
    workload = integer_workload(7, 140, 600)
    exact = written_out(workload)
    assert torch.equal(gemm(workload), exact.bfloat16())
    assert not torch.equal(exact, exact.bfloat16().float())  # else nothing was rounded


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = integer_workload(11, 300, 256)
    whole = gemm(workload)
    monkeypatch.setattr(torch_reference, "_CHUNK", 3 * 256 + 1)  # 3 rows at a time, across the blocks of B
    assert torch.equal(gemm(workload), whole)


def test_writes_into_a_strided_output() -> None:
    workload = integer_workload(4, 20, 128)
    around = torch.full((6, 32), 7.0)
    gemm(workload, around[1:5, 8:28])
    assert torch.equal(around[1:5, 8:28].bfloat16(), gemm(workload))
    around[1:5, 8:28] = 7
    assert (around == 7).all()


def test_nan_and_inf_propagate() -> None:
    workload = integer_workload(4, 130, 256)
    workload.A[1, 200] = torch.nan
    workload.B_scale[1, 0] = torch.inf
    C = gemm(workload)
    assert C[1].isnan().all()
    assert not C[:, 128:].isfinite().any()
    assert C[[0, 2, 3], :128].isfinite().all()


@pytest.mark.parametrize(("M", "N"), [(0, 16), (16, 0)])
def test_empty_output(M: int, N: int) -> None:
    assert gemm(integer_workload(M, N, 128)).shape == (M, N)


def test_runs_everywhere() -> None:
    for device in (cpu_device(), KNOWN_DEVICES["NVIDIA_H200"]):
        assert torch_reference.why_unavailable(device) is None
    assert torch_reference.why_unsupported(3, 3884) is None
    torch_reference.warmup(16, 128, [1, 2])
