"""TIR as text that can be edited and read back.

TileLang prints a kernel before lowering as TVMScript, whose parser does not know TileLang's own operators,
nor can it name layouts and imported CUDA source, which the text calls `metadata["tl.Layout"][0]`. Both are
supplied here from the kernel that the text was printed from.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..core.compile_cache import tilelang_module

_OPERATORS = ("tl.tileop.", "tl.")
_TIR_OPERATORS = ("tirx.", "tir.")  # the second up to TileLang 0.1.11
_PARSED_NARROWLY = ("tvm_storage_sync",)  # TVMScript's function takes fewer arguments than TileLang gives
_STRINGS = ("ffi.String", "runtime.String")  # as the releases of TileLang name them
_LOOPS = ("serial", "parallel", "unroll", "vectorized", "thread_binding")
_BLOCK_ATTRIBUTES = ("sblock_attr", "block_attr")  # the second up to TileLang 0.1.11


def printed(function: Any) -> str:
    """A PrimFunc as text."""
    return function.script(show_meta=False)


def name_of(text: str) -> str | None:
    """Of the function in the text."""
    match = re.search(r"^def (\w+)\(", text, re.MULTILINE)
    return match[1] if match else None


def parsed(text: str, original: Any) -> Any:
    """The PrimFunc of an edited text that was printed from `original`.

    Raises RuntimeError where it is no TVMScript or uses an operator that `original` does not use: the text
    does not say of what dtype such a call is.
    """
    tvm = tilelang_module().tvm
    try:
        ast.parse(text)
        function = tvm.script.from_source(
            text,
            extra_vars={"T": _Namespace(original), "tvm": tvm, "metadata": _metadata(original)},
            check_well_formed=False,  # it does not follow how barriers are initialised
        )
    except Exception as problem:  # TVM raises its own classes, with a rendering of the place
        raise RuntimeError(f"TileLang cannot read the TIR: {problem}") from problem
    # What the text leaves out: attributes of the function that TileLang's front end sets.
    return function.with_attrs({k: v for k, v in original.attrs.items() if k not in function.attrs})


class _Namespace:
    """`T` of the text: TVMScript's, and TileLang's operators as functions that make a call of them."""

    def __init__(self, original: Any) -> None:
        tvm = tilelang_module().tvm
        self._tir = _tir()
        self._ops = tvm.ir.Op
        self._script = _script_parser()
        self._dtypes = _dtypes(original)

    def __getattr__(self, name: str) -> Any:
        for prefix in (*_OPERATORS, *(_TIR_OPERATORS if name in _PARSED_NARROWLY else ())):
            if prefix + name in self._dtypes:
                return self._operator(prefix + name)
        found = getattr(self._script, name)
        if name in _LOOPS:
            return lambda *arguments, annotations=None, **others: found(
                *arguments, annotations=self._boxed(annotations), **others
            )
        if name in _BLOCK_ATTRIBUTES:
            return lambda attributes: found(self._boxed(attributes))
        return found

    def _operator(self, name: str) -> Callable[..., Any]:
        op, dtype = self._ops.get(name), self._dtypes[name]

        def call(*arguments: Any, **annotations: Any) -> Any:
            if dtype is None:
                raise ValueError(f"{name} is used with several dtypes: the text does not say which is meant")
            boxed = [self._tir.StringImm(a) if isinstance(a, str) else self._boxed(a) for a in arguments]
            extra = {"annotations": self._boxed(annotations)} if annotations else {}
            return self._tir.Call(dtype, op, boxed, **extra)

        return call

    def _boxed(self, value: Any) -> Any:
        """Python's numbers as TIR's, which is what the front end puts there and the passes cast to."""
        if isinstance(value, bool):
            return self._tir.const(value, "bool")
        if isinstance(value, int):
            return self._tir.const(value, "int32")
        if isinstance(value, list | tuple):
            return [self._boxed(item) for item in value]
        if isinstance(value, Mapping):
            return {key: self._boxed(item) for key, item in value.items()}
        return value


def _dtypes(function: Any) -> dict[str, str | None]:
    """The dtype of each operator's calls; None where they have several. void prints as ""."""
    tir, found = _tir(), {}  # type: ignore[var-annotated]

    def visit(node: Any) -> None:
        if isinstance(node, tir.Call) and hasattr(node.op, "name"):
            found.setdefault(node.op.name, set()).add(str(node.dtype) or "void")

    tir.stmt_functor.post_order_visit(function.body, visit)
    return {name: next(iter(dtypes)) if len(dtypes) == 1 else None for name, dtypes in found.items()}


def _metadata(function: Any) -> dict[str, list[Any]]:
    """What the printer puts by reference: objects that have no text, and strings of several lines."""
    tir, found = _tir(), {}  # type: ignore[var-annotated]

    def collect(value: Any) -> None:
        if isinstance(value, str):
            if "\n" in value:
                for kind in _STRINGS:
                    found.setdefault(kind, []).append(value)
        elif isinstance(value, Mapping) or hasattr(value, "items"):
            for item in value.values():
                collect(item)
        elif hasattr(value, "_type_key") or type(value).__name__ in ("Layout", "Fragment"):
            found.setdefault(f"tl.{type(value).__name__}", []).append(value)

    def visit(node: Any) -> None:
        if type(node).__name__ in ("SBlock", "Block"):
            collect(node.annotations)

    tir.stmt_functor.post_order_visit(function.body, visit)
    return found


def _tir() -> Any:
    tvm = tilelang_module().tvm
    return getattr(tvm, "tirx", None) or tvm.tir  # renamed in TileLang 0.1.12


def _script_parser() -> Any:
    tilelang_module()
    from tvm.script import parser

    return getattr(parser, "tirx", None) or parser.tir
