"""The reference engine: hand-made situations with known outcomes, and invariants on random workloads."""

from __future__ import annotations

import dataclasses
import itertools

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
    server = engine(config, request(0, 31, 20, priority=5))
    server.fill(0)
    server.add(request(1, 90, 6, priority=0))
    (step,) = turn(server)
    assert (step.tokens, step.free_blocks) == ({0: 1, 1: 90}, 0)
    now_ps = server.next_end_ps
    (step,) = turn(server)  # request 0 is first in the list, needs a block and is its own victim
    assert (step.preempted, step.tokens, step.scheduled_ps) == ((0,), {1: 1}, now_ps)


def test_a_full_hit_recomputes_the_whole_last_block_and_a_hit_takes_the_older_copy() -> None:
    config = small(max_num_batched_tokens=256)
    server = engine(config, request(0, 32, 2, content=7), request(1, 32, 2, content=7))
    (step,) = server.fill(0)
    assert step.tokens == {0: 32, 1: 16}  # hittable as soon as scheduled
    assert step.cached == {0: 0, 1: 16}
    assert step.free_blocks == 5  # the last block exists twice
    while server.next_end_ps is not None:
        turn(server)
    server.add(request(2, 33, 1, content=7))
    (step,) = server.fill(10**12)
    assert step.cached == {2: 32}
    hit = server._calls[2].blocks  # the copy of request 0, computed first
    assert hit[:2] == [1, 2]


def test_the_tail_of_a_chain_is_evicted_before_its_head() -> None:
    config = small(max_num_batched_tokens=256)
    run = run_reference(
        config,
        synthetic_latency(config),
        [request(0, 80, 1), request(1, 64, 1, at=10**12), request(2, 80, 1, at=2 * 10**12, content=100)],
    )
    # Request 1 takes the 3 blank blocks and the last of request 0's five cached ones: 4 * 16 tokens are left.
    assert [call.cached_tokens for call in run.calls] == [0, 0, 64]


def test_outputs_are_cached_but_for_the_last_token() -> None:
    config = small(max_num_batched_tokens=256)
    first = request(0, 20, 12)
    following = dataclasses.replace(request(1, 1, 1), prompt=((100, 20), (1000, 12), (5, 3)), after=0, delay_ps=10)
    longer = dataclasses.replace(following, request_id=2, output_content_id=1002, delay_ps=10**12)
    run = run_reference(config, synthetic_latency(config), [first, following, longer])
    assert run.calls[1].arrival_ps == run.calls[0].finish_ps + 10
    assert run.calls[1].cached_tokens == 16  # token 32 was sampled, never computed
    assert run.calls[2].cached_tokens == 32


def test_asynchronous_scheduling_decides_one_iteration_ahead() -> None:
    config = small(async_scheduling=True)
    server = engine(config, request(0, 10, 3))
    first, second = server.fill(0)
    assert (first.tokens, second.tokens) == ({0: 10}, {0: 1})
    assert (second.scheduled_ps, second.start_ps) == (0, first.end_ps)
    assert server.blocked
    server.add(request(1, 10, 1, at=first.end_ps - 1))
    assert server.fill(first.end_ps - 1) == []
    (third,) = turn(server)
    assert third.tokens == {0: 1, 1: 10}
    assert (third.scheduled_ps, third.start_ps) == (first.end_ps, second.end_ps)
    assert turn(server) == []  # both last tokens are in flight: nothing to schedule until they arrive
    server.add(request(2, 10, 1))
    assert server.fill(third.start_ps) == []
    assert server.running == (0, 1)
    (fourth,) = turn(server)
    assert (fourth.tokens, fourth.start_ps) == ({2: 10}, third.end_ps)


