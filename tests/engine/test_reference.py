"""The reference engine: hand-made situations with known outcomes, and invariants on random workloads."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aragog_env.engine.config import EngineConfig, EngineRequest, Iteration
from aragog_env.engine.reference import ReferenceEngine, run_reference
from aragog_env.engine.reference_loop import OpenLoop
from aragog_env.engine.workloads import EngineWorkload, asynchronous, random_small, synthetic_latency
from aragog_env.errors import SpecError


def small(**limits: object) -> EngineConfig:
    """Return a tiny engine: 8 usable blocks of 16 tokens, 4 places, budget 64, changed by `limits`."""
    defaults: dict[str, object] = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "max_model_len": 96,
        "num_gpu_blocks": 9,
    }
    return EngineConfig(**(defaults | limits))  # type: ignore[arg-type]


def request(
    number: int, prompt: int, output: int, *, at: int = 0, priority: int = 0, content: int | None = None
) -> EngineRequest:
    """Return a request with contents of its own, unless `content` names the prompt's."""
    return EngineRequest(
        request_id=number,
        arrival_ps=at,
        prompt=((100 + number if content is None else content, prompt),),
        output_tokens=output,
        output_content_id=1000 + number,
        priority=priority,
    )


def engine(config: EngineConfig, *requests: EngineRequest) -> ReferenceEngine:
    """Return an engine to which `requests` have been submitted."""
    made = ReferenceEngine(config, synthetic_latency(config))
    for one in requests:
        made.add(one)
    return made


def turn(server: ReferenceEngine) -> list[Iteration]:
    """End the oldest iteration in flight and schedule anew."""
    now_ps = server.next_end_ps
    assert now_ps is not None
    server.finish_iteration()
    return server.fill(now_ps)


def test_one_request_takes_one_iteration_per_chunk_and_per_further_token() -> None:
    config = small(max_num_batched_tokens=16)
    run = run_reference(config, synthetic_latency(config), [request(0, 40, 3, at=5)], log=True)
    assert [list(step.tokens.values()) for step in run.log] == [[16], [16], [8], [1], [1]]
    assert [step.kv_tokens for step in run.log] == [0, 0, 0, 41, 42]
    assert [bool(step.sampled) for step in run.log] == [False, False, True, True, True]
    (call,) = run.calls
    assert (call.arrival_ps, call.start_ps) == (5, 5)
    assert call.first_token_ps == run.log[2].end_ps
    assert call.finish_ps == run.log[4].end_ps == 5 + sum(step.duration_ps for step in run.log)


def test_budget_serves_running_requests_in_list_order_before_waiting_ones() -> None:
    server = engine(small(max_num_batched_tokens=20), request(0, 30, 4), request(1, 30, 4))
    assert [step.tokens for step in server.fill(0)] == [{0: 20}]
    assert [step.tokens for step in turn(server)] == [{0: 10, 1: 10}]
    assert [step.tokens for step in turn(server)] == [{0: 1, 1: 19}]
    assert [step.tokens for step in turn(server)] == [{0: 1, 1: 1}]


def test_admission_reserves_the_whole_prompt_and_blocks_at_the_head() -> None:
    # Request 0 takes 4 of 8 blocks; request 1 needs 5, so request 2, which would fit, waits behind it.
    config = small(max_num_batched_tokens=256, enable_prefix_caching=False)
    server = engine(config, request(0, 60, 9), request(1, 70, 9), request(2, 10, 9))
    (step,) = server.fill(0)
    assert step.tokens == {0: 60}
    assert server.waiting == (1, 2)
    assert server.free_blocks == 4


def test_max_num_seqs_ends_admission() -> None:
    server = engine(small(max_num_seqs=2), *(request(i, 5, 5) for i in range(3)))
    (step,) = server.fill(0)
    assert step.tokens == {0: 5, 1: 5}
    assert (server.running, server.waiting) == ((0, 1), (2,))


def test_preemption_takes_the_youngest_puts_it_in_front_and_admits_nobody() -> None:
    config = small(max_num_batched_tokens=256, enable_prefix_caching=False)
    server = engine(config, request(0, 48, 40), request(1, 64, 30))
    (first,) = server.fill(0)
    assert first.free_blocks == 1
    server.add(request(2, 10, 5))
    steps = turn(server)  # both need a fifth and a fourth block; there is one, and request 0 comes first
    assert steps[0].tokens == {0: 1}
    assert steps[0].preempted == (1,)
    assert server.waiting == (1, 2)
    assert server.free_blocks == 4
    run = run_reference(config, synthetic_latency(config), [request(0, 48, 40), request(1, 64, 30)], log=True)
    assert [call.preemptions for call in run.calls] == [0, 1]
    resumed = next(step for step in run.log[2:] if 1 in step.tokens)
    assert (resumed.tokens[1], resumed.cached[1]) == (65, 0)  # prompt and the one generated token


def test_priority_orders_the_queue_and_preempts_the_worst_first_of_equals() -> None:
    config = small(scheduling_policy="priority", enable_prefix_caching=False, max_num_batched_tokens=256)
    server = engine(
        config, request(0, 31, 40, priority=2), request(1, 47, 40, priority=2), request(2, 47, 40, priority=1)
    )
    (step,) = server.fill(0)
    assert list(step.tokens) == [2, 0, 1]  # 3 + 2 + 3 blocks
    assert step.free_blocks == 0
    turn(server)
    (step,) = turn(server)  # request 2 starts a block; 0 and 1 are equally bad and 0 is first in the list
    assert step.preempted == (0,)
    assert step.tokens == {2: 1, 1: 1}


def test_an_empty_schedule_after_self_preemption_is_repeated() -> None:
    config = small(scheduling_policy="priority", enable_prefix_caching=False, max_num_batched_tokens=256)
    server = engine(config, request(0, 64, 20, priority=5))
    server.fill(0)
    server.add(request(1, 62, 20, priority=0))
    (step,) = turn(server)
    assert step.tokens == {1: 62}  # request 0 needed a fifth block first? no: it got one, see below
