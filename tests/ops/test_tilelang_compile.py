"""The ops' TileLang kernels compile for Hopper and Ada without a GPU: wide accesses, no spills, no stack."""

from __future__ import annotations

import re

import pytest

from tilelang_gemm_wrapper import configurer

pytest.importorskip("tilelang")
pytestmark = pytest.mark.skipif(configurer.find_nvcc() is None, reason="nvcc was not found")

ROUNDINGS = ("ieee", "sglang")
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
    ("K", "M", "dtype", "silu_mul", "rounding", "aligned", "nested", "arch"),
    [
        # K = 0: rows that follow one another, so that one kernel serves every K
        *((0, M, BF16, False, rounding, True, False, "sm_90a") for M in (1, 4096) for rounding in ROUNDINGS),
        (0, 4096, F32, False, "ieee", True, False, "sm_89"),
        (9728, 16, BF16, True, "ieee", True, False, "sm_90a"),
        (2560, 4096, F16, False, "ieee", True, True, "sm_89"),
        (1000, 16, BF16, False, "ieee", True, False, "sm_90a"),
        (203, 4096, BF16, False, "sglang", False, False, "sm_89"),
    ],
)
def test_quant(K, M, dtype, silu_mul, rounding, aligned, nested, arch):
    from tilelang_gemm_wrapper.ops.quant.tilelang import Shape, build, pass_configs, tile_of

    tile = tile_of(M, K or 4096, silu_mul)
    shape = Shape(K, *tile, dtype, silu_mul, rounding, aligned, nested, arch == "sm_90a")
    report = compiled(build, shape, arch, pass_configs(rounding))
    vectors = tile.chunks * tile.width * (4 if dtype == F32 else 2) // 16
    assert copies(report, 16)[0] == (vectors * (1 + silu_mul) if aligned else 0)
    # The codes of a chunk leave at once, if rows of codes start where such stores may.
    assert copies(report, tile.width)[1] == (tile.chunks if K % 128 == 0 else 0)
    assert ("div.approx.ftz.f32" in report.ptx) == (rounding == "sglang")


def test_exact_division_costs_the_quantizer_three_operations_a_value():
    """And registers that leave room for six blocks of 256 threads on an SM."""
    from tilelang_gemm_wrapper.ops.quant.tilelang import Shape, build, tile_of

    width, chunks, _ = tile = tile_of(4096, 4096, False)
    report = compiled(build, Shape(0, *tile, BF16, False, "ieee", True, False, True), "sm_90a")
    # A product with the inverse and two of these; one more is of the scale.
    assert len(re.findall(r"fma\.rn\.f32", report.ptx)) == chunks * (2 * width + 1)
    assert report.registers * 256 * 6 <= 65536


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
