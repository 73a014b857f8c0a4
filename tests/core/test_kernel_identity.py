"""What names a compiled kernel and a tuning environment: all that decides the binary, and nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tilelang_gemm_wrapper import configurer
from tilelang_gemm_wrapper.core import (
    code_identity,
    compile_cache,
    conditions,
    cuda_toolchain,
    environment,
    kernel_cache,
    kernel_registry,
)
from tilelang_gemm_wrapper.core.compile_cache import CompileJob
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.kernels import build_settings
from tilelang_gemm_wrapper.core.tuner.bench import GpuBench
from tilelang_gemm_wrapper.core.tuner.journal import environment_key

SWAP = KernelConfig("swapAB", 64, 16, 128, 2, 128)
JOB = CompileJob(16, 128, SWAP, "sm_90a")
H200 = KNOWN_DEVICES["NVIDIA_H200"]
PACKAGE = Path(kernel_registry.__file__).parents[1]


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """A process that has asked for nothing yet, on a machine with nvcc 13.0.88."""
    monkeypatch.setenv(configurer.CACHE_DIR, str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_cache, "_in_use", {})
    monkeypatch.setattr(cuda_toolchain, "nvcc_version", lambda: "13.0.88")
    monkeypatch.setattr(conditions, "record_conditions", lambda: SimpleNamespace(driver="580.1"))
    ask_anew()
    yield
    ask_anew()


def ask_anew() -> None:
    for function in (
        compile_cache.code_version,
        compile_cache.compiler_version,
        compile_cache._note_compiler,
    ):
        function.cache_clear()


def marker(job: CompileJob = JOB) -> str:
    ask_anew()
    return compile_cache._marker(job).name


def tuning_environment(device=H200) -> str:
    ask_anew()
    return environment_key(GpuBench.environment(SimpleNamespace(_device=device)))


@pytest.mark.parametrize(
    "fields",
    [
        {"N": 32},
        {"K": 256},
        {"config": replace(SWAP, num_stages=3)},
        {"arch": "sm_89"},
        {"static_weights": True},
        {"sm_count": 78},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_every_field_of_the_job_names_the_kernel(fields):
    assert marker(replace(JOB, **fields)) != marker()


def another_nvcc(monkeypatch):
    monkeypatch.setattr(cuda_toolchain, "nvcc_version", lambda: "13.1.12")


def options_of_nvcc(monkeypatch):
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "--use_fast_math")


def another_tilelang(monkeypatch):
    installed = environment.installed_version
    for module in (compile_cache, environment):
        monkeypatch.setattr(
            module, "installed_version", lambda name: "0.1.99" if name == "tilelang" else installed(name)
        )


def another_pass_config(monkeypatch):
    monkeypatch.setitem(kernel_registry._PASS_CONFIGS["sm_90a"], "tl.enable_fast_math", True)


def another_number_of_arriving_lanes(monkeypatch):
    monkeypatch.setattr(build_settings, "lanes_that_arrive", 32)


@pytest.mark.parametrize(
    "change",
    [
        another_nvcc,
        options_of_nvcc,
        another_tilelang,
        another_pass_config,
        another_number_of_arriving_lanes,
    ],
)
def test_what_else_decides_the_binary_names_kernel_and_journal(change, monkeypatch):
    before = marker(), tuning_environment()
    change(monkeypatch)
    after = marker(), tuning_environment()
    assert before[0] != after[0] and before[1] != after[1]


def test_a_changed_pass_config_counts_at_once(monkeypatch):
    before = compile_cache._marker(JOB)
    another_pass_config(monkeypatch)
    assert compile_cache._marker(JOB) != before


@pytest.mark.parametrize("device", [replace(H200, name="NVIDIA_H100"), replace(H200, sm_count=66)])
def test_the_device_names_the_journal(device):
    assert tuning_environment(device) != tuning_environment()


def test_static_weights_name_the_journal(monkeypatch):
    before = tuning_environment()
    monkeypatch.setenv(configurer.STATIC_WEIGHTS, "1")
    assert tuning_environment() != before


# ---- sources


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of this package's text to edit."""
    copy = tmp_path / "package"
    for folder in ("core", "backends"):
        shutil.copytree(PACKAGE / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACKAGE / "configurer.py", copy)
    (copy / "__init__.py").touch()
    monkeypatch.setattr(code_identity, "_ROOT", copy)
    return copy / "core"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("kernels/base.py", "T.pdl_sync()", "T.pdl_sync(), T.pdl_sync()"),
        ("kernels/swap_ab.py", "= accum[i, j]", "= -accum[i, j]"),
        ("kernels/roles.py", "FIRST_GROUP_BARRIER = 9", "FIRST_GROUP_BARRIER = 10"),
        ("kernels/resources.py", "_OTHER_VALUES = 40", "_OTHER_VALUES = 41"),
        ("kernels/instructions.py", "asm volatile", "asm  volatile"),  # CUDA, which is text to Python
        ("kernel_registry.py", 'if arch != "sm_90a"', 'if arch == "sm_89"'),
        ("config.py", "SCALE_BLOCK = 128", "SCALE_BLOCK = 64"),
        ("config.py", "self.block_N if self.is_swap_ab", "self.block_M if self.is_swap_ab"),
    ],
)
def test_the_code_that_builds_kernels_names_them(sources, file, old, new):
    before = marker(), tuning_environment()
    edit(sources / file, old, new)
    after = marker(), tuning_environment()
    assert before[0] != after[0] and before[1] != after[1]


