from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import gymnasium as gym
import numba
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from rollouts import BUSY, ENV_ID, SCENARIOS, TOY, TRUNCATED, choose, episode, same

from aragog_env.vector_env import StageDispatchVectorEnv

N = 4
STEPS = 130


def make(arguments: dict[str, Any], mode: AutoresetMode = AutoresetMode.NEXT_STEP, **more: Any) -> Any:
    settings = {"autoreset_mode": mode.value, "metrics": "full"} | arguments | more
    return gym.make_vec(ENV_ID, num_envs=N, vectorization_mode="vector_entry_point", **settings)


def act(rngs: list[np.random.Generator], masks: Any) -> np.ndarray:
    return np.array([choose(rng, mask) for rng, mask in zip(rngs, masks, strict=True)])


def rngs() -> list[np.random.Generator]:
    return [np.random.default_rng(e) for e in range(N)]


def roll(envs: Any, seed: int, steps: int = STEPS) -> list[Any]:
    """Step with random valid actions; return what the steps returned."""
    generators = rngs()
    observation, _ = envs.reset(seed=seed)
    result = []
    for _ in range(steps):
        result.append(envs.step(act(generators, observation["action_mask"])))
        observation = result[-1][0]
    return result


def row(tree: Any, e: int) -> Any:
    """Return what belongs to environment `e` in a vector observation or information."""
    if isinstance(tree, dict):
        kept = {key: value for key, value in tree.items() if not key.startswith("_")}
        return {key: row(value, e) for key, value in kept.items() if f"_{key}" not in tree or tree[f"_{key}"][e]}
    return tree[e]


def values(info: dict[str, Any]) -> dict[str, Any]:
    """Return an information with numbers instead of arrays and types, to compare a single with a vector one."""
    return {key: values(v) if isinstance(v, dict) else np.asarray(v).tolist() for key, v in info.items()}


