from __future__ import annotations

import copy
import json
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics
from rollouts import BUSY, CLOSED, ENV_ID, SCENARIOS, TOY, TRUNCATED, choose, episode, replay, same

from aragog_env.backends.sim import SimBackend
from aragog_env.env import StageDispatchEnv
from aragog_env.errors import SpecError
from aragog_env.harness.metrics import METRICS, WALL_CLOCK_METRICS, episode_metrics
from aragog_env.observation import CallFeature, GlobalFeature, PairFeature
from aragog_env.policy import WAIT, Dispatch
from aragog_env.reward import reference_latency_s
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override


@pytest.mark.parametrize("name", ["toy", "busy"])
def test_passes_the_checker_of_gymnasium(name: str) -> None:
    env = gym.make(ENV_ID, **SCENARIOS[name])
    check_env(env.unwrapped, skip_render_check=True)  # warnings are errors


@pytest.mark.parametrize("name", ["toy", "busy"])
def test_passes_the_checker_of_sb3_but_for_two_dimensional_boxes(name: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checker.check_env(gym.make(ENV_ID, **SCENARIOS[name]), skip_render_check=True)
    keys = set()
    for warning in caught:
        text = str(warning.message)
        assert "unconventional shape (neither an image, nor a 1D vector)" in text
        keys.add(text.split()[2])
    assert keys == {"calls", "pairs", "routes"}


def test_spec_survives_json() -> None:
    env = gym.make(ENV_ID, **TOY)
    text = env.spec.to_json()
    assert json.loads(text)["kwargs"] == TOY
    twin = gym.make(gym.envs.registration.EnvSpec.from_json(text))
    assert same(episode(env, 5), episode(twin, 5))


def test_spaces_hold_and_something_is_always_valid(episodes: Any) -> None:
    for env, steps in episodes.values():
        for step in steps:
            observation = step.observation
            assert env.observation_space.contains(observation)
            assert observation["action_mask"].any()
            assert same(observation["action_mask"], step.info["action_mask"])
            assert isinstance(step.reward, float) and np.isfinite(step.reward)
            assert type(step.terminated) is bool and type(step.truncated) is bool
        assert not any(step.info["invalid_action"] for step in steps)
        assert all(("metrics" in step.info) == (step is steps[-1]) for step in steps)


def test_scenarios_reach_the_corners(episodes: Any) -> None:
    """What the other tests rely on: preemption, queues, overflow, tools, skipped stages, cut and closed episodes."""
    metrics = {name: steps[-1].info["metrics"] for name, (_, steps) in episodes.items()}
    assert metrics["busy"]["preemptions"] > 0 and metrics["busy"]["queue_mean_s"] > 0
    assert metrics["busy"]["overflow"] > 0 and metrics["busy"]["prefix_hit_rate"] > 0
    busy = episodes["busy"][0]
    call = busy.simulation.state.call[0]
    assert ((call["ready_ps"] >= 0) & (call["replica"] < 0)).any()  # tools
    nodes = busy.compiled.workflow.nodes[busy.simulation.progress.request[0]["workflow"]]
    assert (call["ready_ps"] >= 0).sum() < nodes.sum()  # skipped stages
    assert episodes["truncated"][1][-1].truncated and not episodes["truncated"][1][-1].terminated
    assert all(episodes[name][1][-1].terminated for name in ("toy", "busy", "closed"))


def test_same_seed_and_actions_give_the_same_bytes(env: Any, scenario: dict[str, Any]) -> None:
    first = episode(env, 11)
    assert same(first, episode(gym.make(ENV_ID, **scenario), 11))
    assert same(first, episode(env, 11))  # a used environment is as good as a new one
    assert not same(first, episode(env, 12))


def test_later_resets_draw_new_traffic_from_the_first_seed() -> None:
    def arrivals(env: Any) -> list[bytes]:
        found = []
        for seed in (7, None, None):
            episode(env, seed)
            found.append(env.unwrapped.log().requests["arrival_s"].tobytes())
        return found

    first, second = arrivals(gym.make(ENV_ID, **TOY)), arrivals(gym.make(ENV_ID, **TOY))
    assert first == second and len(set(first)) == 3


def test_reset_names_the_seed_that_brings_the_episode_back() -> None:
    env = gym.make(ENV_ID, **BUSY)
    env.reset(seed=7)
    _, info = env.reset()
    steps = replay(env, [0] * 10)
    _, again = env.reset(seed=info["seed"])
    assert again["seed"] == info["seed"] != 7
    assert same(steps, replay(env, [0] * 10))


@pytest.mark.parametrize("name", ["toy", "busy"])
def test_traffic_does_not_depend_on_actions(name: str) -> None:
    env = gym.make(ENV_ID, **SCENARIOS[name]).unwrapped
    logs = []
    for action_seed in (0, 1):
        episode(env, 3, action_seed)
        logs.append((env.log(), env.simulation.progress.request[0].copy()))
    (one, raw_one), (two, raw_two) = logs
    for field in ("workflow", "query", "arrival_s", "p_largest", "standalone_s"):
        assert same(one.requests[field], two.requests[field])
    assert same(raw_one["uniform"], raw_two["uniform"])
    assert not same(one.requests["finish_s"], two.requests["finish_s"])


@pytest.mark.parametrize("how", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_continue_with_the_same_bytes(env: Any, how: Any) -> None:
    actions = [step.action for step in episode(env, 4)]
    half = len(actions) // 2
    env.reset(seed=4)
    replay(env, actions[:half])
    twin = how(env)
    rest = replay(env, actions[half:])  # must not disturb the twin
    assert rest[-1].terminated or rest[-1].truncated
    assert same(rest, replay(twin, actions[half:]))
    assert same(env.unwrapped.log().calls, twin.unwrapped.log().calls)
    assert twin.unwrapped.compiled is env.unwrapped.compiled  # large and constant: shared
    assert same(episode(env, None), episode(twin, None))  # the generator of later seeds came along


def test_a_masked_action_waits_and_says_so() -> None:
    env = gym.make(ENV_ID, **BUSY)
    observation, _ = env.reset(seed=3)
    rng = np.random.default_rng(0)
    tried = 0
    for _ in range(60):
        mask = observation["action_mask"]
        wait = len(mask) - 1
        if mask[wait]:
            twin = copy.deepcopy(env)
            waited = twin.step(wait)
            invalid = int(rng.choice([*np.flatnonzero(mask == 0), len(mask), -1]))
            observation, *rest = copy.deepcopy(env).step(invalid)
            assert rest[-1].pop("invalid_action") is True and waited[-1].pop("invalid_action") is False
            assert same([observation, *rest], list(waited))
            tried += 1
        observation, _, terminated, _, _ = env.step(choose(rng, mask))
        assert not terminated
    assert tried > 30


@pytest.mark.parametrize("action", [12, 9, 10**6, -1])
def test_where_waiting_would_never_end_a_masked_action_is_the_first_valid_one(action: int) -> None:
    """Slots 4, routes 3: action 12 waits, 9 is an empty slot, the others do not exist."""
    env = gym.make(ENV_ID, scenario="toy", overrides={"requests": 1, "warmup_requests": 0}).unwrapped
    observation, _ = env.reset(seed=0)
    assert observation["action_mask"].tolist() == [1, 1, 1] + [0] * 10
    twin = copy.deepcopy(env)
    *result, info = env.step(action)
    *expected, expected_info = twin.step(0)
    assert info.pop("invalid_action") is True and expected_info.pop("invalid_action") is False
    assert same([*result, info], [*expected, expected_info])
    assert env.log().calls["route"].tolist() == [0]


def test_rewards_add_up_to_completion_times_and_right_answers(episodes: Any) -> None:
    for name, (env, steps) in episodes.items():
        log, objective = env.log(), env.compiled.scenario.objective
        end_s = np.where(np.isfinite(log.requests["finish_s"]), log.requests["finish_s"], log.duration_s)
        in_system_s = float((end_s - log.requests["arrival_s"]).sum())
        latency = sum(step.info["reward/latency"] for step in steps)
        assert latency == pytest.approx(-in_system_s / reference_latency_s(env.compiled), rel=1e-9), name
        right = int((log.requests["correct"] == 1).sum())
        assert sum(step.info["reward/accuracy"] for step in steps) == objective.accuracy_weight * right
        for step in steps:
            assert step.reward == step.info["reward/latency"] + step.info["reward/accuracy"]
            assert step.info["discount"] == pytest.approx(np.exp(-objective.beta_per_s * step.info["dt"]))
        first_s = float(log.requests["arrival_s"][0])
        assert sum(step.info["dt"] for step in steps) == pytest.approx(log.duration_s - first_s, rel=1e-9)
        assert steps[-1].info["time_s"] == pytest.approx(log.duration_s)


def test_the_horizon_cuts_the_episode() -> None:
    env = gym.make(ENV_ID, **TRUNCATED).unwrapped
    steps = episode(env, 3)
    last = steps[-1]
    assert last.truncated and not last.terminated
    assert last.info["time_s"] == pytest.approx(0.3, abs=1e-12)
    assert last.observation["action_mask"].tolist() == [0] * 6 + [1]
    log = env.log()
    assert log.truncated and (log.requests["arrival_s"] <= 0.3).all()
    unfinished = np.isnan(log.requests["finish_s"])
    assert 0 < unfinished.sum() == last.info["metrics"]["unfinished"] + unfinished[: log.warmup_requests].sum()
    # Only the observation before the cut may differ from an episode that goes on.
    longer = gym.make(ENV_ID, scenario="toy", overrides=TRUNCATED["overrides"] | {"duration_s": 5.0})
    longer.reset(seed=3)
    assert same(replay(longer, [step.action for step in steps[:-1]]), steps[:-1])


def test_a_closed_loop_never_has_more_requests_than_users(episodes: Any) -> None:
    env, _ = episodes["closed"]
    log, tape = env.log(), env.simulation.tapes[0]
    assert len(log.requests) == 12 and np.isfinite(log.requests["finish_s"]).all()
    events = [(t, 1) for t in log.requests["arrival_s"]] + [(t, -1) for t in log.requests["finish_s"]]
    in_flight = np.cumsum([change for _, change in sorted(events)])
    assert in_flight.max() <= CLOSED["overrides"]["users"]
    # Every arrival but the first three follows a completion by the think time of that user.
    raw = env.simulation.progress.request[0]
    users = tape.think_s.shape[0]
    for q in range(users, len(raw)):
        thought_s = (raw["arrival_ps"][q] - raw["finish_ps"][q - users]) * 1e-12
        assert thought_s == pytest.approx(tape.think_s[q % users, q // users], abs=1e-9)


def test_ready_calls_beyond_the_slots_are_counted(episodes: Any) -> None:
    env, steps = episodes["busy"]
    env = copy.deepcopy(env)
    env.reset(seed=3)
    slots = env.compiled.scenario.observation.ready_slots
    decisions = beyond = 0
    for action in [step.action for step in steps]:
        ready = int(env.simulation.progress.env["ready"][0])
        shown = int(env._observation()["calls"][:, CallFeature.VALID].sum())
        assert shown == min(ready, slots)
        decisions += 1
        beyond += ready > slots
        *_, info = env.step(action)
        assert info["overflow"] == max(0, int(env.simulation.progress.env["ready"][0]) - slots)
        assert (env._observation()["globals"][GlobalFeature.OVERFLOW] > 0) == (info["overflow"] > 0)
    assert info["metrics"]["overflow"] == beyond > 0
    assert info["metrics"]["decisions"] == decisions


def test_rows_of_pairs_are_actions(episodes: Any) -> None:
    for _, steps in episodes.values():
        for step in steps:
            allowed = step.observation["pairs"][:, PairFeature.ALLOWED]
            assert (allowed == step.observation["action_mask"][:-1]).all()


def test_environment_and_backend_are_the_same_cluster() -> None:
    """One sequence of decisions through both gives one log: the harness evaluates what learners train on."""
    env = gym.make(ENV_ID, **BUSY).unwrapped
    steps = episode(env, 3)
    backend = SimBackend(BUSY["scenario"])
    backend.reset(3)
    routes = len(env.compiled.replicas)
    for step in steps:
        wait = step.action == env.action_space.n - 1
        view = backend.view()
        backend.step(WAIT if wait else Dispatch(*divmod(step.action, routes)))
        assert wait or view.allowed[divmod(step.action, routes)]
        assert backend.now_s == pytest.approx(step.info["time_s"], rel=1e-12)
    assert backend.done
    mine, theirs = env.log(), backend.log()
    assert same(mine.requests, theirs.requests) and same(mine.calls, theirs.calls)
    assert same(mine.busy_s, theirs.busy_s) and same(mine.iterations, theirs.iterations)
    of_backend = episode_metrics(theirs)
    for key in METRICS.keys() - WALL_CLOCK_METRICS - {"decisions", "overflow"}:
        assert same(steps[-1].info["metrics"][key], of_backend[key]), key


def test_predicted_latencies_are_those_of_the_view() -> None:
    env, backend = gym.make(ENV_ID, **BUSY), SimBackend(BUSY["scenario"])
    observation, _ = env.reset(seed=3)
    backend.reset(3)
    for _ in range(25):
        view = backend.view()
        n = min(len(view.calls), 3)
        seconds = view.predicted_latency_s()[:n]
        expected = np.where(view.allowed[:n], seconds / (seconds + 5.0), 0.0).ravel()
        np.testing.assert_allclose(
            observation["pairs"][: len(expected), PairFeature.LATENCY], expected.astype(np.float32), rtol=1e-6
        )
        observation, *_ = env.step(0)
        backend.step(Dispatch(0, 0))


def test_record_episode_statistics() -> None:
    env = RecordEpisodeStatistics(gym.make(ENV_ID, **TOY))
    steps = episode(env, 3)
    recorded = steps[-1].info["episode"]
    assert recorded["l"] == len(steps)
    assert recorded["r"] == pytest.approx(sum(step.reward for step in steps))
    assert "metrics" in steps[-1].info


def test_takes_names_files_and_scenarios(tmp_path: Any) -> None:
    loaded = override(load_scenario("toy"), requests=12)
    by_object = episode(gym.make(ENV_ID, scenario=loaded), 3)
    assert same(by_object, episode(gym.make(ENV_ID, **TOY), 3))
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ncluster: toy-3\nworkload:\n  arrivals: {kind: poisson, rate_rps: 5}\n  mix: [toy_chain]\n"
        "horizon: {requests: 12, warmup_requests: 1}\nobservation: {ready_slots: 4}\n"
    )
    by_file = episode(gym.make(ENV_ID, scenario=str(path)), 3)
    assert [step.reward for step in by_file] == [step.reward for step in by_object]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenario": "tou"}, "Did you mean 'toy'"),
        ({"scenario": "toy", "overrides": {"rate_rps": -1.0}}, "rate_rps"),
        ({"scenario": "toy", "overrides": {"ready_slots": 0}}, "ready_slots"),
    ],
)
def test_bad_arguments_are_explained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        StageDispatchEnv(**arguments)
