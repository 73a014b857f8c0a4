"""Which compilations of the ops' TileLang kernels wait for each other."""

from __future__ import annotations

import logging

import pytest

from tilelang_gemm_wrapper.core import compile_cache
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.ops import compiled


def build(shape: tuple[int, str]) -> str:
    return f"kernel of {shape}"


def build_another(shape: tuple[int, str]) -> str:
    return f"another of {shape}"


@pytest.fixture
def waits(monkeypatch, tmp_path, caplog):
    """Whether a kernel's compilation waits while another process does `task`; the compiler is a stand-in."""
    monkeypatch.setenv("TILELANG_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compile_cache, "LOCK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(compile_cache, "compile_primfunc", lambda function, *_: function)
    monkeypatch.setattr(compiled, "device_of", lambda index: KNOWN_DEVICES["NVIDIA_H200"])
    monkeypatch.setattr(compiled, "on_device", lambda kernel, index: kernel)

    def waits(task, builder, shape):
        caplog.clear()
        compiled._kernels.clear()
        with compile_cache.alone(task):
            assert compiled.compiled(builder, shape, 0) == builder(shape)
        return any(record.levelno == logging.WARNING for record in caplog.records)

    yield waits
    compiled._kernels.clear()


def test_the_ranks_of_an_engine_compile_a_kernel_once(waits):
    assert waits(compiled._task(build, (128, "float16"), "sm_90a"), build, (128, "float16"))


@pytest.mark.parametrize(
    ("builder", "shape", "arch"),
    [
        (build_another, (128, "float16"), "sm_90a"),
        (build, (256, "float16"), "sm_90a"),
        (build, (128, "bfloat16"), "sm_90a"),
        (build, (128, "float16"), "sm_89"),
    ],
)
def test_other_kernels_do_not_wait(waits, builder, shape, arch):
    assert not waits(compiled._task(builder, shape, arch), build, (128, "float16"))


def test_a_warmup_of_gemms_keeps_no_op_waiting(waits):
    """It may last minutes."""
    assert not waits("compile", build, (128, "float16"))
