"""Write the README's tables of measured figures from the benchmarks' CSVs.

python benchmarks/update_readme.py            # rewrite the blocks
python benchmarks/update_readme.py --check    # status 1 if they are out of date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tilelang_gemm_wrapper.core.report import (
    OURS_COLUMN_MAJOR,
    OURS_STATIC,
    PEERS,
    band_table,
    checked,
    geomean,
    versus_table,
)
from tilelang_gemm_wrapper.core.results import Row, by_cell, read_rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/NVIDIA_H100_80GB_HBM3/gemm_qwen3-4b.csv"
GRID = ROOT / "benchmarks/results/NVIDIA_H100_80GB_HBM3/gemm_public.csv"
STATIC_HEADING = " × DeepGEMM, static weights | % of ideal, static weights |"
TOKENS = (1, 8, 16, 32, 64, 128, 512, 2048, 8192)


def block(rows: list[Row], source: str) -> str:
    """The table and what it says, as Markdown: µs per shape and M, × DeepGEMM on the same inputs."""
    cells = by_cell(checked(rows))
    shapes = list(dict.fromkeys(cell[1:] for cell in cells))
    static = any(OURS_STATIC in providers for providers in cells.values())
    first = rows[0]
    device = first.device.replace("_", " ")
    lines = [
        f"The linear layers of Qwen3-4B-FP8 on {device}: µs, and in brackets how many times as fast as",
        "DeepGEMM's kernel on the same column-major scales. 1.00 mostly means that the tuned file names",
        "DeepGEMM; a number far above those of the rows beside it, that DeepGEMM's tile does not fit that M.",
        "Ideal is the larger of a plain read of the weights and the FLOPs at 1450 TFLOPS. Means are",
        "geometric.",
        *(
            ["Static weights: with `TILELANG_GEMM_STATIC_WEIGHTS=1`, as an engine may set it."]
            if static
            else []
        ),
        f"torch {first.torch}, tilelang {first.tilelang}, DeepGEMM {first.deep_gemm}, {first.date}.",
        f"[Every M and provider]({source}).",
        "",
        "| M | "
        + " | ".join(f"{N}×{K}" for N, K in shapes)
        + " | × DeepGEMM | % of ideal |"
        + STATIC_HEADING * static,
        "|---" * (len(shapes) + 3 + 2 * static) + "|",
    ]
    for M in TOKENS:
        of_shapes = [cells[M, N, K] for N, K in shapes]
        texts = []
        for cell in of_shapes:
            ours, peer = cell[OURS_COLUMN_MAJOR], cell["deep_gemm"]
            assert ours.p50_us and peer.p50_us and ours.ideal_us
            texts.append(f"{ours.p50_us:.1f} ({peer.p50_us / ours.p50_us:.2f})")
        lines.append(
            f"| {M} | {' | '.join(texts)} |"
            + _means(of_shapes, OURS_COLUMN_MAJOR)
            + static * _means(of_shapes, OURS_STATIC)
        )
    return "\n".join(lines) + "\n"


def _means(cells: list[dict[str, Row]], provider: str) -> str:
    """Two columns of a row; nothing where a shape lacks the provider: the table names no kernel of ours."""
    speedups, shares = [], []
    for cell in cells:
        ours, peer = cell.get(provider), cell["deep_gemm"]
        if ours is None or not (ours.p50_us and ours.ideal_us and peer.p50_us):
            return " – | – |"
        speedups.append(peer.p50_us / ours.p50_us)
        shares.append(100 * ours.ideal_us / ours.p50_us)
    return f" {geomean(speedups):.2f} | {geomean(shares):.0f} |"


def bands(rows: list[Row], source: str) -> str:
    """By bands of M, as Markdown: our time over the best peer's, cell by cell, and over ideal."""
    ours = [row for row in rows if row.provider in (OURS_COLUMN_MAJOR, OURS_STATIC)]
    cells = by_cell(rows)
    first = rows[0]
    lines = [
        f"{len({cell[1:] for cell in cells})} public shapes on {first.device.replace('_', ' ')}, "
        f"{len(cells)} cells. The best peer is the faster of DeepGEMM",
        "with prepared scales and cuBLAS in each cell. Geometric means, in brackets the worst cell. A time",
        "below ideal is possible: a kernel may start, and read weights, while the one before it still runs.",
        f"torch {first.torch}, tilelang {first.tilelang}, DeepGEMM {first.deep_gemm}, {first.date}.",
        f"[Every cell]({source}).",
        "",
    ]
    against = versus_table(ours + [row for row in rows if row.provider in PEERS])
    return "\n".join(lines) + f"\n{against}\n{band_table(ours)}"


def filled(text: str, name: str, block: str) -> str:
    """`text` with what stands between the marks of `name` replaced."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    head, rest = text.split(begin)
    return head + begin + block + end + rest.split(end)[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, tell whether the blocks are current"
    )
    options = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = text
    for name, table, results in (("benchmark", block, RESULTS), ("bands", bands, GRID)):
        source = results.with_suffix(".md").relative_to(ROOT).as_posix()
        new = filled(new, name, table(read_rows(results, Row), source))
    if options.check:
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
