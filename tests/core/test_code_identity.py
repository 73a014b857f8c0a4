"""core/code_identity.py: what code does names it; how it is written down does not."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tilelang_gemm_wrapper.core import code_identity

MAIN = '''
    """A module."""
    from __future__ import annotations
    from typing import TYPE_CHECKING
    from tilelang_gemm_wrapper.parts import helper, numbers as figures
    from .parts.sizes import SIZE as LARGE
    import math

    STEP, OTHER = 128, 7
    unused = 1

    def build(n):
        """Builds."""
        from tilelang_gemm_wrapper.parts.late import late
        return Builder(n * STEP).run(helper.double(n), figures.TABLE[n], LARGE, late)

    class Builder:
        """One that builds."""
        limit: int = 3

        def run(self, *parts):
            # starts
            return sum(parts)

    def apart():
        return "apart"
'''
PARTS = {
    "helper": "def double(n):\n    return 2 * n * _two()\n\ndef _two():\n    return 2\n",
    "numbers": "TABLE = [1, 2]\nTABLE[0] = 4\nif TABLE:\n    print('at import')\n",
    "sizes": "SIZE = 5\nOTHER = 6\n",
    "late": "late = 9\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The source of `main` and of what it uses, in the place of this package's."""
    monkeypatch.setattr(code_identity, "_ROOT", tmp_path)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("")
    write(tmp_path, "main", MAIN)
    for name, text in PARTS.items():
        write(tmp_path, f"parts/{name}", text)
    return tmp_path


def write(package: Path, name: str, text: str) -> None:
    (package / f"{name}.py").write_text(textwrap.dedent(text))


def name(function: str = "build") -> str:
    return code_identity.digest([("tilelang_gemm_wrapper.main", function)])


def edit(package: Path, module: str, old: str, new: str) -> None:
    path = package / f"{module}.py"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("main", '"""A module."""', '"""Another text."""'),
        ("main", '"""Builds."""', ""),
        ("main", '"""One that builds."""', '"""Two\n    lines."""'),
        ("main", "# starts", "# ends"),
        ("main", "n * STEP", "(n *\n        STEP)"),
        ("main", "import math", "import math\nimport os"),
        ("parts/helper", "return 2 * n * _two()", "return 2*n*_two()  # four times"),
        ("main", "unused = 1", "unused = 2"),  # nor what has no part in it
        ("main", 'return "apart"', 'return "far"'),
        ("parts/sizes", "OTHER = 6", "OTHER = 7"),
    ],
)
def test_what_changes_nothing_keeps_the_name(package, module, old, new):
    before = name()
    edit(package, module, old, new)
    assert name() == before


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("main", "n * STEP", "n + STEP"),
        ("main", "STEP, OTHER = 128, 7", "STEP, OTHER = 64, 7"),
        ("main", "limit: int = 3", "limit: int = 4"),
        ("main", "return sum(parts)", "return max(parts)"),
        ("parts/helper", "return 2\n", "return 3\n"),  # a helper's helper
        ("parts/numbers", "TABLE = [1, 2]", "TABLE = [1, 3]"),
        ("parts/numbers", "TABLE[0] = 4", "TABLE[0] = 5"),
        ("parts/numbers", "if TABLE:", "if not TABLE:"),
        ("parts/sizes", "SIZE = 5", "SIZE = '5'"),
        ("parts/late", "late = 9", "late = None"),
    ],
)
def test_what_changes_something_changes_the_name(package, module, old, new):
    before = name()
    edit(package, module, old, new)
    assert name() != before


def test_each_function_has_its_own_name(package):
    assert name("apart") != name("build")


def test_a_module_that_is_not_there(package):
    with pytest.raises(FileNotFoundError, match=r"tilelang_gemm_wrapper\.gone has no source"):
        code_identity.digest([("tilelang_gemm_wrapper.gone", "build")])
