"""The Ada kernels, built as compute_89 code for this Hopper GPU: indexing, scales, tails and pipelines.

Hopper runs their e4m3 MMA as conversions and fp16 MMA, so Ada's own rounding and speed are not tested here.
"""

from __future__ import annotations

import random

import pytest
import torch

from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.compile_cache import tilelang_module
from tilelang_gemm_wrapper.core.config import KernelConfig, why_invalid
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.workload import (
    Expected,
    integer_workload,
    random_workload,
    reference,
    why_wrong,
)

TARGET = {"kind": "cuda", "arch": "sm_89", "code": ["sm_90"]}
CASES = [
    (KernelConfig("base", 64, 128, 128, 3, 256), 2112, 1024),
    (KernelConfig("base", 16, 64, 128, 2, 128), 576, 512),
    (KernelConfig("swapAB", 64, 16, 128, 4, 128), 1600, 896),
    (KernelConfig("splitK", 64, 64, 128, 2, 256, 4), 2112, 1024),
    (KernelConfig("splitK_swapAB", 64, 16, 128, 3, 128, 7), 1600, 896),
]


@pytest.mark.parametrize(
    ("config", "N", "K"), CASES, ids=lambda value: getattr(value, "kernel_type", str(value))
)
def test_matches_reference(config, N, K):
    assert why_invalid(config, N, K, KNOWN_DEVICES["NVIDIA_L40S"]) is None
    tilelang = tilelang_module()
    try:
        tilelang.tvm.target.Target(TARGET)
    except ValueError as refused:
        pytest.skip(f"TileLang {tilelang.__version__} cannot build for {TARGET}: {refused}")
    kernel = tilelang.compile(
        kernel_registry.build(N, K, config, "sm_89"),
        target=TARGET,
        execution_backend="tvm_ffi",
    )

    def launch(workload):
        C = workload.empty_output()
        arguments = [workload.A, workload.A_scale, workload.B, workload.B_scale, C]
        if kernel_registry.needs_workspace(config, "sm_89"):
            arguments.append(torch.full((config.split_k, workload.M, N), torch.nan, device="cuda"))
        kernel(*arguments)
        return C

    for M in (1, 16, 37, 200):
        seed = random.randrange(2**31)
        for layout in ("row", "column_tma"):
            workload = random_workload(M, N, K, "cuda", seed, scale_layout=layout)
            assert why_wrong(launch(workload), Expected.of(workload)) is None, f"M={M}, {layout}, seed {seed}"
        workload = integer_workload(M, N, K, "cuda", seed)
        assert torch.equal(launch(workload), reference(workload).to(torch.bfloat16))
