"""Importing a kernel's modules from edited source, for the time that it takes to build the kernel."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import linecache
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_MISSING = object()


class _Sources(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and runs the modules it has source for; `loaded` keeps the names of those asked for, in order."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = sources
        self.loaded: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname not in self._sources:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=f"python/{fullname}.py")

    def exec_module(self, module: ModuleType) -> None:
        """Straight from the text: Python's byte code, kept by time stamp, could be that of an earlier edit.

        Compilers look the source up under the file's name: it is that of the dump, the same in every process,
        so that what they write of it is as well.
        """
        name = module.__name__
        self.loaded.append(name)
        source, file = self._sources[name], f"python/{name}.py"
        module.__file__ = file
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        exec(compile(source, file, "exec", dont_inherit=True), vars(module))


@contextmanager
def edited_modules(sources: Mapping[str, str]) -> Iterator[list[str]]:
    """Within, importing one of these modules by name runs the given source; after, all is as it was.

    Yields the names that get imported, in order.
    """
    kept = {name: sys.modules.pop(name) for name in sources if name in sys.modules}
    attributes = [_PackageAttribute(name) for name in sources if "." in name]
    finder = _Sources(sources)
    sys.meta_path.insert(0, finder)
    try:
        yield finder.loaded
    finally:
        sys.meta_path.remove(finder)
        for name in sources:
            sys.modules.pop(name, None)
        sys.modules.update(kept)
        for attribute in attributes:
            attribute.restore()


class _PackageAttribute:
    """A module as the attribute of its package, where `from package import module` looks first: removed."""

    def __init__(self, module: str) -> None:
        package, _, self._name = module.rpartition(".")
        self._package = importlib.import_module(package)
        self._value = vars(self._package).pop(self._name, _MISSING)

    def restore(self) -> None:
        vars(self._package).pop(self._name, None)
        if self._value is not _MISSING:
            setattr(self._package, self._name, self._value)


def source_of(module: str) -> str:
    """The source of a module as it is installed. Raises RuntimeError where there is none."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise RuntimeError(f"module {module} has no source file to dump")
    return Path(spec.origin).read_text(encoding="utf-8")
