"""integrations/preparation.py: what becomes of a rank's shapes, whether ranks agree, and the account."""

from __future__ import annotations

import json
import pickle
import re

import pytest

from tilelang_gemm_wrapper import backends, entrypoint
from tilelang_gemm_wrapper.core import dispatch, wrapper
from tilelang_gemm_wrapper.core.config_file import config_file_name
from tilelang_gemm_wrapper.core.dispatch import fallback_choice
from tilelang_gemm_wrapper.integrations import preparation
from tilelang_gemm_wrapper.ops import quant

TUNED, UNTUNED, ODD = (6144, 2560), (3072, 2560), (100, 2560)


def prepare(*shapes, **settings):
    return preparation.prepare(shapes, 4160, 0, progress=False, **settings)


def test_shapes_without_a_kernel_are_left_alone_and_named(hopper):
    ready = prepare(TUNED, UNTUNED, ODD)
    assert set(ready.selection) == set(ready.sources) == {TUNED, UNTUNED} == {(j.N, j.K) for j in hopper.jobs}
    assert set(ready.refused) == {ODD} and "not a multiple of 16" in ready.refused[ODD]
    assert ready.sources[TUNED].endswith(".json") and ready.sources[UNTUNED] == "default choice"
    assert ready.compiled == len(hopper.jobs) > 0 and hopper.quantizers == [(0, "sglang")]


def test_nothing_is_prepared_where_no_shape_is_ours(hopper):
    assert not prepare().selection and not prepare(ODD).selection
    assert not hopper.jobs and not hopper.quantizers


@pytest.mark.parametrize("static_weights", [True, False])
def test_kernels_are_those_that_were_asked_for_whatever_was_there_and_the_environment_says(
    hopper, static_weights, monkeypatch
):
    monkeypatch.setenv("TILELANG_GEMM_STATIC_WEIGHTS", str(int(not static_weights)))
    entrypoint.warmup([TUNED], 4160, 0, progress=False)
    hopper.jobs.clear()
    prepare(TUNED, static_weights=static_weights)
    assert hopper.jobs and {job.static_weights for job in hopper.jobs} == {static_weights}
    assert wrapper.gemm_for(*TUNED, 0).static_weights is static_weights, "calls find these"


def test_a_shape_of_which_a_kernel_does_not_compile_is_refused_whole(hopper, monkeypatch, caplog):
    """A backend of ours would run in its place, and is not even warmed up."""
    for name in ("deep_gemm", "triton"):
        stand_in = backends.backend(name)
        monkeypatch.setattr(stand_in, "why_unavailable", lambda device: None)
        monkeypatch.setattr(stand_in, "warmup", lambda *_: pytest.fail("compiled what will not run"))
    hopper.broken.add(UNTUNED)
    ready = prepare(TUNED, UNTUNED)
    assert "deep_gemm" not in caplog.text and "triton" not in caplog.text
    assert set(ready.selection) == set(ready.sources) == {TUNED}
    why = ready.refused[UNTUNED]
    assert "did not compile (RuntimeError: ptxas died" in why
    assert "deep_gemm" not in why and "triton" not in why, "neither runs"


def test_a_table_that_needs_a_stand_in_for_some_m_is_refused_whole(hopper, monkeypatch):
    def patched(N, K, device):
        table = real(N, K, device)
        choice = fallback_choice(N, K, device, "deep_gemm is not installed")
        return dispatch.DispatchTable(N, K, device, table.bounds, (*table.choices[:-1], choice))

    real = preparation.build_table
    monkeypatch.setattr(preparation, "build_table", patched)
    assert prepare(TUNED).refused == {TUNED: "deep_gemm is not installed"} and not hopper.jobs


def test_a_backend_of_a_tuned_file_that_does_not_compile_is_refused_too(hopper, monkeypatch, tmp_path):
    """It costs its shape, not the server."""
    file = config_file_name(*TUNED, "NVIDIA_H100_80GB_HBM3")
    (tmp_path / file).write_text(json.dumps({"8192": {"kernel_type": "deep_gemm"}}))
    monkeypatch.setenv("SGLANG_TILELANG_GEMM_CONFIG_DIR", str(tmp_path))

    def fail(*_):
        raise OSError("no nvcc")

    deep_gemm = backends.backend("deep_gemm")
    for name, stand_in in (("why_unavailable", lambda _: None), ("warmup", fail)):
        monkeypatch.setattr(deep_gemm, name, stand_in)
    ready = prepare(TUNED, UNTUNED)
    assert ready.refused == {TUNED: "deep_gemm did not compile (OSError: no nvcc)"}
    assert set(ready.selection) == set(ready.sources) == {UNTUNED}
    wrapper.forget()
    with pytest.raises(OSError, match="no nvcc"):  # whoever calls the package himself has no other GEMM
        entrypoint.warmup([TUNED], 4160, 0, progress=False)


