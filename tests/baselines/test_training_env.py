"""What the learners' environment adds: expected accuracy, staggered beginnings, and pickles that go on."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario
from baselines.evaluation import EpisodeMeter
from baselines.features import Rules
from baselines.snapshots import freeze, thaw
from baselines.training_env import TrainingEnv, random_actions

FREE = Rules("none", hold=0.0, wait=True)


def toy(requests: int = 12, **changes: Any) -> Scenario:
    return override(load_scenario("toy"), requests=requests, warmup_requests=0, **changes)


def test_accuracy_is_paid_by_its_probability() -> None:
    scenario = toy(30)
    plain = replace(scenario, objective=replace(scenario.objective, accuracy_weight=0.0))
    paid = replace(scenario, objective=replace(scenario.objective, accuracy_weight=2.0))
    without, with_price = TrainingEnv(2, plain, FREE), TrainingEnv(2, paid, FREE)
    without.reset(seed=5)
    with_price.reset(seed=5)
    rng, total, done = np.random.default_rng(0), np.zeros(2), np.zeros(2, bool)
    configurations = np.zeros((2, 30), np.int64)
    while not done.all():
        actions = random_actions(without.arrays[4], rng)
        latency = without.step(actions)[1]
        _, rewards, terminated, _, _ = with_price.step(actions)
        total[~done] += (rewards - latency)[~done]
        for e in np.flatnonzero(terminated & ~done):
            configurations[e] = with_price.simulation.progress.request[e]["configuration"]
            tape = with_price.simulation.tapes[e]
            assert tape is not None
            expected = with_price.compiled.outcomes[0].p_correct[tape.query, configurations[e]].sum()
            assert total[e] == pytest.approx(2.0 * float(expected))
        done |= terminated


def test_environments_begin_at_different_points_of_their_episodes() -> None:
    env = TrainingEnv(32, toy(30), FREE)
    env.begin(seed=1)
    arrived = env.simulation.progress.env["arrived"]
    assert len(np.unique(arrived)) > 10 and arrived.min() < 10 and arrived.max() > 20
    again = TrainingEnv(32, toy(30), FREE)
    again.begin(seed=1)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(env.arrays, again.arrays, strict=True))
    other = TrainingEnv(32, toy(30), FREE)
    other.begin(seed=2)
    assert env.arrays[0].tobytes() != other.arrays[0].tobytes()


@pytest.mark.parametrize("copy", [lambda x: pickle.loads(pickle.dumps(x)), lambda x: thaw(freeze(x))])
def test_a_copy_goes_on_with_the_same_bytes(copy: Any) -> None:
    env = TrainingEnv(3, toy(12), Rules("oracle"))
    env.reset(seed=4)
    rng = np.random.default_rng(0)
    for _ in range(15):
        env.step(random_actions(env.arrays[4], rng))
    twin = copy(env)
    for _ in range(60):
        actions = random_actions(env.arrays[4], rng)
        one, two = env.step(actions), twin.step(actions)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(one[1:4], two[1:4], strict=True))
        assert all(a.tobytes() == b.tobytes() for a, b in zip(env.arrays, twin.arrays, strict=True))


def test_snapshots_leave_out_what_was_never_touched() -> None:
    array = np.zeros(10_000_001, np.uint8)
    array[5_000_000] = 7
    frozen = freeze({"a": array, "b": np.arange(5)})
    assert sum(block.numel() for block in frozen["blocks"]) <= 3 * 4096
    thawed = thaw(frozen)
    assert (thawed["a"] == array).all() and thawed["b"].tolist() == [0, 1, 2, 3, 4]
    thawed["a"][0] = 1  # and can be written to


def test_the_meter_averages_over_ended_episodes() -> None:
    meter = EpisodeMeter()
    assert meter.take() == {}
    meter.add({})
    ended = np.array([True, False])
    for jct_s in (1.0, 3.0):
        meter.add({"metrics": {"jct_mean_s": np.array([jct_s, 99.0]), "_jct_mean_s": ended}, "_metrics": ended})
    assert meter.take() == {"episodes": 2.0, "jct_mean_s": 2.0} and meter.take() == {}
