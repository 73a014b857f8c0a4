"""The ops' Triton kernels compiled for their GPUs, without one: wide accesses, no spills to local memory."""

from __future__ import annotations

import os
import re
import warnings

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed on this platform")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton compiles nothing in a process that interprets", allow_module_level=True)

from tilelang_gemm_wrapper.lab.capture import triton_launch  # noqa: E402
from tilelang_gemm_wrapper.ops.arguments import rows_of  # noqa: E402
from tilelang_gemm_wrapper.ops.gemv import triton as gemv  # noqa: E402
from tilelang_gemm_wrapper.ops.gemv.triton import few_rows_kernel, gemv_kernel  # noqa: E402
from tilelang_gemm_wrapper.ops.quant import triton as quant  # noqa: E402
from tilelang_gemm_wrapper.ops.quant.triton import quant_kernel, tile_of  # noqa: E402
from tilelang_gemm_wrapper.ops.rmsnorm import triton as rmsnorm  # noqa: E402
from tilelang_gemm_wrapper.ops.rmsnorm.triton import rmsnorm_kernel, rmsnorm_quant_kernel  # noqa: E402

POINTERS = {"x", "residual", "weight", "out", "q", "scale", "x_scale", "W", "W_scale"}
FLOAT32 = {"scale", "x_scale", "W_scale"}
FLOATS = {"eps", "offset"}


def compile_for(capability, kernel, constants, num_warps, fp8=()):
    """PTX for bfloat16 tensors whose rows start at 16 bytes; `fp8` names those that are e4m3."""
    names = [name for name in kernel.arg_names if name not in constants]
    kinds = {
        name: "*fp8e4nv"
        if name in fp8
        else "*fp32"
        if name in FLOAT32
        else "*bf16"
        if name in POINTERS
        else "fp32"
        if name in FLOATS
        else "i32"
        for name in names
    }
    signature = {name: kinds.get(name, "constexpr") for name in kernel.arg_names}
    divisible = [n for n in names if n in POINTERS or "outer" in n or "inner_stride" in n or n == "N"]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    return triton.compile(
        source, target=target, options={"num_warps": num_warps, "enable_fp_fusion": True}
    ).asm["ptx"]


def wide(ptx, op):
    return bool(re.search(rf"\b{op}\.global\S*\.(v4\.b32|v2\.b64)", ptx))


@pytest.mark.parametrize("capability", [90, 89, 80])
@pytest.mark.parametrize("K", [128, 2560, 20000])
def test_rmsnorm(K, capability):
    pdl = capability >= 90
    constants = {"K": K, "HAS_RESIDUAL": True, "ROWS": 1, "BLOCK": min(4096, 1 << (K - 1).bit_length())}
    ptx = compile_for(capability, rmsnorm_kernel, {**constants, "PDL": pdl, "inner": 1}, 8 if K > 128 else 1)
    assert wide(ptx, "ld") or K == 128
    assert ("griddepcontrol.wait" in ptx) == pdl


@pytest.mark.parametrize("capability", [90, 89])
@pytest.mark.parametrize("K", [128, 7168, 40064])
def test_rmsnorm_quant(K, capability):
    groups = min(64, 1 << (K // 128 - 1).bit_length())
    constants = {"K": K, "HAS_RESIDUAL": True, "GROUPS": groups, "PDL": capability >= 90, "inner": 1}
    ptx = compile_for(capability, rmsnorm_quant_kernel, constants, 8 if K > 128 else 1, fp8=("q",))
    assert "cvt.rn.satfinite.e4m3x2.f32" in ptx
    assert wide(ptx, "ld") or K == 128


@pytest.mark.parametrize(
    ("K", "M", "silu_mul", "as_sglang", "capability"),
    [
        (4096, 1, False, False, 90),
        (4096, 4096, False, False, 89),
        (4096, 4096, True, False, 90),
        (4096, 4096, False, True, 90),
        (4096, 1, False, True, 89),
        (1000, 4096, False, False, 90),
    ],
)
def test_quant(K, M, silu_mul, as_sglang, capability):
    tile = tile_of(M, K)
    constants = {"K": K, "SILU_MUL": silu_mul, "AS_SGLANG": as_sglang, "BLOCK": tile.groups}
    constants |= {"PDL": capability >= 90, "inner": 1, "inner_stride": 1}
    ptx = compile_for(capability, quant_kernel, constants, tile.num_warps, fp8=("q",))
    assert "cvt.rn.satfinite.e4m3x2.f32" in ptx
    assert ("div.approx.ftz.f32" in ptx) == as_sglang
    assert wide(ptx, "ld") or K % 128 or tile.groups < 8


@pytest.mark.parametrize("capability", [90, 89])
@pytest.mark.parametrize("fp8", [(), ("W",), ("x", "W")])
def test_gemv(fp8, capability):
    constants = {"K": 4096, "X_SCALED": "x" in fp8, "W_SCALED": bool(fp8), "PDL": capability >= 90}
    tile = (
        {"BLOCK_N": 1, "BLOCK_K": 2048, "UNROLL": 2}
        if not fp8
        else {"BLOCK_N": 4, "BLOCK_K": 512, "UNROLL": 4}
    )
    assert wide(compile_for(capability, gemv_kernel, {**constants, **tile}, 4, fp8), "ld")
    tile = {"BLOCK_N": 16, "BLOCK_K": 128}
    ptx = compile_for(capability, few_rows_kernel, {**constants, **tile}, 4, fp8)
    assert re.search(r"mma\.sync|wgmma", ptx)


def launches():
    """Every launch of the ops' Triton kernels, by name, on tensors without memory."""
    x, weight, out = (torch.empty(shape, device="meta").bfloat16() for shape in ((4, 256), (256,), (4, 256)))
    q, scale = torch.empty(4, 256, dtype=torch.float8_e4m3fn, device="meta"), torch.empty(4, 2, device="meta")
    W = torch.empty(64, 256, device="meta").bfloat16()
    x_rows, out_rows = rows_of(["x", "out"], [x, out])
    product = torch.empty(4, 64, device="meta").bfloat16()
    return {
        "gemv": lambda: gemv.launch(gemv.Problem(x[:1], None, W, None, product[:1])),
        "gemv of a few rows": lambda: gemv.launch(gemv.Problem(x, None, W, None, product)),
        "quant": lambda: quant.launch(x_rows, q, scale, False, "ieee"),
        "rmsnorm": lambda: rmsnorm.launch(x_rows, None, weight, out_rows, 1e-6, 0.0),
        "rmsnorm_quant": lambda: rmsnorm.launch_quant(x_rows, None, weight, q, scale, 1e-6, 0.0),
    }


@pytest.mark.parametrize("setting", [None, "0"])
@pytest.mark.parametrize("name", launches())
def test_fusion_of_products_and_sums_is_fixed(name, setting, monkeypatch):
    """Whatever Triton's release and TRITON_DEFAULT_FP_FUSION say; and Triton has nothing to warn of."""
    if setting is None:
        monkeypatch.delenv("TRITON_DEFAULT_FP_FUSION", raising=False)
    else:
        monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", setting)
    given = triton_launch(launches()[name]).options
    backend = triton.compiler.make_backend(triton.backends.compiler.GPUTarget("cuda", 90, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.parse_options(given).enable_fp_fusion is True
    assert given["enable_fp_fusion"] is True  # and not by a default, of which Triton warns once a process
