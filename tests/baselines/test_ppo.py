"""PPO: advantages in closed form, truncation, loss, resuming, warm start, and the optimum of a toy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from toys import SMALL, best_mean_s, burst, cut, make_run  # noqa: E402

from aragog_env.backends.sim import SimBackend  # noqa: E402
from aragog_env.errors import SpecError  # noqa: E402
from aragog_env.harness.metrics import episode_metrics  # noqa: E402
from aragog_env.harness.rollout import run_episode  # noqa: E402
from aragog_env.registry import ROOT, make_policy  # noqa: E402
from baselines.model_file import ModelFile  # noqa: E402
from baselines.network import OPEN  # noqa: E402
from baselines.ppo import PPO, PPOSettings, advantages, policy_loss, train  # noqa: E402
from baselines.training_run import TrainingRun  # noqa: E402

QUICK: dict[str, Any] = {**SMALL, "horizon": 16, "minibatch": 32, "critic_updates": 0}


def by_definition(
    rewards: list[float], values: list[float], dt_s: list[float], ends: list[str], beta: float, trace: float
) -> list[float]:
    """Sum the temporal differences that follow each step until its episode ends, one product at a time."""
    result = []
    for t in range(len(rewards)):
        total, weight = 0.0, 1.0
        for k in range(t, len(rewards)):
            discount = float(np.exp(-beta * dt_s[k]))
            later = 0.0 if ends[k] == "terminated" else discount * values[k + 1]
            total += weight * (rewards[k] + later - values[k])
            if ends[k]:
                break
            weight *= discount * trace
        result.append(total)
    return result


def test_advantages_are_those_of_the_definition_with_varying_durations() -> None:
    rng = np.random.default_rng(0)
    steps, environments, beta, trace = 40, 5, 0.7, 0.9
    rewards, values = rng.normal(size=(steps, environments)), rng.normal(size=(steps + 1, environments))
    dt_s = rng.exponential(1.0, (steps, environments)) * (rng.random((steps, environments)) < 0.6)
    ends = rng.choice(np.array(["", "terminated", "cut"]), (steps, environments), p=[0.8, 0.1, 0.1])
    found = advantages(
        rewards, values, np.exp(-beta * dt_s), ends == "terminated", ends != "", np.full((steps, environments), trace)
    )
    for e in range(environments):
        columns = [a[:, e].tolist() for a in (rewards, values, dt_s, ends)]
        assert found[:, e].tolist() == pytest.approx(by_definition(*columns, beta, trace))


def test_with_full_traces_advantages_are_returns_minus_values() -> None:
    """Three steps of 0, 1 and 2 s at beta = log 2: discounts 1, 1/2, 1/4."""
    rewards, values = np.array([[1.0], [2.0], [4.0]]), np.array([[10.0], [20.0], [30.0], [40.0]])
    discounts, none, ones = np.array([[1.0], [0.5], [0.25]]), np.zeros((3, 1), bool), np.ones((3, 1))
    found = advantages(rewards, values, discounts, none, none, ones)
    returns = [1 + 2 + 0.5 * 4 + 0.125 * 40, 2 + 0.5 * 4 + 0.125 * 40, 4 + 0.25 * 40]
    assert (found[:, 0] + values[:3, 0]).tolist() == pytest.approx(returns)


def test_a_cut_episode_goes_on_in_value_and_a_terminated_one_does_not() -> None:
    rewards, values = np.zeros((2, 2)), np.array([[0.0, 0.0], [8.0, 8.0], [5.0, 5.0]])
    ended = np.array([[True, True], [False, False]])
    terminated = np.array([[True, False], [False, False]])
    found = advantages(rewards, values, np.full((2, 2), 0.5), terminated, ended, np.ones((2, 2)))
    assert found[0].tolist() == [0.0, 4.0]  # nothing of the next episode's values in either


def test_the_final_observation_of_a_cut_episode_is_what_is_bootstrapped(tmp_path: Path) -> None:
    """The rollout keeps it as the observation after the last step; the step that begins anew is no decision."""
    learner = PPO(make_run(tmp_path, cut(), PPOSettings(**QUICK | {"horizon": 60})))
    learner.collect()
    buffer = learner.buffer
    cuts = np.argwhere(buffer.ended[:-1])
    assert len(cuts) > 5 and not buffer.terminated.any()
    assert (buffer.begins[1:] == buffer.ended[:-1]).all() and not buffer.begins[1:].all()
    values, zeros = buffer.values, np.zeros_like(buffer.rewards)
    found = advantages(buffer.rewards, values, buffer.discounts, buffer.terminated, buffer.ended, zeros)
    for t, e in cuts:
        assert not buffer.inputs.calls[(t + 1) * 6 + e].any()  # the horizon has passed: no call is shown
        expected = buffer.rewards[t, e] + buffer.discounts[t, e] * values[t + 1, e] - values[t, e]
        assert found[t, e] == pytest.approx(expected) and buffer.dt_s[t, e] > 0
    begun = np.argwhere(buffer.begins)
    assert (buffer.rewards[tuple(begun.T)] == 0).all() and (buffer.discounts[tuple(begun.T)] == 1).all()


def test_only_decisions_teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that begin an episode teach nothing, and where one thing alone is possible only the critic learns."""
    learner = PPO(
        make_run(tmp_path, cut(), PPOSettings(**QUICK | {"horizon": 60, "target_kl": 0.0, "viable": "oracle"}))
    )
    learner.collect()
    passes: list[set[int]] = []
    parts = learner._parts

    def note(rows: Any, *rest: Any) -> Any:
        passes.append(set(rows.tolist()))
        return parts(rows, *rest)

    monkeypatch.setattr(learner, "_parts", note)
    learner.update()
    buffer = learner.buffer
    real = set(np.flatnonzero(~buffer.begins.reshape(-1)).tolist())
    open_ = (buffer.inputs.pairs[..., OPEN] > 0.5).flatten(1).sum(1) + buffer.inputs.can_wait
    choices = real & set(np.flatnonzero((open_ > 1).numpy()).tolist())
    assert passes == [choices, real] and 0 < len(choices) < len(real) < 360 and learner.steps == len(real)


