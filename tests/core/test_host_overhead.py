"""Host time per call, with a clock that the calls themselves move."""

from __future__ import annotations

import gc

import pytest

from tilelang_gemm_wrapper.core.host_overhead import CALLS, host_us


def test_batches_interleave_after_an_empty_queue_and_the_first_is_dropped():
    now = 0
    log = []

    def call(name, ns):
        def launch(i):
            nonlocal now
            # First calls compile, load and allocate: they are no measure of the others.
            now += ns if log.count(name) >= CALLS else 1_000_000
            log.append(name)

        return launch

    def synchronize():
        nonlocal now
        now += 5_000_000  # must not be counted
        log.append("sync")

    spans = host_us({"a": call("a", 6000), "b": call("b", 15000)}, synchronize, batches=3, clock=lambda: now)

    assert spans == {"a": [6.0] * 3, "b": [15.0] * 3}
    turn = ["sync", *["a"] * CALLS, "sync", *["b"] * CALLS]
    assert log == turn * 4 + ["sync"]


def test_the_collector_is_off_while_measuring_and_on_again_after_a_failure():
    seen = []

    def failing(i):
        seen.append(gc.isenabled())
        raise RuntimeError("launch failed")

    with pytest.raises(RuntimeError, match="launch failed"):
        host_us({"a": failing}, lambda: None)
    assert seen == [False]
    assert gc.isenabled()
