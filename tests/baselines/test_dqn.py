"""DQN: n-step returns in closed form, masks, the replay, resuming, and the optimum of a toy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_network import observations, possible, trained  # noqa: E402
from toys import SMALL, best_mean_s, burst, cut, make_run  # noqa: E402

from aragog_env.backends.sim import SimBackend  # noqa: E402
from aragog_env.harness.metrics import episode_metrics  # noqa: E402
from aragog_env.harness.rollout import run_episode  # noqa: E402
from aragog_env.registry import make_policy  # noqa: E402
from baselines.dqn import DQN, DQNSettings, action_values, n_step_returns, train  # noqa: E402
from baselines.network import MASKED  # noqa: E402
from baselines.training_run import TrainingRun  # noqa: E402

QUICK: dict[str, Any] = {
    **SMALL, "steps": 1500, "replay": 1200, "learn_after": 400, "horizon": 8, "n_step": 5, "minibatch": 32,
}  # fmt: skip


def test_n_step_returns_with_varying_durations_by_hand() -> None:
    """Three steps of discounts 1/2, 1 and 1/4; the second sequence is served after two steps, the third is cut after one."""
    rewards = np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
    discounts = np.array([[0.5], [1.0], [0.25]]) * np.ones(3)
    terminated = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], bool)
    ended = np.array([[0, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
    total, factor, taken = n_step_returns(rewards, discounts, terminated, ended)
    assert total.tolist() == [1 + 0.5 * 2 + 0.5 * 4, 1 + 0.5 * 2, 1.0]
    assert factor.tolist() == [0.125, 0.0, 0.5]
    assert taken.tolist() == [3, 2, 1]


def test_values_of_actions_are_masked_and_average_to_the_value_of_the_state() -> None:
    inputs, network = observations(20, 4, 3), trained()
    network.rescale_values(-5.0, 3.0)
    values, mask = action_values(network, inputs), possible(inputs)
    assert (values[~mask] == MASKED).all()
    state = network.values(inputs)
    for row in range(20):
        assert values[row][mask[row]].mean().item() == pytest.approx(state[row].item(), abs=1e-4)
    assert (values.argmax(1) == network(*inputs.policy).argmax(1)).all()  # a policy needs the logits alone
    values[mask].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_what_is_sampled_is_what_happened(tmp_path: Path) -> None:
    """Each sample against the ring itself, over more steps than fit into it."""
    learner = DQN(make_run(tmp_path, cut(), DQNSettings(**QUICK)))
    replay, n = learner.replay, 5
    for _ in range(40):
        learner.collect()
    assert replay.written == 320 > replay.length == 200
    before, actions, total, factor, after = replay.sample(64, n, learner.generator)
    assert 40 < len(actions) <= 64
    first = torch.arange(320 - 200, 320 - n)  # the oldest to the newest whose n steps are known
    found = 0
    for row in range(len(actions)):
        same = (replay.inputs.calls[first % 200] == before.calls[row]).all(3).all(2)
        same &= (replay.inputs.pairs[first % 200] == before.pairs[row]).all(4).all(3).all(2)
        same &= (replay.inputs.servers[first % 200] == before.servers[row]).all(3).all(2)
        same &= (replay.actions[first % 200] == actions[row]) & ~replay.begins[first % 200]
        candidates = []
        for position, e in same.nonzero().tolist():
            expected, weight, k = 0.0, 1.0, int(first[position])
            for _ in range(n):
                at = k % 200
                expected, weight, k = (
                    expected + weight * float(replay.rewards[at, e]),
                    weight * float(replay.discounts[at, e]),
                    k + 1,
                )
                if replay.ended[at, e]:
                    break
            candidates.append((expected, weight, replay.inputs.globals[k % 200, e].tolist()))
        matches = [
            c
            for c in candidates
            if c[0] == pytest.approx(total[row].item(), rel=1e-5) and c[2] == after.globals[row].tolist()
        ]
        assert matches, (candidates, total[row])
        assert factor[row].item() == pytest.approx(matches[0][1])
        found += 1
    assert found == len(actions)


def test_exploration_falls_from_random_to_nearly_greedy(tmp_path: Path) -> None:
    learner = DQN(make_run(tmp_path, cut(), DQNSettings(**QUICK | {"steps": 10_000})))
    shares = []
    for steps in (0, 399, 1500, 3000, 9999):
        learner.steps = steps
        shares.append(learner.exploration)
    assert shares == pytest.approx([1.0, 1.0, 0.515, 0.03, 0.03])


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DQNSettings(**QUICK)
    train(cut(), settings, tmp_path / "whole", tell=lambda line: None)
    asked = 0

    def stop(self: TrainingRun) -> bool:
        nonlocal asked
        asked += 1
        return asked > 14

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "stop", property(stop))
        train(cut(), settings, tmp_path / "parts", tell=lambda line: None)
    half = torch.load(tmp_path / "parts" / "state.pt", weights_only=True)
    train(None, DQNSettings, tmp_path / "parts", resume=True, tell=lambda line: None)  # type: ignore[arg-type]
    whole, parts = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts"))
    assert 0 < half["updates"] < whole["updates"] == parts["updates"] and whole["steps"] == parts["steps"]
    for part in ("network", "target"):
        assert all(torch.equal(value, parts[part][name]) for name, value in whole[part].items())
        assert not torch.equal(whole[part]["call_in.weight"], half[part]["call_in.weight"])
    assert torch.equal(whole["replay"]["rewards"], parts["replay"]["rewards"])
    assert torch.equal(whole["generator"], parts["generator"])


def test_dqn_finds_the_optimum_of_a_toy(tmp_path: Path) -> None:
    settings = DQNSettings(
        steps=30_000, envs=16, width=16, threads=1, accuracy_weight=0.0, evaluate_every=0, replay=20_000, learn_after=3000,
        n_step=8, gradient_steps=4, horizon=8, minibatch=128, learning_rate=1e-3, target_rate=0.05,
    )  # fmt: skip
    train(burst(), settings, tmp_path, tell=lambda line: None)
    name = f"dqn:{tmp_path}"
    metrics = episode_metrics(run_episode(make_policy(name), name, SimBackend(burst()), 0))
    assert metrics["jct_mean_s"] == pytest.approx(best_mean_s(), abs=1e-6)