def test_the_first_ratios_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sampled with some slots, minibatch by minibatch of the update with others: the same probabilities."""
    learner = PPO(make_run(tmp_path, cut(), PPOSettings(**QUICK | {"horizon": 40, "epochs": 1, "target_kl": 0.0})))
    learner.collect()
    assert len(learner.buffer.shown.unique()) >= 2
    changes: list[float] = []

    def note(*arguments: Any) -> Any:
        loss, entropy, change = policy_loss(*arguments)
        changes.extend(change.abs().tolist())
        return 0 * loss, entropy, change

    monkeypatch.setattr("baselines.ppo.policy_loss", note)
    monkeypatch.setattr(learner, "_descend", lambda loss: None)
    learner.update()
    assert len(changes) > 100 and max(changes) < 1e-5


def test_the_surrogate_is_clipped_where_the_policy_moved_far() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])).requires_grad_()
    old_log = torch.log(torch.tensor([0.25, 0.25, 0.5, 1.0]))  # ratios 2, 2, 1, 1/2
    loss, entropy, change = policy_loss(
        logits, torch.zeros(4, dtype=torch.int64), old_log, torch.tensor([1.0, -1.0, 3.0, 1.0]), 0.2
    )
    assert loss.item() == pytest.approx(np.mean([-1.2, 2.0, -3.0, -0.5]))
    assert entropy.item() == pytest.approx(np.log(2)) and change.exp().tolist() == pytest.approx([2, 2, 1, 0.5])
    loss.backward()
    assert logits.grad is not None and (logits.grad[0] == 0).all() and (logits.grad[1:] != 0).all()


def train_quietly(folder: Path, settings: PPOSettings, **options: Any) -> dict[str, Any]:
    train(cut(), settings, folder, tell=lambda line: None, **options)
    return torch.load(folder / "state.pt", weights_only=True)


def assert_same_state(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one["steps"] == two["steps"] and one["updates"] == two["updates"]
    for name in one["network"]:
        assert torch.equal(one["network"][name], two["network"][name]), name
    for key, entry in one["optimiser"]["state"].items():
        for name, value in entry.items():
            assert torch.equal(value, two["optimiser"]["state"][key][name])
    assert torch.equal(one["generator"], two["generator"])


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight updates; or three, and five more in another process."""
    settings = PPOSettings(
        **QUICK | {"steps": 8 * 16 * 6 - 60, "viable": "oracle", "evaluate_every": 3, "evaluate_episodes": 2}
    )
    whole = train_quietly(tmp_path / "whole", settings)
    asked = 0

    def stop(self: TrainingRun) -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "stop", property(stop))
        half = train_quietly(tmp_path / "parts", settings)
    assert half["updates"] == 3 < whole["updates"] == 8
    words = ["-m", "aragog_env.cli", "train", "ppo", "--out", str(tmp_path / "parts"), "--resume"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert_same_state(whole, torch.load(tmp_path / "parts" / "state.pt", weights_only=True))
    curves = [(tmp_path / name / "curve.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    points = [
        [{k: v for k, v in json.loads(line).items() if not k.endswith("_s") or k == "jct_mean_s"} for line in c]
        for c in curves
    ]
    for row in (row for curve in points for row in curve):
        row.pop("steps_per_s", None)
    assert points[0] == points[1] and "eval/reward" in points[0][2]


def test_points_after_the_last_checkpoint_are_made_again(tmp_path: Path) -> None:
    settings = PPOSettings(**QUICK | {"steps": 500})
    train_quietly(tmp_path / "run", settings)
    curve = tmp_path / "run" / "curve.jsonl"
    before = curve.read_text()
    with curve.open("a") as file:
        file.write('{"update": 99, "steps": 1}\n{"update": 100, "st')  # of a run that was killed
    PPO(TrainingRun(tmp_path / "run", None, PPOSettings, resume=True))
    assert curve.read_text() == before


def test_training_with_the_same_seed_gives_the_same_network(tmp_path: Path) -> None:
    settings = PPOSettings(**QUICK | {"steps": 300})
    one, two = (train_quietly(tmp_path / name, settings) for name in ("one", "two"))
    assert_same_state(one, two)
    other = train_quietly(tmp_path / "other", PPOSettings(**QUICK | {"steps": 300, "seed": 1}))
    assert not torch.equal(one["network"]["call_in.weight"], other["network"]["call_in.weight"])


def test_a_warm_start_takes_the_weights_and_trains_the_critic_first(tmp_path: Path) -> None:
    first = PPO(make_run(tmp_path / "first", cut(), PPOSettings(**QUICK)))
    first.model().save(tmp_path / "first" / "model.safetensors")
    settings = PPOSettings(**QUICK | {"start": str(tmp_path / "first"), "critic_updates": 1, "seed": 9})
    second = PPO(make_run(tmp_path / "second", cut(), settings))
    before = {name: value.clone() for name, value in second.network.state_dict().items()}
    assert all(torch.equal(value, first.network.state_dict()[name]) for name, value in before.items())
    second.collect()
    second.update()
    changed = {name for name, value in second.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {*(name for name in before if name.startswith("value"))}
    second.collect()
    second.update()
    assert not torch.equal(second.network.call_in.weight, before["call_in.weight"])
    with pytest.raises(SpecError, match="has width 8, not 16; set width=8"):
        PPO(make_run(tmp_path / "third", cut(), PPOSettings(**QUICK | {"start": str(tmp_path / "first"), "width": 16})))


@pytest.mark.parametrize(
    "changes", [{"precision": "bf16"}, {"wait": True, "hold": 0.0}, {"target_kl": 1e-9}, {"ready_slots": 5}]
)
def test_options_of_learning(changes: dict[str, Any], tmp_path: Path) -> None:
    learner = PPO(make_run(tmp_path, cut(), PPOSettings(**QUICK | changes)))
    learner.collect()
    row = learner.update()
    assert all(np.isfinite(value) for value in row.values())
    if "target_kl" in changes:
        assert row["gradient_steps"] < 6
    if "ready_slots" in changes:
        assert learner.buffer.inputs.calls.shape[1] == 5 and learner.model().ready_slots == 5


def mean_s(policy: str) -> float:
    """Return the mean completion time of a policy in `burst`, by the evaluation harness."""
    return episode_metrics(run_episode(make_policy(policy), policy, SimBackend(burst()), 0))["jct_mean_s"]


def test_ppo_finds_the_optimum_of_a_toy(tmp_path: Path) -> None:
    """Seven calls, a fast server and a slow one: five and two. Rules that balance numbers do worse."""
    optimum = best_mean_s()
    assert optimum == pytest.approx(0.030)
    assert min(mean_s(rule) for rule in ("least_loaded", "round_robin", "fixed:smallest")) > 1.04 * optimum
    settings = PPOSettings(
        steps=40_000, envs=32, horizon=32, minibatch=256, width=16, threads=1, accuracy_weight=0.0, evaluate_every=0
    )
    train(burst(), settings, tmp_path, tell=lambda line: None)
    assert ModelFile.load(tmp_path, "ppo").notes["steps"] >= 40_000
    assert mean_s(f"ppo:{tmp_path}") == pytest.approx(optimum, abs=1e-6)
