"""The Triton backend around its kernel: the choice of tile, and why it cannot run somewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tilelang_gemm_wrapper.backends import triton
from tilelang_gemm_wrapper.backends.triton import ADA_TILES, HOPPER_TILES, Tile, choose_tile
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, cpu_device

H200 = KNOWN_DEVICES["NVIDIA_H200"]
L40S = KNOWN_DEVICES["NVIDIA_L40S"]


@pytest.fixture(autouse=True)
def fresh_caches() -> Iterator[None]:
    triton.why_unavailable.cache_clear()
    yield
    triton.why_unavailable.cache_clear()


def choose(M: int, N: int, K: int, device=H200) -> Tile:
    return choose_tile(M, N, K, device.sm_count, device.shared_memory_per_block)


@pytest.mark.parametrize("table", [HOPPER_TILES, ADA_TILES])
def test_tables_are_ordered_and_valid(table: tuple[triton.TileRow, ...]) -> None:
    assert [row.max_M for row in table] == sorted(row.max_M for row in table)
    assert table[-1].max_M == float("inf")
    for row in table:
        sizes = [tile.block_M * tile.block_N for tile in row.tiles]
        assert sizes == sorted(sizes, reverse=True)
        for tile in row.tiles:
            assert 128 % tile.block_N == 0
            assert tile.block_M % 16 == 0
            assert tile.num_warps in {4, 8}


@pytest.mark.parametrize(
    ("M", "N", "K", "block_M", "block_N"),
    [
        (1, 2560, 4096, 16, 32),  # 80 tiles of 32 columns: too few for wider ones
        (16, 6144, 2560, 16, 32),
        (16, 9216, 2560, 16, 64),  # 144 tiles of 64 for 132 SMs
        (16, 19456, 2560, 16, 128),
        (17, 19456, 2560, 64, 64),
        (64, 2560, 4096, 64, 32),
        (8192, 2560, 4096, 64, 128),
    ],
)
def test_hopper_tile_fills_the_sms(M: int, N: int, K: int, block_M: int, block_N: int) -> None:
    tile = choose(M, N, K)
    assert (tile.block_M, tile.block_N) == (block_M, block_N)


def test_ada_has_its_own_table() -> None:
    assert choose(8192, 4096, 4096, L40S) == ADA_TILES[-1].tiles[0]
    assert choose(20, 4096, 4096, L40S).block_M == 32


def test_rows_at_odd_addresses_take_the_smallest_tile() -> None:
    assert choose(4096, 4096, 3884) == HOPPER_TILES[-1].tiles[-1]
    assert choose(4096, 4096, 3888) != HOPPER_TILES[-1].tiles[-1]


def test_available_on_hopper_ada_and_newer() -> None:
    for device in (H200, L40S, replace(H200, arch="sm_100"), replace(L40S, arch="sm_120")):
        assert triton.why_unavailable(device) is None
    assert triton.why_unsupported(3, 3884) is None


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (cpu_device(), "needs an NVIDIA GPU; this device is cpu"),
        (replace(H200, name="NVIDIA_A100", arch="sm_80"), "sm_89 or newer; NVIDIA_A100 is sm_80"),
        (replace(H200, arch="gfx942"), "needs an NVIDIA GPU; this device is gfx942"),
    ],
)
def test_unavailable_elsewhere(device, reason: str) -> None:
    assert reason in triton.why_unavailable(device)


def test_a_broken_triton_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("libtriton.so: undefined symbol")

    monkeypatch.setattr(triton, "_kernel", broken)
    assert "ImportError: libtriton.so: undefined symbol" in triton.why_unavailable(H200)
