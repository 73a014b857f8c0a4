"""Block quantisation of a checkpoint's weights: which is ours, and why another is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .checkpoint import Tensor

BLOCK = 128  # rows and columns of a weight that share one scale
FP8 = "F8_E4M3"
_SCALES = ("weight_scale_inv", "weight_scale")  # the second is compressed-tensors' name for the same


def check_block_size(config: Mapping[str, Any]) -> None:
    """ValueError where config.json names blocks of another size; it need not name any."""
    quantization = config.get("quantization_config") or {}
    groups = (quantization.get("config_groups") or {}).values()
    sizes = [quantization.get("weight_block_size")]
    sizes += [(group.get("weights") or {}).get("block_structure") for group in groups]
    for size in sizes:
        if size is not None and list(size) != [BLOCK, BLOCK]:
            raise ValueError(
                f"quantization_config has weight blocks of {size}; the kernels have [{BLOCK}, {BLOCK}] "
                f"alone. Take a checkpoint quantised so"
            )


def check_scale(name: str, weight: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """ValueError unless the FP8 weight `name` has one scale for each block among `tensors`."""
    base = name.removesuffix("weight")
    N, K = weight.shape
    expected = (-(-N // BLOCK), -(-K // BLOCK))
    wanted = f"expected {_SCALES[0]} of shape {expected}, one scale for each {BLOCK} x {BLOCK} block"
    for scale in _SCALES:
        found = tensors.get(base + scale)
        if found is None:
            continue
        if found.shape == expected:
            return
        whole = (*found.shape, 1, 1)[:2] in ((1, 1), (N, 1))
        kind = (
            "; that is FP8 with a scale per tensor or row, for which these kernels are not made"
            if whole
            else ""
        )
        raise ValueError(
            f"{name} of shape {weight.shape} has {scale} of shape {found.shape}; {wanted}{kind}. Take a "
            f"checkpoint quantised in such blocks"
        )
    raise ValueError(
        f"{name} of shape {weight.shape} is {FP8} without a scale; {wanted}. Take a checkpoint quantised in "
        f"such blocks"
    )
