"""Write the tables by which the ops' "auto" chooses, from what the benchmarks measured.

    python benchmarks/choose_op_backends.py benchmarks/results/NVIDIA_H100_80GB_HBM3

reads gemv.csv, rmsnorm.csv and quant.csv there and writes
tilelang_gemm_wrapper/ops/measured_tables/<device>.json: for each op and shape the fastest of Triton, TileLang
and, for a GEMV of half precision, cuBLAS; with the configuration that the TileLang GEMV was tuned to. --check
writes nothing and fails if the table is another.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from op_rows import OpRow, by_cell

from tilelang_gemm_wrapper.core.arguments import ending_in_one_line
from tilelang_gemm_wrapper.core.results import read_rows
from tilelang_gemm_wrapper.ops import measured
from tilelang_gemm_wrapper.ops.backends import PACKAGES

SUITES = ("gemv", "rmsnorm", "quant")


def entries_of(rows: Iterable[OpRow]) -> list[measured.Entry]:
    """An entry for each op and shape at which one of the backends was timed."""
    entries = []
    for cell, providers in by_cell(rows).items():
        # Elsewhere "torch" in the results is PyTorch's own op or the bare formula, which no GPU should run.
        backends = ("triton", "tilelang", "torch") if cell.op == "gemv" and " x " not in cell.dtype else ()
        times = {
            name: row.p50_us
            for name in backends or ("triton", "tilelang")
            if (row := providers.get(name)) is not None and row.p50_us is not None
        }
        if cell.op not in PACKAGES or not times:
            continue
        tilelang = providers.get("tilelang")
        config = _config(tilelang.config) if tilelang is not None else {}
        best = min(times, key=times.__getitem__)
        entries.append(measured.Entry(cell.op, cell.dtype, cell.M, cell.N, cell.K, best, config))
    return entries


def _config(text: str) -> dict[str, int]:
    """{"lanes": 64, ...} of "tuned: lanes=64, ..."; of anything else nothing."""
    if not text.startswith("tuned: "):
        return {}
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", text)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="the folder with the results of one device")
    parser.add_argument("--check", action="store_true", help="compare with the table that is there")
    options = parser.parse_args(argv)
    paths = [path for suite in SUITES if (path := options.results / f"{suite}.csv").exists()]
    if not paths:
        parser.error(f"{options.results} holds none of {', '.join(f'{suite}.csv' for suite in SUITES)}")
    rows = [row for path in paths for row in read_rows(path, OpRow)]
    devices = {row.device for row in rows}
    if len(devices) != 1:
        parser.error(f"{options.results} holds rows of {len(devices)} devices, expected one: {devices}")
    table = measured.TABLES / f"{devices.pop()}.json"
    if options.check:
        with tempfile.TemporaryDirectory() as folder:
            fresh = Path(folder, table.name)
            measured.write(fresh, entries_of(rows))
            same = table.exists() and table.read_text("utf-8") == fresh.read_text("utf-8")
        print(f"{table} {'is that of' if same else 'differs from'} {options.results}")
        return 0 if same else 1
    table.parent.mkdir(parents=True, exist_ok=True)
    measured.write(table, entries_of(rows))
    print(f"written: {table}")
    return 0


if __name__ == "__main__":
    sys.exit(ending_in_one_line(Path(__file__).name, main))
