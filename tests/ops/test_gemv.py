"""ops.gemv on the CPU: results, what it refuses and how it says so, tracing."""

from __future__ import annotations

import pytest
import torch

from tilelang_gemm_wrapper import per_block_quant_fp8, per_token_group_quant_fp8
from tilelang_gemm_wrapper.ops import gemv

X, W = torch.randn(2, 300).bfloat16(), torch.randn(70, 300).bfloat16()
W_FP8 = per_block_quant_fp8(W)
X_FP8 = per_token_group_quant_fp8(X)


def test_half_precision():
    assert torch.equal(gemv(X, W), (X.float() @ W.float().t()).bfloat16())


@pytest.mark.parametrize("x", [X, X.half(), X_FP8], ids=["bfloat16", "float16", "e4m3"])
def test_block_scaled_weights(x):
    out = gemv(x, W_FP8)
    assert out.dtype is (torch.bfloat16 if x is X_FP8 else x.dtype)
    wanted = X.float() @ W.float().t()
    assert (out.float() - wanted).norm() / wanted.norm() < 0.05


def test_out_is_written_and_returned():
    out = torch.empty(2, 70, dtype=torch.bfloat16)
    assert gemv(X, W, out=out) is out
    assert torch.equal(out, gemv(X, W))


def test_under_torch_compile():
    compiled = torch.compile(lambda x: gemv(x * 2, W) + 1, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        assert torch.equal(compiled(X), gemv(X * 2, W) + 1)


@pytest.mark.parametrize(
    ("x", "w", "error", "match"),
    [
        (None, W, TypeError, r"x is a NoneType, expected a torch\.Tensor"),
        (X, None, TypeError, r"W is a NoneType, expected a torch\.Tensor"),
        (X.to_sparse(), W, ValueError, r"x has layout torch\.sparse_coo, expected torch\.strided"),
        (1.0, W, TypeError, r"x is a float, expected a torch\.Tensor"),
        ((X, X, X), W, TypeError, r"x is a tuple of 3, expected \(values, scales\)"),
        (X.float(), W, TypeError, r"x is torch\.float32 and W torch\.bfloat16, expected both"),
        (X, W.half(), TypeError, r"x is torch\.bfloat16 and W torch\.float16, expected both"),
        (X, W_FP8[0], TypeError, r"W is torch\.float8_e4m3fn without scales.*pass \(W, W_scale\)"),
        (X, (W, W_FP8[1]), TypeError, r"W is torch\.bfloat16 with scales"),
        (X_FP8, W, TypeError, r"x is torch\.float8_e4m3fn and W torch\.bfloat16"),
        (X.float(), W_FP8, TypeError, "expected bfloat16, float16 or"),
        (X, (W_FP8[0], W_FP8[1].double()), TypeError, r"W_scale is torch\.float64, expected torch\.float32"),
        (X[0], W, ValueError, r"x has shape \(300,\), expected two dimensions"),
        (X.repeat(5, 1), W, ValueError, "x has 10 rows, expected 1 to 8; gemm_nt_f8f8bf16 and torch.mm"),
        (X[:0], W, ValueError, "x has 0 rows"),
        (X, W[:0], ValueError, "N and K of at least 1"),
        (X[:, :299].contiguous(), W, ValueError, r"W has shape \(70, 300\), expected \(70, 299\)"),
        (X, (W_FP8[0], W_FP8[1][:, :2].contiguous()), ValueError, r"W_scale has shape .* expected \(1, 3\)"),
        (X, W.t().contiguous().t(), ValueError, r"W has strides \(1, 70\), expected row-major; pass W\.cont"),
        (X, W.to("meta"), ValueError, "W is on meta and x on cpu; move them to one device"),
        (X.to("meta"), W, ValueError, "x is on meta, expected the CPU or a CUDA device"),
        (X.clone().requires_grad_(), W, ValueError, r"x requires grad.*x\.detach\(\)"),
    ],
)
def test_refusals(x, w, error, match):
    with pytest.raises(error, match=match):
        gemv(x, w)


@pytest.mark.parametrize(
    ("out", "error", "match"),
    [
        (5, TypeError, r"out is a int, expected a torch\.Tensor"),
        (torch.empty(2, 70), TypeError, r"out is torch\.float32, expected torch\.bfloat16"),
        (torch.empty(70, 2, dtype=torch.bfloat16), ValueError, r"out has shape .* expected \(2, 70\)"),
        (torch.empty(70, 2, dtype=torch.bfloat16).t(), ValueError, "out has strides .* contiguous buffer"),
        (W.flatten()[:140].view(2, 70), ValueError, "out overlaps W in memory"),
    ],
)
def test_refused_outputs(out, error, match):
    with pytest.raises(error, match=match):
        gemv(X, W, out=out)


def test_backends():
    with pytest.raises(ValueError, match=r"backend is 'cublas', expected one of 'auto', 'triton'"):
        gemv(X, W, backend="cublas")
    for backend in ("triton", "tilelang"):
        with pytest.raises(RuntimeError, match=f"'{backend}' cannot run: the tensors are on the CPU.*'auto'"):
            gemv(X, W, backend=backend)
    assert torch.equal(gemv(X, W, backend="torch"), gemv(X, W))
