"""What distinguishes two dumps: resources and instruction mix side by side, and the source level by level."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.report import markdown_table
from .dumps import LEVELS, Dump, edited_levels, level_path
from .resources import SPILLS

_FIGURES = (
    ("threads", "threads a CTA"),
    ("registers", "registers a thread"),
    ("static_shared_bytes", "static shared memory, bytes"),
    ("dynamic_shared_bytes", "dynamic shared memory, bytes"),
    ("stack_bytes", "stack a thread, bytes"),
    ("barriers", "named barriers"),
    ("ctas_per_sm", "CTAs an SM"),
    ("occupancy", "theoretical occupancy"),
    ("limited_by", "limited by"),
    ("instruction_total", "instructions"),
    ("counted_in", "counted in"),
)


def resource_table(columns: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """A Markdown table of kernels' resources, a column each; instruction kinds that none has are left out."""
    rows = [[label, *(_text(column.get(name)) for _, column in columns)] for name, label in _FIGURES]
    counts = [column["instructions"] for _, column in columns]
    rows.append(["spill loads, stores", *(_spills(by_kind) for by_kind in counts)])
    for kind in dict.fromkeys(kind for by_kind in counts for kind in by_kind if kind not in SPILLS):
        rows.append([kind, *(_text(by_kind.get(kind, 0)) for by_kind in counts)])
    return markdown_table(["", *(title for title, _ in columns)], rows)


def summary(dump: Dump) -> str:
    """One dump's kernels and what each takes."""
    head = f"{dump.kernel} for {dump.arch}, {', '.join(f'{k} {v}' for k, v in dump.compiler.items())}"
    sizes = ", ".join(f"{name} = {value}" for name, value in dump.parameters.items())
    table = resource_table([(resources["entry"], resources) for resources in dump.resources])
    notes = [f"kernel.{level} is for reading only: {why}" for level, why in dump.read_only.items()]
    return "\n".join([head, *([sizes] if sizes else []), "", table, *notes])


def diff(before: str | Path, after: str | Path, *, levels: Sequence[str] = (), lines: int = 40) -> str:
    """A report on two dumps' folders, as their files are now.

    levels: those whose source is compared, all that both have by default. lines: of each level's difference,
    0 for none of them. The table is of the kernels as they were dumped, and a note says what else is where a
    level has been edited. Raises ValueError where a folder is
    no dump or a level is in neither.
    """
    folders = (Path(before), Path(after))
    dumps = [Dump.read(folder) for folder in folders]
    unknown = [level for level in levels if not any(level in LEVELS[dump.language] for dump in dumps)]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: neither dump has such a level")
    titles = [str(folder) for folder in folders]
    paired = [
        (f"{entry['entry']} of {title}", entry)
        for title, dump in zip(titles, dumps, strict=True)
        for entry in dump.resources
    ]
    parts = [resource_table(paired), *map(_stale_note, folders, dumps)]
    parts = [part for part in parts if part]
    common = [level for level in LEVELS[dumps[0].language] if level in LEVELS[dumps[1].language]]
    for level in levels or common:
        found = list(_level_difference(folders, level))
        if not found:
            parts.append(f"{level}: the same")
        elif level == "cubin":
            parts.append("cubin: different; kernel.sass has what it disassembled to when it was dumped")
        else:
            changed = sum(line[:1] in "+-" and line[:3] not in ("+++", "---") for line in found)
            shown = found[:lines]
            rest = len(found) - len(shown)
            more = [f"... {rest} lines more; --lines {len(found)} shows all"] if rest and lines else []
            parts.append("\n".join([f"{level}: {changed} lines differ", *shown, *more]))
    return "\n\n".join(parts)


def _stale_note(folder: Path, dump: Dump) -> str:
    """That a level has been edited and what in the folder does not show it; "" where none has."""
    edited = edited_levels(folder, dump)
    if not edited:
        return ""
    order = LEVELS[dump.language]
    highest = min(edited, key=order.index)
    below = [level for level in order[order.index(highest) + 1 :] if level not in edited]
    stale = ", ".join([*below, "kernel.sass", "the table above"])
    return (
        f"{folder}: {', '.join(edited)} edited since the dump. Still of the kernel as it was dumped: {stale}."
        f" What the edit compiles to is shown by: lab run --from {level_path(folder, highest)}"
    )


def _level_difference(folders: Sequence[Path], level: str) -> Iterator[str]:
    paths = [level_path(folder, level) for folder in folders]
    if level == "cubin":
        contents = [path.read_bytes() if path.exists() else b"" for path in paths]
        yield from ["different"] if contents[0] != contents[1] else []
        return
    files = sorted({path.name for folder in paths if folder.is_dir() for path in folder.glob("*.py")}) or [""]
    for name in files:
        one, other = (path / name if name else path for path in paths)
        texts = [
            file.read_text(encoding="utf-8").splitlines() if file.is_file() else [] for file in (one, other)
        ]
        yield from difflib.unified_diff(texts[0], texts[1], str(one), str(other), lineterm="", n=1)


def _spills(counts: Mapping[str, int]) -> str:
    return ", ".join(str(counts.get(kind, 0)) for kind in SPILLS)


def _text(value: Any) -> str:
    if value is None:
        return "unknown"
    return f"{value:.0%}" if isinstance(value, float) else str(value)
