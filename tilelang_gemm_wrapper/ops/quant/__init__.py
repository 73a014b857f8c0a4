"""1x128 FP8 quantization of activations, alone or after SiLU and product, in the layout that the GEMM reads.

The rules are those of `quantize`. Every backend gives the bits of
`quantize.per_token_group_quant_fp8_reference` on the same float32 values; with rounding "sglang" every GPU
backend gives those of SGLang's kernel.
"""

from __future__ import annotations

from importlib import import_module

import torch
from torch.compiler import is_compiling

from ...core import compile_cache
from ...quantize import Rounding, ScaleLayout, check_dense, check_rounding
from .. import backends
from ..arguments import (
    FLOATS,
    GROUP,
    check_floats,
    check_groups,
    check_rows,
    dtype_name,
    empty_fp8,
    empty_scale,
    rows_of,
    scale_and_memory,
)
from ..backends import Backend
from ..custom_op import define, is_tracing

LONGEST = 2**31 - 1  # columns: kernels count them in int32,
MOST_GROUPS = 2**27 - 1  # and in a group up to 16 chunks


def per_token_group_quant_fp8(
    x: torch.Tensor,
    group_size: int = GROUP,
    *,
    scale_layout: ScaleLayout = "row",
    rounding: Rounding = "ieee",
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize activations with one scale a row and 128 columns, in one kernel.

    x: (..., K) bfloat16, float16 or float32, CPU or CUDA, rows in up to two strides; a tensor whose rows are
    not side by side in memory is copied first. The last group may be shorter. No gradient flows.
    group_size: 128, the only one that the GEMM takes; it is there for callers who name it.
    rounding: "ieee", or "sglang" for the bits of SGLang's own quantizer; see `quantize`.

    Returns q, shaped as x, float8_e4m3fn, contiguous, and scale (M, ceil(K / 128)) float32, M being the
    number of rows: "row"-major, or "column_tma", which GEMMs on a GPU read faster: stride (1, M rounded up to
    4), rows beyond M unwritten.

    Runs on the current stream, under torch.compile, and in CUDA graphs once the same call has been made.
    Raises TypeError or ValueError for arguments that do not fit, RuntimeError for a backend that cannot run.
    """
    if group_size != GROUP:
        raise _other_group_size(group_size)
    check_rounding(rounding)
    if _is_plain(x):
        return _quantize_plain(x, scale_layout, rounding, backend)
    x = _checked(x)
    return _quantize(x, x.shape[-1], scale_layout, rounding, backend, silu_mul=False)


def _is_plain(x: torch.Tensor) -> bool:
    """Whether x is what an engine passes before each layer: nothing to refuse, convert or trace."""
    return (
        type(x) is torch.Tensor
        and x.is_cuda
        and x.dtype in FLOATS
        and x.is_contiguous()
        and x.dim() > 0
        and x.numel() > 0
        and x.shape[-1] % GROUP == 0
        and not x.requires_grad
        and not is_compiling()
    )


def _quantize_plain(
    x: torch.Tensor, scale_layout: ScaleLayout, rounding: Rounding, backend: Backend
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_quantize` in half the host's time, which an engine spends before each layer outside a graph."""
    K = x.shape[-1]
    M, groups = x.numel() // K, K // GROUP
    _check_size(x, M * groups)
    q = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scale, memory = scale_and_memory(M, groups, scale_layout, x.device)
    module = backends.implementation(
        "per_token_group_quant_fp8", backend, x, dtype_name(x), M, 0, K, fp8=True
    )
    module.launch_contiguous(x, q, scale, memory, rounding)
    return q, scale


def _check_size(x: torch.Tensor, groups: int) -> None:
    if groups > MOST_GROUPS:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, which is {groups} groups of {GROUP} columns; expected at most "
            f"{MOST_GROUPS}: quantize it in parts"
        )


def _checked(x: torch.Tensor) -> torch.Tensor:
    """x without its gradient, the values of a row side by side. TypeError or ValueError where it is unfit."""
    if isinstance(x, torch.Tensor):
        check_dense("x", x)
    if isinstance(x, torch.Tensor) and x.dim():
        x = x.detach() if x.requires_grad else x
        x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
    check_floats(x=x)
    check_rows("x", x, LONGEST)
    return x


def _other_group_size(given: object) -> TypeError | ValueError:
    if isinstance(given, int):
        return ValueError(
            f"group_size is {given}, expected {GROUP}: the GEMM takes one scale a token and {GROUP} columns. "
            f"For other sizes use quantize.per_token_group_quant_fp8_reference"
        )
    return TypeError(
        f"group_size is {given!r}, expected {GROUP}; name the options: scale_layout=, rounding=, backend="
    )


def silu_mul_quant_fp8(
    x: torch.Tensor, scale_layout: ScaleLayout = "row", backend: Backend = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """silu(gate) * up, quantized: x (..., 2 K), the gate in its first K columns and up in the others.

    silu(g) = g / (1 + exp(-g)); silu and the product are float32 and not rounded to x's dtype in between.
    exp is the backend's own: backends agree to a few units in the last place of float32, after which a value
    between two codes may take either. K is a multiple of 128, and each row's values lie side by side. Results
    and errors as of `per_token_group_quant_fp8`, q being (..., K).
    """
    check_floats(x=x)
    check_rows("x", x, 2 * 65536)
    if x.shape[-1] % 2:
        raise ValueError(f"x has {x.shape[-1]} columns, expected twice K: the gate, then up")
    check_groups("x", x.shape[-1] // 2)
    return _quantize(x, x.shape[-1] // 2, scale_layout, "ieee", backend, silu_mul=True)


def warmup(index: int, rounding: Rounding) -> None:
    """Compile or load the TileLang kernels that contiguous bfloat16 rows need, of any number and length, on
    CUDA device `index`: before a CUDA graph is captured.
    """
    compile_cache.tilelang_module()  # sets its cache directory before anything else of it is imported
    import_module(f"{__name__}.tilelang").warmup(index, rounding)


def _quantize(
    x: torch.Tensor,
    K: int,
    scale_layout: ScaleLayout,
    rounding: Rounding,
    backend: Backend,
    *,
    silu_mul: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    M, groups = x.numel() // x.shape[-1], -(-K // GROUP)
    _check_size(x, M * groups)
    q = empty_fp8((*x.shape[:-1], K), x.device)
    scale = empty_scale(M, groups, scale_layout, x.device)
    call = torch.ops.tilelang_gemm.quant_fp8 if is_tracing(x) else _launch
    call(x, q, scale, silu_mul, rounding, backend)
    return q, scale


def _launch(
    x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, silu_mul: bool, rounding: Rounding, backend: str
) -> None:
    """q and scale are fresh: nothing else lies in their memory."""
    (source,) = rows_of(["x"], [x])
    M, K = scale.shape[0], q.shape[-1]
    op = "silu_mul_quant_fp8" if silu_mul else "per_token_group_quant_fp8"
    module = backends.implementation(op, backend, x, dtype_name(x), M, 0, K, fp8=True)
    if M:
        module.launch(source, q.view(M, K), scale, silu_mul, rounding)


define(
    "quant_fp8(Tensor x, Tensor(a!) q, Tensor(b!) scale, bool silu_mul, str rounding, str backend) -> ()",
    _launch,
)
