"""The tensors of a checkpoint by what they are: FP8 weights of linear layers, of experts, and the rest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .blocks import BLOCK, FP8, POWERS_OF_TWO, is_of_shards, scale_of
from .checkpoint import Checkpoint, Tensor
from .roles import FUSED_GATE_UP, FUSED_QKV, NO_LINEAR_CALL, TOWERS, UNSERVED_TOWERS

EXPERT = re.compile(r"^(?:(.*)\.)?experts\.(\d+)$")  # a module that is one routed expert
_STACKED = re.compile(r"(^|[._])(experts|moe)\.")  # in the name of a tensor that holds all experts of a layer
_SCALES_IN_FP8 = ("_scale", "_scale_inv")  # of weights in four bits
_MERGED_BY_RANKS = frozenset((*FUSED_QKV, *FUSED_GATE_UP, "q_proj", "k_proj", "v_proj"))


@dataclass(frozen=True, slots=True)
class Weights:
    """The 2-D FP8 weights by module, and the other tensors that a listing speaks of."""

    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # module -> leaf -> weight (N, K)
    sharded: set[tuple[str, str]] = field(default_factory=set)  # (module, leaf): its scales are of shards
    stacked: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # the same for 3-D ones of experts
    no_linear_call: dict[str, tuple[str, Tensor]] = field(default_factory=dict)  # leaf -> (why, weight)
    unserved: set[str] = field(default_factory=set)  # towers that engines do not run
    odd: dict[str, Tensor] = field(default_factory=dict)  # other FP8 tensors
    others: dict[str, Tensor] = field(default_factory=dict)  # 2-D weights in other dtypes, without ".weight"
    scaled_by_powers: set[str] = field(default_factory=set)  # modules whose scales can be nothing else


def weights_of(checkpoint: Checkpoint) -> Weights:
    """Sort the tensors. ValueError for a weight whose scales are not of blocks, or where no weight is FP8."""
    found = Weights()
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype != FP8:
            if name.endswith(".weight") and len(tensor.shape) == 2:
                found.others[name.removesuffix(".weight")] = tensor
        elif name.endswith(_SCALES_IN_FP8):
            continue
        elif unserved := [tower for tower in UNSERVED_TOWERS if TOWERS[tower].search(name)]:
            found.unserved.update(unserved)
        elif len(tensor.shape) == 3 and _STACKED.search(name):
            module, leaf = _split(name)
            found.stacked.setdefault(module, {})[leaf] = tensor
        elif len(tensor.shape) != 2 or not name.endswith(".weight"):
            found.odd[name] = tensor
        else:
            _add(found, name, tensor, checkpoint)
    if not (found.modules or found.stacked or found.odd or found.no_linear_call or found.unserved):
        raise ValueError(_why_not_fp8(found.others.values()))
    return found


def _add(found: Weights, name: str, weight: Tensor, checkpoint: Checkpoint) -> None:
    module, leaf = _split(name)
    if leaf in NO_LINEAR_CALL:
        found.no_linear_call[leaf] = (NO_LINEAR_CALL[leaf], weight)
        return
    scale_name, scale = scale_of(name, weight, checkpoint.tensors)
    if is_of_shards(name, weight, scale_name, scale, may_be_sharded=leaf in _MERGED_BY_RANKS):
        found.sharded.add((module, leaf))
    if scale.dtype == POWERS_OF_TWO:
        found.scaled_by_powers.add(module)
    found.modules.setdefault(module, {})[leaf] = weight


def _split(name: str) -> tuple[str, str]:
    """(module, leaf) of a weight's name."""
    module, _, leaf = name.removesuffix(".weight").rpartition(".")
    return module, leaf


def _why_not_fp8(others: Iterable[Tensor]) -> str:
    dtypes = Counter(tensor.dtype for tensor in others)
    found = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.most_common()) or "none"
    return (
        f"the checkpoint has no FP8 ({FP8}) linear weight; its 2-D weights are: {found}. Take a model "
        f"that is quantised in FP8 with blocks of {BLOCK} x {BLOCK}, such as Qwen/Qwen3-4B-FP8"
    )
