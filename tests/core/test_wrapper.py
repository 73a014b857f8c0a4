"""core/wrapper.py: one compile a choice, a result even without it, and no compile under capture."""

from __future__ import annotations

import contextlib
import logging
import threading
import time

import pytest
import torch

from tilelang_gemm_wrapper import backends, configurer, gemm_nt_f8f8bf16
from tilelang_gemm_wrapper.core import wrapper
from tilelang_gemm_wrapper.core.compile_cache import CompileJob
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, cpu_device
from tilelang_gemm_wrapper.core.dispatch import Choice, DispatchTable
from tilelang_gemm_wrapper.core.workload import error, random_workload, reference

H200, L40S = KNOWN_DEVICES["NVIDIA_H200"], KNOWN_DEVICES["NVIDIA_L40S"]
N, K = 256, 512
SWAP = KernelConfig("swapAB", 64, 16, 128, 6, 128)
SPLIT = KernelConfig("splitK", 64, 64, 128, 3, 128, 2)
CPU = -1


def table(*configs, device=H200, notes=()):
    """Choices for M up to 8, 16, 24 …"""
    choices = [Choice(config.kernel_type, config, "test", "because") for config in configs]
    return DispatchTable(N, K, device, tuple(8 * (i + 1) for i in range(len(configs))), tuple(choices), notes)


class Compiler:
    """Stands for `compile_kernel`: counts jobs and makes launchers that record themselves."""

    def __init__(self, seconds=0.0):
        self.jobs, self.launched, self.seconds = [], [], seconds

    def __call__(self, job):
        self.jobs.append(job)
        time.sleep(self.seconds)
        return lambda *tensors: self.launched.append((job.config, tensors))


@pytest.fixture
def compiler(monkeypatch):
    made = Compiler()
    monkeypatch.setattr(wrapper, "compile_kernel", made)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    return made


@pytest.fixture(autouse=True)
def forget():
    wrapper.forget()
    yield
    wrapper.forget()


def test_each_m_launches_its_choice_compiled_once(compiler):
    gemm = wrapper.Gemm(table(SWAP, SPLIT), CPU)
    for M in (1, 8, 9, 16, 17, 10**6, 3):
        gemm(M, "A", "A_scale", "B", "B_scale", "C")
    assert [config for config, _ in compiler.launched] == [SWAP, SWAP, SPLIT, SPLIT, SPLIT, SPLIT, SWAP]
    assert {tensors for _, tensors in compiler.launched} == {("A", "A_scale", "B", "B_scale", "C")}
    assert compiler.jobs == [CompileJob(N, K, SWAP, "sm_90a"), CompileJob(N, K, SPLIT, "sm_90a")]


def test_a_setting_that_cannot_be_meant_is_told_not_taken_for_a_failed_compile(compiler, monkeypatch):
    monkeypatch.setenv(configurer.STATIC_WEIGHTS, "constant")
    with pytest.raises(ValueError, match="TILELANG_GEMM_STATIC_WEIGHTS"):
        wrapper.Gemm(table(SWAP), CPU)(1, "A", "A_scale", "B", "B_scale", "C")
    assert compiler.jobs == []


def test_threads_share_one_compile(compiler):
    compiler.seconds = 0.05
    gemm = wrapper.Gemm(table(SWAP), CPU)
    start = threading.Barrier(8)

    def call():
        start.wait()
        gemm(1, *"abcde")

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiler.jobs) == 1
    assert len(compiler.launched) == 8


def test_a_kernel_that_does_not_compile_gives_way_to_the_fallback(compiler, monkeypatch, caplog):
    """On a device of which only the reference backend runs, so that the result can be checked."""

    def compile_kernel(job):
        if job.config == SWAP:
            raise RuntimeError("ptxas died")
        return Compiler.__call__(compiler, job)

    monkeypatch.setattr(wrapper, "compile_kernel", compile_kernel)
    for name in ("deep_gemm", "triton"):
        monkeypatch.setattr(backends.backend(name), "why_unavailable", lambda device: "not installed")
    monkeypatch.delenv("TILELANG_GEMM_FALLBACK", raising=False)
    gemm = wrapper.Gemm(table(SWAP, SPLIT), CPU)
    workload = random_workload(3, N, K)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            C = workload.empty_output()
            gemm(3, workload.A, workload.A_scale, workload.B, workload.B_scale, C)
            assert error(C, reference(workload)) < 3e-6
    failed, kept = gemm.choices
    assert (failed.kernel, failed.config, failed.source) == ("torch", None, "fallback")
    for text in (str(SWAP), "did not compile", "RuntimeError: ptxas died", "not installed"):
        assert text in failed.reason
    assert kept.config == SPLIT
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"N={N}, K={K}: {failed.reason}" == record.getMessage()
    gemm(9, *"abcde")
    assert [config for config, _ in compiler.launched] == [SPLIT]


