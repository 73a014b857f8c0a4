"""entrypoint.py on a machine without a GPU: the public call, the custom op, explain and warmup."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import math
import sys
import tempfile

import numpy as np
import pytest
import torch

import tilelang_gemm_wrapper
from tilelang_gemm_wrapper import backends, configurer, entrypoint, explain, gemm_nt_f8f8bf16, warmup
from tilelang_gemm_wrapper.core import compile_cache, kernel_cache, wrapper
from tilelang_gemm_wrapper.core.compile_cache import CompileJob
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.config_entry import Entry
from tilelang_gemm_wrapper.core.config_file import config_file_name, write_config_file
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.dispatch import Choice, DispatchTable
from tilelang_gemm_wrapper.core.workload import error, integer_workload, random_workload, reference

MAX_ERROR = 3e-6
H200 = KNOWN_DEVICES["NVIDIA_H200"]
SWAP = KernelConfig("swapAB", 64, 16, 128, 6, 128)
SPLIT = KernelConfig("splitK_swapAB", 64, 16, 128, 4, 128, 4)
OP = torch.ops.tilelang_gemm.gemm_nt_f8f8bf16.default


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    for variable in (configurer.ENABLE, configurer.FALLBACK):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(configurer.CONFIG_DIR, str(tmp_path))
    wrapper.forget()
    yield
    wrapper.forget()


def call(workload, C=None):
    return gemm_nt_f8f8bf16((workload.A, workload.A_scale), (workload.B, workload.B_scale), C)


def operands(workload):
    return workload.A, workload.A_scale, workload.B, workload.B_scale


# ---- the call


@pytest.mark.parametrize("layout", ["row", "column_tma"])
@pytest.mark.parametrize(
    ("M", "N", "K"), [(1, 16, 128), (5, 256, 384), (33, 100, 200), (3, 3884, 130), (130, 129, 127), (2, 1, 1)]
)
def test_result(M, N, K, layout):
    workload = random_workload(M, N, K, seed=M, scale_layout=layout)
    right = reference(workload)
    made = call(workload)
    assert (made.shape, made.dtype, made.is_contiguous()) == ((M, N), torch.bfloat16, True)
    torch.testing.assert_close(made.float(), right, rtol=2**-8, atol=0)  # one rounding to bfloat16
    C = workload.empty_output()
    assert call(workload, C) is C
    assert torch.equal(C, made)


@pytest.mark.parametrize("layout", ["row", "column_tma"])
def test_exact_result(layout):
    workload = integer_workload(17, 144, 640, scale_layout=layout)
    assert torch.equal(call(workload), reference(workload).bfloat16())


def test_no_token(monkeypatch):
    monkeypatch.setattr(wrapper, "run", lambda *_: pytest.fail("launched"))
    workload = random_workload(0, 48, 256)
    assert call(workload).shape == (0, 48)
    C = workload.empty_output()
    assert call(workload, C) is C
    with pytest.raises(ValueError, match="B_scale has shape"):
        gemm_nt_f8f8bf16((workload.A, workload.A_scale), (workload.B, torch.ones(2, 2)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_of_a_token_stay_in_its_row(value):
    """In a value (e4m3 has NaN but no Inf) or in a scale."""
    workload = random_workload(4, 32, 256, seed=1)
    clean = call(workload)
    A, A_scale = workload.A.clone(), workload.A_scale.clone()
    A_scale[2, 1] = value
    spoilt = [call(dataclasses.replace(workload, A_scale=A_scale))]
    if math.isnan(value):
        A.view(torch.uint8)[2, 200] = 0x7F
        spoilt.append(call(dataclasses.replace(workload, A=A)))
    for C in spoilt:
        assert torch.equal(C[[0, 1, 3]], clean[[0, 1, 3]])
        assert not C[2].isfinite().any()
        assert not math.isnan(value) or C[2].isnan().all()


def test_nan_of_a_weight_stays_in_its_column():
    workload = random_workload(4, 32, 256, seed=1)
    clean = call(workload)
    workload.B.view(torch.uint8)[7, 3] = 0xFF
    C = call(workload)
    others = [column for column in range(32) if column != 7]
    assert C[:, 7].isnan().all()
    assert torch.equal(C[:, others], clean[:, others])


def test_inputs_inside_larger_tensors_and_a_list():
    workload = random_workload(40, 256, 256, seed=3)
    A, A_scale = workload.A[7:20], workload.A_scale[7:20]
    B, B_scale = workload.B[128:], workload.B_scale[1:]
    part = dataclasses.replace(workload, A=A, A_scale=A_scale, B=B, B_scale=B_scale)
    assert error(gemm_nt_f8f8bf16([A, A_scale], [B, B_scale]), reference(part)) <= MAX_ERROR


def test_a_parameter_for_weights():
    workload = random_workload(3, 48, 256)
    B = torch.nn.Parameter(workload.B, requires_grad=False)
    A = torch.nn.Parameter(workload.A, requires_grad=False)
    assert torch.equal(call(dataclasses.replace(workload, B=B)), call(workload))
    assert torch.equal(call(dataclasses.replace(workload, A=A)), call(workload))


W = random_workload(4, 48, 256)
A, A_SCALE, B, B_SCALE = operands(W)


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ((A, (B, B_SCALE)), TypeError, ["A is a Tensor", "pair (values, scales)"]),
        (((A, A_SCALE), B), TypeError, ["B is a Tensor", "pair (values, scales)"]),
        (((A, A_SCALE, None), (B, B_SCALE)), TypeError, ["A is a tuple of 3", "pair"]),
        (((A, A_SCALE), None), TypeError, ["B is a NoneType", "pair"]),
        (((None, A_SCALE), (B, B_SCALE)), TypeError, ["A is NoneType", "torch.Tensor"]),
        (((np.ones((4, 256)), A_SCALE), (B, B_SCALE)), TypeError, ["A is ndarray", "torch.Tensor"]),
        (((A, A_SCALE), ([[1.0]], B_SCALE)), TypeError, ["B is list", "torch.Tensor"]),
        (((A, None), (B, B_SCALE)), TypeError, ["A_scale is NoneType"]),
        (((A, A_SCALE), (B, B_SCALE), "C"), TypeError, ["C is str"]),
        (((A[0, 0], A_SCALE), (B, B_SCALE)), ValueError, ["A has shape ()", "2 dimensions"]),
        (((A.float(), A_SCALE), (B, B_SCALE)), TypeError, ["A has dtype torch.float32", "float8_e4m3fn"]),
        (((A, A_SCALE), (B.to("meta"), B_SCALE)), ValueError, ["different devices", "B on meta"]),
        (((A, A_SCALE), (B[:, :128], B_SCALE)), ValueError, ["B has shape (48, 128)", "(48, 256)"]),
        (
            ((torch.nn.Parameter(A, requires_grad=False), A_SCALE), (B, None)),
            TypeError,
            ["B_scale is NoneType"],
        ),
    ],
)
def test_refused_before_any_launch(arguments, kind, said, monkeypatch):
    monkeypatch.setattr(wrapper, "run", lambda *_: pytest.fail("launched"))
    with pytest.raises(kind) as refusal:
        gemm_nt_f8f8bf16(*arguments)
    missing = [text for text in said if text not in str(refusal.value)]
    assert not missing, (missing, str(refusal.value))


def test_one_warning_a_shape(caplog):
    with caplog.at_level(logging.WARNING):
        for n in (48, 48, 64, 48):
            call(random_workload(2, n, 128))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    for message, n in zip(said, (48, 64), strict=True):
        assert f"N={n}, K=128 runs on torch" in message


# ---- the custom op


@pytest.mark.parametrize("layout", ["row", "column_tma"])
def test_opcheck(layout):
    # Not "test_schema": it compares inputs by an allclose that PyTorch lacks for e4m3; see the next test.
    workload = random_workload(5, 100, 256, scale_layout=layout)
    torch.library.opcheck(
        OP,
        (*operands(workload), workload.empty_output()),
        test_utils=("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_the_op_writes_c_and_nothing_else():
    mutated = [argument.name for argument in OP._schema.arguments if argument.is_write]
    assert mutated == ["C"]
    workload = random_workload(5, 100, 256)
    before = [tensor.view(torch.uint8).clone() for tensor in operands(workload)]
    C = workload.empty_output()
    assert OP(*operands(workload), C) is None
    assert torch.equal(C, call(workload))
    for tensor, old in zip(operands(workload), before, strict=True):
        assert torch.equal(tensor.view(torch.uint8), old)


def test_the_op_checks_its_arguments():
    workload = random_workload(5, 48, 256)
    with pytest.raises(TypeError, match=r"C has dtype torch\.float32"):
        OP(*operands(workload), torch.empty(5, 48))


def test_meta_tensors_trace_without_data():
    workload = random_workload(5, 48, 256)
    meta = [tensor.to("meta") for tensor in operands(workload)]
    OP(*meta, torch.empty(5, 48, dtype=torch.bfloat16, device="meta"))
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in operands(workload)]
        C = gemm_nt_f8f8bf16(fakes[:2], fakes[2:])
    assert (C.shape, C.dtype) == ((5, 48), torch.bfloat16)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_fullgraph(backend):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend=backend)
    def layer(A, A_scale, B, B_scale, C=None):
        return gemm_nt_f8f8bf16((A, A_scale), (B, B_scale), C).float() * 2

    for M in (5, 9, 12):
        workload = random_workload(M, 100, 256, seed=M)
        right = call(workload)
        assert torch.equal(layer(*operands(workload)), right.float() * 2)
        C = workload.empty_output()
        assert torch.equal(layer(*operands(workload), C), right.float() * 2)
        assert torch.equal(C, right)
    torch._dynamo.reset()


# ---- explain


def put(tmp_path, device_name="NVIDIA_H200"):
    path = tmp_path / config_file_name(6144, 2560, device_name)
    write_config_file(path, [Entry(8, SPLIT), Entry(64, SWAP)])
    return path


def test_explain_names_file_and_config(tmp_path, monkeypatch):
    monkeypatch.setattr(configurer, "why_tilelang_unfit", lambda: None)
    path = put(tmp_path)
    for M, config in ((8, SPLIT), (9, SWAP), (127, SWAP)):
        said = explain(M, 6144, 2560, "NVIDIA_H200")
        assert (said.M, said.N, said.K, said.device) == (M, 6144, 2560, "NVIDIA_H200")
        assert (said.kernel, said.config, said.source) == (config.kernel_type, config, str(path))
    assert str(explain(3, 6144, 2560, H200)) == (
        "M=3, N=6144, K=2560 on NVIDIA_H200: splitK_swapAB 64x16x128, 4 stages, 128 threads, split_k 4 "
        f"[{path}: tuned for M = 8]\n"
        f"  {path} ends at M = 64: from M = 128 on the default choice runs; tune larger M for the fastest "
        "kernels"
    )
    assert "split_k" not in str(explain(9, 6144, 2560, H200))
    above = explain(128, 6144, 2560, H200)
    assert (above.source, above.reason) == (
        "default choice",
        "far above M = 64, the last tuned; default for M up to 128",
    )


def test_explain_tells_what_was_refused(tmp_path, monkeypatch):
    """A file that is broken, an entry that is wrong, a directory that is not there."""
    monkeypatch.setattr(configurer, "why_tilelang_unfit", lambda: None)
    directories = [tmp_path / name for name in ("broken", "entry", "absent")]
    for directory in directories[:2]:
        directory.mkdir()
    broken, entry = put(directories[0]), put(directories[1])
    broken.write_text("{broken")
    entry.write_text(entry.read_text().replace('"split_k": 4', '"split_k": 3'))
    for first, refused in zip(
        directories, (str(broken), f"{entry}: entry '8'", "absent is not"), strict=True
    ):
        monkeypatch.setenv(configurer.CONFIG_DIR, str(first))
        said = explain(8, 6144, 2560, "NVIDIA_H200")
        assert [note for note in said.notes if refused in note], (refused, said.notes)
        assert str(said).splitlines()[1:] == [f"  {note}" for note in said.notes]
    monkeypatch.setattr(configurer, "config_directories", lambda: (tmp_path,))
    assert any("no tuned file" in note for note in explain(8, 6144, 2560, "NVIDIA_H200").notes)


@pytest.mark.parametrize("name", ["NVIDIA_H100", "NVIDIA H100 80GB HBM3", "NVIDIA_H100_80GB_HBM3"])
def test_explain_takes_every_name_of_a_chip(name, tmp_path, monkeypatch):
    monkeypatch.setattr(configurer, "why_tilelang_unfit", lambda: None)
    path = put(tmp_path, "NVIDIA_H100")
    said = explain(8, 6144, 2560, name)
    assert (said.device, said.source) == ("NVIDIA_H100_80GB_HBM3", str(path))


def test_explain_a_fallback(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = explain(8, 3884, 2560)
    assert (said.device, said.kernel, said.config, said.source) == ("cpu", "torch", None, "fallback")
    assert str(said).startswith(
        "M=8, N=3884, K=2560 on cpu: torch [fallback: the TileLang kernels need sm_90a"
    )


def test_explain_asks_the_current_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(entrypoint, "device_of", {3: H200}.__getitem__)
    assert explain(8, 6144, 2560).device == "NVIDIA_H200"


def test_explain_nothing_to_do(monkeypatch):
    monkeypatch.setattr(entrypoint, "build_table", lambda *_: pytest.fail("looked up"))
    said = explain(0, 6144, 2560, "NVIDIA_H200")
    assert (said.kernel, said.config) == ("none", None)
    assert "nothing to compute" in str(said)


def test_explain_compiles_nothing(monkeypatch):
    monkeypatch.setattr(compile_cache, "tilelang_module", lambda: pytest.fail("imported TileLang"))
    for device in KNOWN_DEVICES:
        assert explain(8, 6144, 2560, device).device == device


@pytest.mark.parametrize(
    ("M", "N", "K", "said"),
    [
        (-1, 16, 128, "M is -1, expected a whole number of at least 0"),
        (1, 0, 128, "N is 0, expected a whole number of at least 1"),
        (1, 16, -128, "K is -128, expected a whole number of at least 1"),
        (1.5, 16, 128, "M is 1.5"),
        ("1", 16, 128, "M is '1'"),
        (1, None, 128, "N is None"),
        (True, 16, 128, "M is True"),
        (1, 2**31, 128, "N is 2147483648, expected a whole number of at least 1, at most 2147483647"),
    ],
)
def test_explain_refuses_numbers(M, N, K, said):
    with pytest.raises(ValueError) as refusal:
        explain(M, N, K, "NVIDIA_H200")
    assert said in str(refusal.value)


@pytest.mark.parametrize("device", ["NVIDIA_B200", "", "cuda:x", "gpu"], ids=repr)
def test_explain_refuses_unknown_devices(device):
    with pytest.raises(ValueError) as refusal:
        explain(1, 16, 128, device)
    for text in (f"device {device!r} is not known", "NVIDIA_H200", "NVIDIA_L40S"):
        assert text in str(refusal.value)


@pytest.mark.parametrize("device", [-1, 1.0, True, torch.device("meta"), ["NVIDIA_H200"]], ids=repr)
def test_explain_refuses_what_names_no_device(device):
    with pytest.raises(ValueError, match="expected the name of a chip such as 'NVIDIA_H200', a CUDA index"):
        explain(1, 16, 128, device)


@pytest.mark.parametrize("device", [2, "cuda:2", torch.device("cuda", 2)], ids=repr)
def test_a_device_of_this_machine_has_several_names(device, monkeypatch):
    monkeypatch.setattr(entrypoint, "device_of", {2: H200}.__getitem__)
    assert explain(8, 6144, 2560, device).device == "NVIDIA_H200"


@pytest.mark.parametrize("index", [0, 1, 2])
def test_no_index_of_a_gpu_is_taken_for_the_cpu(index, monkeypatch):
    monkeypatch.setattr(entrypoint, "device_of", {index: H200}.__getitem__)
    assert explain(8, 6144, 2560, index).device == "NVIDIA_H200"


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")], ids=repr)
def test_explain_for_the_cpu(device):
    assert explain(8, 6144, 2560, device).device == "cpu"


@pytest.mark.parametrize("device", [0, "cuda", torch.device("cuda")], ids=repr)
def test_without_a_gpu_cuda_is_refused(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for call in (lambda: explain(1, 16, 128, device), lambda: warmup([(16, 128)], device=device)):
        with pytest.raises(RuntimeError, match="there is no CUDA device 0: torch sees 0; check CUDA_VISIBLE"):
            call()


# ---- warmup


def test_warmup_off_gpu_does_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(wrapper, "gemm_for", lambda *_: pytest.fail("built a table"))
    monkeypatch.setattr(compile_cache, "compile_many", lambda *_: pytest.fail("compiled"))
    assert warmup([(6144, 2560)]) == 0
    assert warmup([(1, 1)]) == 0, "any size that a call may have"
    assert warmup(((np.int64(6144), torch.tensor(2560)) for _ in range(2)), np.int32(8), "cpu") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (((6144, 2560),), "shapes has 6144, expected pairs (N, K) of whole numbers, as in [(6144, 2560)]"),
        (([(6144,)],), "shapes has (6144,), expected pairs"),
        (([(6144, 2560, 1)],), "shapes has (6144, 2560, 1), expected pairs"),
        (("6144,2560",), "shapes has '6', expected pairs"),
        ((None,), "shapes is None, expected pairs"),
        (([None],), "shapes has None, expected pairs"),
        (([(-1, 2560)],), "N of shape (-1, 2560) is -1, expected a whole number of at least 1"),
        (([(16, 128), (16, 0)],), "K of shape (16, 0) is 0, expected a whole number"),
        (([(16.0, 128)],), "N of shape (16.0, 128) is 16.0, expected a whole number"),
        (([("16", "128")],), "is '16', expected a whole number"),
        (([(True, 128)],), "is True, expected a whole number"),
        (([(2**40, 128)],), "at most 2147483647"),
        (([(16, 128)], 0), "m_max is 0, expected a whole number of at least 1"),
        (([(16, 128)], None), "m_max is None"),
        (([(16, 128)], 8, "NVIDIA_H200"), "device is 'NVIDIA_H200', expected a CUDA index"),
        (([(16, 128)], 8, -1), "device is -1, expected a CUDA index"),
        (([], 8, 1.5), "device is 1.5, expected a CUDA index"),
    ],
)
@pytest.mark.parametrize("gpu", [False, True])
def test_warmup_refuses_what_it_cannot_mean(arguments, said, gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(wrapper, "gemm_for", lambda *_: pytest.fail("built a table"))
    with pytest.raises(ValueError) as refusal:
        warmup(*arguments)
    assert said in str(refusal.value)


def test_warmup_compiles_what_m_can_reach(monkeypatch, caplog):
    """As on a GPU, with the compilers left out: TileLang kernels in parallel first, then each is loaded."""
    choices = (
        Choice("swapAB", SWAP, "test", ""),
        Choice("triton", None, "test", ""),
        Choice("deep_gemm", None, "test", ""),
        Choice("splitK_swapAB", SPLIT, "test", ""),
    )
    done = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(wrapper, "device_of", lambda index: H200)
    monkeypatch.setattr(entrypoint, "device_of", lambda index: H200)
    monkeypatch.setattr(
        wrapper, "build_table", lambda N, K, device: DispatchTable(N, K, device, (8, 64, 512, 600), choices)
    )
    monkeypatch.setattr(wrapper, "compile_kernel", lambda job: done.append(("load", job)) or print)

    def compile_many(jobs, progress):
        done.append(("compile", list(jobs)))
        progress(1, 1)
        return ["a compiler failed"]

    monkeypatch.setattr(compile_cache, "compile_many", compile_many)
    for name in ("triton", "deep_gemm"):
        monkeypatch.setattr(
            backends.backend(name), "warmup", lambda *shape, name=name: done.append((name, *shape))
        )
    with caplog.at_level(logging.WARNING):
        did = entrypoint.warm_up([(6144, 2560), (6144, 2560)], m_max=300, progress=False)
    assert str(did) == "TileLang kernels: 1 compiled, 0 already in the cache"
    job = CompileJob(6144, 2560, SWAP, "sm_90a")
    cuda = torch.device("cuda", 0)
    assert done == [
        ("compile", [job]),
        ("load", job),
        ("triton", 6144, 2560, [9, 16, 32, 64], cuda),
        ("deep_gemm", 6144, 2560, [65, 128, 256, 300], cuda),
    ]
    assert "a compiler failed" in [record.getMessage() for record in caplog.records]
    done.clear()
    warmup(iter([(6144, 2560)]), m_max=8192, device=0, progress=False)
    assert [job.config for job in done[0][1]] == [SWAP, SPLIT]
    assert ("deep_gemm", 6144, 2560, [65, 128, 256, 512], cuda) in done


@pytest.mark.parametrize("trouble", ["no cache", "no locks", "no standard error"])
def test_warmup_survives_its_bookkeeping(monkeypatch, tmp_path, trouble):
    """As above; every kernel is compiled by the workers, loaded and warmed."""
    choices = (Choice("swapAB", SWAP, "test", ""), Choice("triton", None, "test", ""))
    loaded, warmed = [], []
    for name, value in (("is_available", True), ("is_current_stream_capturing", False), ("device_count", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for module in (wrapper, entrypoint):
        monkeypatch.setattr(module, "device_of", lambda index: H200)
    monkeypatch.setattr(
        wrapper, "build_table", lambda N, K, device: DispatchTable(N, K, device, (8, 64), choices)
    )
    monkeypatch.setattr(wrapper, "compile_kernel", lambda job: loaded.append(job) or print)
    monkeypatch.setattr(backends.backend("triton"), "warmup", lambda *shape: warmed.append(shape))

    def run_jobs(jobs, workers, progress):
        progress(len(jobs), len(jobs))
        return []

    monkeypatch.setattr(compile_cache, "run_jobs", run_jobs)
    monkeypatch.setattr(kernel_cache, "_in_use", {})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TILELANG_GEMM_CACHE_DIR", str(tmp_path))
    if trouble == "no cache":
        monkeypatch.setenv("TILELANG_GEMM_CACHE_DIR", "/dev/null/cache")
    elif trouble == "no locks":
        monkeypatch.setattr("fcntl.flock", _no_locks)
    else:
        monkeypatch.setattr(sys, "stderr", open("/dev/full", "w"))  # noqa: SIM115
    assert warmup([(6144, 2560)], m_max=64, device=0) == 1
    assert loaded == [CompileJob(6144, 2560, SWAP, "sm_90a")]
    assert [shape[2] for shape in warmed] == [[9, 16, 32, 64]]


def _no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


def test_warmup_counts_what_is_loaded_not_what_was_tried(monkeypatch):
    """A kernel found in the cache, one made now, one that does not compile."""
    found = KernelConfig("base", 128, 128, 128, 4, 256)
    choices = tuple(Choice(config.kernel_type, config, "test", "") for config in (SWAP, SPLIT, found))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv(configurer.FALLBACK, "torch")
    for module in (wrapper, entrypoint):
        monkeypatch.setattr(module, "device_of", lambda index: H200)
    monkeypatch.setattr(
        wrapper, "build_table", lambda N, K, device: DispatchTable(N, K, device, (8, 64, 512), choices)
    )
    monkeypatch.setattr(compile_cache, "is_compiled", lambda job: job.config == found)
    monkeypatch.setattr(compile_cache, "compile_many", lambda jobs, progress: [])

    def compile_kernel(job):
        if job.config == SPLIT:
            raise RuntimeError("ptxas died")
        return print

    monkeypatch.setattr(wrapper, "compile_kernel", compile_kernel)
    did = entrypoint.warm_up([(6144, 2560)], progress=False)
    assert (did.missing, did.compiled, did.cached, did.failed) == (2, 1, 1, 1)
    assert str(did) == (
        "TileLang kernels: 1 compiled, 1 already in the cache, 1 did not compile: other kernels take their "
        "place"
    )


def test_warmup_names_the_shapes_that_no_tilelang_kernel_takes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(configurer, "why_tilelang_unfit", lambda: None)
    for module in (wrapper, entrypoint):
        monkeypatch.setattr(module, "device_of", lambda index: H200)
    monkeypatch.setenv(configurer.FALLBACK, "torch")
    did = entrypoint.warm_up([(100, 128), (16, 100)], progress=False)
    assert list(did.unserved) == [(100, 128), (16, 100)]
    first, *rest = str(did).splitlines()
    assert first == "TileLang kernels: 0 compiled, 0 already in the cache"
    assert rest[0].startswith("no TileLang kernel for N=100, K=128: N = 100 is not a multiple of 16")
    assert rest[1].startswith("no TileLang kernel for N=16, K=100: K = 100 is not a multiple of 128")


@pytest.fixture
def no_compiler(monkeypatch):
    """A GPU whose tables name backends alone: (kernel, source) and the largest M of each; what they warm."""
    table = [("triton", "default choice", 8), ("triton", "fallback", 64), ("deep_gemm", "tuned/file", 512)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for module in (wrapper, entrypoint):
        monkeypatch.setattr(module, "device_of", lambda index: H200)
    choices = tuple(Choice(kernel, None, source, f"because {source}") for kernel, source, _ in table)
    bounds = tuple(bound for *_, bound in table)
    monkeypatch.setattr(
        wrapper, "build_table", lambda N, K, device: DispatchTable(N, K, device, bounds, choices)
    )
    warmed = {}
    for name in ("triton", "deep_gemm"):
        monkeypatch.setattr(
            backends.backend(name),
            "warmup",
            lambda N, K, m_values, device, name=name: warmed.update({(name, m_values[0]): m_values}),
        )
    return warmed


@pytest.mark.parametrize("call", [warmup, entrypoint.warm_up])
def test_backends_are_warmed_from_the_first_to_the_last_m_they_serve(call, no_compiler):
    call([(6144, 2560)], progress=False)
    assert no_compiler == {
        ("triton", 1): [1, 2, 4, 8],
        ("triton", 9): [9, 16, 32, 64],
        ("deep_gemm", 65): [65, *(1 << p for p in range(7, 14))],  # 8192 by default, above the last bound
    }
    no_compiler.clear()
    call([(6144, 2560)], 100, progress=False, fallbacks=False)
    assert no_compiler == {("triton", 1): [1, 2, 4, 8], ("deep_gemm", 65): [65, 100]}


def test_a_backend_of_a_table_that_does_not_compile_is_a_fallback_for_an_engine(no_compiler, monkeypatch):
    """An engine has a GEMM of its own for such calls; other callers learn of it before they serve."""

    def fail(*_, **__):
        raise RuntimeError("nvcc fatal: no space left\nand more")

    monkeypatch.setattr(backends.backend("deep_gemm"), "warmup", fail)
    with pytest.raises(RuntimeError, match="nvcc fatal"):
        entrypoint.warm_up([(6144, 2560)], progress=False)
    entrypoint.warm_up([(6144, 2560)], progress=False, fallbacks=False)
    first, _, failed = wrapper.gemm_for(6144, 2560, 0).choices
    assert (failed.kernel, failed.source) == ("deep_gemm", "fallback")
    assert failed.cause == "deep_gemm did not compile (RuntimeError: nvcc fatal: no space left)"
    assert first.source == "default choice"


@pytest.mark.parametrize("call", [warmup, entrypoint.warm_up])
def test_progress_is_shown_unless_it_is_turned_off(call, no_compiler, monkeypatch):
    shown = []

    @contextlib.contextmanager
    def progress_bar(description, unit, show):
        shown.append(show)
        yield lambda done, total: None

    monkeypatch.setattr(entrypoint, "progress_bar", progress_bar)
    call([(6144, 2560)])
    call([(6144, 2560)], progress=False)
    assert shown == [True, False]


def test_a_shape_is_unserved_where_all_of_its_table_is_a_fallback(no_compiler, monkeypatch):
    assert entrypoint.warm_up([(6144, 2560)], progress=False).unserved == {}
    for first, unserved in (("default choice", {}), ("fallback", {(6144, 2560): "because fallback"})):
        choices = (
            Choice("triton", None, first, f"because {first}"),
            Choice("triton", None, "fallback", "another"),
        )
        monkeypatch.setattr(
            wrapper,
            "build_table",
            lambda N, K, device, choices=choices: DispatchTable(N, K, device, (8, 64), choices),
        )
        wrapper.forget()
        assert entrypoint.warm_up([(6144, 2560)], progress=False).unserved == unserved


@pytest.mark.parametrize(
    ("why_no_cuda", "idle"), [(None, "the device is the CPU"), ("torch sees no GPU", "torch sees no GPU")]
)
def test_on_the_cpu_warm_up_counts_nothing_and_says_why(monkeypatch, why_no_cuda, idle):
    monkeypatch.setattr(entrypoint, "why_no_cuda", lambda: why_no_cuda)
    did = entrypoint.warm_up([(6144, 2560)], device="cpu")
    assert (did.missing, did.compiled, did.cached, did.failed) == (0, 0, 0, 0)
    assert str(did) == f"nothing was compiled: {idle}, and kernels are compiled for the GPU they run on"


def test_an_explanation_shows_every_split_of_k_and_cannot_be_changed():
    said = explain(0, 16, 128, "cpu")
    for split_k, shown in ((1, ""), (2, ", split_k 2")):
        config = dataclasses.replace(SWAP, split_k=split_k)
        assert f" 64x16x128, 6 stages, 128 threads{shown} [" in str(dataclasses.replace(said, config=config))
    for value, name in ((said, "kernel"), (entrypoint.warm_up([], device="cpu"), "failed")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)


def test_public_names():
    for name in tilelang_gemm_wrapper.__all__:
        assert getattr(tilelang_gemm_wrapper, name) is not None


def test_nested_operands_are_refused_in_words() -> None:
    """They have no shape, which C would be allocated by."""
    nested = torch.nested.nested_tensor([torch.zeros(128), torch.zeros(128)])
    plain = torch.zeros(16, 128)
    for A, B, name in ((nested, plain, "A"), (plain, nested, "B")):
        with pytest.raises(ValueError, match=f"{name} is nested, expected torch.strided"):
            gemm_nt_f8f8bf16((A, plain), (B, plain))
