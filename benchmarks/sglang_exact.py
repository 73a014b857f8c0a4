"""An SGLang plugin that makes the triton backend's FP8 GEMM exact: the yardstick of benchmark_sglang.py.

Activations are quantised as for DeepGEMM; products and sums are float64 and rounded once, to bfloat16.
`installed` lets the processes of an engine find it, as an installed package's entry point would.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

ENTRY_POINTS = "[sglang.srt.plugins]\nexact_products = sglang_exact:register\n"


@contextmanager
def installed() -> Iterator[None]:
    """While this lasts, engines that this process starts load the plugin: their sys.path is this one's."""
    with tempfile.TemporaryDirectory() as folder:
        distribution = Path(folder, "sglang_exact-0.dist-info")
        distribution.mkdir()
        (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang-exact\nVersion: 0\n")
        (distribution / "entry_points.txt").write_text(ENTRY_POINTS)
        sys.path.insert(0, folder)
        try:
            yield
        finally:
            sys.path.remove(folder)


def register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    target = "sglang.srt.layers.quantization.fp8_utils.triton_w8a8_block_fp8_linear"
    HookRegistry.register(target, exact_linear, HookType.REPLACE)


def exact_linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    block_size: list[int],
    weight_scale: torch.Tensor,
    input_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """(..., K) bfloat16 and a block-FP8 weight (N, K) -> (..., N) bfloat16."""
    from sglang.srt.layers.quantization.fp8_utils import sglang_per_token_group_quant_fp8

    from tilelang_gemm_wrapper.backends import torch_reference

    assert input_scale is None and bias is None and list(block_size) == [128, 128]
    rows = input.view(-1, input.shape[-1])
    C = torch.empty(rows.shape[0], weight.shape[0], dtype=torch.bfloat16, device=rows.device)
    if rows.shape[0]:
        A, A_scale = sglang_per_token_group_quant_fp8(rows, 128)
        torch_reference.gemm(A, A_scale, weight, weight_scale, C)
    return C.view(*input.shape[:-1], weight.shape[0])
