"""A name for what a piece of the package's code does: the same while only comments and layout change.

It covers the functions and constants that are named and all that these use, in whatever module of the
package. Nothing is imported, and the name is the same on every Python.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

_PACKAGE = __name__.partition(".")[0]
_ROOT = Path(__file__).resolve().parents[1]

Name = tuple[str, str]  # module, and what it defines; "" for all of it


def digest(names: Iterable[Name]) -> str:
    """SHA-256 of the definitions of `names` and of all that they use. Raises OSError for unknown modules."""
    sources: dict[str, _Source] = {}
    texts: dict[Name, str] = {}
    waiting = list(names)
    while waiting:
        module, name = waiting.pop()
        source = sources[module] = sources.get(module) or _Source(module)
        if not name:
            waiting += [(module, each) for each in source.definitions]
        elif (module, name) not in texts:
            statements = source.definitions.get(name, [])
            texts[module, name] = _canonical(statements)
            waiting += [(module, _AT_IMPORT), *source.used_by(statements)]
    return hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()


_AT_IMPORT = "(at import)"  # statements that define nothing: who uses a module runs them


class _Source:
    """A module's text: what it defines under which name, and what it imports from the package."""

    def __init__(self, module: str) -> None:
        self._module = module
        path = _path(module)
        if path is None:
            raise FileNotFoundError(f"{module} has no source in {_ROOT}")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        self.definitions: dict[str, list[ast.stmt]] = {}
        for statement in tree.body:
            for name in _defined_by(statement):
                self.definitions.setdefault(name, []).append(statement)
        package = module if path.stem == "__init__" else module.rpartition(".")[0]
        self._imported = dict(_imports(tree, package))

    def used_by(self, statements: Iterable[ast.stmt]) -> Iterator[Name]:
        for node in (node for statement in statements for node in ast.walk(statement)):
            if isinstance(node, ast.Name):
                if node.id in self.definitions:
                    yield self._module, node.id
                if node.id in self._imported:
                    yield self._imported[node.id]


def _imports(tree: ast.Module, package: str) -> Iterator[tuple[str, Name]]:
    """Local names of what a module of `package` imports from this package, at the top or in a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            if module.partition(".")[0] == _PACKAGE:
                for alias in node.names:
                    whole = f"{module}.{alias.name}"
                    yield alias.asname or alias.name, (whole, "") if _path(whole) else (module, alias.name)


def _path(module: str) -> Path | None:
    inside = _ROOT.joinpath(*module.split(".")[1:])
    return next((p for p in (inside.with_suffix(".py"), inside / "__init__.py") if p.is_file()), None)


def _defined_by(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, (ast.Import, ast.ImportFrom)) or _is_docstring(statement):
        return []
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    names = [n.id for target in targets if target for n in ast.walk(target) if isinstance(n, ast.Name)]
    return names or [_AT_IMPORT]


def _is_docstring(statement: Any) -> bool:
    """Or another string that stands by itself: it does as little."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _canonical(node: Any) -> str:
    """As `ast.dump`, whose text differs between versions of Python, without docstrings and empty fields."""
    if isinstance(node, list):
        return f"[{','.join(_canonical(item) for item in node if not _is_docstring(item))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
    return f"{type(node).__name__}({','.join(f'{name}={_canonical(value)}' for name, value in fields)})"