def test_comments_and_layout_do_not(sources):
    before = marker(), tuning_environment()
    for path in (*sources.glob("kernels/*.py"), sources / "kernel_registry.py", sources / "config.py"):
        text = path.read_text().replace('"""', '"""Said otherwise: ', 1)
        path.write_text(f"# A comment.\n\n{text}\n\n# At the end.\n")
    edit(sources / "kernel_registry.py", "builder(N, K, config)", "builder(\n        N, K, config\n    )")
    assert (marker(), tuning_environment()) == before


def test_nor_does_the_search_space(sources):
    before = marker()
    edit(sources / "kernel_registry.py", "_RING_OF_NARROW_TILES, _NARROW_TILE = 10, 32", "_X = 1")
    assert marker() == before


# ---- the compiler


def test_tilelangs_own_cache_is_told_of_the_compiler(monkeypatch):
    """It would give the kernel of an earlier nvcc for one that the marker says is of this."""
    options = compile_cache.with_compiler({"tl.enable_fast_math": True})
    assert options["tl.enable_fast_math"] is True
    (flag,) = options["tl.device_compile_flags"]
    assert flag.startswith("-DTILELANG_GEMM_COMPILER=")
    another_nvcc(monkeypatch)
    ask_anew()
    assert compile_cache.with_compiler({})["tl.device_compile_flags"] != [flag]
    given = {"tl.device_compile_flags": ["-lineinfo"]}
    assert compile_cache.with_compiler(given)["tl.device_compile_flags"][0] == "-lineinfo"
    assert given == {"tl.device_compile_flags": ["-lineinfo"]}


@pytest.mark.parametrize("problem", [RuntimeError("nvcc was not found"), PermissionError("not executable")])
def test_without_nvcc_a_filled_cache_is_that_of_the_nvcc_that_filled_it(problem, monkeypatch):
    def missing():
        raise problem

    filled = marker()
    compile_cache._note_compiler()
    monkeypatch.setattr(cuda_toolchain, "nvcc_version", missing)
    assert marker() == filled
    compile_cache._note_compiler()  # it has nothing to say
    assert marker() == filled


def test_without_nvcc_and_a_cache(monkeypatch):
    def missing():
        raise RuntimeError("nvcc was not found")

    monkeypatch.setattr(cuda_toolchain, "nvcc_version", missing)
    assert compile_cache.compiler_version() == "none"
    assert not compile_cache.is_compiled(JOB)


def test_the_code_of_the_triton_peer_names_the_tuning_environment_alone(sources):
    """It is no TileLang kernel, but its timings are none to resume from once it has changed."""
    before, kernels = tuning_environment(), marker()
    edit(sources.parent / "backends" / "_triton_kernel.py", "import triton", "# a comment\nimport triton")
    assert tuning_environment() == before
    edit(sources.parent / "backends" / "_triton_kernel.py", "tl.dot(", "-tl.dot(")
    assert tuning_environment() != before
    assert marker() == kernels
