"""A block-FP8 linear layer as engines call it, and the one judge of which calls our GEMM takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
from torch.compiler import is_compiling

from tilelang_gemm_wrapper import gemm_nt_f8f8bf16, per_token_group_quant_fp8

logger = logging.getLogger(__name__)

BLOCK = [128, 128]  # rows and columns of a weight that share a scale

Shape = tuple[int, int]  # (N, K) of a weight as this rank holds it


class BlockFp8Linear:
    """`input @ weight.T + bias` for FP8 weights with 128 x 128 scales, in the place of an engine's function.

    What our GEMM does not take goes to `engine_linear`, the function that the engine would use without this
    backend; each reason is logged once.
    """

    def __init__(
        self,
        engine_linear: Callable[..., torch.Tensor],
        shapes: Container[Shape] | None = None,
        logged: set[str] | None = None,
    ) -> None:
        """shapes: those that were prepared; others go to `engine_linear`, as they would be compiled while
        serving. None: any. logged: the reasons that were told already, shared by the layers of a model.
        """
        self.engine_linear = engine_linear
        self._shapes = shapes
        self._logged = set() if logged is None else logged

    def __call__(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        block_size: list[int],
        weight_scale: torch.Tensor,
        input_scale: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        **others: Any,
    ) -> torch.Tensor:
        """The output (..., N) bfloat16 of a layer.

        input: (..., K) bfloat16, quantized here per token and 128 columns with column-major scales; or e4m3
            already, with `input_scale` (M, K / 128) float32, row-major or column-major.
        weight: (N, K) e4m3; weight_scale: (ceil(N / 128), K / 128) float32; bias: (N,) or None.
        others: keywords that only some engines pass; one that asks for anything goes to `engine_linear`.
        """
        why_not = why_call_unfit(input, weight, block_size, weight_scale, input_scale, others)
        if why_not is None and self._shapes is not None and tuple(weight.shape) not in self._shapes:
            N, K = weight.shape
            why_not = f"N={N}, K={K} was not prepared when the model was loaded"
        if why_not is not None:
            if not is_compiling():
                self._log(why_not)
            return self.engine_linear(
                input=input,
                weight=weight,
                block_size=block_size,
                weight_scale=weight_scale,
                input_scale=input_scale,
                bias=bias,
                **others,
            )
        rows = input.view(-1, input.shape[-1])
        if input_scale is not None:
            A = rows, input_scale
        else:
            A = per_token_group_quant_fp8(
                rows,
                scale_layout="column_tma",
                rounding="sglang",
                backend="tilelang" if rows.is_cuda else "torch",  # the one that `prepare` has compiled
            )
        C = gemm_nt_f8f8bf16(A, (weight, weight_scale))
        if bias is not None:
            C += bias
        return C.view(*input.shape[:-1], weight.shape[0])

    def _log(self, why: str) -> None:
        if why not in self._logged:
            self._logged.add(why)
            logger.warning("The engine's own FP8 GEMM runs where the tilelang backend does not: %s", why)


def why_call_unfit(
    input: torch.Tensor,
    weight: torch.Tensor,
    block_size: list[int],
    weight_scale: torch.Tensor,
    input_scale: torch.Tensor | None,
    others: Mapping[str, Any],
) -> str | None:
    """Why a call is not ours, in a sentence that says nothing of M, N and K; None if it is.

    Arguments are those of `BlockFp8Linear`. Start-up asks it too, of a call as a layer will make it: `input`
    may then be a meta tensor.
    """
    if list(block_size) != BLOCK:
        return f"the weights are quantized in blocks of {list(block_size)}, expected {BLOCK}"
    asked = [name for name, value in others.items() if value is not None and value is not False]
    if asked:
        return f"the engine passes {', '.join(sorted(asked))}, which this backend does not know"
    if weight.dtype is not torch.float8_e4m3fn or weight.dim() != 2 or not weight.is_contiguous():
        return (
            f"the weights are {weight.dtype} in {weight.dim()} dimensions, "
            f"{'' if weight.is_contiguous() else 'not '}contiguous; expected contiguous e4m3 in 2"
        )
    N, K = weight.shape
    if (
        weight_scale.dtype is not torch.float32
        or weight_scale.shape != (-(-N // 128), -(-K // 128))
        or not weight_scale.is_contiguous()
    ):
        return f"the weight scales are packed, transposed or of another format ({weight_scale.dtype})"
    if input_scale is None:
        if input.dtype is not torch.bfloat16:
            return f"the activations are {input.dtype}, expected torch.bfloat16"
    elif input.dtype is not torch.float8_e4m3fn or input_scale.dtype is not torch.float32:
        return (
            f"the activations are {input.dtype} with {input_scale.dtype} scales, expected e4m3 with float32"
        )
    elif input_scale.shape != (input.numel() // K, K // 128):
        return "the activations' scales are not one a token and 128 columns"
    if input.numel() == 0:
        return "the batch is empty (an idle data-parallel rank)"
    return None
