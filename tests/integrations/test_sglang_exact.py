"""The yardstick of benchmarks/benchmark_sglang.py in the real SGLang: its plugin takes Triton's place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sglang", reason="make test-sglang brings SGLang's releases")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

PROCESS = """
import sglang.srt.managers.scheduler, sglang_exact, torch
from sglang.srt.layers.quantization import fp8_utils
from sglang.srt.plugins import load_plugins
from tilelang_gemm_wrapper import per_block_quant_fp8, per_token_group_quant_fp8

with sglang_exact.installed():
    load_plugins()
fp8_utils.sglang_per_token_group_quant_fp8 = lambda x, group: per_token_group_quant_fp8(x)
x, w = torch.randn(2, 3, 256).bfloat16(), torch.randn(384, 256)
q, s = per_token_group_quant_fp8(x.view(6, 256))
weight, scale = per_block_quant_fp8(w)
whole = weight.double() * scale.double().repeat_interleave(128, 0).repeat_interleave(128, 1)
wanted = ((q.double() * s.double().repeat_interleave(128, 1)) @ whole.T).bfloat16().view(2, 3, 384)
out = fp8_utils.triton_w8a8_block_fp8_linear(x, weight, [128, 128], scale)
print("exact:", torch.equal(out, wanted))
"""


def test_the_triton_backend_becomes_exact():
    path = os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PROCESS],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout.splitlines()[-1:] == ["exact: True"], done.stderr[-2000:]
