"""Flat state of the compiled engine: arrays with a leading environment axis E, so that one call can step many environments.

Layers: `EngineTables` and `EngineState` know replicas and calls and nothing of workflows (those live in
`aragog_env.progress`). Everything is plain numpy, so a copy of the arrays is a copy of the simulation.

Prefill/decode roles, links and replicas that come and go have their fields in `REPLICA_SPEC` and `REPLICA` already
(`role`, `up`); the event loop serves role "mixed" only so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..latency.compiled import CompiledLatency
from .config import EngineConfig

BLOCK_TOKENS = 16
"""Tokens in a KV block; `EngineConfig.block_size` must agree (the kernels use shifts and masks)."""
MAX_BUCKETS = 1 << 13
"""Hash buckets of a prefix cache: few enough that those of many environments stay in the processor's cache."""
NEVER = np.int64(2**62)
"""A time that never comes, in picoseconds."""
NOBODY = np.int32(-(2**31))
"""End of the LRU list."""
ALL_SHARED = np.int32(2**26)
"""`shared` of a call whose every block may be hit by another."""
NOT_DECODING = np.int32(2**31 - 1)
"""`run_finish` of a request that has not computed its prompt yet."""

IDLE, BOUNDARY, STRETCH, ITERATION = 0, 1, 2, 3
"""`mode` of a replica: nothing to do; between iterations; in a run of decode-only iterations; in one mixed iteration."""

REPLICA_SPEC = np.dtype(
    [
        ("max_seqs", "i4"),
        ("budget", "i4"),  # max_num_batched_tokens
        ("blocks", "i4"),  # usable KV blocks: vLLM's num_gpu_blocks - 1 (block 0 is the null block)
        ("prefix", "i4"),  # prefix cache on
        ("priority", "i4"),  # scheduling policy: 0 first come first served, 1 priority
        ("lag", "i4"),  # asynchronous scheduling: an iteration is scheduled while the one before runs
        ("role", "i4"),  # 0 mixed; room for 1 prefill, 2 decode
        ("model", "i4"),
        ("latency", "i4"),  # row of the latency tables
        ("max_len", "i4"),
        ("gpus", "i4"),
        ("block_base", "i4"),  # first entry of this replica in `block` and `spare`
        ("bucket_base", "i4"),  # first entry of this replica in `buckets`
        ("bucket_mask", "i4"),
    ],
    align=True,
)

REPLICA = np.dtype(
    [
        ("begin_ps", "i8"),  # start of the current segment (stretch or iteration)
        ("end_ps", "i8"),  # its end, NEVER when idle
        ("offset_sum", "i8"),  # sum of run_offset over decoding requests
        ("busy_ps", "i8"),
        ("iterations", "i8"),
        ("waiting_tokens", "i8"),  # tokens to prefill of all waiting calls
        ("missing", "i8"),  # while blocked: hash of the first block of the waiting head that is not cached, 0 none
        ("step", "i4"),  # iterations begun
        ("planned", "i4"),  # iterations in the current stretch
        ("next_finish", "i4"),  # smallest run_finish
        ("running", "i4"),
        ("prefills", "i4"),  # running requests that are still computing their prompt
        ("waiting", "i4"),
        ("head", "i4"),  # first waiting call, -1 none
        ("tail", "i4"),
        ("free", "i4"),  # free KV blocks, evictable cached ones included
        ("cached", "i4"),  # free blocks with content; the other free ones are handed out first
        ("spare", "i4"),  # block records on the `spare` stack
        ("virgin", "i4"),  # block records used at least once
        ("lru_head", "i4"),  # see `kv`: a block, or a call whose private blocks stand here; NOBODY none
        ("lru_tail", "i4"),
        ("sharing", "i4"),  # running requests that register blocks for others while they decode
        ("preemptions", "i4"),
        ("blocked", "i4"),  # the first waiting call did not fit in the last iteration, and nothing was freed since
        ("up", "i4"),
        ("mode", "i4"),
        ("flights", "i4"),  # asynchronous scheduling: iterations that run or are scheduled, at most 2
        ("flight", "i4"),  # which of the two slots runs
        ("flight_calls", "i4", (2,)),  # how many requests sample a token in each
        ("flight_end_ps", "i8", (2,)),
        ("residue", "i4", (BLOCK_TOKENS,)),  # decoding requests by run_offset modulo 16
    ],
    align=True,
)

