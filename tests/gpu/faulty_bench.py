"""A bench on the real GPU with four faulty candidates, for the fault-injection run.

    python tuning/tune_tilelang_gemm.py --N 4096 --K 1024 --no-ray --bench faulty_bench:FaultyBench ...

with this folder on PYTHONPATH. Of the swapAB candidates with 8 tokens a tile, the one with 3 stages hangs,
the one with 4 writes far outside its output, the one with 6 is twice too large, and the one with 8 gives the
last element the wrong sign.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.tuner.bench import GpuBench


@triton.jit
def _hang(flag, out):
    seen = tl.load(flag, volatile=True)
    while seen == 0:
        seen = tl.load(flag, volatile=True)
    tl.store(out, 1.0)


@triton.jit
def _write_far_away(out):
    tl.store(out + (1 << 40), 1.0)


class FaultyBench(GpuBench):
    def launcher(self, config: KernelConfig):
        kernel = super().launcher(config)
        if config.kernel_type != "swapAB" or (config.block_M, config.block_N) != (64, 8):
            return kernel

        def hang(A, A_scale, B, B_scale, C):
            _hang[(1,)](torch.zeros(1, dtype=torch.int32, device="cuda"), C)

        def write_far_away(A, A_scale, B, B_scale, C):
            _write_far_away[(1,)](C)

        def wrong(A, A_scale, B, B_scale, C):
            kernel(A, A_scale, B, B_scale, C)
            C.mul_(2)

        def wrong_in_one_element(A, A_scale, B, B_scale, C):
            kernel(A, A_scale, B, B_scale, C)
            C[-1, -1].mul_(-1)

        return {3: hang, 4: write_far_away, 6: wrong, 8: wrong_in_one_element}.get(config.num_stages, kernel)
