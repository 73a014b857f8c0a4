"""Attention heads: what config.json says of them, and which of its numbers fit the rows of a module.

A model may have other heads in some layers (sliding windows, linear attention, a list with an entry for each
layer), and a config may hold the language model's fields at any depth, beside those of a vision tower. Hence
fields are told by what they hold, and numbers by whether they explain the rows of the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from typing import Any

from .roles import towers_of

_QUERY = re.compile(r"attention_heads|query_heads|^n(um)?_(q_)?heads?$")
_KEY_VALUE = re.compile(
    r"key_value_heads|kv_(n_)?heads|heads?_kv|(attention|query)_groups|multi_query_group_num"
)
_ONE_KEY = "multi_query"  # true where all query heads share one key and value
_INDEX = re.compile(r"index_heads|index_n_heads")
_DIMENSION = re.compile(r"(^|_)head_dim$|^head_size$|^kv_channels$")
_VALUE_DIMENSION = re.compile(r"(^|_)v_head_dim$")
_OF_OTHER_LAYERS = re.compile(r"linear_|mamba|ssm|rope|index|idx|nope")  # heads of another kind
_TEXT = re.compile(r"text|language|llm")  # in the name of a language model's section
_HIDDEN = ("hidden_size", "d_model", "n_embd", "dim")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of config.json that describes one model: the language model's, or a tower's."""

    path: str  # "thinker_config.text_config"; "" for the whole
    fields: Mapping[str, Any]

    @property
    def hidden_size(self) -> int | None:
        return next((self.fields[key] for key in _HIDDEN if _is_count(self.fields.get(key))), None)

    def value(self, field: str) -> Any:
        """What `field` is in this section, at any depth of it; None where it is nowhere."""
        return next((value for _, key, value in _leaves(self.fields) if key == field), None)


NO_SECTION = Section("", {})


@dataclass(frozen=True, slots=True)
class HeadNumbers:
    """What a section says of the heads of one layer; of each tuple the likeliest first."""

    query: tuple[int, ...] = ()
    key_value: tuple[int, ...] = ()
    index: tuple[int, ...] = ()
    dimensions: tuple[int, ...] = ()  # of a query or key head
    value_dimensions: tuple[int, ...] = ()  # of a value head, where it has one of its own


@dataclass(frozen=True, slots=True)
class FusedQKV:
    """How the rows of a fused query-key-value layer are made up."""

    query_heads: int
    key_value_heads: int
    query_rows: int
    key_rows: int
    value_rows: int


def sections_of(config: Mapping[str, Any]) -> tuple[Section, ...]:
    """The sections of config.json that give a number of heads, outer ones first."""
    return tuple(_sections(config, "", inside=False))


def section_for(module: str, sections: Iterable[Section]) -> Section:
    """The section that describes `module`: that of its tower, or of the language model."""
    towers = towers_of(module)
    fitting = [section for section in sections if towers_of(section.path) == towers]
    named = [section for section in fitting if _TEXT.search(section.path)]
    return (named or fitting or [NO_SECTION])[0]


def layer_of(module: str) -> int | None:
    """The number of the layer that holds `module`: the first number in its name."""
    return next((int(name) for name in module.split(".") if name.isdigit()), None)


def numbers_of(section: Section, layer: int | None) -> HeadNumbers:
    """The heads of `layer` by `section`: its own entries of lists, then those of all layers, then others'."""
    found: dict[str, list[tuple[int, Any]]] = {  # (order, number)
        name: [] for name in ("query", "key_value", "index", "dimensions", "value_dimensions")
    }
    for depth, key, value in _leaves(section.fields):
        name = _kind_of(key)
        if name is None:
            continue
        if isinstance(value, list):  # an entry for each layer
            own = value[layer : layer + 1] if layer is not None else []
            found[name] += [(-1, count) for count in own] + [(depth + 2, count) for count in value]
        else:
            found[name].append((depth if key in _MAIN_FIELDS else depth + 1, value))
    ordered = {
        name: tuple(
            dict.fromkeys(count for _, count in sorted(counts, key=itemgetter(0)) if _is_count(count))
        )
        for name, counts in found.items()
    }
    if not ordered["key_value"] and section.value(_ONE_KEY) is True:
        ordered["key_value"] = (1,)
    if not ordered["dimensions"] and ordered["query"] and section.hidden_size:
        head, left = divmod(section.hidden_size, ordered["query"][0])
        ordered["dimensions"] = () if left else (head,)
    return HeadNumbers(**ordered)


