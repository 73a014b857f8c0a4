"""SGLang's layers and settings, read from its records: which layers there are, and what calls they make."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tilelang_gemm_wrapper.integrations.block_fp8_linear import BlockFp8Linear, Shape, why_call_unfit

# Where a layer keeps what computes it, and the method of that which calls the linear function: of FP8 and of
# compressed-tensors checkpoints. The function is their attribute LINEAR.
HOLDERS = {"quant_method": "apply", "scheme": "apply_weights"}
LINEAR = "w8a8_block_fp8_linear"

_STACKED = ("w13_weight", "w2_weight")  # of the experts of a layer


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of block-quantized FP8 weights on this rank."""

    holder: Any  # SGLang's method or scheme
    method: str  # the holder's method that computes the layer
    shape: Shape  # (N, K)
    weight: torch.Tensor  # after SGLang's own preparation, which may have packed it
    weight_scale: torch.Tensor
    block_size: list[int]
    activations: torch.dtype

    def why_not(self) -> str | None:
        """Why no call of this layer is ours, or None: asked of a call as SGLang will make it."""
        if getattr(self.holder, "use_marlin", False):
            return "SGLang multiplies with Marlin's kernels here, not with a block-FP8 linear"
        # SGLang 0.5.21 and newer quantize activations so, most of their GEMMs at least; older ones never do.
        if getattr(getattr(self.holder, "quant_config", None), "scale_fmt", None) == "ue8m0":
            return "the checkpoint's scales are UE8M0 (powers of two), and so have the activations' to be"
        linear = getattr(self.holder, LINEAR)
        return why_call_unfit(
            input=torch.empty((1, self.shape[1]), dtype=self.activations, device="meta"),
            weight=self.weight,
            block_size=self.block_size,
            weight_scale=self.weight_scale,
            input_scale=None,
            others=getattr(linear, "keywords", {}),  # what SGLang has bound already
        )

    def serve(self, shapes: frozenset[Shape], logged: set[str]) -> None:
        """From now on let `BlockFp8Linear` compute the layer, for the (N, K) in `shapes`.

        SGLang asks in many places *which* function its holder has: before it packs scales, keeps BF16 copies,
        refuses weight updates or quantizes once for several layers. It has to find its own. So the holder
        keeps it, and only computes through a twin that has ours.
        """
        twin = copy.copy(self.holder)
        vars(twin).pop(self.method, None)  # of a holder that computes through a twin already
        setattr(twin, LINEAR, BlockFp8Linear(getattr(self.holder, LINEAR), shapes, logged))
        setattr(self.holder, self.method, getattr(twin, self.method))


def block_fp8_layers(model: torch.nn.Module, default: torch.dtype = torch.bfloat16) -> Iterator[Layer]:
    """Every layer that SGLang made to multiply by block-quantized FP8 weights.

    default: the activations of layers that do not say theirs.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        scale = getattr(module, "weight_scale_inv", getattr(module, "weight_scale", None))
        for name, method in HOLDERS.items():
            holder = getattr(module, name, None)
            block_size = _block_size(holder)
            if getattr(holder, LINEAR, None) is None or block_size is None:
                continue
            if isinstance(weight, torch.Tensor) and isinstance(scale, torch.Tensor) and weight.dim() == 2:
                dtype = getattr(module, "orig_dtype", None) or getattr(module, "params_dtype", None)
                shape = _shape(module, weight)
                yield Layer(holder, method, shape, weight, scale, list(block_size), dtype or default)


def _shape(module: torch.nn.Module, weight: torch.Tensor) -> Shape:
    """(N, K) of the weight that calls will have; of one that is packed, what it stood for."""
    N, K = weight.shape
    if weight.dtype is not torch.float8_e4m3fn:
        N = getattr(module, "output_size_per_partition", N)
        K = getattr(module, "input_size_per_partition", K)
    return N, K


def _block_size(holder: Any) -> list[int] | None:
    """None of weights with one scale a tensor or channel, whose holders may have a linear all the same."""
    own = getattr(holder, "weight_block_size", None)
    return own or getattr(getattr(holder, "quant_config", None), "weight_block_size", None)


def other_fp8_weights(model: torch.nn.Module, layers: Iterable[Layer]) -> int:
    """How many FP8 weights of linear layers are of none of `layers`."""
    known = {id(layer.weight) for layer in layers}
    weights = (getattr(module, "weight", None) for module in model.modules())
    return sum(
        isinstance(weight, torch.Tensor)
        and weight.dtype is torch.float8_e4m3fn
        and weight.dim() == 2
        and id(weight) not in known
        for weight in weights
    )


def stacked_experts(model: torch.nn.Module) -> Mapping[tuple[int, int, int], int]:
    """How many layers have FP8 expert weights of each (experts, N, K) on this rank."""
    found: Counter[tuple[int, int, int]] = Counter()
    for module in model.modules():
        for name in _STACKED:
            weight = getattr(module, name, None)
            if isinstance(weight, torch.Tensor) and weight.dtype is torch.float8_e4m3fn and weight.dim() == 3:
                found[tuple(weight.shape)] += 1  # type: ignore[index]
    return found


# ---- settings, as SGLang has resolved them


def why_never(settings: Any) -> str | None:
    """Why SGLang's own GEMM has to run every layer, or None."""
    for name in ("enable_deterministic_inference", "rl_on_policy_target"):
        if getattr(settings, name, None):
            return f"{name} asks for results that do not depend on the batch, and our kernels change with M"
    return None


