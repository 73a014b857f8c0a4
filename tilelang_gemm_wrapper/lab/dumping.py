"""Dump a kernel at every level of its compilation, for any architecture, without a GPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from . import builtin_cases, dumps, kernels
from .built import Built
from .cases import Case, TileLangCase, language_of
from .dumps import ARCHITECTURES, Dump
from .resources import disassembly


def dump(
    kernel: str,
    to: str | Path,
    *,
    arch: str = "sm_90a",
    M: int | None = None,
    N: int | None = None,
    K: int | None = None,
    config: Mapping[str, int] | None = None,
) -> Dump:
    """Compile a kernel and write each level into the folder `to`; returns what was written about it.

    kernel: base, swapAB, splitK, splitK_swapAB, triton_gemm, gemv_triton, gemv_tilelang, rmsnorm_triton,
    rmsnorm_tilelang, or FILE.py:FUNCTION with a function of yours that takes the architecture and returns a
    `TritonCase` or `TileLangCase`. arch: sm_80, sm_86, sm_89, sm_90a, sm_100 or sm_120. M, N, K: sizes of the
    package's kernels (16, 4096, 2560). config: fields of the GEMM's config (block_M, block_N, num_stages,
    threads, split_k; of the Triton GEMM block_M, block_N, group_M, num_warps, num_stages); without it the one
    that is tuned, or chosen, for M.

    Beside the levels lies `kernel.sass`, the disassembly, to read. Raises ValueError for a kernel, config or
    architecture that does not exist, or a folder with other or edited files in it; RuntimeError where the
    compiler refuses the kernel for the architecture.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch is {arch!r}; expected one of {', '.join(ARCHITECTURES)}")
    user = kernels.split_user_kernel(kernel)
    sizes = {"M": M, "N": N, "K": K}
    if user is None:
        parameters = builtin_cases.parameters_of(kernel, sizes, config or {}, arch)
    else:
        given = [name for name, value in {**sizes, "config": config}.items() if value]
        if given:
            raise ValueError(f"{', '.join(given)} cannot be given with {kernel}: its function decides them")
        kernel, parameters = f"{user[0]}:{user[1]}", {}
    directory = Path(to)
    earlier = _earlier_dump(directory)
    sources = kernels.installed_sources(kernel)
    with _writable(directory):
        with kernels.case_of(kernel, parameters, arch, sources) as (case, loaded):
            built = kernels.build(case, arch, "python", "", {})
            sources = {module: sources[module] for module in sources if module in loaded}
            written = _described(case, built, sources, kernel, parameters, arch)
        sass = disassembly(built.cubin)
        with _put_in_place(directory, earlier) as beside:
            dumps.write_levels(beside, built.levels, sources)
            if sass is not None:
                (beside / "kernel.sass").write_text(sass, encoding="utf-8")
            written.write(beside)
    return written


@contextmanager
def _put_in_place(directory: Path, earlier: Dump | None) -> Iterator[Path]:
    """A folder whose files come into `directory`, for those of an earlier dump, once all are written.

    Raises ValueError where they do not fit; `directory` is then as it was.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=directory) as name:
            beside = Path(name)
            yield beside
            if earlier is not None:
                dumps.remove_levels(directory, earlier)
            for path in sorted(beside.iterdir(), reverse=True):  # dump.json comes last: it makes it a dump
                path.replace(directory / path.name)
    except OSError as failure:
        raise _unwritable(directory, failure) from failure


def _unwritable(directory: Path, failure: OSError) -> ValueError:
    return ValueError(f"{directory} cannot be written to ({failure.strerror}); give another folder")


@contextmanager
def _writable(directory: Path) -> Iterator[None]:
    """The folder, made where need be and found writable before anything is compiled for it.

    Raises ValueError where it is not. A folder that was made goes again where what is done within fails.
    """
    made: list[Path] = []
    try:
        try:
            for folder in reversed((directory, *directory.parents)):
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as failure:
            raise _unwritable(directory, failure) from failure
        yield
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):  # something has come into it
                folder.rmdir()
        raise


def _described(
    case: Case,
    built: Built,
    sources: Mapping[str, str],
    kernel: str,
    parameters: Mapping[str, Any],
    arch: str,
) -> Dump:
    language = language_of(case)
    python = json.dumps(dict(sources), sort_keys=True)
    read_only, function = {}, None
    if isinstance(case, TileLangCase):
        from . import tilelang_levels, tir_text

        function = tir_text.name_of(str(built.levels["tir"]))
        why_not = tilelang_levels.reads_back(case, arch, built)
        read_only = {"tir": why_not} if why_not else {}
    ptx = str(built.levels["ptx"])
    return Dump(
        kernel=kernel,
        language=language,
        parameters=dict(parameters),
        arch=arch,
        compiler=kernels.compiler_of(language),
        modules={module: dumps.digest(source) for module, source in sources.items()},
        levels={
            "python": dumps.digest(python),
            **{level: dumps.digest(content) for level, content in built.levels.items()},
        },
        entries={entry: dumps.ptx_parameters(ptx, entry) for entry in built.launches},
        function=function,
        read_only=read_only,
        metadata=dict(built.metadata),
        resources=[resources.as_json() for resources in built.resources(arch)],
    )


def _earlier_dump(path: Path) -> Dump | None:
    """What is to be overwritten. Raises ValueError where that would lose an edit or other files."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; give a folder")
    if not path.is_dir() or not any(path.iterdir()):
        return None
    try:
        earlier = Dump.read(path)
    except ValueError as problem:
        raise ValueError(f"{path} holds other files than a dump; give an empty folder: {problem}") from None
    edited = dumps.edited_levels(path, earlier)
    if edited:
        raise ValueError(
            f"{path} holds a dump whose {', '.join(edited)} has been edited, which would be lost; give "
            f"another folder"
        )
    return earlier
