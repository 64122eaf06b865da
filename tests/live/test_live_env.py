"""The live environment over fake servers: Gymnasium's checker, and the same meaning of everything as in simulation."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from aragog_env.env import StageDispatchEnv
from aragog_env.errors import AragogError, SpecError
from aragog_env.observation import CallFeature, RouteFeature
from aragog_env.recording import Recording
from tests.live.fake_server import FakeServer
from tests.live.world import PATIENT, QUICK, answer, endpoints_of, make_scenario

pytest.importorskip("httpx")
ENV_ID = "aragog_env:aragog/StageDispatchLive-v0"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def make(folder: Path, stack: ExitStack, *, servers: list[FakeServer] | None = None, **changes: Any) -> Any:
    """Return an environment over fake servers, which it appends to `servers`."""
    scenario = make_scenario(folder, **changes)
    started = [stack.enter_context(FakeServer(answer, model=r.model)) for r in scenario.cluster.expand()]
    if servers is not None:
        servers += started
    env = gym.make(
        ENV_ID,
        scenario=scenario,
        endpoints=endpoints_of(scenario, started),
        recording=folder / "recordings",
        options=PATIENT,
    )
    stack.callback(env.close)
    return env


def play(env: Any, seed: int | None = 0) -> list[tuple[dict[str, Any], float, bool, bool, dict[str, Any]]]:
    """Send the first call to the first route, always."""
    observation, _ = env.reset(seed=seed)
    steps: list[tuple[dict[str, Any], float, bool, bool, dict[str, Any]]] = []
    while not steps or not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(int(np.flatnonzero(observation["action_mask"])[0])))
        observation = steps[-1][0]
    return steps


def test_passes_the_checker_of_gymnasium(tmp_path: Path, stack: ExitStack) -> None:
    """Warnings are errors.

    Skipped by the checker itself, for an environment that is registered as nondeterministic: that two resets, or two steps,
    with one seed return equal observations. Ages of calls are wall-clock time and never equal. What must be equal under one
    seed is tested below.
    """
    env = make(tmp_path, stack, requests=3)
    assert env.spec.nondeterministic
    check_env(env.unwrapped, skip_render_check=True)


def test_spaces_and_traffic_are_those_of_the_simulated_environment(tmp_path: Path, stack: ExitStack) -> None:
    env = make(tmp_path, stack, requests=4)
    simulated = StageDispatchEnv(env.unwrapped.compiled.scenario)
    assert env.observation_space == simulated.observation_space and env.action_space == simulated.action_space
    observation, info = env.reset(seed=3)
    expected, simulated_info = simulated.reset(seed=3)
    assert info["seed"] == simulated_info["seed"] == 3 and info["time_s"] >= simulated_info["time_s"]
    assert observation["calls"].shape == expected["calls"].shape
    same = [CallFeature.VALID, CallFeature.DEPTH, CallFeature.DONE, CallFeature.WORKFLOW, CallFeature.NODE]
    assert (observation["calls"][0, same] == expected["calls"][0, same]).all()
    same_routes = [RouteFeature.UP, RouteFeature.RUNNING, RouteFeature.MODEL, RouteFeature.GPUS]
    assert (observation["routes"][:, same_routes] == expected["routes"][:, same_routes]).all()
    assert (observation["action_mask"][:2] == 1).all() and observation["action_mask"][-1] == 1


def test_the_reward_sums_up_to_completion_times_and_right_answers(tmp_path: Path, stack: ExitStack) -> None:
    env = make(tmp_path, stack, requests=6)
    steps = play(env)
    inner = env.unwrapped
    log, reward = inner.log(), inner.reward
    jct_s = log.requests["finish_s"] - log.requests["arrival_s"]
    before_s = sum(step[4]["dt"] for step in steps)
    assert steps[0][4]["time_s"] - steps[0][4]["dt"] + before_s == pytest.approx(steps[-1][4]["time_s"])
    # The first observation is the first decision, some milliseconds after the first arrival.
    first_s = steps[0][4]["time_s"] - steps[0][4]["dt"] - log.requests["arrival_s"][0]
    latency = -sum(step[4]["reward/latency"] for step in steps) * reward.reference_s
    assert latency == pytest.approx(jct_s.sum() - first_s, abs=1e-6)
    right = sum(step[4]["reward/accuracy"] for step in steps) / reward.accuracy_weight
    assert right == pytest.approx((log.requests["correct"] == 1).sum()) and right > 0
    for observation, total, terminated, truncated, info in steps:
        assert env.observation_space.contains(observation)
        assert total == pytest.approx(info["reward/latency"] + info["reward/accuracy"])
        assert info["discount"] == pytest.approx(np.exp(-reward.beta_per_s * info["dt"])) and info["dt"] >= 0
        assert type(terminated) is bool and type(truncated) is bool and not info["invalid_action"]
        assert (info["action_mask"] == observation["action_mask"]).all()
    assert steps[-1][2] and not steps[-1][3]
    metrics = steps[-1][4]["metrics"]
    assert metrics["completed"] == 6 and metrics["decisions"] == len(steps)
    assert steps[-1][0]["action_mask"].tolist() == [0] * (len(steps[-1][0]["action_mask"]) - 1) + [1]


def test_after_the_end_nothing_happens_and_reset_begins_anew(tmp_path: Path, stack: ExitStack) -> None:
    env = make(tmp_path, stack, requests=2)
    last = play(env)[-1][4]
    again = env.unwrapped.step(0)
    assert again[2] and again[4]["dt"] == 0 and again[1] == 0 and again[4]["time_s"] == last["time_s"]
    env.reset(seed=1)
    env.reset(seed=1)  # in the middle of an episode
    files = sorted((tmp_path / "recordings").glob("*.db"))
    assert len(files) == 3 and len({path.name for path in files}) == 3


def test_masked_actions_wait_or_do_the_first_valid_thing(tmp_path: Path, stack: ExitStack) -> None:
    env = make(tmp_path, stack, requests=2, rate_rps=4.0)
    observation, _ = env.reset(seed=0)
    last = len(observation["action_mask"]) - 1
    _, _, _, _, info = env.step(last - 1)  # an empty slot: waits for the second arrival
    assert info["invalid_action"] and info["time_s"] >= env.unwrapped._backend.episode.tape.arrival_s[1]
    observation, _, _, _, info = env.step(last)
    # Both requests are here and nothing runs, so waiting would never end: the first valid action was carried out.
    assert info["invalid_action"] and env.unwrapped.log().calls["request"].tolist() == [0]
    assert (env.unwrapped.action_masks() == observation["action_mask"].astype(bool)).all()


def test_a_server_that_is_down_is_masked(tmp_path: Path, stack: ExitStack) -> None:
    servers: list[FakeServer] = []
    env = make(tmp_path, stack, servers=servers, requests=8, rate_rps=20.0)
    servers[0].fault, servers[0].faults_left = "cut", 3
    steps = play(env)
    assert any(not step[0]["routes"][0, RouteFeature.UP] and not step[0]["action_mask"][0] for step in steps)
    assert steps[-1][4]["metrics"]["completed"] == 8


def test_the_horizon_truncates(tmp_path: Path, stack: ExitStack) -> None:
    servers: list[FakeServer] = []
    env = make(tmp_path, stack, servers=servers, requests=3, rate_rps=100.0, duration_s=0.4)
    for server in servers:
        server.fault = "hang"
    last = play(env)[-1]
    assert last[3] and not last[2] and 0.4 <= last[4]["time_s"] < 3.0 and last[4]["metrics"]["unfinished"] == 3


def test_copies_are_refused_with_a_reason(tmp_path: Path, stack: ExitStack) -> None:
    env = make(tmp_path, stack)
    for operation in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be copied: its servers go on in real time"):
            operation(env.unwrapped)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(env.unwrapped)


def test_closing_ends_the_episode_with_a_recording(tmp_path: Path, stack: ExitStack) -> None:
    env = make(tmp_path, stack, requests=4)
    _, info = env.reset(seed=0)
    env.step(0)
    env.close()
    env.close()
    with Recording(info["recording"]) as recording:
        assert [row["ending"] for row in recording.rows("sessions")] == ["closed before the end"]
        assert len(list(recording.rows("decisions"))) == 1


def test_bad_input_is_refused(tmp_path: Path, stack: ExitStack) -> None:
    scenario = make_scenario(tmp_path)
    for arguments, message in (
        ({"endpoints": {"toy-s": "http://127.0.0.1:1"}}, "no server answers for replica 'toy-l'"),
        ({"endpoints": {"toy-x": "http://127.0.0.1:1"}}, "no replica 'toy-x'. Did you mean"),
        ({"endpoints": {}, "cluster": "x"}, "either 'cluster' or 'endpoints'"),
        ({"cluster": "nobody-started-this"}, "no cluster 'nobody-started-this' was started"),
        ({"endpoints": {}, "recording": tmp_path / "x.db"}, "name a folder"),
    ):
        with pytest.raises(SpecError, match=message):
            gym.make(ENV_ID, scenario=scenario, **arguments)
    dead = gym.make(
        ENV_ID,
        scenario=scenario,
        endpoints={r.name: "http://127.0.0.1:9/v1" for r in scenario.cluster.expand()},
        recording=tmp_path / "dead",
        options=QUICK,
    )
    stack.callback(dead.close)
    with pytest.raises(gym.error.ResetNeeded):
        dead.unwrapped.step(0)
    with pytest.raises(AragogError, match="no server of model 'toy-small' answers"):
        dead.reset()