def test_a_backend_choice_launches_that_backend(monkeypatch):
    launched = []
    monkeypatch.setattr(backends.backend("triton"), "gemm", lambda *tensors: launched.append(tensors))
    choices = (Choice("triton", None, "test", "because"),)
    wrapper.Gemm(DispatchTable(N, K, H200, (8,), choices), CPU)(5, *"abcde")
    assert launched == [tuple("abcde")]


def test_capture_refuses_to_compile_and_takes_what_is_compiled(compiler, monkeypatch):
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    gemm = wrapper.Gemm(table(SWAP), 0)
    with pytest.raises(RuntimeError) as refusal:
        gemm(1, *"abcde")
    for text in (f"N={N}, K={K}", "not compiled", "CUDA graph", f"call warmup([({N}, {K})]) before"):
        assert text in str(refusal.value)
    assert compiler.jobs == []
    capturing = False
    gemm.prepare(0)
    capturing = True
    gemm(1, *"abcde")
    assert len(compiler.launched) == 1


def test_off_gpu_cuda_is_not_asked(compiler, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: pytest.fail("asked CUDA"))
    wrapper.Gemm(table(SWAP), CPU)(1, *"abcde")
    assert len(compiler.launched) == 1


def test_split_k_on_ada_gets_a_workspace_of_its_own(compiler):
    """Partials of (split_k, M, N) float32, new for every call: two streams must never share them."""
    gemm = wrapper.Gemm(table(SPLIT, device=L40S), CPU)
    workload = random_workload(5, N, K)
    tensors = (workload.A, workload.A_scale, workload.B, workload.B_scale, workload.empty_output())
    gemm(5, *tensors)
    gemm(5, *tensors)
    (_, (*first, one)), (_, (*_, two)) = compiler.launched
    assert all(given is passed for given, passed in zip(tensors, first, strict=True))
    assert (tuple(one.shape), one.dtype, one.device) == ((2, 5, N), torch.float32, workload.device)
    assert one.data_ptr() != two.data_ptr()


def test_split_k_on_hopper_needs_no_workspace(compiler):
    wrapper.Gemm(table(SPLIT, device=H200), CPU)(5, *"abcde")
    assert compiler.launched == [(SPLIT, tuple("abcde"))]


@pytest.mark.parametrize(("current", "entered"), [(1, []), (0, [1]), (2, [1])])
def test_among_several_gpus_the_tensors_device_launches(compiler, monkeypatch, current, entered):
    seen = []

    @contextlib.contextmanager
    def device(index):
        seen.append(index)
        yield
        assert len(compiler.launched) == 1

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    wrapper.Gemm(table(SWAP), 1)(1, *"abcde")
    assert seen == entered
    assert len(compiler.launched) == 1


def test_reachable_choices():
    gemm = wrapper.Gemm(table(SWAP, SPLIT, SWAP), CPU)
    assert [list(gemm.reachable(m_max)) for m_max in (1, 8, 9, 17, 10**6)] == [
        [0],
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2],
    ]


