"""Stable-Baselines3 and sb3-contrib train on the environment as it comes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

import gymnasium as gym
from gymnasium.vector import AutoresetMode
from rollouts import BUSY, ENV_ID, TOY, choose, same
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.vec_env import VecMonitor

from aragog_env.integrations.sb3 import SB3VecEnv, make_sb3_env
from aragog_env.vector_env import StageDispatchVectorEnv

TINY: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "device": "cpu", "seed": 0}
TINY["policy_kwargs"] = {"net_arch": [16]}


def act(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.array([choose(rng, mask) for mask in masks])


def weights(model: MaskablePPO) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()])


def test_maskable_ppo_trains_on_what_gym_make_returns() -> None:
    env = gym.make(ENV_ID, **TOY)
    assert is_masking_supported(env)
    model = MaskablePPO("MultiInputPolicy", env, **TINY)
    before = weights(model)
    model.learn(64)
    assert not np.array_equal(before, weights(model))
    assert model.ep_info_buffer and all(episode["l"] >= 24 for episode in model.ep_info_buffer)
    rewards, lengths = evaluate_policy(model, env, n_eval_episodes=2, return_episode_rewards=True, warn=False)
    assert len(rewards) == 2 and np.isfinite(rewards).all() and min(lengths) >= 24


def test_maskable_ppo_trains_through_the_adapter() -> None:
    env = VecMonitor(make_sb3_env("toy", 4, seed=7, overrides={"requests": 12}))
    assert is_masking_supported(env)
    model = MaskablePPO("MultiInputPolicy", env, **TINY)
    before = weights(model)
    model.learn(256)
    assert not np.array_equal(before, weights(model))
    assert len(model.ep_info_buffer) >= 4
    observation = env.reset()
    for _ in range(40):
        masks = get_action_masks(env)
        actions, _ = model.predict(observation, action_masks=masks)
        assert masks[np.arange(4), actions].all()
        observation, _, _, infos = env.step(actions)
        assert not any(info["invalid_action"] for info in infos)


def test_the_adapter_is_the_vector_environment() -> None:
    adapter = make_sb3_env(BUSY["scenario"], 3, seed=5)
    envs = StageDispatchVectorEnv(3, BUSY["scenario"], autoreset_mode=AutoresetMode.SAME_STEP)
    expected, _ = envs.reset(seed=5)
    assert same(adapter.reset(), expected)
    assert adapter.reset_infos == [{"seed": 5}, {"seed": 6}, {"seed": 7}]
    rng, ends = np.random.default_rng(0), 0
    for _ in range(100):
        masks = np.stack(adapter.env_method("action_masks"))
        assert same(masks, envs.action_masks()) and same(masks, adapter.action_masks())
        actions = act(masks, rng)
        observation, rewards, done, infos = adapter.step(actions)
        expected, expected_rewards, terminated, truncated, info = envs.step(actions)
        assert same(observation, expected) and same(done, terminated | truncated)
        assert rewards.dtype == np.float32
        np.testing.assert_allclose(rewards, expected_rewards, rtol=1e-6)
        for e in range(3):
            assert infos[e]["dt"] == info["dt"][e] and infos[e]["discount"] == info["discount"][e]
            assert ("terminal_observation" in infos[e]) == ("metrics" in infos[e]) == done[e]
            if done[e]:
                ends += 1
                assert same(infos[e]["terminal_observation"], info["final_obs"][e])
                assert infos[e]["TimeLimit.truncated"] is False
                assert infos[e]["metrics"]["jct_mean_s"] == info["metrics"]["jct_mean_s"][e]
    assert ends >= 2


def test_a_cut_episode_is_marked_for_bootstrapping() -> None:
    adapter = make_sb3_env("toy", 2, overrides={"requests": 40, "duration_s": 0.2, "rate_rps": 50.0})
    adapter.seed(3)
    adapter.reset()
    rng, marked = np.random.default_rng(0), 0
    for _ in range(60):
        _, _, done, infos = adapter.step(act(adapter.action_masks(), rng))
        marked += sum(infos[e]["TimeLimit.truncated"] for e in np.flatnonzero(done))
    assert marked >= 2


def test_seeds_are_used_once() -> None:
    adapter = make_sb3_env("toy", 2)
    adapter.seed(11)
    seen = []
    for _ in range(3):
        adapter.reset()
        seen.append([info["seed"] for info in adapter.reset_infos])
    adapter.seed(11)
    adapter.reset()
    assert seen[0] == [info["seed"] for info in adapter.reset_infos] == [11, 12]
    assert len({*seen[0], *seen[1], *seen[2]}) == 6


def test_attributes_and_methods_are_those_of_the_vector_environment() -> None:
    adapter = make_sb3_env("toy", 3, render_mode="ansi")
    adapter.reset()
    assert adapter.get_attr("render_mode") == ["ansi"] * 3 and adapter.render_mode == "ansi"
    assert adapter.has_attr("action_masks") and not adapter.has_attr("no_such_thing")
    adapter.set_attr("colour", "blue")
    assert adapter.get_attr("colour", indices=1) == ["blue"]
    assert len(adapter.env_method("action_masks", indices=[0, 2])) == 2
    assert adapter.env_method("render", indices=2)[0].startswith("toy  t=")
    assert adapter.env_is_wrapped(gym.Wrapper) == [False] * 3
    adapter.close()


def test_other_autoreset_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="SAME_STEP, got NEXT_STEP"):
        SB3VecEnv(StageDispatchVectorEnv(2, "toy"))
