"""When a GEMM may read weights that were just written, in chains of kernels that start early.

The writer is the worst there can be: it lets its successor start before it has written anything, and takes a
millisecond. What comes between it and the GEMM is what an engine runs there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import triton
import triton.language as tl

from tilelang_gemm_wrapper import gemm_nt_f8f8bf16, ops, per_block_quant_fp8, warmup
from tilelang_gemm_wrapper.core import wrapper

N = K = 2560
ROUNDS = 10
Operand = tuple[torch.Tensor, torch.Tensor]


@triton.jit
def write_late(source, target, scale_source, scale_target, size, scales, BLOCK: tl.constexpr):
    """One program copies the weights, then their scales; its successor has been let go before."""
    tl.extra.cuda.gdc_launch_dependents()
    lanes = tl.arange(0, BLOCK)
    for start in range(0, size, BLOCK):
        tl.store(target + start + lanes, tl.load(source + start + lanes))
    for start in range(0, scales, BLOCK):
        mask = start + lanes < scales
        tl.store(scale_target + start + lanes, tl.load(scale_source + start + lanes, mask=mask), mask=mask)


class Weights:
    """Weights that the late writer turns from old to new."""

    def __init__(self) -> None:
        self.old, self.new = (per_block_quant_fp8(torch.randn(N, K, device="cuda")) for _ in range(2))
        self.now: Operand = self.old[0].clone(), self.old[1].clone()

    def reset(self) -> None:
        for now, old in zip(self.now, self.old, strict=True):
            now.copy_(old)
        torch.cuda.synchronize()

    def write_late(self) -> None:
        values, new_values = (pair[0].view(torch.uint8) for pair in (self.now, self.new))
        write_late[(1,)](
            new_values, values, self.new[1], self.now[1], values.numel(), self.now[1].numel(), BLOCK=4096
        )


class Activations:
    """Tokens, and the kernels that an engine runs on them right before a GEMM."""

    def __init__(self, M: int) -> None:
        self.x = torch.randn(M, K, device="cuda").bfloat16()
        self.norm_weight = torch.ones(K, device="cuda").bfloat16()
        self.other_weights = per_block_quant_fp8(torch.randn(N, K, device="cuda"))
        self.ready = self.quantize()

    def nothing(self) -> Operand:
        return self.ready

    def quantize(self) -> Operand:
        return ops.per_token_group_quant_fp8(self.x, scale_layout="column_tma")

    def quantize_as_sglang(self) -> Operand:
        return ops.per_token_group_quant_fp8(self.x, scale_layout="column_tma", rounding="sglang")

    def norm_and_quantize(self) -> Operand:
        return ops.rmsnorm_quant_fp8(self.x, self.norm_weight, scale_layout="column_tma")

    def another_gemm(self) -> Operand:
        gemm_nt_f8f8bf16(self.ready, self.other_weights)
        return self.ready


STEPS = [
    Activations.nothing,
    Activations.quantize,
    Activations.quantize_as_sglang,
    Activations.norm_and_quantize,
    Activations.another_gemm,
]


@pytest.fixture(params=[False, True], ids=["as written", "static weights"])
def static_weights(request, monkeypatch) -> Iterator[bool]:
    monkeypatch.setenv("TILELANG_GEMM_STATIC_WEIGHTS", str(int(request.param)))
    wrapper.forget()
    warmup([(N, K)], m_max=128, progress=False)
    yield request.param
    wrapper.forget()


def stale_results(weights: Weights, step: Callable[[], Operand], between: Callable[[], object]) -> int:
    """Of ROUNDS launches of write, `between`, step and GEMM, eager and from a graph: those not of `new`."""
    expected = gemm_nt_f8f8bf16(step(), weights.new)

    def run() -> torch.Tensor:
        weights.write_late()
        between()
        return gemm_nt_f8f8bf16(step(), weights.now)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    stale = 0
    for _ in range(ROUNDS):
        weights.reset()
        out = run()
        torch.cuda.synchronize()
        weights.reset()
        graph.replay()
        torch.cuda.synchronize()
        stale += not torch.equal(out, expected) or not torch.equal(captured, expected)
    return stale


def normal_launch() -> None:
    """A kernel of PyTorch's: it starts when all before it is done and written."""
    torch.arange(2, device="cuda").add_(1)


@pytest.mark.parametrize("M", [1, 16, 128])
@pytest.mark.parametrize("step", STEPS)
def test_what_is_written_before_the_gemm_is_read(static_weights, M, step):
    """By default whatever starts early; with static weights where one normal launch lies in between."""
    between = normal_launch if static_weights else lambda: None
    assert stale_results(Weights(), partial(step, Activations(M)), between) == 0


@pytest.mark.parametrize("step", [Activations.nothing, Activations.quantize_as_sglang])
@pytest.mark.parametrize("static_weights", [True], indirect=True)
def test_without_a_normal_launch_static_weights_are_read_too_early(static_weights, step):
    """What static weights do not promise; and the proof that the test above would see an early read."""
    assert stale_results(Weights(), partial(step, Activations(1)), lambda: None) > 0