def test_without_its_quantizer_no_shape_is_ours(hopper, monkeypatch):
    def fail(index, rounding):
        raise OSError("no nvcc\n" + 400 * "in CUDA\n")

    monkeypatch.setattr(quant, "warmup", fail)
    ready = prepare(TUNED, UNTUNED)
    assert not ready.selection and not hopper.jobs
    assert set(ready.refused.values()) == {"the quantizer of activations did not compile (OSError: no nvcc)"}


# ---- ranks


@pytest.fixture
def ready(hopper):
    return prepare(TUNED, UNTUNED, ODD)


def test_ranks_that_chose_alike_agree(ready):
    fewer = {TUNED: ready.selection[TUNED]}  # a pipeline stage may lack a shape
    assert preparation.disagreement([ready.selection, fewer, {}, ready.selection]) is None
    assert preparation.agreed(ready, [ready, pickle.loads(pickle.dumps(ready))]) == ready


def test_the_first_difference_is_named(ready):
    other = {**ready.selection, TUNED: ((8, "triton", None), *ready.selection[TUNED][1:])}
    text = preparation.disagreement([ready.selection, ready.selection, other])
    assert text.startswith("for N=6144, K=2560 rank 0 chose") and "rank 2 triton up to M=8" in text
    shorter = {TUNED: ready.selection[TUNED][:-1]}
    assert "rank 1 nothing more" in preparation.disagreement([ready.selection, shorter])


def test_what_one_rank_cannot_run_no_rank_runs(ready, hopper):
    hopper.broken.add(TUNED)
    wrapper.forget()
    poorer = prepare(TUNED, UNTUNED)
    for ranks in ([ready, poorer], [poorer, ready]):
        mine = preparation.agreed(ready, ranks)
        assert set(mine.selection) == set(mine.sources) == {UNTUNED}
        assert mine.refused[TUNED].startswith(f"on rank {ranks.index(poorer)}: ")
        assert mine.refused[ODD] == ready.refused[ODD], "its own reason"
        assert preparation.agreed(poorer, ranks).refused[TUNED] == poorer.refused[TUNED]


def test_ranks_that_would_differ_stop(ready, hopper):
    selection = {**ready.selection, TUNED: ((8, "triton", None),)}
    other = preparation.replace(ready, selection=selection)
    with pytest.raises(RuntimeError, match="for N=6144, K=2560 rank 0 chose"):
        preparation.agreed(ready, [ready, other])


# ---- the account


def counted(lines):
    """The layers that each line counts."""
    return [int(re.search(r"(?:for|runs) (\d+) ", line)[1]) for line in lines]


def test_the_account_counts_every_layer_once(ready):
    layers = [(TUNED, None)] * 36 + [(UNTUNED, None)] * 2 + [(ODD, ready.refused[ODD])]
    layers += [(TUNED, "blocks of [32, 32]")] * 3 + [
        ((16 * i, 128), "blocks of [32, 32]") for i in range(1, 6)
    ]
    first, *rest = preparation.account(ready, layers, "An engine", "Model")
    for text in (
        "is active on NVIDIA_H100_80GB_HBM3 for 38 of 47 block-FP8 layers of 2 (N, K): 1 with a tuned file, "
        "1 by the default choice.",
        f"Warm-up for M up to 4160 took {ready.seconds:.1f} s; {ready.compiled} kernels were not in the ",
    ):
        assert text in first
    assert sum(counted([first, *rest])) == len(layers)
    assert rest[0] == f"An engine's own GEMM runs 1 block-FP8 layer (N=100, K=2560): {ready.refused[ODD]}"
    assert rest[1].startswith("An engine's own GEMM runs 8 block-FP8 layers (N=16, K=128; N=32, K=128; ")
    assert rest[1].endswith("; 2 more (N, K)): blocks of [32, 32]") and len(rest) == 2


def test_a_backend_that_does_nothing_says_so_and_why(ready):
    layers = [(TUNED, "one reason")] * 2 + [(UNTUNED, "another")]
    first, *rest = preparation.account(ready, layers, "An engine", "Model")
    assert first == (
        "The tilelang backend does nothing for Model: An engine's own GEMM runs all of its 3 block-FP8 layers"
    )
    assert counted(rest) == [2, 1] and rest[0].endswith(": one reason") and rest[1].endswith(": another")