def match_heads(numbers: HeadNumbers, query_rows: int | None, key_rows: int | None) -> tuple[int, int]:
    """(query heads, key-value heads) that explain the rows; the config's first ones where none do.

    A query head has the rows of a key head, or twice those where a gate of the output is beside it. Not to be
    called for numbers without query heads.
    """
    key_value = numbers.key_value or numbers.query
    if query_rows is None or key_rows is None:
        return _dividing(numbers, query_rows), key_value[0]
    matches = []
    for query, heads in product(numbers.query, key_value):
        size, of_query = key_rows // heads, query_rows // query
        if (query * of_query, heads * size) == (query_rows, key_rows) and of_query in (size, 2 * size):
            matches.append(((size in numbers.dimensions, of_query == size), (query, heads)))
    if matches:
        return max(matches, key=itemgetter(0))[1]  # the first of the best
    query = _dividing(numbers, query_rows)
    if query_rows % query == 0 and key_rows % (query_rows // query) == 0:
        return query, key_rows // (query_rows // query)  # heads of one size, of a number that no field gives
    return query, key_value[0]


def split_fused(numbers: HeadNumbers, rows: int) -> FusedQKV | None:
    """The parts of a fused layer of `rows`; None where no numbers of the config explain them.

    A layer of linear attention may have as many key-value heads as query heads, whatever the others have.
    """
    head_counts = list(product(numbers.query, (*numbers.key_value, *numbers.query)))
    sizes = [(size, size) for size in numbers.dimensions]
    sizes += list(product(numbers.dimensions, numbers.value_dimensions))
    for gated, (size, value_size), (query, heads) in product((1, 2), sizes, head_counts):
        parts = (gated * query * size, heads * size, heads * value_size)
        if sum(parts) == rows:
            return FusedQKV(query, heads, *parts)
    for query, heads in head_counts:
        size, left = divmod(rows, query + 2 * heads)
        if not left:
            return FusedQKV(query, heads, query * size, heads * size, heads * size)
    return None


_MAIN_FIELDS = ("num_attention_heads", "num_key_value_heads", "head_dim")


def _sections(config: Mapping[str, Any], path: str, *, inside: bool) -> Iterator[Section]:
    """`inside`: an outer section holds `config`, whose other heads may be of some of its layers."""
    has_heads = any(_QUERY.search(key) and _is_count(value) for key, value in config.items())
    starts = has_heads and (not inside or any(key in config for key in _HIDDEN))
    if starts:
        yield Section(path, config)
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _sections(value, f"{path}.{key}" if path else key, inside=inside or starts)


def _leaves(fields: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[int, str, Any]]:
    """(depth, key, value) of all fields of a section, without those of sections inside it."""
    for key, value in fields.items():
        if not isinstance(value, Mapping):
            yield depth, key, value
        elif not any(inner in value for inner in _HIDDEN):
            yield from _leaves(value, depth + 2)


def _kind_of(key: str) -> str | None:
    """Which of `HeadNumbers` the field `key` belongs to."""
    if _INDEX.search(key):
        return "index"
    if _OF_OTHER_LAYERS.search(key):
        return None
    if _VALUE_DIMENSION.search(key):
        return "value_dimensions"
    if _DIMENSION.search(key):
        return "dimensions"
    if _KEY_VALUE.search(key):
        return "key_value"
    return "query" if _QUERY.search(key) else None


def _dividing(numbers: HeadNumbers, rows: int | None) -> int:
    """The first number of query heads that divides `rows`, into heads of a known size where one does."""
    if rows is None:
        return numbers.query[0]
    fitting = [query for query in numbers.query if rows % query == 0]
    known = [query for query in fitting if rows // query in numbers.dimensions]
    return (known or fitting or list(numbers.query))[0]


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0