CALL = np.dtype(
    [
        ("ready_ps", "i8"),
        ("dispatch_ps", "i8"),
        ("start_ps", "i8"),  # begin of the iteration that first scheduled it, -1 before
        ("first_ps", "i8"),  # end of the iteration that sampled its first token, -1 before
        ("finish_ps", "i8"),  # -1 before
        ("arena", "i8"),  # first entry in the block arena (prefix cache only)
        ("shared", "i4"),  # leading blocks that another call may hit; the later ones are private
        ("kept", "i4"),  # private blocks that stand in the LRU list
        ("previous", "i4"),  # in the LRU list, while `kept` is not 0
        ("following", "i4"),
        ("prompt", "i4"),
        ("output", "i4"),
        ("generated", "i4"),  # valid while waiting or computing its prompt; derived while decoding
        ("cached", "i4"),  # prompt tokens found in the cache at first admission
        ("preemptions", "i4"),
        ("priority", "i4"),
        ("replica", "i4"),
        ("model", "i4"),
        ("next", "i4"),  # next call in the waiting queue (or the tool queue)
        ("in_flight", "i4"),  # asynchronous scheduling: sampled tokens not delivered yet
        ("stale", "i4"),  # the same, of a call that was preempted meanwhile
        ("registered", "i4"),  # asynchronous scheduling: full blocks in the prefix cache
        ("sequence", "i4"),  # order of arrival at the engine: breaks ties of priority scheduling
    ],
    align=True,
)

BLOCK = np.dtype(
    [
        ("hash", "i8"),  # 0 = no content
        ("ref", "i4"),
        ("previous", "i4"),  # in the LRU list of free cached blocks
        ("following", "i4"),
        ("chain", "i4"),  # next block in the hash bucket
    ],
    align=True,
)


class EngineTables(NamedTuple):
    """What does not change: replica parameters (R,) and stacked latency tables (L rows)."""

    spec: NDArray[np.void]  # (R,) of REPLICA_SPEC
    step_ps: NDArray[np.int64]  # (L, T + 1)
    sample_ps: NDArray[np.int64]  # (L, B + 1)
    decode_base_ps: NDArray[np.int64]  # (L, B + 1, X)
    decode_slope_ps: NDArray[np.int64]  # (L, B + 1, X)
    decode_context: NDArray[np.int64]  # (L, X)
    chunk_sizes: NDArray[np.int64]  # (L, 2) valid entries of the two grids below
    chunk_new: NDArray[np.int64]  # (L, N)
    chunk_cached: NDArray[np.int64]  # (L, C)
    chunk_table_ps: NDArray[np.float64]  # (L, N, C)


class EngineState(NamedTuple):
    """What changes. S = most running requests of a replica, Q = calls, A = arena, NB = blocks, MB = hash buckets."""

    replica: NDArray[np.void]  # (E, R) of REPLICA
    call: NDArray[np.void]  # (E, Q) of CALL
    run_call: NDArray[np.int32]  # (E, R, S) running list, in vLLM's order
    run_offset: NDArray[np.int32]  # (E, R, S) computed tokens minus the replica's `step`
    run_finish: NDArray[np.int32]  # (E, R, S) `step` at which the last token is sampled
    run_new: NDArray[np.int32]  # (E, R, S) tokens scheduled in the current iteration (scratch)
    flight_call: NDArray[np.int32]  # (E, R, 2, S) requests that sample in the iterations in flight; S = 1 without any
    finished: NDArray[np.int32]  # (E, S) calls that ended in the segment just closed (scratch)
    block: NDArray[np.void]  # (E, NB) of BLOCK
    spare: NDArray[np.int32]  # (E, NB) stacks of unused block records
    bucket: NDArray[np.int32]  # (E, MB) first block of each hash bucket, -1 none
    arena_hash: NDArray[np.int64]  # (E, A) chain hash of every full shared block of every call
    arena_block: NDArray[np.int32]  # (E, A) block that holds it


