"""The linear layers that engines build from a checkpoint's FP8 weights.

The rules are SGLang's; `roles.py` has the names, `parallel.py` what ranks make of a layer:

- Weights of one module that read the same input become one layer (`MERGES`), and must have one dtype.
- Attention without the values' weight (`v_proj`) takes the keys' for both: there, K is V. Layers that read
  another layer's keys and values (`num_kv_shared_layers`) are built with them all the same.
- Ranks divide attention by heads and copy key-value heads where there are fewer than ranks. Where values have
  heads of another size than keys, and where the checkpoint's scales are of shards, no rank's share need be
  whole blocks of 128: the engine takes these layers as they come.
- Routed experts run in a grouped GEMM of their own. They are no linear layers, but they decide as well which
  numbers of ranks the engine takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from .blocks import FP8, check_block_size, has_rounded_activations
from .checkpoint import Checkpoint, Tensor
from .heads import NO_SECTION, Section, layer_of, section_for, sections_of
from .layer import Linear, Part
from .parts import Module, parts_of
from .roles import KEY_VALUE, MERGES, ROLES, Merge, role_of
from .weights import EXPERT, Weights, weights_of

_QKV = next(merge for merge in MERGES if merge.name == "qkv_proj")
_PLAIN_PARENTS = ("", "self_attn", "attn", "attention", "mixer", "mlp", "mlps", "ffn", "feed_forward")


@dataclass(frozen=True, slots=True)
class ModelLinears:
    """What an engine builds, undivided; each different layer with a module that is one."""

    linears: Mapping[Linear, str]  # in running order
    experts: Mapping[Linear, str]  # one routed expert's
    stacked_experts: Mapping[Linear, str]  # the same, of layers that hold all experts in one tensor
    unknown: frozenset[str]  # names of `linears` that no table has
    open_questions: Mapping[str, str]  # what the tensors do not settle, as a clause -> a module that is so
    weights: Weights
    rounds_activations: bool  # the config asks for scales that are powers of two


def linears_of(checkpoint: Checkpoint) -> ModelLinears:
    """Merge the FP8 weights as engines do. ValueError where they are not quantized in blocks of 128 x 128."""
    check_block_size(checkpoint.config)
    weights = weights_of(checkpoint)
    sections = sections_of(checkpoint.config)
    linears: dict[Linear, str] = {}
    unknown = set()
    questions: dict[str, str] = {}
    for path, found in weights.modules.items():
        if EXPERT.match(path):
            continue
        module = Module(path, found, section_for(path, sections))
        for linear in _layers_of(_with_shared_keys(module, weights), weights):
            linears.setdefault(linear, path)
            if role_of(path, linear.leaf, module.leaves) is None:
                unknown.add(linear.name)
        for question in _open_questions(module):
            questions.setdefault(question, path)
    stacked = _stacked_experts(weights, sections)
    if stacked:
        linears = _without_checks_of_shared_experts(linears)
    return ModelLinears(
        linears={linear: linears[linear] for linear in sorted(linears, key=running_order)},
        experts=_experts(weights),
        stacked_experts=stacked,
        unknown=frozenset(unknown),
        open_questions=questions,
        weights=weights,
        rounds_activations=has_rounded_activations(checkpoint.config),
    )


def running_order(linear: Linear) -> tuple[bool, int, str]:
    order = list(ROLES)
    return bool(linear.parent), order.index(linear.leaf) if linear.leaf in order else len(order), linear.name


def _experts(weights: Weights) -> dict[Linear, str]:
    """The layers of each different routed expert: most of some ten thousand are alike."""
    different = {tuple(found.items()): path for path, found in weights.modules.items() if EXPERT.match(path)}
    return {
        linear: path
        for found, path in different.items()
        for linear in _layers_of(Module(path, dict(found), NO_SECTION), weights)
    }


def _stacked_experts(weights: Weights, sections: Iterable[Section]) -> dict[Linear, str]:
    """The layers of one routed expert of those that are held in one tensor for all."""
    linears = {}
    for path, found in weights.stacked.items():
        section = section_for(path, sections)
        one = {leaf: _one_expert(leaf, tensor, section) for leaf, tensor in found.items()}
        for linear in _layers_of(Module(path, one, section), weights):
            linears[replace(linear, name=f"experts.{linear.leaf}")] = path
    return linears


def _layers_of(module: Module, weights: Weights) -> Iterator[Linear]:
    rest = list(module.weights)
    for merge in MERGES:
        leaves = _leaves_to_merge(merge, rest, module, weights)
        if leaves:
            yield _linear(merge.name, leaves, module, weights)
            rest = [leaf for leaf in rest if leaf not in leaves]
    for leaf in rest:
        yield _linear(leaf, (leaf,), module, weights)


def _leaves_to_merge(merge: Merge, rest: list[str], module: Module, weights: Weights) -> tuple[str, ...]:
    """The weights of a merged layer, a key's standing for an absent value's; none where it is not to be."""
    present = [leaf for leaf in merge.leaves if leaf in rest]
    if not present or not _is_merged(merge, module.section):
        return ()
    for leaf in merge.leaves:
        other = weights.others.get(f"{module.path}.{leaf}")
        if other is not None:
            raise ValueError(
                f"{module.path} has {present[0]} in {FP8} and {leaf} in {other.dtype}; engines merge them "
                f"into {merge.name} and need one dtype. Take a checkpoint that quantises both or neither"
            )
    if present == list(merge.leaves):
        return merge.leaves
    if merge.name == _QKV.name and present == list(merge.leaves[:2]):
        query, key = present
        return query, key, key
    return ()


def _is_merged(merge: Merge, section: Section) -> bool:
    """Whether the model that `section` describes has this merged layer."""
    if merge.where and not section.value(merge.where):
        return False
    return not merge.unless or section.value(merge.unless) is None


def _linear(name: str, leaves: tuple[str, ...], module: Module, weights: Weights) -> Linear:
    widths = {module.weights[leaf].shape[1] for leaf in leaves}
    if len(widths) > 1:
        sizes = ", ".join(f"{leaf} {module.weights[leaf].shape}" for leaf in leaves)
        raise ValueError(
            f"{module.path}: {sizes} differ in K and cannot be merged into {name}; download them again"
        )
    role = role_of(module.path, name, module.leaves)
    split = role.split if role else "replicated"
    parts = tuple(part for leaf in leaves for part in parts_of(leaf, module))
    sharded = any((module.path, leaf) in weights.sharded for leaf in leaves)
    whole_blocks = not (sharded or _has_values_of_another_size(parts))
    return Linear(label(module.path, name), split, parts, widths.pop(), whole_blocks)


def _has_values_of_another_size(parts: tuple[Part, ...]) -> bool:
    of_heads = [part.rows for part in parts if part.heads is not None and part.heads.kind == KEY_VALUE]
    return len(of_heads) == 2 and of_heads[0] != of_heads[1]


def _with_shared_keys(module: Module, weights: Weights) -> Module:
    """`module` with the keys and values of an earlier layer, if the config says that it reads these."""
    query, *others = _QKV.leaves
    shared = module.section.fields.get("num_kv_shared_layers")
    layer = layer_of(module.path)
    if not shared or layer is None or module.leaves & {query, *others} != {query}:
        return module
    template = module.path.split(".")
    number = template.index(str(layer))
    for earlier in range(layer - 1, -1, -1):
        template[number] = str(earlier)
        found = weights.modules.get(".".join(template), {})
        if {query, others[0]} <= found.keys() and found[query].shape == module.weights[query].shape:
            keys = {leaf: found[leaf] for leaf in others if leaf in found}
            return replace(module, weights={**module.weights, **keys})
    return module


def _open_questions(module: Module) -> Iterator[str]:
    query, key, value = _QKV.leaves
    lacks_values = module.leaves & {query, key, value} == {query, key}
    if lacks_values and not module.section.fields.get("attention_k_eq_v"):
        yield f"whether keys serve as values, as listed: it lacks {value}, and config.json attention_k_eq_v"
    if {"q_a_proj", "kv_a_proj_with_mqa", "g_proj"} <= module.leaves:
        yield "whether g_proj is merged with q_a_proj, which differs by model; it is listed by itself"


def _one_expert(leaf: str, stacked: Tensor, section: Section) -> Tensor:
    """(N, K) of one expert among all of a layer, which some models store transposed."""
    _, N, K = stacked.shape
    role = ROLES.get(leaf)
    reads_hidden = role is None or role.split == "column"
    of_hidden, other = (K, N) if reads_hidden else (N, K)
    transposed = other == section.hidden_size != of_hidden
    return Tensor(stacked.dtype, (K, N) if transposed else (N, K))


def _without_checks_of_shared_experts(linears: Mapping[Linear, str]) -> dict[Linear, str]:
    """`linears`, of which shared experts beside stacked ones are listed at any width.

    Where a layer's experts are one tensor, its experts may be distributed or cut, as the engine is told at
    its start. The checkpoint does not show which. What is amiss with these is said (`notes.py`), not refused.
    """
    return {
        replace(linear, whole_blocks=linear.whole_blocks and not is_shared_expert(linear)): module
        for linear, module in linears.items()
    }


def is_shared_expert(linear: Linear) -> bool:
    return linear.parent.startswith(("share_expert", "shared_expert", "shared_mlp"))


def label(path: str, name: str) -> str:
    """`name`, behind its parent's where that tells layers of one name apart."""
    parent = "experts" if EXPERT.match(path) else path.rpartition(".")[2]
    plain = parent in _PLAIN_PARENTS or parent.isdigit()
    return name if plain and not name.isdigit() else f"{parent}.{name}"
