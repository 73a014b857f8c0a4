"""The ops' TileLang kernels compile for Hopper and Ada without a GPU: wide accesses, no spills, no stack."""

from __future__ import annotations

import re
from itertools import product

import pytest

from tilelang_gemm_wrapper import configurer

pytest.importorskip("tilelang")
pytestmark = pytest.mark.skipif(configurer.find_nvcc() is None, reason="nvcc was not found")

TILES = ("FEW", "MANY"), ("ieee", "sglang")  # of the quantizer: its tiles and roundings
BF16, F16, F32, FP8 = "bfloat16", "float16", "float32", "float8_e4m3"


def on_both(cases):
    """Each case for Hopper, and every second for Ada: the sources are the same but for the early start."""
    return [(*case, "sm_90a") for case in cases] + [(*case, "sm_89") for case in cases[1::2]]


def compiled(build, shape, arch, pass_configs=None):
    """What the compiler makes of a kernel: never spills."""
    from tilelang_gemm_wrapper.core.compile_report import cross_compile_primfunc
    from tilelang_gemm_wrapper.ops.simt import PASS_CONFIGS

    report = cross_compile_primfunc(build(shape), arch, pass_configs or PASS_CONFIGS)
    assert report.spill_bytes == report.stack_bytes == 0
    return report


def copies(report, width):
    """How many accesses of `width` bytes to global memory the kernel has: (loads, stores)."""
    kind = {16: r"(v8\.\w16|v4\.\w32|v2\.\w64)", 8: r"(v4\.\w16|v2\.\w32|[ubf]64)", 2: r"[ub]16"}[width]
    return tuple(len(re.findall(rf"\b{name}\.global\S*\.{kind}\b", report.ptx)) for name in ("ld", "st"))


@pytest.mark.parametrize(
    (
        "K",
        "lanes",
        "rows",
        "resident",
        "dtype",
        "weight_dtype",
        "has_residual",
        "quantise",
        "aligned",
        "nested",
        "arch",
    ),
    on_both(
        [
            (2560, 320, 1, 1, BF16, BF16, False, False, True, False),
            (4096, 512, 1, 1, BF16, BF16, True, True, True, False),
            (7168, 896, 1, 2, BF16, BF16, True, True, True, False),
            (8192, 1024, 1, 2, BF16, BF16, True, True, True, False),
            (8192, 1024, 1, 2, F32, F32, True, True, True, False),
            (14336, 448, 1, 1, BF16, BF16, True, False, True, False),
            (40064, 512, 1, 1, F32, F32, True, True, True, False),  # too long for the registers: read twice
            (4097, 288, 1, 1, F16, F32, True, False, False, False),
            (128, 16, 8, 1, BF16, BF16, False, False, True, True),
            (1, 1, 128, 1, BF16, BF16, False, False, False, False),
        ]
    ),
)
def test_rmsnorm(
    K, lanes, rows, resident, dtype, weight_dtype, has_residual, quantise, aligned, nested, arch
):
    from tilelang_gemm_wrapper.ops.rmsnorm.tilelang import Shape, build

    early = arch == "sm_90a"
    shape = Shape(
        K, lanes, rows, resident, dtype, weight_dtype, has_residual, quantise, aligned, nested, early
    )
    report = compiled(build, shape, arch)
    loads, stores = copies(report, 16)
    if aligned:
        assert loads >= (3 if has_residual else 2)
        assert stores >= has_residual + (not quantise)
    else:
        assert not loads and not stores


@pytest.mark.parametrize(
    ("K", "tile", "dtype", "silu_mul", "rounding", "aligned", "nested", "arch"),
    [
        # K = 0: one kernel for every K
        *((0, tile, BF16, False, rounding, True, False, "sm_90a") for tile, rounding in product(*TILES)),
        (0, "MANY", BF16, False, "ieee", True, False, "sm_89"),
        (0, "MANY", F32, False, "ieee", True, False, "sm_90a"),
        (9728, "FEW", BF16, True, "ieee", True, False, "sm_90a"),
        (2560, "MANY", F16, False, "ieee", True, True, "sm_89"),
        (128, "FEW", F32, True, "ieee", False, True, "sm_90a"),
        (1000, "FEW", BF16, False, "ieee", True, False, "sm_90a"),
        (203, "MANY", BF16, False, "sglang", False, False, "sm_89"),
    ],
)
def test_quant(K, tile, dtype, silu_mul, rounding, aligned, nested, arch):
    from tilelang_gemm_wrapper.ops.quant import tilelang as implementation

    width, chunks, _ = sizes = getattr(implementation, tile)
    shape = implementation.Shape(
        K, *sizes, dtype, silu_mul, rounding, aligned, nested, early=arch == "sm_90a"
    )
    report = compiled(implementation.build, shape, arch, implementation.pass_configs(rounding))
    vectors = width * (4 if dtype == F32 else 2) // 16
    assert copies(report, 16)[0] == (chunks * vectors * (1 + silu_mul) if aligned else 0)
    # A thread's codes leave at once, if rows of codes start where such stores may.
    assert copies(report, width)[1] == (chunks if K % 128 == 0 else 0)
    assert ("div.approx.ftz.f32" in report.ptx) == (rounding == "sglang")


def test_the_quantizers_exact_path_needs_few_registers_and_no_second_division():
    """What SGLang's kernel is outrun by: registers for six blocks an SM, three operations a value."""
    from tilelang_gemm_wrapper.ops.quant.tilelang import MANY, Shape, build

    report = compiled(build, Shape(0, *MANY, BF16, False, "ieee", True, False, True), "sm_90a")
    assert report.registers <= 40
    usual = report.ptx.split("vote.sync.any")[1]
    usual = usual[: usual.index("cvt.rn.satfinite")]
    assert len(re.findall(r"fma\.rn\.f32", usual)) == 1 + 2 * MANY.width


@pytest.mark.parametrize(
    ("M", "K", "dtype", "W_dtype", "x_scaled", "aligned", "config", "arch"),
    on_both(
        [
            (1, 4096, BF16, BF16, False, True, (128, 2, 1, 4)),
            (8, 2560, F16, F16, False, True, (32, 4, 1, 2)),
            (1, 2560, BF16, FP8, False, True, (32, 4, 1, 8)),
            (4, 9728, FP8, FP8, True, True, (32, 4, 4, 2)),
            (3, 777, BF16, FP8, False, False, (32, 4, 2, 2)),
        ]
    ),
)
def test_gemv(M, K, dtype, W_dtype, x_scaled, aligned, config, arch):
    from tilelang_gemm_wrapper.ops.gemv.tilelang import Shape, build

    out_dtype = BF16 if dtype == FP8 else dtype
    shape = Shape(M, K, dtype, W_dtype, out_dtype, x_scaled, aligned, arch == "sm_90a", *config)
    loads, _ = copies(compiled(build, shape, arch), 16)
    _, _, rows, steps = config
    assert loads >= rows * steps if aligned else not loads


def test_naive_gemv_reads_two_bytes_at_a_time():
    """The baseline stays the baseline."""
    from tilelang_gemm_wrapper.ops.gemv.tilelang import build_naive

    report = compiled(build_naive, (1024, BF16), "sm_90a")
    assert copies(report, 2)[0] and not copies(report, 16)[0]


def test_every_configuration_of_the_autotuner_fits_a_block():
    from tilelang_gemm_wrapper.ops.gemv.tilelang import CONFIGS

    for config in CONFIGS:
        assert config.lanes % 32 == 0 and 128 % config.rows == 0
        assert config.lanes * config.groups <= 1024