def _stack(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Stack arrays of unequal shapes along a new first axis, repeating the last entries of the smaller ones."""
    shape = np.max([a.shape for a in arrays], axis=0)
    return np.stack([np.pad(a, [(0, n - k) for n, k in zip(shape, a.shape, strict=True)], mode="edge") for a in arrays])


def build_tables(
    configs: Sequence[EngineConfig],
    latencies: Sequence[CompiledLatency],
    *,
    models: Sequence[int] | None = None,
    gpus: Sequence[int] | None = None,
) -> EngineTables:
    """Lay out the tables of the replicas described by `configs` (vLLM settings) and `latencies` (iteration times)."""
    spec = np.zeros(len(configs), REPLICA_SPEC)
    rows: list[CompiledLatency] = []
    block_base = bucket_base = 0
    for i, (config, latency) in enumerate(zip(configs, latencies, strict=True)):
        row = next((k for k, known in enumerate(rows) if known is latency), len(rows))
        if row == len(rows):
            rows.append(latency)
        blocks = config.num_gpu_blocks - 1
        buckets = min(MAX_BUCKETS, 1 << max(4, int(blocks).bit_length())) if config.enable_prefix_caching else 1
        spec[i] = (
            config.max_num_seqs,
            config.max_num_batched_tokens,
            blocks,
            config.enable_prefix_caching,
            config.scheduling_policy == "priority",
            config.async_scheduling,
            0,
            0 if models is None else models[i],
            row,
            config.max_model_len,
            1 if gpus is None else gpus[i],
            block_base,
            bucket_base,
            buckets - 1,
        )
        if config.enable_prefix_caching:
            block_base += blocks
            bucket_base += buckets
    stacked = {name: _stack([getattr(row, name) for row in rows]) for name in CompiledLatency._fields}
    sizes = np.array([row.chunk_table_ps.shape for row in rows], np.int64)
    return EngineTables(spec=spec, chunk_sizes=sizes, **stacked)


def allocate(tables: EngineTables, environments: int, calls: int, arena: int) -> EngineState:
    """Allocate the state of `environments` copies of the cluster, for episodes of up to `calls` calls each."""
    spec = tables.spec
    replicas, sequences = len(spec), int(spec["max_seqs"].max())
    cached = spec["prefix"] != 0
    blocks = max(1, int(spec["blocks"][cached].sum()))
    buckets = max(1, int((spec["bucket_mask"][cached].astype(np.int64) + 1).sum()))
    shape = (environments, replicas, sequences)
    return EngineState(
        replica=np.zeros((environments, replicas), REPLICA),
        call=np.zeros((environments, calls), CALL),
        run_call=np.zeros(shape, np.int32),
        run_offset=np.zeros(shape, np.int32),
        run_finish=np.zeros(shape, np.int32),
        run_new=np.zeros(shape, np.int32),
        flight_call=np.zeros((environments, replicas, 2, sequences if spec["lag"].any() else 1), np.int32),
        finished=np.zeros((environments, sequences), np.int32),
        block=np.zeros((environments, blocks), BLOCK),
        spare=np.zeros((environments, blocks), np.int32),
        bucket=np.full((environments, buckets), -1, np.int32),
        arena_hash=np.zeros((environments, max(1, arena)), np.int64),
        arena_block=np.zeros((environments, max(1, arena)), np.int32),
    )
