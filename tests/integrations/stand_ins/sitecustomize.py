"""On PYTHONPATH, this puts stand-ins in the place of large packages that SGLang imports on every machine.

Nothing that the tests run uses them: image and audio files, notebooks, grammars, and CUDA operators, which a
machine without a GPU cannot load. Python imports this file by its name in every process, spawned ones too.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

PACKAGES = ("torchvision", "soundfile", "datasets", "IPython", "xgrammar", "sgl_kernel")


class _StandInClass(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


def _any_schema(cls: type, source: Any, handler: Any) -> Any:
    """Pydantic models of SGLang have fields of such types."""
    from pydantic_core import core_schema

    return core_schema.any_schema()


class _StandInModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandInClass(name, (), {"__get_pydantic_core_schema__": classmethod(_any_schema)})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] in PACKAGES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _StandInModule(spec.name)

    def exec_module(self, module: Any) -> None:
        module.__version__ = "0.28.0"  # transformers compares torchvision's


sys.meta_path.insert(0, _Finder())
