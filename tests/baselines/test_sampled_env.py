"""Training environments of drawn scenarios: what is drawn when, and that learners cannot tell them from others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from toys import SMALL, cut  # noqa: E402

from aragog_env.errors import SpecError  # noqa: E402
from aragog_env.specs.sampler import SampledScenario, ScenarioSampler  # noqa: E402
from baselines import dqn, imitation, ppo  # noqa: E402
from baselines.features import Rules  # noqa: E402
from baselines.sampled_env import SampledTrainingEnv  # noqa: E402
from baselines.snapshots import freeze, thaw  # noqa: E402
from baselines.training_env import random_actions  # noqa: E402

RULES = Rules("oracle")
SAMPLER = ScenarioSampler(
    "wide", (SampledScenario("toy"),), rate_rps=(2.0, 40.0), latency_scale=(0.5, 2.0), requests=12
)
QUICK: dict[str, Any] = {**SMALL, "horizon": 16, "minibatch": 32, "evaluate_every": 2, "evaluate_episodes": 2}
FILE = """\
name: wide
scenarios: [toy]
rate_rps: [2, 40]
latency_scale: [0.5, 2]
requests: 12
"""


def _env(groups: int = 3, envs: int = 7, seed: int = 0) -> SampledTrainingEnv:
    return SampledTrainingEnv(envs, SAMPLER, lambda scenario: scenario, RULES, seed, groups)


def _mean_rates(env: SampledTrainingEnv) -> list[float]:
    tapes = [tape for group in env.groups for tape in group.simulation.tapes]
    return [len(tape.arrival_s) / float(tape.arrival_s[-1]) for tape in tapes if tape is not None]


def test_groups_differ_in_their_servers_and_episodes_in_their_traffic() -> None:
    env = _env()
    env.begin(0)
    assert [group.num_envs for group in env.groups] == [3, 2, 2] and env.reward.reference_s.shape == (7,)
    speeds = {tuple(r.latency_scale for r in group.compiled.replicas) for group in env.groups}
    assert len(speeds) == 3 and all(0.5 <= speed <= 2 for these in speeds for speed in these)
    rates = _mean_rates(env)
    assert len(set(rates)) == 7 and max(rates) > 2 * min(rates)
    again = _env()
    again.begin(0)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(env.arrays, again.arrays, strict=True))


def test_it_steps_as_its_groups_do_and_adds_up_what_they_tell() -> None:
    env, twin = _env(), _env()
    env.begin(1)
    twin.begin(1)
    rng, ended = np.random.default_rng(0), 0
    for _ in range(60):
        actions = random_actions(env.arrays[4], rng)
        assert (env.begins == np.concatenate([group.begins for group in twin.groups])).all()
        assert env.choices.shape == (7,)
        _, rewards, terminated, truncated, info = env.step(actions)
        parts = [group.step(actions[place]) for group, place in zip(twin.groups, twin._places, strict=True)]
        assert rewards.tobytes() == np.concatenate([part[1] for part in parts]).tobytes()
        assert info["dt"].tobytes() == np.concatenate([part[4]["dt"] for part in parts]).tobytes()
        if "metrics" in info:
            ended += int(info["_metrics"].sum())
            assert (info["_metrics"] == (terminated | truncated)).all()
            assert (info["metrics"]["jct_mean_s"][info["_metrics"]] > 0).all()
    assert ended > 5


def test_a_frozen_copy_goes_on_with_the_same_bytes() -> None:
    env = _env()
    env.begin(2)
    twin = thaw(freeze(env))
    rng = np.random.default_rng(0)
    for _ in range(80):  # long enough for new episodes, whose traffic is drawn
        actions = random_actions(env.arrays[4], rng)
        one, two = env.step(actions), twin.step(actions)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(one[1:4], two[1:4], strict=True))
        assert all(a.tobytes() == b.tobytes() for a, b in zip(env.arrays, twin.arrays, strict=True))


def test_scenarios_that_do_not_fit_together_are_refused() -> None:
    mixed = ScenarioSampler("mixed", (SampledScenario("toy"), SampledScenario("default")), requests=12)
    with pytest.raises(SpecError, match="equal numbers of slots and servers, got 4 x 3, 8 x 3"):
        SampledTrainingEnv(4, mixed, lambda scenario: scenario, RULES, 0)


@pytest.mark.parametrize("learner", [ppo, dqn])
def test_learners_train_on_drawn_scenarios_and_go_on_to_the_same_bytes(learner: Any, tmp_path: Path) -> None:
    path = tmp_path / "wide.yaml"
    path.write_text(FILE)
    more = {"critic_updates": 0} if learner is ppo else {"learn_after": 50, "replay": 600, "n_step": 4}
    cls = learner.PPOSettings if learner is ppo else learner.DQNSettings

    def train(name: str, steps: int, **options: Any) -> Path:
        settings = cls(**QUICK, **more, steps=600, sampler=str(path))
        folder = tmp_path / name
        if options:
            learner.train(None, cls, folder, lambda line: None, **options)
        else:
            learner.train(cut(), settings, folder, lambda line: None, minutes=None if steps == 600 else 1e-9)
        return folder

    whole = train("whole", 600)
    part = train("part", 0)  # ends before the first update
    path.unlink()  # a run holds its sampler
    train("part", 600, resume=True)
    curves = [[json.loads(line) for line in (f / "curve.jsonl").read_text().splitlines()] for f in (whole, part)]
    wall = ("steps_per_s", "wall_s")
    one, two = ([{k: v for k, v in row.items() if k not in wall} for row in curve] for curve in curves)
    assert one == two and len(one) > 1
    about = json.loads((whole / "run.json").read_text())
    assert "rate_rps:" in about["sampler"]


def test_imitation_refuses_a_sampler(tmp_path: Path) -> None:
    path = tmp_path / "wide.yaml"
    path.write_text(FILE)
    settings = imitation.ImitationSettings(**SMALL, sampler=str(path))
    with pytest.raises(SpecError, match="imitation trains on its scenario alone"):
        imitation.train(cut(), settings, tmp_path / "run")
