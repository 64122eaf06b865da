"""The compiled engine against the reference engine, exactly; its closed forms; its block pool after a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aragog_env.engine.config import EngineConfig, EngineRequest
from aragog_env.engine.open_loop import collect, prepare, run_compiled, run_open_loop
from aragog_env.engine.reference import run_reference
from aragog_env.engine.state import ALL_SHARED, BLOCK_TOKENS, NOBODY, EngineState, EngineTables, build_tables
from aragog_env.engine.timing import decode_ps, steps_until, stretch_ps
from aragog_env.engine.workloads import (
    EngineWorkload,
    agentic,
    asynchronous,
    chat,
    mixed_lengths,
    pressure,
    priority,
    random_small,
    shared_prefix,
    synthetic_latency,
)

SLICES: dict[str, Callable[[int], EngineWorkload]] = {
    "chat": lambda seed: chat(seed, 120),
    "pressure": lambda seed: _tight(pressure(seed, 120), 900),
    "agentic": lambda seed: _tight(agentic(seed, sessions=10, turns=5), 2500),
    "shared_prefix": lambda seed: shared_prefix(seed, 120),
    "priority": lambda seed: _tight(priority(seed, 90), 450),
    "mixed_lengths": lambda seed: mixed_lengths(seed, 60),
}
"""The first part of each workload of the comparison with real vLLM, some with less KV cache."""


def _tight(workload: EngineWorkload, blocks: int) -> EngineWorkload:
    most = max(request.prompt_tokens + request.output_tokens for request in workload.requests)
    limits = replace(workload.config, num_gpu_blocks=blocks, max_model_len=max(most, 16))
    return EngineWorkload(limits, workload.requests)


def assert_equal(workload: EngineWorkload) -> None:
    """Run both engines and compare every time of every call, and the number of iterations."""
    latency = synthetic_latency(workload.config)
    truth = run_reference(workload.config, latency, workload.requests)
    ours = run_compiled(workload.config, latency, workload.requests)
    for mine, theirs in zip(ours.calls, truth.calls, strict=True):
        assert mine == theirs
    assert ours.iterations == truth.iterations


@pytest.mark.parametrize("block", range(8))
def test_random_small_workloads(block: int) -> None:
    for seed in range(50 * block, 50 * block + 50):
        assert_equal(random_small(seed))


@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("change", [EngineWorkload._make, asynchronous], ids=["sync", "async"])
def test_slices_of_the_vllm_workloads(name: str, change: Callable[[EngineWorkload], EngineWorkload]) -> None:
    assert_equal(change(SLICES[name](11)))


def test_slices_exercise_preemption_and_cache() -> None:
    """The comparison would prove little if nothing happened in it."""

    def run(name: str) -> list[Any]:
        workload = SLICES[name](11)
        return list(run_compiled(workload.config, synthetic_latency(workload.config), workload.requests).calls)

    assert sum(call.preemptions for call in run("pressure")) >= 20
    assert sum(call.preemptions for call in run("priority")) >= 10
    assert sum(call.cached_tokens for call in run("agentic")) >= 10_000
    assert sum(call.cached_tokens > 0 for call in run("shared_prefix")) >= 50


def _decode_times(tables: EngineTables, decodes: int, kv_tokens: int, steps: int) -> list[int]:
    """Return the durations of a stretch's iterations, one by one from the formula."""
    fixed = int(tables.step_ps[0, decodes]) + int(tables.sample_ps[0, decodes])
    return [fixed + int(decode_ps.py_func(tables, 0, decodes, kv_tokens + k * decodes)) for k in range(steps)]


@st.composite
def decode_tables(draw: st.DrawFn, most: int = 6) -> EngineTables:
    """Draw latency tables with a piecewise linear decode curve whose slopes may be zero."""
    config = EngineConfig(max_num_seqs=most, max_num_batched_tokens=most, max_model_len=64, num_gpu_blocks=9)
    latency = synthetic_latency(config)
    grid = sorted(draw(st.sets(st.integers(1, 400), min_size=1, max_size=4)))
    shape = (most + 1, len(grid))

    def numbers(low: int, high: int) -> NDArray[np.int64]:
        values = st.lists(st.integers(low, high), min_size=len(grid), max_size=len(grid))
        return np.array([draw(values) for _ in range(shape[0])], np.int64)

    latency = latency._replace(
        decode_context=np.array(grid, np.int64),
        decode_base_ps=numbers(0, 10**9),
        decode_slope_ps=numbers(0, draw(st.sampled_from((0, 1, 10**6)))),
    )
    return build_tables([config], [latency])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(decode_tables(), st.integers(1, 6), st.integers(1, 300), st.integers(1, 500), st.data())
def test_closed_forms_equal_sums(
    tables: EngineTables, decodes: int, context: int, steps: int, data: st.DataObject
) -> None:
    kv_tokens = decodes * context + data.draw(st.integers(0, decodes - 1))
    ends = np.cumsum(_decode_times(tables, decodes, kv_tokens, steps))
    assert stretch_ps(tables, 0, decodes, kv_tokens, steps) == ends[-1]
    # The boundaries themselves, their neighbours, and any time between.
    k = data.draw(st.integers(0, steps - 1))
    anywhere = data.draw(st.integers(0, int(ends[-1])))
    for elapsed in (0, 1, int(ends[k]) - 1, int(ends[k]), min(int(ends[k]) + 1, int(ends[-1])), anywhere):
        wanted = int(np.searchsorted(ends, elapsed)) + 1
        assert steps_until(tables, 0, decodes, kv_tokens, steps, elapsed) == (wanted, ends[wanted - 1])


