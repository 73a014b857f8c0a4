"""The rules of FP8 (e4m3fn) quantization, and their plain PyTorch form: the reference of every kernel.

Weights are quantized here, per block. For activations `ops.quant` has the public function, which runs one
kernel; `per_token_group_quant_fp8_reference` gives the same bits, slowly and on any device.

Both store `q = x / scale` with `scale = amax / 448`, 448 being the largest e4m3fn value: the largest
magnitude of each group lands on the end of the range, and `x ≈ q * scale`.

What happens at the edges:
  * A group whose values are all zero gets scale 1.
  * A group so small that amax / 448 is below the smallest normal float32 gets that as its scale, since GPUs
    may flush anything smaller to zero.
  * NaN and ±Inf are stored as NaN (e4m3fn has no infinity) and do not take part in amax: what they touch in a
    GEMM becomes NaN, and the rest of their group keeps its precision. A group of these alone gets scale 1.

That is rounding "ieee". Rounding "sglang" has the rules of SGLang's own quantizer of activations:
  * scale = max(amax, 1e-10) * (1 / 448), and q = x * (448 / max(amax, 1e-10)), cut off at ±448.
  * NaN becomes 448 and does not take part in amax. Inf does: it becomes 448, and the rest of its group 0.
  * GPUs divide approximately there, as SGLang does, so that both give the same bits. The reference divides
    as IEEE has it: 448 / amax may differ by two units in the last place, and a value next to a boundary
    between two codes may take the other one.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

ScaleLayout = Literal["row", "column_tma"]
Rounding = Literal["ieee", "sglang"]

_ROUNDINGS = get_args(Rounding)

FP8_MAX = 448.0  # of float8_e4m3fn
SGLANG_LEAST_AMAX = 1e-10
TMA_ALIGNMENT = 4  # float32 elements: TMA wants column strides in multiples of 16 bytes
_SOURCE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def per_token_group_quant_fp8_reference(
    x: torch.Tensor,
    *,
    group_size: int = 128,
    scale_layout: ScaleLayout = "row",
    rounding: Rounding = "ieee",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes activations with one scale per row and group of `group_size` columns, in PyTorch.

    x: (M, K) float32, bfloat16 or float16, any strides, any device. The last group may be shorter.
    Returns q: (M, K) float8_e4m3fn, row-major, and scale: (M, ceil(K / group_size)) float32, laid out as
    `scale_layout` says (see `convert_scale_layout`). Raises TypeError for another dtype, ValueError for
    another shape, group size, layout or rounding.
    """
    _check_source(x, "x", "(M, K)")
    _check_positive(group_size, "group_size")
    check_rounding(rounding)
    groups = _pad(x.float(), 1, group_size).unflatten(1, (-1, group_size))
    if rounding == "sglang":
        codes, scale = _round_as_sglang(groups)
    else:
        scale = _scale_of(groups, dims=(2,))
        codes = _to_fp8(groups, scale)
    q = codes.flatten(1)[:, : x.shape[1]].contiguous()
    return q, convert_scale_layout(scale.squeeze(2), scale_layout)


