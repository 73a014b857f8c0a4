"""How the fastest TileLang kernels of a kept tuning journal compare, by bands of M.

    python benchmarks/journal_by_band.py JOURNAL.jsonl.xz

Writes a Markdown table beside the journal: over the public M, the best final timing of a cell ÷ DeepGEMM's,
and ÷ ideal; and what the cost model's first choice among the timed configs of a cell costs, as it comes, over
the cells that were explored themselves. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from tilelang_gemm_wrapper.core.arguments import ending_in_one_line
from tilelang_gemm_wrapper.core.config import KernelConfig
from tilelang_gemm_wrapper.core.cost_model import CostModel
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES
from tilelang_gemm_wrapper.core.failure_text import first_line
from tilelang_gemm_wrapper.core.report import BANDS, geomean
from tilelang_gemm_wrapper.core.results import Cell, gemm_flops
from tilelang_gemm_wrapper.core.timing import ideal_us
from tilelang_gemm_wrapper.core.tuner.journal import read_records
from tilelang_gemm_wrapper.core.tuner.records import Failure, ShapeConditions, Timing
from tilelang_gemm_wrapper.models import PUBLIC_M

EXPLORED = 8  # timed configs: in other cells the leaders of a larger M were timed alone


def table(path: Path) -> str:
    ours: dict[Cell, float] = {}
    deep_gemm: dict[Cell, float] = {}
    floors: dict[tuple[int, int], float] = {}
    counts: defaultdict[type, int] = defaultdict(int)
    timed: defaultdict[Cell, dict[KernelConfig, float]] = defaultdict(dict)
    try:
        lines = lzma.decompress(path.read_bytes()).splitlines()
        names = (name for line in lines if (name := json.loads(line).get("device")))
        device = KNOWN_DEVICES[next(names, "no device")]
    except (lzma.LZMAError, ValueError, AttributeError, KeyError) as problem:
        raise ValueError(
            f"{path} is no tuning journal of a known device, packed with xz ({first_line(problem)})"
        ) from problem
    for record in read_records(lines):
        counts[type(record)] += 1
        if isinstance(record, ShapeConditions) and record.floor_us:
            floors[record.N, record.K] = record.floor_us
        elif isinstance(record, Timing) and record.M in PUBLIC_M:
            cell = record.M, record.N, record.K
            if record.config.is_tilelang:
                timed[cell][record.config] = record.p50_us  # the final one comes last
            if record.stage == "final" and record.config.kernel_type != "triton":
                times = ours if record.config.is_tilelang else deep_gemm
                times[cell] = min(times.get(cell, record.p50_us), record.p50_us)
    if not ours.keys() & deep_gemm.keys():
        raise ValueError(f"{path} holds no final timing of a TileLang kernel beside DeepGEMM's at a public M")
    model = CostModel(device)
    lines_of_table = [
        "| M | cells | ÷ DeepGEMM (worst) | ÷ ideal (worst) | model's first ÷ fastest (worst, of cells) |",
        "|---|---|---|---|---|",
    ]
    for label, holds in BANDS:
        cells = [cell for cell in ours if holds(cell[0]) and cell in deep_gemm]
        versus = [ours[cell] / deep_gemm[cell] for cell in cells]
        band = {cell: times for cell, times in timed.items() if holds(cell[0]) and len(times) >= EXPLORED}
        if not cells:
            continue
        ideal = [ours[cell] / ideal_us(floors[cell[1:]], gemm_flops(*cell), device) for cell in cells]
        lines_of_table.append(
            f"| {label} | {len(cells)} | {geomean(versus):.2f} ({max(versus):.2f}) "
            f"| {geomean(ideal):.2f} ({max(ideal):.2f}) | {_first_choices(model, band)} |"
        )
    return (
        f"# {path.name}\n\nWritten by `benchmarks/journal_by_band.py`: {len(floors)} shapes, "
        f"{counts[Timing]} timings, {counts[Failure]} failures. Geomeans of the fastest TileLang kernel "
        f"of each cell.\n\n" + "\n".join(lines_of_table) + "\n"
    )


def _first_choices(model: CostModel, cells: Mapping[Cell, Mapping[KernelConfig, float]]) -> str:
    losses = []
    for cell, times in cells.items():
        first = min(times, key=lambda config: model.predict(config, *cell))
        losses.append(times[first] / min(times.values()))
    return f"{geomean(losses):.3f} ({max(losses):.2f}, of {len(losses)})" if losses else "–"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("journal", type=Path)
    path = parser.parse_args().journal
    text = table(path)
    path.with_name(f"{path.name.split('.')[0]}_by_band.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(ending_in_one_line(Path(__file__).name, main))
