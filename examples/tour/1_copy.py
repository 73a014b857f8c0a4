"""Step 1: copy a tensor.

New here: a kernel is one small program, started many times at once. Each instance asks for its number
(`tl.program_id`) and from it computes which BLOCK of elements is its own. The last block sticks out beyond
the end, so every load and store has a mask: without it the kernel would read and write memory of others.

A copy computes nothing, so its speed is that of memory. It reads every byte once and writes it once: GB/s =
2 * bytes / time. No kernel that touches as many bytes can be faster than a good copy.

    python examples/tour/1_copy.py --numel 1000003
"""

from __future__ import annotations

import argparse

import torch
import triton
import triton.language as tl
from tour_checks import check_device, device

BLOCK = 4096  # elements a program; a power of two, as every shape inside a Triton kernel


@triton.jit
def copy_kernel(
    source,  # (numel,), contiguous
    target,  # (numel,), contiguous
    numel,
    BLOCK: tl.constexpr,
):
    # 64 bit: a tensor may have more than 2**31 elements, where a 32-bit offset turns negative.
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < numel
    values = tl.load(source + offsets, mask=inside)
    tl.store(target + offsets, values, mask=inside)


def copy(source: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Copy `source`, contiguous and of any shape and dtype, to `out`, which is allocated where None."""
    if out is None:
        out = torch.empty_like(source)
    if out.shape != source.shape or out.dtype != source.dtype:
        raise ValueError(
            f"out is {tuple(out.shape)} {out.dtype}, expected {tuple(source.shape)} {source.dtype} as "
            f"source; pass torch.empty_like(source)"
        )
    for name, x in (("source", source), ("out", out)):
        if not x.is_contiguous():
            raise ValueError(
                f"{name} has strides {x.stride()}, expected contiguous; pass {name}.contiguous()"
            )
    check_device(source=source, out=out)
    programs = triton.cdiv(source.numel(), BLOCK)
    if programs:
        copy_kernel[(programs,)](source, out, source.numel(), BLOCK)
    return out


def reference(source: torch.Tensor) -> torch.Tensor:
    return source.clone()


def gb_per_s(bytes_copied: int, time_us: float) -> float:
    """What memory moved a second: every byte of the tensor was read and was written."""
    return 2 * bytes_copied / time_us / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--numel", nargs="+", type=int, default=[1, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
    for numel in parser.parse_args().numel:
        source = torch.randn(numel, device=device())
        if not torch.equal(copy(source), reference(source)):
            raise SystemExit(f"the copy of {numel} elements differs from its source")
        print(f"{numel} elements: copied by {triton.cdiv(numel, BLOCK)} programs, all the same")


if __name__ == "__main__":
    main()