@torch.no_grad()
def per_block_quant_fp8(
    w: torch.Tensor, block_size: tuple[int, int] = (128, 128)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes a weight matrix with one scale per block.

    w: (N, K) float32, bfloat16 or float16, any strides, CPU or CUDA. The blocks at the edges may be smaller.
    Returns q: (N, K) float8_e4m3fn, row-major, and scale: (ceil(N / block_size[0]), ceil(K / block_size[1]))
    float32, row-major. Raises TypeError for another dtype, ValueError for another shape or block size.
    """
    _check_source(w, "w", "(N, K)")
    try:
        block_n, block_k = block_size
    except (TypeError, ValueError):
        raise ValueError(f"block_size is {block_size!r}; expected a pair such as (128, 128)") from None
    _check_positive(block_n, "block_size[0]")
    _check_positive(block_k, "block_size[1]")
    N, K = w.shape
    padded = _pad(_pad(w.float(), 0, block_n), 1, block_k)
    blocks = padded.unflatten(1, (-1, block_k)).unflatten(0, (-1, block_n))
    scale = _scale_of(blocks, dims=(1, 3))
    q = _to_fp8(blocks, scale).flatten(2).flatten(0, 1)[:N, :K].contiguous()
    return q, scale[:, 0, :, 0].contiguous()


def convert_scale_layout(scale: torch.Tensor, scale_layout: ScaleLayout) -> torch.Tensor:
    """The same (M, groups) values in one of the two layouts that the GEMM takes for A_scale.

    "row": strides (groups, 1). "column_tma": strides (1, M rounded up to 4), the layout that TMA and DeepGEMM
    read; the rows up to the next multiple of 4 lie in the storage and are zero. Copies only where the layout
    differs. Raises ValueError for an unknown layout.
    """
    M, groups = scale.shape
    if scale_layout == "row":
        # is_contiguous() overlooks strides of dimensions of size 1; kernels that check strides do not.
        strides_fit = scale.stride() == (groups, 1)
        return scale if strides_fit else scale.clone(memory_format=torch.contiguous_format)
    if scale_layout != "column_tma":
        raise ValueError(
            f"scale_layout is {scale_layout!r}; expected one of {', '.join(map(repr, get_args(ScaleLayout)))}"
        )
    if is_column_tma(scale):
        return scale
    columns = scale.new_zeros((groups, round_up(M, TMA_ALIGNMENT))).t()[:M]
    return columns.copy_(scale)


def is_column_tma(scale: torch.Tensor) -> bool:
    """Whether TMA can read this (M, groups) float32 tensor as it lies: "column_tma", its base at 16 bytes."""
    return scale.stride() == (1, round_up(scale.shape[0], TMA_ALIGNMENT)) and scale.data_ptr() % 16 == 0


def _scale_of(groups: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """amax over `dims` (kept, of size 1) / 448, by the module's rules for zero, tiny and non-finite."""
    amax = groups.abs().nan_to_num_(nan=0.0, posinf=0.0).amax(dim=dims, keepdim=True)
    # By a tensor: by a number, PyTorch multiplies with its inverse on a GPU, and the last bit may differ.
    scale = (amax / torch.full_like(amax, FP8_MAX)).clamp_min_(torch.finfo(torch.float32).tiny)
    return torch.where(amax > 0, scale, 1.0)


def _to_fp8(groups: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    # torch's cast turns what exceeds the range into NaN; the clamp is for a quotient rounded just above 448.
    quotient = (groups / scale).clamp_(-FP8_MAX, FP8_MAX)
    return quotient.masked_fill_(groups.isinf(), torch.nan).to(torch.float8_e4m3fn)


def _round_as_sglang(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales (kept, of size 1) of groups (M, G, size) float32 by rounding "sglang"."""
    amax = groups.abs().nan_to_num_(nan=0.0, posinf=torch.inf).amax(dim=2, keepdim=True)
    amax = amax.clamp_min_(SGLANG_LEAST_AMAX)
    product = groups * (torch.full_like(amax, FP8_MAX) / amax)
    codes = product.nan_to_num_(nan=FP8_MAX).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return codes, amax * (1.0 / FP8_MAX)


def _pad(x: torch.Tensor, dim: int, multiple: int) -> torch.Tensor:
    """x, contiguous, with zeros behind its end along `dim` up to a multiple."""
    missing = -x.shape[dim] % multiple
    if missing == 0:
        return x.contiguous()
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat([x, x.new_zeros(shape)], dim=dim)


def round_up(value: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


def check_rounding(rounding: str) -> None:
    """ValueError unless it is one of `Rounding`."""
    if rounding not in _ROUNDINGS:
        raise ValueError(f"rounding is {rounding!r}; expected one of {', '.join(map(repr, _ROUNDINGS))}")


def why_not_dense(name: str, x: torch.Tensor) -> ValueError | None:
    """For a sparse or nested tensor: such have no strides, and PyTorch says that less clearly."""
    if x.layout is torch.strided and not x.is_nested:
        return None
    what = "is nested" if x.is_nested else f"has layout {x.layout}"
    return ValueError(f"{name} {what}, expected torch.strided; pass a dense tensor")


def check_dense(name: str, x: torch.Tensor) -> None:
    problem = why_not_dense(name, x)
    if problem is not None:
        raise problem


def _check_source(x: torch.Tensor, name: str, shape: str) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; expected a torch.Tensor of shape {shape}")
    if x.dtype not in _SOURCE_DTYPES:
        raise TypeError(f"{name} is {x.dtype}; expected float32, bfloat16 or float16: convert it first")
    check_dense(name, x)
    if x.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected two dimensions {shape}: reshape it")
    if x.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected K of at least 1")


def _check_positive(size: int, name: str) -> None:
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{name} is {size!r}; expected a positive int (the GEMM itself takes 128)")
