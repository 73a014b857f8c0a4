"""What a listing says beside the shapes: what the model holds that is not in it, and what stays open."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from .blocks import FP8, POWERS_OF_TWO
from .checkpoint import Tensor
from .layer import Linear
from .linears import ModelLinears, is_shared_expert, label, running_order
from .parallel import why_indivisible
from .weights import EXPERT

_LARGE = 512  # the smaller side of a weight in another dtype that is worth a word; routers have fewer rows
_NAMED_AT_MOST = 8


def not_covered(
    found: ModelLinears, tp: int, ep: int, fitting_tp: Callable[[Linear], str]
) -> tuple[str, ...]:
    """Clauses on what the shapes of one of `tp` ranks leave out; `fitting_tp`: the tp that a layer fits."""
    return (
        *_about_experts(found),
        *_about_experts_of_no_rank(found, tp // ep, fitting_tp),
        *_about_shared_experts(found, tp, fitting_tp),
        *_about_open_questions(found),
        *_about_unknown(found, tp),
        *_about_no_linear_calls(found),
        *_about_scales(found),
        *_about_odd(found),
        *_about_other_dtypes(found),
    )


def _about_experts(found: ModelLinears) -> Iterator[str]:
    numbered = Counter(match[1] for match in map(EXPERT.match, found.weights.modules) if match)
    stacked = {
        module: max(tensor.shape[0] for tensor in tensors.values())
        for module, tensors in found.weights.stacked.items()
    }
    layers = {**numbered, **stacked}
    if not layers:
        return
    counts = set(layers.values())
    count = f"{counts.pop()} in each" if len(counts) == 1 else f"{sum(layers.values())} in all"
    linears = sorted({*found.experts, *found.stacked_experts}, key=running_order)
    shapes = ", ".join(_sized(linear.leaf, linear.N, linear.K) for linear in linears)
    of_layers = f"{len(layers)} layer{'s' if len(layers) > 1 else ''}"
    yield f"routed experts ({count} of {of_layers}), a grouped GEMM of its own: {shapes}, undivided"


def _about_experts_of_no_rank(
    found: ModelLinears, tp: int, fitting_tp: Callable[[Linear], str]
) -> Iterator[str]:
    for linear in found.stacked_experts:
        why = why_indivisible(linear, tp)
        if why is not None:
            fitting = fitting_tp(linear)
            shared = f" on {tp} ranks that share each of them" if tp > 1 else ""
            advice = "; expert parallelism (ep) divides them less" if tp > 1 and fitting else ""
            yield (
                f"routed experts{shared}, which SGLang refuses: {linear.leaf}: {why}; the tp that fit: "
                f"{fitting or 'none'}{advice}"
            )
            return


def _about_shared_experts(found: ModelLinears, tp: int, fitting_tp: Callable[[Linear], str]) -> Iterator[str]:
    shared = [linear for linear in found.linears if is_shared_expert(linear)]
    if shared and (found.experts or found.stacked_experts):
        name, fused = shared[0].parent, "where the engine fuses them into the routed experts"
        if tp == 1:
            yield f"{name}, {fused}; listed as if it did not"
        else:
            shapes = ", ".join(dict.fromkeys(_sized(linear.leaf, linear.N, linear.K) for linear in shared))
            yield (
                f"{name}, {fused}, or an all-to-all backend of experts (DeepEP) runs them whole on a rank: "
                f"{shapes}; listed as if neither did"
            )
    for linear in shared:
        strict = replace(linear, whole_blocks=True)
        why = why_indivisible(strict, tp)
        if why is not None:
            yield (
                f"whether any rank runs {linear.name}: {why}, which SGLang refuses where ranks divide it; "
                f"the tp that fit: {fitting_tp(strict) or 'none'}"
            )


def _about_open_questions(found: ModelLinears) -> Iterator[str]:
    for question, module in found.open_questions.items():
        yield f"of {module}, {question}"


def _about_unknown(found: ModelLinears, tp: int) -> Iterator[str]:
    if found.unknown:
        names = _list(sorted(found.unknown))
        doubt = f", though it may be that no rank of {tp} runs them so" if tp > 1 else ""
        yield f"how engines merge or divide {names}, unknown here; listed whole, as on each rank{doubt}"


def _about_no_linear_calls(found: ModelLinears) -> Iterator[str]:
    for name, (why, weight) in found.weights.no_linear_call.items():
        yield f"{_sized(name, *weight.shape)} in {FP8}: {why}"
    if found.weights.unserved:
        yield f"the model's {', '.join(sorted(found.weights.unserved))}, which SGLang does not run"


def _about_scales(found: ModelLinears) -> Iterator[str]:
    if found.rounds_activations:
        yield (
            "any of these layers in SGLang from 0.5.21 on: quantization_config has scale_fmt ue8m0, for "
            "which it runs a GEMM of its own"
        )
    elif found.weights.scaled_by_powers:
        yield f"scales in {POWERS_OF_TWO}, as the checkpoint has them: these kernels take float32"


def _about_odd(found: ModelLinears) -> Iterator[str]:
    if found.weights.odd:
        name, tensor = next(iter(found.weights.odd.items()))
        count = len(found.weights.odd)
        example = _sized(name, *tensor.shape)
        yield f"FP8 tensors that are no 2-D weight of a linear layer: {count}, such as {example}"


def _about_other_dtypes(found: ModelLinears) -> Iterable[str]:
    by_dtype: dict[str, dict[str, None]] = defaultdict(dict)
    for name, tensor in found.weights.others.items():
        module, _, leaf = name.rpartition(".")
        if _is_large_layer(name, tensor):
            by_dtype[tensor.dtype][_sized(label(module, leaf), *tensor.shape)] = None
    for dtype, layers in by_dtype.items():
        yield f"kept in {dtype}: {_list(list(layers))}"


def _is_large_layer(name: str, tensor: Tensor) -> bool:
    return min(tensor.shape) >= _LARGE and "embed" not in name and not name.endswith("wte")


def _sized(name: str, *shape: int) -> str:
    return f"{name} ({', '.join(map(str, shape))})"


def _list(names: list[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