def test_tables_are_built_and_their_notes_logged_once(monkeypatch, caplog):
    built = []

    def build_table(n, k, device):
        built.append((n, k, device))
        time.sleep(0.02)
        return table(SWAP, notes=(f"no tuned file for {n}, {k}",))

    monkeypatch.setattr(wrapper, "build_table", build_table)
    monkeypatch.setattr(wrapper, "device_of", lambda index: H200)
    got = []
    with caplog.at_level(logging.WARNING):
        threads = [threading.Thread(target=lambda: got.append(wrapper.gemm_for(N, K, 0))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        other = wrapper.gemm_for(N, 2 * K, 0)
        cpu = wrapper.gemm_for(N, K, CPU)
    assert len({id(gemm) for gemm in (*got, other, cpu)}) == 3
    assert built == [(N, K, H200), (N, 2 * K, H200), (N, K, cpu_device())]
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"no tuned file for {N}, {k}" for k in (K, 2 * K, K)]
    wrapper.forget()
    assert wrapper.gemm_for(N, K, 0) is not got[0]
    assert len(built) == 4


@pytest.mark.parametrize("static", [False, True])
def test_kernels_are_built_anew_where_they_must_read_the_weights_otherwise(monkeypatch, static):
    monkeypatch.setenv(configurer.STATIC_WEIGHTS, str(int(static)))
    monkeypatch.setattr(wrapper, "build_table", lambda *_: table(SWAP))
    gemm = wrapper.gemm_for(N, K, CPU)
    assert gemm.static_weights is static, "as the environment says"
    assert wrapper.gemm_for(N, K, CPU, static_weights=static) is gemm
    other = wrapper.gemm_for(N, K, CPU, static_weights=not static)
    assert other is not gemm and other.table is gemm.table
    assert other.static_weights is (not static) and other.job(0).static_weights is (not static)
    assert wrapper.gemm_for(N, K, CPU) is other
    assert wrapper.gemm_for(N, K, CPU, static_weights=static).static_weights is static


def test_run_on_the_cpu():
    for M in (1, 3):
        workload = random_workload(M, 100, 130)
        C = workload.empty_output()
        wrapper.run(M, 100, 130, CPU, workload.A, workload.A_scale, workload.B, workload.B_scale, C)
        assert error(C, reference(workload)) < 3e-6
    assert wrapper.gemm_for(100, 130, CPU).choices[0].kernel == "torch"


@pytest.fixture
def served(compiler, monkeypatch):
    """A call's tensors, with SWAP for M up to 8 and Triton above on the "device" of CPU tensors."""
    monkeypatch.setattr(
        backends.backend("triton"), "gemm", lambda *tensors: pytest.fail("launched unchecked")
    )
    choices = (Choice("swapAB", SWAP, "test", "because"), Choice("triton", None, "test", "because"))
    monkeypatch.setattr(wrapper, "build_table", lambda *_: DispatchTable(N, K, H200, (8, 16), choices))
    workload = random_workload(12, N, K)
    return [workload.A, workload.A_scale, workload.B, workload.B_scale, workload.empty_output()]


def first(tensors, M):
    A, A_scale, B, B_scale, C = tensors
    return A[:M], A_scale[:M], B, B_scale, C[:M]


def test_only_a_compiled_kernel_is_launched_without_the_full_check(served, compiler):
    five = first(served, 5)
    assert not wrapper.run_compiled(*five), "no table yet"
    gemm = wrapper.gemm_for(N, K, CPU)
    assert not wrapper.run_compiled(*five), "not compiled yet"
    gemm.prepare(0), gemm.prepare(1)
    assert not compiler.launched
    assert wrapper.run_compiled(*five)
    assert [(config, tensors) for config, tensors in compiler.launched] == [(SWAP, five)]
    assert not wrapper.run_compiled(*first(served, 12)), "Triton checks nothing"
    assert not wrapper.run_compiled(*first(served, 0)), "nothing to launch"
    assert len(compiler.launched) == 1


def test_each_m_has_the_short_path_to_its_choice_and_every_larger_one_to_the_last(compiler, monkeypatch):
    monkeypatch.setattr(wrapper, "build_table", lambda *_: table(SWAP, SPLIT))
    gemm = wrapper.gemm_for(N, K, CPU)
    gemm.prepare(0), gemm.prepare(1)
    for M, config in ((1, SWAP), (8, SWAP), (9, SPLIT), (16, SPLIT), (17, SPLIT), (40, SPLIT)):
        workload = random_workload(M, N, K)
        tensors = (workload.A, workload.A_scale, workload.B, workload.B_scale, workload.empty_output())
        assert wrapper.run_compiled(*tensors) is True, M
        assert compiler.launched[-1] == (config, tensors)


@pytest.mark.parametrize(
    "flaw",
    [
        "misaligned",
        "C over A",
        "C over B",
        "the end of C over A",
        "the end of C over B",
        "scales of neither layout",
        "gradient",
    ],
)
def test_what_a_kernel_does_not_see_is_looked_at(served, compiler, flaw):
    wrapper.gemm_for(N, K, CPU).prepare(0)
    A, A_scale, B, B_scale, C = first(served, 4)
    if flaw == "misaligned":
        A = torch.zeros(4 * K + 8, dtype=torch.uint8)[8:].view(A.dtype).view(4, K)
    elif flaw == "C over A":
        C = A.view(C.dtype)[:, :N].as_strided((4, N), (N, 1))
    elif flaw == "C over B":
        C = B.view(C.dtype).flatten()[-4 * N :].view(4, N)
    elif flaw.startswith("the end of C"):
        storage = torch.zeros(2 * 4 * N + N * K, dtype=torch.uint8)
        C, rest = storage[: 2 * 4 * N].view(C.dtype).view(4, N), storage[2 * 4 * N - 16 :]
        if flaw.endswith("A"):
            A = rest[: 4 * K].view(A.dtype).view(4, K)
        else:
            B = rest[: N * K].view(B.dtype).view(N, K)
    elif flaw == "scales of neither layout":
        A_scale = torch.ones(4, 2 * K // 128)[:, ::2]
    else:
        B_scale = B_scale.clone().requires_grad_()
    assert not wrapper.run_compiled(A, A_scale, B, B_scale, C)
    assert not compiler.launched


@pytest.mark.parametrize("bounds", [(8,), (8, 16), (1, 2, 4, 4095)])
def test_every_m_of_any_size_is_launched_at_once_by_the_choice_of_the_table(compiler, monkeypatch, bounds):
    """Larger ones too: a look-up that knew no choice for them would check, and launch, every call twice."""
    configs = [KernelConfig("swapAB", 64, 8 * (i + 1), 128, 6, 128) for i in range(len(bounds))]
    choices = tuple(Choice("swapAB", config, "test", "because") for config in configs)
    table = DispatchTable(N, K, H200, bounds, choices)
    monkeypatch.setattr(wrapper, "build_table", lambda *_: table)
    gemm = wrapper.gemm_for(N, K, CPU)
    for position in range(len(bounds)):
        gemm.prepare(position)
    largest = bounds[-1] + 3
    workload = random_workload(largest, N, K)
    tensors = (workload.A, workload.A_scale, workload.B, workload.B_scale, workload.empty_output())
    for M in sorted({M for bound in bounds for M in (bound, bound + 1)} | {1, largest}):
        compiler.launched.clear()
        assert wrapper.run_compiled(*first(tensors, M)) is True, M
        assert [config for config, _ in compiler.launched] == [configs[table.index(M)]], M


def test_a_kernel_that_refuses_leaves_the_explanation_to_the_full_check(served):
    gemm = wrapper.gemm_for(N, K, CPU)
    gemm.prepare(0)
    refusal = RuntimeError("argument 1 is not to this kernel's taste")

    def refuse(*_):
        raise refusal

    gemm.kernels[0] = refuse
    assert wrapper.run_compiled(*first(served, 4)) is refusal
    assert wrapper.run_compiled("A", "A_scale", "B", "B_scale", "C") is not True


@pytest.fixture
def unwilling(served, compiler):
    """Tensors whose launch fails each time it is not made with every check."""
    gemm = wrapper.gemm_for(N, K, CPU)
    gemm.prepare(0)

    def refuse(*_):
        raise RuntimeError("the first attempt failed\nand a long trace")

    gemm.kernels[0] = refuse
    return first(served, 4)


def call(A, A_scale, B, B_scale, C):
    gemm_nt_f8f8bf16((A, A_scale), (B, B_scale), C)


def test_a_launch_that_went_through_when_repeated_is_told_once(unwilling, compiler, caplog):
    for _ in range(3):
        call(*unwilling)
        assert len(caplog.records) == 1, "told at the first, and no more"
    assert len(compiler.launched) == 3
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    said = record.getMessage()
    assert f"N={N}, K={K}: a launch failed and was repeated" in said
    assert "RuntimeError: the first attempt failed" in said
    assert "long trace" not in said
    assert wrapper.gemm_for(N, K, CPU).repeated == 3


def test_nothing_is_told_of_first_calls_nor_of_calls_that_are_wrong(served, compiler, caplog):
    call(*first(served, 4))  # builds and compiles
    call(*first(served, 4))
    A, A_scale, B, B_scale, C = first(served, 4)

    def refuse(*_):
        raise ValueError("expected another C")

    wrapper.gemm_for(N, K, CPU).kernels[0] = refuse
    with pytest.raises(ValueError, match="C has shape"):
        call(A, A_scale, B, B_scale, C[:, :-16])
    assert len(compiler.launched) == 2
    assert caplog.records == []
    assert wrapper.gemm_for(N, K, CPU).repeated == 0


def test_a_launch_that_fails_again_raises_and_is_not_told_as_repeated(unwilling, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("for good")

    gemm = wrapper.gemm_for(N, K, CPU)
    gemm._launches[0] = fail
    with pytest.raises(RuntimeError, match="for good"):
        call(*unwilling)
    assert caplog.records == []


def test_a_compilers_pages_are_no_reason(compiler, monkeypatch, caplog):
    def compile_kernel(job):
        raise RuntimeError("nvcc failed\n" + "__global__ void main() {}\n" * 400)

    monkeypatch.setattr(wrapper, "compile_kernel", compile_kernel)
    gemm = wrapper.Gemm(table(SWAP), CPU)
    gemm.prepare(0)
    (record,) = caplog.records
    assert "RuntimeError: nvcc failed" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert "__global__" not in gemm.choices[0].reason