def why_weights_move(settings: Any) -> str | None:
    """Why a kernel or copy may write weights right before a GEMM reads them, or None.

    SGLang's other writers are not among the reasons. Weight updates (from disk, tensors, another process),
    and memory that is released and taken again, come between two forward passes: the next one first waits
    for their stream, and begins with copies and an embedding, which are launched normally and so wait for
    all before them. Experts that move (balancing, paging) and LoRA's adapters are no weights of a linear.
    """
    for name in ("cpu_offload_gb", "offload_group_size"):
        if _number(settings, name):
            return f"{name}={getattr(settings, name)} brings weights to the GPU while the model runs"
    if getattr(settings, "forward_hooks", None):
        return "forward_hooks run code between layers, which may write weights"
    return None


def why_weights_resized(settings: Any) -> str | None:
    """Why some calls of a layer come with another (N, K) than it has, which nothing has prepared; or None."""
    if getattr(settings, "enable_cp_decode_attn_tp", False) and _number(settings, "attn_cp_size") > 1:
        return "enable_cp_decode_attn_tp cuts those of attention while it decodes"
    if getattr(settings, "dcp_replicate_q_proj", False) and _number(settings, "dcp_size") > 1:
        return "dcp_replicate_q_proj gathers those of q_b_proj, where SGLang can"
    return None


def largest_m(settings: Any) -> int:
    """The most rows that a GEMM of this server gets: a prefill with the decodes that may ride along.

    Under data-parallel attention, settings are those of one rank, but the layers behind attention (dense
    MLPs, shared experts) get the rows of all ranks, each padded for tensor-parallel attention.
    """
    ranks = attention_ranks(settings)
    prefill = max(_prefill_rows(settings), _prefill_graph_rows(settings))
    requests = max(
        _number(settings, "max_running_requests") // ranks,  # of the server; all else is a rank's
        _number(settings, "cuda_graph_max_bs"),
        _number(settings, "cuda_graph_max_bs_decode"),
        _number(_graphs(settings, "decode"), "max_bs"),
    )
    rows = max(1, prefill + requests * max(1, _number(settings, "speculative_num_draft_tokens")))
    if ranks > 1:
        padding = max(1, _number(settings, "tp_size") // ranks)
        rows = ranks * padding * -(-rows // padding)
    return rows


def _prefill_rows(settings: Any) -> int:
    chunk, most = _number(settings, "chunked_prefill_size"), _number(settings, "max_prefill_tokens")
    if not chunk:
        return max(most, _number(settings, "context_length"))
    if getattr(settings, "enable_dynamic_chunking", False) and _number(settings, "pp_size") > 1:
        return max(-(-5 * chunk // 4), most)  # SGLang measures with chunks of 1.25, and may choose any
    return chunk


def _prefill_graph_rows(settings: Any) -> int:
    """The rows of the largest graph of prefill: a capture that meets a kernel not yet compiled fails."""
    graphs = _graphs(settings, "prefill")
    if graphs is not None:
        return 0 if getattr(graphs, "backend", "disabled") == "disabled" else _number(graphs, "max_bs")
    if getattr(settings, "disable_piecewise_cuda_graph", False):  # of older releases
        return 0
    return _number(settings, "piecewise_cuda_graph_max_tokens")


def _graphs(settings: Any, phase: str) -> Any:
    """SGLang's record of a phase's CUDA graphs, of newer releases."""
    return getattr(getattr(settings, "cuda_graph_config", None), phase, None)


def attention_ranks(settings: Any) -> int:
    """Over how many ranks the rows of a batch are spread while attention runs."""
    ranks = _number(settings, "attn_dp_size")  # of newer releases, which then set dp_size to 1
    if getattr(settings, "enable_dp_attention", False):
        ranks = max(ranks, _number(settings, "dp_size"))
    return max(1, ranks)


def _number(settings: Any, name: str) -> int:
    """A setting that is a positive number, else 0: SGLang has None and -1 for what is off."""
    value = getattr(settings, name, None)
    return value if isinstance(value, int | float) and value > 0 else 0  # type: ignore[return-value]