def test_a_request_preempted_with_its_last_token_in_flight_finishes_while_waiting() -> None:
    config = small(async_scheduling=True, enable_prefix_caching=False, max_num_batched_tokens=256)
    # Both take 4 blocks. When request 0 needs a fifth, request 1's only token is in flight.
    server = engine(config, request(0, 64, 9), request(1, 64, 1))
    first, second = server.fill(0)
    assert first.tokens == {0: 64, 1: 64}
    assert (second.tokens, second.preempted) == ({0: 1}, (1,))
    assert server.waiting == (1,)
    (done,) = server.finish_iteration()
    assert (done.request_id, done.preemptions, done.finish_ps) == (1, 1, first.end_ps)
    assert server.waiting == ()


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"num_gpu_blocks": 6}, "needs 6 KV blocks but only 5 are usable"),
        ({"scheduling_policy": "priorty"}, "Did you mean 'priority'"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
    ],
)
def test_impossible_engines_are_refused(limits: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        small(**limits)


def test_impossible_requests_are_refused() -> None:
    server = engine(small(), request(0, 10, 5))
    with pytest.raises(SpecError, match="exceed max_model_len=96"):
        server.add(request(1, 90, 7))
    with pytest.raises(SpecError, match="at least one prompt and one output token"):
        server.add(request(1, 10, 0))
    with pytest.raises(SpecError, match="already in the engine"):
        server.add(request(0, 10, 5))


def drive(workload: EngineWorkload) -> list[Iteration]:
    """Serve `workload` with all invariants of the state checked at every instant; return the iterations."""
    server = ReferenceEngine(workload.config, synthetic_latency(workload.config))
    traffic = OpenLoop(workload.requests)
    steps: list[Iteration] = []
    unfinished = {one.request_id for one in workload.requests}
    while True:
        now_ps = server.next_end_ps if server.next_end_ps is not None else traffic.next_ps
        if now_ps is None:
            break
        if server.next_end_ps is not None:
            finished = server.finish_iteration()
            unfinished -= {call.request_id for call in finished}
            traffic.completed(finished)
        for one in traffic.take(now_ps):
            server.add(one)
        server.check()
        steps.extend(server.fill(now_ps))
        server.check()
    assert not unfinished
    assert server.free_blocks == workload.config.usable_blocks
    return steps


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_invariants_of_the_state_and_of_every_iteration(seed: int, lag: bool) -> None:
    workload = random_small(seed)
    if lag:
        workload = asynchronous(workload)
    config = workload.config
    steps = drive(workload)
    for before, after in itertools.pairwise(steps):
        assert after.start_ps >= before.end_ps
        assert after.scheduled_ps >= before.scheduled_ps
    for step in steps:
        assert 0 < sum(step.tokens.values()) <= config.max_num_batched_tokens
        assert min(step.tokens.values()) > 0
        assert step.sampled <= step.tokens.keys()
        assert step.duration_ps > 0
        assert config.async_scheduling or step.scheduled_ps == step.start_ps
        assert not step.preempted or step.waiting > 0 or config.async_scheduling
    samples = {one.request_id: one.output_tokens for one in workload.requests}
    for step in steps:
        for number in step.sampled:
            samples[number] -= 1
    assert set(samples.values()) == {0}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_requests_are_admitted_in_order_and_compute_every_token_once(seed: int) -> None:
    workload = random_small(seed)
    run = run_reference(workload.config, synthetic_latency(workload.config), workload.requests, log=True)
    by_id = {one.request_id: one for one in workload.requests}
    computed = dict.fromkeys(by_id, 0)
    for step in run.log:
        for number, tokens in step.tokens.items():
            computed[number] += tokens
    for call in run.calls:
        one = by_id[call.request_id]
        assert call.arrival_ps <= call.start_ps < call.first_token_ps <= call.finish_ps
        assert call.cached_tokens % 16 == 0
        assert call.cached_tokens < one.prompt_tokens
        if call.preemptions == 0:
            assert computed[call.request_id] == one.prompt_tokens + one.output_tokens - 1 - call.cached_tokens
    if workload.config.scheduling_policy == "fcfs":
        ordered = sorted(run.calls, key=lambda call: (call.arrival_ps, call.request_id))
        starts = [call.start_ps for call in ordered]
        assert starts == sorted(starts)
