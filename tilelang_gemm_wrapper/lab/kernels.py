"""From a kernel's name and parameters to its case and the modules that are its Python level."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..core.failure_text import first_line
from .built import Built
from .builtin_cases import BUILTIN
from .cases import Case, TileLangCase, TritonCase, language_of
from .edited_modules import edited_modules, source_of


def split_user_kernel(kernel: str) -> tuple[Path, str] | None:
    """("FILE.py", "FUNCTION") of "FILE.py:FUNCTION"; None for a kernel of the package.

    Raises ValueError for what is neither.
    """
    if kernel in BUILTIN:
        return None
    file, _, function = kernel.rpartition(":")
    if not file.endswith(".py") or not function:
        near = [name for name in BUILTIN if name.casefold() == kernel.casefold()]
        near = near or get_close_matches(kernel, BUILTIN, n=1)
        meant = f"; did you mean {near[0]}? Expected" if near else "; expected"
        raise ValueError(
            f"kernel {kernel!r} is not known{meant} one of {', '.join(BUILTIN)}, or FILE.py:FUNCTION with "
            f"a function of your own that returns a case"
        )
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError(f"{path} does not exist; {kernel!r} names a function in it")
    spec = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
    if not path.stem.isidentifier() or (spec is not None and spec.origin != str(path)):
        raise ValueError(
            f"{path} cannot be imported as {path.stem!r}: no name, or another module's; rename it"
        )
    return path, function


def installed_sources(kernel: str) -> dict[str, str]:
    """The source of every module that the kernel may be built from, as it is installed."""
    user = split_user_kernel(kernel)
    if user is not None:
        try:
            return {user[0].stem: user[0].read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{user[0]} is no Python source ({first_line(error)})") from error
    return {module: source_of(module) for module in BUILTIN[kernel].modules}


@contextmanager
def case_of(
    kernel: str, parameters: Mapping[str, Any], arch: str, sources: Mapping[str, str]
) -> Iterator[tuple[Case, list[str]]]:
    """The case, built from `sources`, and the modules of them that were imported for it."""
    user = split_user_kernel(kernel)
    with edited_modules(sources) as loaded:
        if user is None:
            case = BUILTIN[kernel].make(parameters, arch)
        else:
            case = _user_case(*user, arch)
        yield case, loaded


def _user_case(path: Path, function: str, arch: str) -> Case:
    sys.path.insert(0, str(path.parent))  # for what the file imports from beside it
    try:
        with _told_as_of(path):
            module = importlib.import_module(path.stem)
    finally:
        sys.path.remove(str(path.parent))
    make = getattr(module, function, None)
    if not callable(make):
        raise ValueError(f"{path} has no function {function!r}")
    with _told_as_of(path):
        case = make(arch)
    if not isinstance(case, TritonCase | TileLangCase):
        raise ValueError(
            f"{function} of {path} returned a {type(case).__name__}; expected a TritonCase or TileLangCase"
        )
    return case


@contextmanager
def _told_as_of(path: Path) -> Iterator[None]:
    """What running a user's file raises becomes a ValueError that names the file and the line in it."""
    try:
        yield
    except ImportError:  # what is missing, and how to install it, is told of any command
        raise
    except (Exception, SystemExit) as failure:
        here = [
            frame for frame in traceback.extract_tb(failure.__traceback__) if frame.filename == _file(path)
        ]
        line = failure.lineno if isinstance(failure, SyntaxError) else here[-1].lineno if here else None
        at = f"{path}, line {line}" if line else str(path)
        raise ValueError(f"{at}: {first_line(failure)}; correct the file") from failure


def _file(path: Path) -> str:
    """The name under which `edited_modules` runs a user's file."""
    return f"python/{path.stem}.py"


def compiler_of(language: str) -> dict[str, str]:
    """The versions that decide what a level means."""
    if language == "triton":
        import triton

        return {"triton": triton.__version__}
    from ..core.compile_cache import tilelang_module
    from ..core.cuda_toolchain import nvcc_version

    return {"tilelang": tilelang_module().__version__, "nvcc": nvcc_version()}


def build(case: Case, arch: str, start: str, content: str | bytes, metadata: Mapping[str, Any]) -> Built:
    """As `triton_levels.build` and `tilelang_levels.build`."""
    if language_of(case) == "triton":
        from . import triton_levels

        assert isinstance(case, TritonCase)
        return triton_levels.build(case, arch, start, content, metadata)
    from . import tilelang_levels

    assert isinstance(case, TileLangCase)
    return tilelang_levels.build(case, arch, start, content)
