"""Block quantization of a checkpoint's weights: which is ours, and why another is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .checkpoint import Tensor

BLOCK = 128  # rows and columns of a weight that share one scale
FP8 = "F8_E4M3"
POWERS_OF_TWO = "F8_E8M0"  # a dtype of scales
# Names of a weight's scales: most checkpoints', compressed-tensors', DeepSeek-V4's.
_SCALES = ("weight_scale_inv", "weight_scale", "scale")


def check_block_size(config: Mapping[str, Any]) -> None:
    """ValueError where config.json names blocks of another size; it need not name any."""
    for quantization in _quantizations(config):
        groups = _object(quantization.get("config_groups")).values()
        sizes = [quantization.get("weight_block_size")]
        sizes += [_object(_object(group).get("weights")).get("block_structure") for group in groups]
        for size in sizes:
            if size is not None and size not in ([BLOCK, BLOCK], (BLOCK, BLOCK)):
                raise ValueError(
                    f"quantization_config has weight blocks of {size}; the kernels have [{BLOCK}, {BLOCK}] "
                    f"alone. Take a checkpoint quantised so"
                )


def has_rounded_activations(config: Mapping[str, Any]) -> bool:
    """Whether the config asks for scales that are powers of two (`scale_fmt` "ue8m0")."""
    return any(quantization.get("scale_fmt") == "ue8m0" for quantization in _quantizations(config))


def scale_of(name: str, weight: Tensor, tensors: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """(last name, tensor) of the scales of the FP8 weight `name`; ValueError where `tensors` has none."""
    base = name.removesuffix("weight")
    for last_name in _SCALES:
        if base + last_name in tensors:
            return last_name, tensors[base + last_name]
    raise ValueError(
        f"{name} of shape {weight.shape} is {FP8} without a scale; {_wanted(weight)}. Take a checkpoint "
        f"quantised in such blocks"
    )


def is_of_shards(name: str, weight: Tensor, scale_name: str, scale: Tensor, *, may_be_sharded: bool) -> bool:
    """Whether `scale` is of shards of `weight`, each of its own blocks, instead of the weight's blocks.

    A checkpoint of merged projections may have been written by several ranks. Then each rank's share has
    whole rows of scales, one more than the weight's blocks for each share that is no multiple of 128.
    ValueError unless there is one scale for each block, of the weight or (`may_be_sharded`) of such shards.
    """
    rows, columns = _blocks(weight)
    if scale.shape == (rows, columns):
        return False
    N = weight.shape[0]
    if may_be_sharded and scale.shape[1:] == (columns,) and _shards(N, scale.shape[0]):
        return True
    whole = (*scale.shape, 1, 1)[:2] in ((1, 1), (N, 1))
    kind = (
        "; that is FP8 with a scale per tensor or row, for which these kernels are not made" if whole else ""
    )
    raise ValueError(
        f"{name} of shape {weight.shape} has {scale_name} of shape {scale.shape}; {_wanted(weight)}{kind}. "
        f"Take a checkpoint quantised in such blocks"
    )


def _wanted(weight: Tensor) -> str:
    return f"expected {_SCALES[0]} of shape {_blocks(weight)}, one scale for each {BLOCK} x {BLOCK} block"


def _blocks(weight: Tensor) -> tuple[int, int]:
    """The rows and columns of blocks of a weight (N, K)."""
    N, K = weight.shape
    return -(-N // BLOCK), -(-K // BLOCK)


def _shards(rows: int, scale_rows: int) -> int | None:
    """Into how many equal shards of more than a block `rows` fall, if these have `scale_rows` together."""
    counts = (count for count in range(2, rows // BLOCK) if rows % count == 0)
    return next((count for count in counts if count * -(-rows // count // BLOCK) == scale_rows), None)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _quantizations(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Each quantization_config, of the model or of a part of it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from (value,) if key == "quantization_config" else _quantizations(value)
