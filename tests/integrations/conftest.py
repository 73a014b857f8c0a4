"""A GPU whose compilers are left out, and SGLang's processes where it is installed."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from integrations import sglang_processes as processes
from tilelang_gemm_wrapper import entrypoint
from tilelang_gemm_wrapper.core import compile_cache, wrapper
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.integrations import preparation, sglang
from tilelang_gemm_wrapper.ops import quant

H100 = KNOWN_DEVICES["NVIDIA_H100_80GB_HBM3"]


@pytest.fixture
def hopper(monkeypatch):
    """Real tables and warm-up on an H100 that is not there: `jobs` were compiled, those of `broken` fail."""
    pytest.importorskip("tilelang")
    machine = SimpleNamespace(jobs=[], broken=set(), quantizers=[], cause=RuntimeError("ptxas died"))

    def compile_kernel(job):
        machine.jobs.append(job)
        if (job.N, job.K) in machine.broken:
            raise machine.cause
        return print

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for module in (preparation, entrypoint, wrapper):
        monkeypatch.setattr(module, "device_of", lambda index: H100)
    monkeypatch.setattr(wrapper, "compile_kernel", compile_kernel)
    monkeypatch.setattr(compile_cache, "compile_many", lambda jobs, progress: [])
    monkeypatch.setattr(compile_cache, "is_compiled", lambda job: False)
    monkeypatch.setattr(quant, "warmup", lambda index, rounding: machine.quantizers.append((index, rounding)))
    wrapper.forget()
    yield machine
    wrapper.forget()


# ---- SGLang's processes


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return processes.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def scheduler(model):
    """This process is a scheduler that serves with the backend, but for its GPU."""
    args = processes.server_args(model, fp8_gemm_runner_backend="tilelang", chunked_prefill_size=2048)
    processes.begin_scheduler(args)
    processes.initialize(args)
    return args


@pytest.fixture(scope="session")
def servers(model, scheduler):
    """Resolved settings of a server of two ranks, by backend: before `hopper` shows SGLang a GPU."""
    return {
        backend: processes.server_args(model, fp8_gemm_runner_backend=backend, tp_size=2)
        for backend in ("tilelang", "triton")
    }


@pytest.fixture(scope="session")
def data_parallel_attention(model, scheduler):
    return processes.server_args(
        model,
        fp8_gemm_runner_backend="tilelang",
        tp_size=8,
        dp_size=8,
        enable_dp_attention=True,
        chunked_prefill_size=8192,
    )


@pytest.fixture
def group(scheduler, monkeypatch):
    """The tensor-parallel group of this process, which is alone in it unless told otherwise."""
    from sglang.srt.distributed import parallel_state

    group = SimpleNamespace(rank_in_group=0, world_size=1, cpu_group="cpu group")
    for name in ("get_tp_group", "get_pp_group"):
        monkeypatch.setattr(parallel_state, name, lambda: group)
    monkeypatch.setattr(sglang, "why_device_unfit", lambda index: None)
    level = logging.getLogger("tilelang_gemm_wrapper").level
    yield group
    logging.getLogger("tilelang_gemm_wrapper").setLevel(level)


@pytest.fixture
def told(caplog):
    """The lines of this package's log, with their level."""
    caplog.set_level(logging.INFO, "tilelang_gemm_wrapper.integrations")
    return lambda: [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name.startswith("tilelang_gemm_wrapper.integrations")
    ]
