"""Every tile of the table compiled for its GPU, without one: shared memory, and the instructions used."""

from __future__ import annotations

import os
import re

import pytest

from tilelang_gemm_wrapper.backends.triton import ADA_TILES, HOPPER_TILES, Tile
from tilelang_gemm_wrapper.core.device import ADA_SHARED_MEMORY, HOPPER_SHARED_MEMORY

triton = pytest.importorskip("triton", reason="Triton is not installed on this platform")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton compiles nothing in a process that interprets", allow_module_level=True)

from tilelang_gemm_wrapper.backends._triton_kernel import block_scaled_gemm  # noqa: E402

HOPPER = [tile for row in HOPPER_TILES for tile in row.tiles]
ADA = [tile for row in ADA_TILES for tile in row.tiles]
TENSORS = {"A": "*fp8e4nv", "A_scale": "*fp32", "B": "*fp8e4nv", "B_scale": "*fp32", "C": "*bf16"}
INTEGERS = ("M", "N", "K", "stride_am", "stride_ak", "stride_cm")


def compile_for(capability: int, tile: Tile, *, whole_k: bool = True, aligned: bool = True):
    """The kernel as `launch` has it compiled; `aligned` stands for N and K being multiples of 16."""
    constants = {
        "BLOCK_M": tile.block_M,
        "BLOCK_N": tile.block_N,
        "GROUP_M": tile.group_M,
        "WHOLE_K": whole_k,
    }
    signature = {**TENSORS, **dict.fromkeys(INTEGERS, "i32"), **dict.fromkeys(constants, "constexpr")}
    divisible = ("A", "B", "C", *(("N", "K", "stride_cm") if aligned else ()))
    names = list(signature)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = triton.compiler.ASTSource(block_scaled_gemm, signature, constants, attributes)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": True}
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=options)


@pytest.mark.parametrize("whole_k", [True, False], ids=["whole_k", "ragged_k"])
@pytest.mark.parametrize("tile", HOPPER, ids=str)
def test_hopper(tile: Tile, whole_k: bool) -> None:
    kernel = compile_for(90, tile, whole_k=whole_k)
    assert kernel.metadata.shared <= HOPPER_SHARED_MEMORY
    wgmma = re.findall(r"wgmma\.mma_async\S*\.e4m3\.e4m3", kernel.asm["ptx"])
    assert bool(wgmma) == (tile.block_M >= 64)  # below 64 rows Hopper has plain mma alone
    check_memory_access(kernel.asm["ptx"])


@pytest.mark.parametrize("whole_k", [True, False], ids=["whole_k", "ragged_k"])
@pytest.mark.parametrize("tile", ADA, ids=str)
def test_ada(tile: Tile, whole_k: bool) -> None:
    kernel = compile_for(89, tile, whole_k=whole_k)
    assert kernel.metadata.shared <= ADA_SHARED_MEMORY
    assert re.search(r"mma\.sync\S*m16n8k32\S*\.e4m3\.e4m3", kernel.asm["ptx"])
    check_memory_access(kernel.asm["ptx"])


def check_memory_access(ptx: str) -> None:
    """A and B come by 16-byte asynchronous copies, C leaves in stores of 8 or 16."""
    assert re.search(r"cp\.async\.cg\.shared\.global \[.*\], \[.*\], (0x10|16)", ptx)
    assert re.search(r"st\.global\.v[24]\.b32", ptx)
    assert "ld.global.b8" not in ptx


@pytest.mark.parametrize(("capability", "tile"), [(90, HOPPER[-1]), (89, ADA[-1])])
def test_unaligned_rows_compile(capability: int, tile: Tile) -> None:
    kernel = compile_for(capability, tile, whole_k=False, aligned=False)
    assert "ld.global.b8" in kernel.asm["ptx"]


def test_offsets_of_elements_are_64_bit() -> None:
    """M * K, N * K or M * N may pass 2**31: a row times a stride must not be formed in 32 bits."""
    ttir = compile_for(90, HOPPER[-1]).asm["ttir"]
    products = re.findall(r"arith\.muli .* : (tensor<\S+>)", ttir)
    assert products
    assert all("xi64>" in product for product in products), products