def assert_pool_at_rest(tables: EngineTables, state: EngineState) -> None:
    """With no call left, every block is free, and in exactly one place."""
    spec, server = tables.spec[0], state.replica[0, 0]
    usable = int(spec["blocks"])
    assert server["free"] == usable
    assert server["running"] == server["waiting"] == server["prefills"] == 0
    assert server["head"] == server["tail"] == -1
    assert server["waiting_tokens"] == server["offset_sum"] == 0
    if not spec["prefix"]:
        return
    block, call, base = state.block[0], state.call[0], int(spec["block_base"])
    entries = _lru(state, int(server["lru_head"]), "following")
    assert entries == _lru(state, int(server["lru_tail"]), "previous")[::-1]
    recorded = [entry for entry in entries if entry >= 0]
    private = [-1 - entry for entry in entries if entry < 0]
    assert sorted(private) == np.flatnonzero(call["kept"]).tolist()
    assert server["cached"] == len(recorded) + call["kept"].sum() <= usable
    spare = state.spare[0, base : base + int(server["spare"])].tolist()
    assert sorted(spare + recorded) == list(range(base, base + int(server["virgin"])))
    assert not block["ref"][spare + recorded].any()
    assert not block["hash"][spare].any()
    assert block["hash"][recorded].all()
    buckets = state.bucket[0, int(spec["bucket_base"]) :][: int(spec["bucket_mask"]) + 1]
    chained = [b for first in buckets.tolist() for b in _chain(block, first)]
    assert sorted(chained) == sorted(recorded)


def _chain(block: NDArray[np.void], first: int) -> list[int]:
    """Return the blocks of a hash bucket."""
    found = []
    while first >= 0:
        found.append(first)
        assert len(found) <= len(block), "the chain has a loop"
        first = int(block["chain"][first])
    return found


def _lru(state: EngineState, first: int, link: str) -> list[int]:
    """Return the entries of the LRU list: blocks, or -1 - call for the private blocks of a call."""
    found = []
    while first != NOBODY:
        found.append(first)
        assert len(found) <= len(state.block[0]) + len(state.call[0]), f"the list over '{link}' has a loop"
        first = int(state.block[0][link][first]) if first >= 0 else int(state.call[0][link][-1 - first])
    return found


@pytest.mark.parametrize("source", [*SLICES, "random"])
def test_every_block_is_free_and_accounted_for_after_a_run(source: str) -> None:
    workloads = [SLICES[source](5)] if source in SLICES else [random_small(seed) for seed in range(60)]
    for workload in workloads:
        tables, state, packed = prepare(workload.config, synthetic_latency(workload.config), workload.requests)
        for _ in range(2):  # a second run on the same arrays starts from a clean server
            run_open_loop(state, 0, tables, packed)
            assert_pool_at_rest(tables, state)
        assert (state.call[0]["finish_ps"] > 0).all()
        assert (state.call[0]["generated"] == state.call[0]["output"]).all()


def test_a_retained_cache_holds_what_was_computed_last() -> None:
    """One request of three full blocks leaves those three in the cache, tail first in line for eviction."""
    config = EngineConfig(max_num_seqs=2, max_num_batched_tokens=64, max_model_len=96, num_gpu_blocks=9)
    request = EngineRequest(0, 0, ((1, 40),), 9, 2)  # 48 computed tokens: the last one sampled is not
    tables, state, packed = prepare(config, synthetic_latency(config), [request])
    run_open_loop(state, 0, tables, packed._replace(shared=np.array([ALL_SHARED])))
    cached = _lru(state, int(state.replica[0, 0]["lru_head"]), "following")
    keys = state.arena_hash[0, : 48 // BLOCK_TOKENS].tolist()
    assert state.block[0]["hash"][cached].tolist() == keys[::-1]
    # Nobody else has such a prompt, so its blocks are its own, and no record is kept of them.
    assert packed.shared.tolist() == [0]
    run_open_loop(state, 0, tables, packed)
    assert _lru(state, int(state.replica[0, 0]["lru_head"]), "following") == [-1]
    assert state.call[0]["kept"].tolist() == [3] == [state.replica[0, 0]["cached"]]


@pytest.mark.parametrize("source", [*SLICES, "random"])
def test_keeping_records_of_private_blocks_changes_nothing(source: str) -> None:
    """How many leading blocks count as shared is a matter of speed alone, as long as those that are do."""
    workloads = [SLICES[source](7)] if source in SLICES else [random_small(seed) for seed in range(100, 160)]
    private = resumed = 0
    for workload in workloads:
        tables, state, packed = prepare(workload.config, synthetic_latency(workload.config), workload.requests)
        run_open_loop(state, 0, tables, packed)
        fast = collect(state, workload.requests)
        own = packed.shared < (packed.prompt + packed.output) // BLOCK_TOKENS
        private += own.sum()
        resumed += (state.call[0]["preemptions"][own] > 0).sum()
        run_open_loop(state, 0, tables, packed._replace(shared=np.full_like(packed.shared, ALL_SHARED)))
        assert collect(state, workload.requests) == fast
    assert private > 0
    assert resumed > 0 or source not in ("pressure", "random")
