"""core/kernel_registry.py: the configs a tuner tries, and the builders they lead to."""

from __future__ import annotations

from collections import Counter

import pytest

from tilelang_gemm_wrapper.core import kernel_registry
from tilelang_gemm_wrapper.core.config import TILELANG_KERNELS, KernelConfig, why_invalid
from tilelang_gemm_wrapper.core.device import KNOWN_DEVICES, cpu_device
from tilelang_gemm_wrapper.models import shapes_of

H200, L40S = KNOWN_DEVICES["NVIDIA_H200"], KNOWN_DEVICES["NVIDIA_L40S"]
SHAPES = [*shapes_of("public"), *shapes_of("qwen3-4b"), (16, 128), (576, 7168), (2112, 7168)]


@pytest.mark.parametrize("device", [H200, L40S], ids=lambda device: device.name)
@pytest.mark.parametrize(("N", "K"), list(dict.fromkeys(SHAPES)))
def test_search_space(N, K, device):
    space = list(kernel_registry.search_space(N, K, device))
    assert [config for config in space if why_invalid(config, N, K, device)] == []
    assert [config for config, times in Counter(space).items() if times > 1] == []
    # With the widest tiles along N: no split where they fill the SMs twice, none that fills them four times.
    tiles, sms = -(-N // (192 if device is H200 else 128)), device.sm_count
    dividing = {split for split in range(2, 9) if K // 128 % split == 0}
    splits = {split for split in dividing if tiles < 2 * sms and tiles * split <= 4 * sms}
    kinds = set(TILELANG_KERNELS) if splits else {"base", "swapAB"}
    assert {config.kernel_type for config in space} == kinds
    assert {config.split_k for config in space if config.is_split_k} == splits
    # Decode needs narrow tiles of tokens, prefill wide ones.
    tokens = {config.tile_tokens for config in space}
    assert min(tokens) == (8 if device is H200 else 16)
    assert max(tokens) >= 128
    assert {config.threads for config in space} - {384} == {128, 256}
    # A third warpgroup for the 192 rows of Hopper's largest tile, or to take turns at 64.
    assert {config.block_M for config in space if config.threads == 384} <= {64, 192}
    # Tiles of any width fill the SMs where those in one scale block leave some idle.
    assert ({config.block_N for config in space if not config.is_swap_ab} > {16, 32, 64, 128}) == (
        device is H200
    )
    assert (len({config.num_stages for config in space}) > 1) == (K // 128 > 3 or device is L40S)
    assert all(config.num_stages <= max(3, K // 128 // config.split_k) for config in space)


def test_suits_keeps_tiles_in_proportion_to_m():
    def suits(config: KernelConfig, M: int, N: int = 4096) -> bool:
        return kernel_registry.suits(config, M, N, H200)

    assert suits(KernelConfig("swapAB", 64, 8, 128, 4, 128), 1)
    assert not suits(KernelConfig("swapAB", 64, 64, 128, 4, 128), 8)  # mostly padding
    assert not suits(KernelConfig("swapAB", 64, 8, 128, 4, 128), 256)  # weights read 32 times
    assert suits(KernelConfig("base", 64, 64, 128, 4, 128), 1)
    assert not suits(KernelConfig("base", 128, 64, 128, 4, 256), 32)
    assert not suits(KernelConfig("base", 64, 32, 128, 4, 128), 512)
    assert not suits(KernelConfig("splitK", 128, 128, 128, 4, 256, 2), 2048, 17408)  # the SMs are full


@pytest.mark.parametrize(
    ("N", "K", "device"), [(24, 256, H200), (128, 192, H200), (128, 256, cpu_device())], ids=str
)
def test_nothing_to_search_where_no_kernel_runs(N, K, device):
    assert list(kernel_registry.search_space(N, K, device)) == []


@pytest.mark.parametrize("arch", ["sm_90a", "sm_89"])
@pytest.mark.parametrize(
    "config",
    [
        KernelConfig("base", 64, 64, 128, 3, 128),
        KernelConfig("swapAB", 64, 16, 128, 3, 128),
        KernelConfig("splitK", 64, 64, 128, 3, 128, 2),
        KernelConfig("splitK_swapAB", 64, 16, 128, 3, 128, 2),
    ],
    ids=lambda config: config.kernel_type,
)
def test_each_kind_has_a_builder(config, arch):
    """The PrimFunc takes the five tensors, and the partials exactly where the launch brings them."""
    pytest.importorskip("tilelang")
    function = kernel_registry.build(1600, 512, config, arch)
    workspace = kernel_registry.needs_workspace(config, arch)
    assert workspace == (config.is_split_k and arch == "sm_89")
    buffers = [function.buffer_map[parameter] for parameter in function.params]
    assert [buffer.name for buffer in buffers[:5]] == ["A", "A_scale", "B", "B_scale", "C"]
    assert len(buffers) == (6 if workspace else 5)
    if workspace:
        partials = buffers[5]
        assert str(partials.dtype) == "float32"
        assert (int(partials.shape[0]), int(partials.shape[2])) == (config.split_k, 1600)
    assert [tuple(map(int, buffers[i].shape)) for i in (2, 3)] == [(1600, 512), (13, 4)]


HOPPER_KINDS = [
    KernelConfig("base", 128, 64, 128, 3, 256),
    KernelConfig("swapAB", 64, 16, 128, 3, 128),
    KernelConfig("splitK", 128, 64, 128, 3, 256, 2),
    KernelConfig("splitK_swapAB", 64, 16, 128, 3, 128, 2),
]


def before_the_wait(script):
    """What each role of a kernel does before it waits for the preceding one: nothing where it never does."""
    roles = script.split("pdl_trigger", 1)[1].split("pdl_sync")[:-1]
    return "".join(role[role.rfind("else:") + 1 :] for role in roles)


@pytest.mark.parametrize("config", HOPPER_KINDS, ids=lambda config: config.kernel_type)
def test_static_weights_are_loaded_before_the_wait_and_all_else_after_it(config):
    pytest.importorskip("tilelang")
    script = kernel_registry.build(1600, 1024, config, "sm_90a", static_weights=True).script()
    early = before_the_wait(script)
    assert "tma_copy(T.region(B[" in early
    assert "B_scale[" in early
    for late in ("T.region(A[", "A_scale[", "C["):
        assert late not in early
        assert late in script


@pytest.mark.parametrize("config", HOPPER_KINDS, ids=lambda config: config.kernel_type)
def test_other_weights_are_only_prefetched_before_the_wait(config):
    pytest.importorskip("tilelang")
    script = kernel_registry.build(1600, 1024, config, "sm_90a").script()
    early = before_the_wait(script)
    assert "PREFETCH_B" in early
    assert "prefetch_line" in early
    for late in ("tma_copy", "A_scale[", "= B_scale[", "access_ptr(B_scale[", "C["):
        assert late not in early


def test_no_early_start_on_ada():
    pytest.importorskip("tilelang")
    config = KernelConfig("swapAB", 64, 16, 128, 3, 128)
    assert "pdl" not in kernel_registry.build(1600, 1024, config, "sm_89", static_weights=True).script()
