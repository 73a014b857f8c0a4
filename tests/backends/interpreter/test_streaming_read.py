"""The kernel behind the streaming floor reads every word of its matrix: skipping some would lower the floor.

Run with TRITON_INTERPRET=1 in a process of its own: Triton reads it once, at import.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process of its own with TRITON_INTERPRET=1", allow_module_level=True)

from tilelang_gemm_wrapper.core._streaming_read import _NEVER, streaming_read_kernel

BLOCK = 128


@pytest.mark.parametrize("programs", [1, 3, 8])  # a resident grid that loops, and one program a block
@pytest.mark.parametrize("words", [BLOCK, 5 * BLOCK, 7 * BLOCK + 4])
def test_every_word_is_read(words: int, programs: int) -> None:
    marker = _NEVER.value
    for place in {0, 1, BLOCK - 1, words // 2, words - 1}:
        source = torch.zeros(words, dtype=torch.int32)
        source[place] = marker  # the one value whose reading shows, in the lane that read it
        sink = torch.zeros(BLOCK, dtype=torch.int32)

        streaming_read_kernel[(programs,)](source, sink, words, BLOCK=BLOCK)

        expected = torch.zeros(BLOCK, dtype=torch.int32)
        expected[place % BLOCK] = marker
        assert torch.equal(sink, expected)


def test_other_data_writes_nothing() -> None:
    source = torch.arange(4 * BLOCK, dtype=torch.int32)
    sink = torch.zeros(BLOCK, dtype=torch.int32)
    streaming_read_kernel[(4,)](source, sink, source.numel(), BLOCK=BLOCK)
    assert not sink.any()
