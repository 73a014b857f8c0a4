"""Importing a kernel's modules from edited copies, for the time that it takes to build the kernel."""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_MISSING = object()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules it has files for, and keeps count of those that were asked for."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self.loaded: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname not in self._files:
            return None
        self.loaded.append(fullname)
        return importlib.util.spec_from_file_location(fullname, self._files[fullname])


@contextmanager
def edited_modules(sources: Mapping[str, str]) -> Iterator[list[str]]:
    """Within, importing one of these modules by name runs the given source; after, all is as it was.

    Yields the names that get imported, in order. The source lies in files named by its content: neither
    Python's byte code nor the source that a compiler looks up can be those of an earlier edit.
    """
    key = hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:16]
    kept = {name: sys.modules.pop(name) for name in sources if name in sys.modules}
    attributes = [_PackageAttribute(name) for name in sources if "." in name]
    with tempfile.TemporaryDirectory(prefix=f"lab-{key}-") as directory:
        files = {name: Path(directory, f"{name}-{key}.py") for name in sources}
        for name, source in sources.items():
            files[name].write_text(source)
        finder = _Finder(files)
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
    return Path(spec.origin).read_text()
