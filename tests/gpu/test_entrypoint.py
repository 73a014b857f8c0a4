"""The public call on the GPU: dispatch, fallbacks, graphs, torch.compile, warm-up."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from tilelang_gemm_wrapper import explain, gemm_nt_f8f8bf16, warmup
from tilelang_gemm_wrapper.backends import backend
from tilelang_gemm_wrapper.core import wrapper
from tilelang_gemm_wrapper.core.conditions import record_conditions
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, canonical_name, device_of
from tilelang_gemm_wrapper.core.environment import Environment
from tilelang_gemm_wrapper.core.host_overhead import host_overhead
from tilelang_gemm_wrapper.core.workload import Expected, random_workload, why_wrong

COUNT_COMPILES = """
import json, time
from tilelang_gemm_wrapper import warmup
from tilelang_gemm_wrapper.core import compile_cache

started, counted, compile_many = time.perf_counter(), [], compile_cache.compile_many
count = lambda done, total: counted.append(total)
compile_cache.compile_many = lambda jobs, progress: compile_many(jobs, count)
warmup([(1600, 896)], m_max=64, progress=False)
print(json.dumps([len(counted), time.perf_counter() - started]))
"""


def _call(workload, C=None):
    return gemm_nt_f8f8bf16((workload.A, workload.A_scale), (workload.B, workload.B_scale), C)


def test_device_is_the_one_in_the_list():
    device = device_of(0)
    assert device == KNOWN_DEVICES[canonical_name(device.name)]


TABLES = ((2560, 4096), (1600, 896))  # a shipped file on H200, and none


@pytest.fixture(scope="module")
def compiled_tables() -> None:
    """Compile what the tables name in parallel; call by call each kernel takes seconds."""
    warmup(TABLES, m_max=1500, progress=False)


@pytest.mark.parametrize("layout", ["row", "column_tma"])
@pytest.mark.parametrize("M", [0, 1, 7, 16, 33, 64, 100, 300, 1500])
def test_default_and_tuned_tables(M, layout, compiled_tables):
    for N, K in TABLES:
        workload = random_workload(M, N, K, "cuda", M, scale_layout=layout)
        C = workload.empty_output()
        assert _call(workload, C) is C
        if M:
            assert why_wrong(C, Expected.of(workload)) is None


@pytest.mark.parametrize(("N", "K"), [(3884, 1024), (576, 3884), (100, 200), (24, 130)])
def test_shapes_that_only_the_fallback_takes(N, K):
    assert explain(5, N, K).source == "fallback"
    for M in (1, 5, 129):
        workload = random_workload(M, N, K, "cuda", M)
        assert why_wrong(_call(workload), Expected.of(workload)) is None


@pytest.mark.parametrize("name", ["deep_gemm", "triton"])
def test_backends(name):
    why_not = backend(name).why_unavailable(device_of(0))
    if why_not:
        pytest.skip(why_not)
    for M, N, K in ((1, 2560, 512), (77, 576, 7168), (513, 2112, 1024)):
        for layout in ("row", "column_tma"):
            workload = random_workload(M, N, K, "cuda", M, scale_layout=layout)
            C = workload.empty_output()
            backend(name).gemm(workload.A, workload.A_scale, workload.B, workload.B_scale, C)
            assert why_wrong(C, Expected.of(workload)) is None


def test_deep_gemm_is_warmed_up_without_being_run():
    """Others may be timing on the GPU. What is compiled is ready for a capture, which allows no loading."""
    deep_gemm = backend("deep_gemm")
    if why_not := deep_gemm.why_unavailable(device_of(0)):
        pytest.skip(why_not)
    M, N, K = 200, 3136, 1408
    workload = random_workload(M, N, K, "cuda", 1)
    C = workload.empty_output()
    operands = workload.A, workload.A_scale, workload.B, workload.B_scale

    def kernels(call) -> list[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        return [event.name for event in profile.events() if "fp8_gemm" in event.name]

    assert not kernels(lambda: deep_gemm.warmup(N, K, [1, M, 4096]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        deep_gemm.gemm(*operands, C)
    assert kernels(graph.replay), "the profiler does not see kernels"
    assert why_wrong(C, Expected.of(workload)) is None


def test_capture_needs_warmup_and_then_works():
    N, K = 2112, 1152
    wrapper.forget()
    workload = random_workload(9, N, K, "cuda", 1)
    C = workload.empty_output()
    with pytest.raises(RuntimeError, match="warmup"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        _call(workload, C)
    warmup([(N, K)], m_max=64, progress=False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _call(workload, C)
    graph.replay()
    torch.cuda.synchronize()
    assert why_wrong(C, Expected.of(workload)) is None


def test_second_process_compiles_nothing(tmp_path):
    environment = {**os.environ, "TILELANG_GEMM_CACHE_DIR": str(tmp_path)}

    def start():
        out = subprocess.run(
            [sys.executable, "-c", COUNT_COMPILES],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        return json.loads(out.stdout.splitlines()[-1])

    first, second = start(), start()
    assert first[0] > 0
    assert second[0] == 0
    assert second[1] < first[1]


def test_custom_op():
    workload = random_workload(9, 1600, 896, "cuda", 1)
    tensors = (workload.A, workload.A_scale, workload.B, workload.B_scale)
    # Not "test_schema": it compares inputs by an allclose that CUDA does not have for e4m3.
    torch.library.opcheck(
        torch.ops.tilelang_gemm.gemm_nt_f8f8bf16.default,
        (*tensors, workload.empty_output()),
        test_utils=("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )
    before = [tensor.view(torch.uint8).clone() for tensor in tensors]
    _call(workload)
    assert all(
        torch.equal(tensor.view(torch.uint8), old) for tensor, old in zip(tensors, before, strict=True)
    )

    @torch.compile(fullgraph=True)
    def layer(A, A_scale, B, B_scale):
        return gemm_nt_f8f8bf16((A, A_scale), (B, B_scale)).float() * 2

    assert torch.equal(layer(*tensors), _call(workload).float() * 2)


def test_odd_stride_of_a_single_row():
    """PyTorch calls a (1, K) view contiguous whatever its row stride; the kernel must agree."""
    workload = random_workload(3, 1600, 896, "cuda", 4)
    A, A_scale = workload.A[::2][:1], workload.A_scale[::2][:1]
    one = type(workload)(A, A_scale, workload.B, workload.B_scale)
    assert why_wrong(_call(one), Expected.of(one)) is None


def test_refuses_before_any_launch():
    workload = random_workload(4, 1600, 896, "cuda", 1)
    with pytest.raises(ValueError, match="different devices"):
        gemm_nt_f8f8bf16((workload.A, workload.A_scale.cpu()), (workload.B, workload.B_scale))
    with pytest.raises(ValueError, match="overlaps"):
        C = workload.A.view(torch.bfloat16).flatten()[: 4 * 16].view(4, 16)
        gemm_nt_f8f8bf16((workload.A, workload.A_scale), (workload.B[:16], workload.B_scale[:1]), C)


def _eight_bytes_on(t):
    """A copy of these one-byte values, eight bytes behind an aligned address."""
    storage = torch.empty(t.numel() + 8, dtype=torch.uint8, device=t.device)
    storage[8:] = t.view(torch.uint8).flatten()
    return storage[8:].view(t.dtype).view(t.shape)


REFUSED_WHEN_COMPILED = {
    "A_scale is float64": (TypeError, dict(A_scale=lambda t: t.double())),
    "A is e5m2": (TypeError, dict(A=lambda t: t.float().to(torch.float8_e5m2))),
    "B is int8": (TypeError, dict(B=lambda t: t.view(torch.int8))),
    "B_scale is bfloat16": (TypeError, dict(B_scale=lambda t: t.bfloat16())),
    "C is float16": (TypeError, dict(C=lambda t: t.half())),
    "C is too short": (ValueError, dict(C=lambda t: t[:-1])),
    "A_scale is too long": (ValueError, dict(A_scale=lambda t: t.repeat(2, 1))),
    "A_scale is too narrow": (ValueError, dict(A_scale=lambda t: t[:, 1:].contiguous())),
    "B_scale is too short": (ValueError, dict(B_scale=lambda t: t[1:])),
    "B_scale is 3D": (ValueError, dict(B_scale=lambda t: t[None])),
    "A is column-major": (ValueError, dict(A=lambda t: t.t().contiguous().t())),
    "B is column-major": (ValueError, dict(B=lambda t: t.t().contiguous().t())),
    "B_scale is column-major": (ValueError, dict(B_scale=lambda t: t.t().contiguous().t())),
    "C is a slice of columns": (ValueError, dict(C=lambda t: t.repeat(1, 2)[:, : t.shape[1]])),
    "A_scale is neither": (ValueError, dict(A_scale=lambda t: t.repeat(1, 2)[:, ::2])),
    "A is misaligned": (ValueError, dict(A=_eight_bytes_on)),
    "A_scale is on the CPU": (ValueError, dict(A_scale=lambda t: t.cpu())),
    "B_scale is on the CPU": (ValueError, dict(B_scale=lambda t: t.cpu())),
    "C is on the CPU": (ValueError, dict(C=lambda t: t.cpu())),
    "B is None": (TypeError, dict(B=lambda t: None)),
    "C wants a gradient": (ValueError, dict(C=lambda t: t.requires_grad_())),
}


@pytest.mark.parametrize(("kind", "changes"), REFUSED_WHEN_COMPILED.values(), ids=REFUSED_WHEN_COMPILED)
def test_a_compiled_kernel_refuses_what_the_first_call_would(kind, changes):
    """Later calls leave most checks to the kernel: what it refuses must be explained as ever, and not run."""
    workload = random_workload(4, 1600, 896, "cuda", 1)
    C = workload.empty_output()
    right = {
        "A": workload.A,
        "A_scale": workload.A_scale,
        "B": workload.B,
        "B_scale": workload.B_scale,
        "C": C,
    }

    def call(A, A_scale, B, B_scale, C):
        return gemm_nt_f8f8bf16((A, A_scale), (B, B_scale), C)

    expected = call(**right).clone()
    (name, change), *_ = changes.items()
    with pytest.raises(kind, match=name):
        call(**{**right, name: change(right[name])})
    C.requires_grad_(False).zero_()
    torch.cuda.synchronize()
    assert torch.equal(call(**right), expected)


def test_host_time_stays_low():
    """An eager call costs the host at most twice a bare launch: CPUs differ in µs, hardly in this ratio."""
    name = device_of(0).name
    rows = host_overhead(2560, 4096, Environment.here(name, record_conditions().driver))
    us = {row.provider: row.p50_us for row in rows}
    assert us["tilelang_gemm"] <= 2 * us["bare_kernel"], us