def equal(a: Any, b: Any) -> bool:
    """Return whether two results of `values` agree; nan equals nan."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return bool(a == b) or (a != a and b != b)


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_next_step_equals_single_environments_across_autoreset(name: str) -> None:
    envs = make(SCENARIOS[name])
    singles = [gym.make(ENV_ID, **SCENARIOS[name]) for _ in range(N)]
    observation, info = envs.reset(seed=21)
    ended = [False] * N
    for e, single in enumerate(singles):
        first, first_info = single.reset(seed=21 + e)
        assert same(first, row(observation, e)) and equal(values(first_info), values(row(info, e)))
    generators, resets = rngs(), 0
    for _ in range(STEPS):
        actions = act(generators, observation["action_mask"])
        observation, rewards, terminated, truncated, info = envs.step(actions)
        for e, single in enumerate(singles):
            if ended[e]:
                expected, _ = single.reset()
                assert (rewards[e], terminated[e], truncated[e]) == (0.0, False, False)
                assert info["dt"][e] == 0.0 and not info["invalid_action"][e]
                assert same(info["action_mask"][e], expected["action_mask"])
                ended[e], resets = False, resets + 1
            else:
                expected, reward, is_terminated, is_truncated, single_info = single.step(actions[e])
                assert (rewards[e], terminated[e], truncated[e]) == (reward, is_terminated, is_truncated)
                assert equal(values(row(info, e)), values(single_info))
                ended[e] = is_terminated or is_truncated
            assert same(row(observation, e), expected)
    assert resets >= N


@pytest.mark.parametrize("name", ["toy", "truncated"])
def test_same_step_returns_the_next_observation_and_keeps_the_last(name: str) -> None:
    envs = make(SCENARIOS[name], AutoresetMode.SAME_STEP)
    singles = [gym.make(ENV_ID, **SCENARIOS[name]) for _ in range(N)]
    observation, _ = envs.reset(seed=21)
    for e, single in enumerate(singles):
        single.reset(seed=21 + e)
    generators, resets = rngs(), 0
    for _ in range(STEPS):
        actions = act(generators, observation["action_mask"])
        observation, rewards, terminated, truncated, info = envs.step(actions)
        assert envs.observation_space.contains(observation)
        done = terminated | truncated
        assert ("final_obs" in info) == bool(done.any())
        for e, single in enumerate(singles):
            expected, reward, is_terminated, is_truncated, single_info = single.step(actions[e])
            assert (rewards[e], terminated[e], truncated[e]) == (reward, is_terminated, is_truncated)
            if done[e]:
                assert info["_final_obs"][e] and info["_final_info"][e]
                assert same(info["final_obs"][e], expected)
                assert equal(values(row(info["final_info"], e)), values(single_info))
                expected, begin = single.reset()
                assert info["time_s"][e] == begin["time_s"]
                resets += 1
            elif done.any():
                assert not info["_final_obs"][e] and info["final_obs"][e] is None
            assert same(row(observation, e), expected)
            assert same(info["action_mask"][e], expected["action_mask"])
    assert resets >= N


def test_without_autoreset_an_ended_episode_stays_until_it_is_reset() -> None:
    envs = make(TOY, AutoresetMode.DISABLED)
    observation, _ = envs.reset(seed=21)
    generators = rngs()
    announced = np.zeros(N, int)
    rewards_after_end = 0.0
    over = np.zeros(N, bool)
    for _ in range(40):
        observation, rewards, terminated, truncated, info = envs.step(act(generators, observation["action_mask"]))
        rewards_after_end += np.abs(rewards[over]).sum() + info["dt"][over].sum()
        announced += info.get("_metrics", np.zeros(N, bool))
        assert not (over & ~(terminated | truncated)).any()
        over = terminated | truncated
    assert over.all() and (announced == 1).all() and rewards_after_end == 0.0
    mask = np.array([False, True, False, True])
    before = copy.deepcopy(observation)
    observation, info = envs.reset(seed=70, options={"reset_mask": mask})
    assert same(info["_seed"], mask) and info["seed"].tolist()[1::2] == [71, 73]
    for e in range(N):
        fresh, _ = gym.make(ENV_ID, **TOY).reset(seed=70 + e)
        assert same(row(observation, e), fresh if mask[e] else row(before, e))
    *_, terminated, truncated, _ = envs.step(act(generators, observation["action_mask"]))
    assert ((terminated | truncated) == ~mask).all()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_record_episode_statistics(mode: AutoresetMode) -> None:
    envs = RecordEpisodeStatistics(make(TOY, mode))
    steps = roll(envs, 21, 60)
    returns, lengths = np.zeros(N), np.zeros(N, int)
    over = np.zeros(N, bool)
    seen = 0
    for _, rewards, terminated, truncated, info in steps:
        skipped = over & (mode == AutoresetMode.NEXT_STEP)
        returns += np.where(skipped, 0.0, rewards)
        lengths += ~skipped
        over = terminated | truncated
        for e in np.flatnonzero(over):
            assert info["episode"]["r"][e] == pytest.approx(returns[e])
            assert info["episode"]["l"][e] == lengths[e]
            returns[e], lengths[e] = 0.0, 0
            seen += 1
    assert seen == envs.episode_count >= 2 * N - 1


def test_makes_what_the_registry_promises() -> None:
    envs = make(TOY)
    assert isinstance(envs.unwrapped, StageDispatchVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert json.loads(envs.spec.to_json())["kwargs"]["overrides"] == TOY["overrides"]
    twin = gym.make_vec(gym.envs.registration.EnvSpec.from_json(envs.spec.to_json()))
    assert twin.num_envs == N and same(roll(envs, 5, 20), roll(twin, 5, 20))
    same_step = make(TOY, AutoresetMode.SAME_STEP)
    assert same_step.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observation, info = envs.reset(seed=1)
    assert envs.observation_space.contains(observation)
    assert same(envs.unwrapped.action_masks(), info["action_mask"].astype(bool))
    assert envs.action_space.contains(act(rngs(), info["action_mask"]))


def test_agrees_with_gymnasiums_own_vectorisation() -> None:
    """Copies of the single environment under SyncVectorEnv: the same observations and rewards."""
    ours, theirs = make(TOY), gym.make_vec(ENV_ID, num_envs=N, vectorization_mode="sync", **TOY)
    for mine, other in zip(roll(ours, 9, 40), roll(theirs, 9, 40), strict=True):
        assert same(mine[0], other[0]) and same(mine[1:4], other[1:4])
    theirs.close()


def test_threads_do_not_matter() -> None:
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one thread")
    before = numba.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            results.append(roll(make(BUSY), 8))
    finally:
        numba.set_num_threads(before)
    assert same(*results)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda envs: pickle.loads(pickle.dumps(envs))])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_copies_continue_with_the_same_bytes(how: Any, mode: AutoresetMode) -> None:
    envs = make(TOY, mode)
    steps = roll(envs, 3, 33)
    masks = steps[-1][0]["action_mask"]
    twin = how(envs)

    def go_on(one: Any) -> list[Any]:
        generators, seen, result = rngs(), masks, []
        for _ in range(60):
            result.append(one.step(act(generators, seen)))
            seen = result[-1][0]["action_mask"]
        return result

    assert same(go_on(envs), go_on(twin))


def test_copy_false_returns_views() -> None:
    fresh, views = make(BUSY), make(BUSY, copy=False)
    one, _ = fresh.reset(seed=2)
    two, _ = views.reset(seed=2)
    assert same(one, two)
    kept = copy.deepcopy(one)
    actions = act(rngs(), one["action_mask"])
    after, *_ = fresh.step(actions)
    views.step(actions)
    assert same(one, kept) and not same(one, after)
    assert same(two, after)  # overwritten in place


def test_summary_metrics_are_some_of_the_full_ones() -> None:
    full, summary = roll(make(TRUNCATED), 3, 60), roll(make(TRUNCATED, metrics="summary"), 3, 60)
    compared = 0
    for one, two in zip(full, summary, strict=True):
        assert ("metrics" in one[4]) == ("metrics" in two[4])
        for key, value in two[4].get("metrics", {}).items():
            np.testing.assert_allclose(value, one[4]["metrics"][key], rtol=1e-9)
            compared += 1
    assert compared > 8


def test_wrong_use_is_refused() -> None:
    envs = make(TOY)
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros(N, int))
    with pytest.raises(gym.error.ResetNeeded, match="all environments"):
        envs.reset(options={"reset_mask": np.array([True, False, True, True])})
    envs.reset(seed=[4, 5, 6, 7])
    for mask in ([True], np.zeros(N, bool), np.ones(N, int)):
        with pytest.raises(ValueError, match="reset_mask must be 4 booleans"):
            envs.reset(options={"reset_mask": mask})
    with pytest.raises(ValueError, match="2 seeds for 4 environments"):
        envs.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="nonsense"):
        StageDispatchVectorEnv(2, "toy", autoreset_mode="nonsense")
    with pytest.raises(ValueError, match="metrics"):
        StageDispatchVectorEnv(2, "toy", metrics="most")  # type: ignore[arg-type]


def test_a_list_of_seeds_seeds_each_environment() -> None:
    envs = make(TOY)
    observation, info = envs.reset(seed=[4, None, 6, 4])
    assert info["seed"].tolist()[::2] == [4, 6]
    assert same(row(observation, 0), row(observation, 3))
    single = gym.make(ENV_ID, **TOY)
    assert same(single.reset(seed=6)[0], row(observation, 2))


def test_single_and_vector_logs_agree() -> None:
    """The vector environment keeps the logs of its episodes too."""
    single = gym.make(ENV_ID, **BUSY).unwrapped
    actions = [step.action for step in episode(single, 3)]
    envs = StageDispatchVectorEnv(2, BUSY["scenario"], autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=[99, 3])
    for action in actions:
        envs.step(np.array([0, action]))
    assert same(envs.log(1).calls, single.log().calls)
    assert same(envs.log(1).requests, single.log().requests)
