"""What the critic is told of the future, against the tape and the logs of the same episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toys import together

from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario
from baselines.features import Rules
from baselines.foresight import REQUESTS_WIDTH, WINDOWS, Foresight, ServerForesight
from baselines.training_env import TrainingEnv, random_actions

FREE = Rules("none", hold=0.0, wait=True)


def toy(requests: int, **changes: Any) -> Scenario:
    return override(load_scenario("toy"), requests=requests, warmup_requests=0, **changes)


def test_requests_to_come_and_in_flight() -> None:
    env = TrainingEnv(2, toy(20, rate_rps=40.0), FREE)
    env.reset(seed=3)
    rng, reference_s = np.random.default_rng(0), env.reward.reference_s
    for _ in range(25):
        env.step(random_actions(env.arrays[4], rng))
        for e, row in enumerate(env.arrays[5]):
            tape, state = env.simulation.tapes[e], env.simulation.progress.env[e]
            assert tape is not None and row.shape == (REQUESTS_WIDTH,)
            now_s, left = state["now_ps"] * 1e-12, 20 - int(state["arrived"])
            assert row[Foresight.LEFT] == pytest.approx(left / 64)
            assert row[Foresight.IN_FLIGHT] == pytest.approx((state["arrived"] - state["completed"]) / 64)
            assert row[Foresight.READY] == pytest.approx(state["ready"] / 64)
            calls = env.simulation.state.call[e].reshape(20, 2)
            begun = env.simulation.progress.request[e]["rank"][:, None] >= 0
            over = (calls["finish_ps"] >= 0) & (calls["finish_ps"] <= state["now_ps"])
            assert row[Foresight.STAGES] == pytest.approx((begun & ~over).sum() / 256)
            for k, window in enumerate(WINDOWS):
                count = ((tape.arrival_s > now_s + 1e-12) & (tape.arrival_s <= now_s + window * reference_s)).sum()
                assert row[Foresight.ARRIVALS + k] == pytest.approx(count / 16)


def test_a_closed_loop_foresees_no_arrival() -> None:
    env = TrainingEnv(1, toy(12, arrivals="closed", users=3), FREE)
    env.reset(seed=3)
    assert (env.arrays[5][:, Foresight.ARRIVALS :] == 0).all()


def test_work_that_is_not_in_a_server_yet_by_hand() -> None:
    """Two calls in a row, 11 ms each on the smallest model by prediction; large is sent first: 11 ms are left, then none."""
    env = TrainingEnv(1, toy(1), FREE)
    env.reset(seed=0)
    assert env.arrays[5][0, Foresight.WORK] * 256 == pytest.approx(0.022)
    env.step(np.array([2]))
    assert env.arrays[5][0, Foresight.WORK] * 256 == pytest.approx(0.011)
    env.step(np.array([0]))
    assert env.arrays[5][0, Foresight.WORK] == 0


def test_work_respects_viable_sets() -> None:
    """Of every request in flight, as computed anew from its viable set and what it was served by."""
    scenario = override(load_scenario("default"), requests=30, warmup_requests=0, rate_rps=20.0)
    env = TrainingEnv(2, scenario, Rules("oracle"))
    env.reset(seed=5)
    rng = np.random.default_rng(0)
    for step in range(150):
        env.step(random_actions(env.arrays[4], rng))
        if step % 10 or env.begins.any():
            continue
        for e in range(2):
            tape, request = env.simulation.tapes[e], env.simulation.progress.request[e]
            assert tape is not None
            models, expected = env.simulation.state.call[e]["model"].reshape(30, -1), 0.0
            for q in np.flatnonzero((request["rank"] >= 0) & (request["finish_ps"] < 0)):
                w = int(tape.workflow[q])
                known = env._sets._configurations[w]
                viable = known.feasible & env.compiled.outcomes[w].match_largest(tape.draws[w])[tape.query[q]]
                viable &= known.consistent(models[q].astype(np.int32))
                seconds = env._sets.tables.node_s.reshape(5, -1, 3)[w]
                costs = [
                    sum(seconds[k, m] for k, m in enumerate(row) if m >= 0 and models[q, k] < 0)
                    for row in known.digits[viable]
                ]
                expected += min(costs)
            assert env.arrays[5][e, Foresight.WORK] * 256 == pytest.approx(expected, rel=1e-5)


def test_tokens_in_the_servers_are_what_will_be_written() -> None:
    """All calls at once, no arrivals after: what is foreseen falls from all output tokens to none, at the pace of writing."""
    env = TrainingEnv(1, together(12), FREE)
    env.reset(seed=1)
    for sent in range(12):
        servers = env.arrays[6][0]
        assert servers[0, ServerForesight.CALLS] * 32 == sent and (servers[1:] == 0).all()
        assert servers[0, ServerForesight.TOKENS] * 8192 == pytest.approx(10 * sent)
        assert servers[0, ServerForesight.LONGEST] * 256 == pytest.approx(10 if sent else 0)
        env.step(np.array([0]))
    # The last dispatch went on to the end of the first batch of eight; the four that waited then have written nothing.
    servers = env.arrays[6][0]
    assert servers[0, ServerForesight.TOKENS] * 8192 == pytest.approx(40)
    assert servers[0, ServerForesight.CALLS] * 32 == 4


def test_tokens_fall_while_calls_run() -> None:
    """One call of ten iterations on the slow server, another request every so often: at every event some are left."""
    env = TrainingEnv(1, toy(6, rate_rps=100.0), FREE)
    env.reset(seed=2)
    found = []
    env.step(np.array([2]))
    while len(found) < 3:
        found.append(float(env.arrays[6][0, 2, ServerForesight.TOKENS]) * 8192)
        env.step(np.array([env.arrays[4].shape[1] - 1]))
    assert found == sorted(found, reverse=True) and 0 <= found[-1] < found[0] <= 10
