"""What the steps of the tour share: where they run, which tensors they take, how main() reports."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

try:
    from tilelang_gemm_wrapper.core.arguments import whole_number
    from tilelang_gemm_wrapper.core.workload import Expected, Workload, compare
    from tilelang_gemm_wrapper.lab.debug import interpreting
except ModuleNotFoundError as missing:
    raise SystemExit(f"The tour needs {missing.name}: run pip install . in the checkout first.") from None


def device() -> str:
    """Where main() runs: a GPU, or the CPU under Triton's interpreter. Exits where there is neither."""
    if interpreting():
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    raise SystemExit(
        "This machine has no NVIDIA GPU. Set TRITON_INTERPRET=1 and run again: Triton, which reads it when "
        "it is imported, then runs the kernel on the CPU."
    )


def check_matrix(
    name: str,
    x: torch.Tensor,
    shape: tuple[int | None, int | None],
    dtypes: Sequence[torch.dtype],
    *,
    rows_apart: bool = False,
) -> None:
    """Raise ValueError unless x is a row-major matrix of this shape (None: any size) and one of the dtypes.

    rows_apart: whether the rows may lie further apart than they are long, as in a slice of a wider matrix.
    """
    if x.ndim != 2 or any(want not in (None, got) for got, want in zip(x.shape, shape, strict=True)):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected ({expected}); pass A as (M, K), B as (N, K), "
            f"out as (M, N)"
        )
    if x.dtype not in dtypes:
        names = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name} is {x.dtype}, expected {names}; convert it first")
    rows, columns = x.shape
    row_major = columns <= 1 or x.stride(1) == 1
    rows_fit = rows <= 1 or (x.stride(0) >= columns if rows_apart else x.stride(0) == columns)
    if x.numel() and not (row_major and rows_fit):
        raise ValueError(f"{name} has strides {x.stride()}, expected row-major; pass {name}.contiguous()")


def check_device(**tensors: torch.Tensor) -> None:
    """Raise ValueError unless all lie on one GPU, or anywhere alike under the interpreter."""
    first = next(iter(tensors.values()))
    for name, x in tensors.items():
        if x.device != first.device:
            raise ValueError(f"{name} is on {x.device}, expected {first.device} as the others; move it there")
        if not (x.is_cuda or interpreting()):
            raise ValueError(
                f"{name} is on {x.device}, expected a GPU; move it there, or start Python with "
                f"TRITON_INTERPRET=1"
            )


def shapes_from_command_line(
    description: str | None, default: Sequence[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    """The (M, N, K) that main() checks: those asked for, or some odd ones."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape",
        nargs=3,
        type=whole_number,
        action="append",
        metavar=("M", "N", "K"),
        help="check this shape; may be given several times (default: a few odd ones)",
    )
    return [(M, N, K) for M, N, K in parser.parse_args().shape or default]


def report_product(what: str, out: torch.Tensor, inputs: Workload) -> None:
    """Print the error of a block-scaled FP8 product; exit where it, or any element, is not right."""
    comparison = compare(out, Expected.of(inputs))
    print(f"{what}: error {comparison.error:.1e}")
    why_wrong = comparison.why_wrong()
    if why_wrong is not None:
        raise SystemExit(f"{what} is wrong: {why_wrong}")


def report(what: str, error: float, limit: float) -> None:
    """Print the error of a result; exit where it is above the limit, or NaN."""
    print(f"{what}: error {error:.1e}")
    if not error <= limit:
        raise SystemExit(f"{what} is wrong: its error is above {limit:g}")
