"""A view encoded as an observation: the same bits as the environment's, at every decision of whole episodes."""

from __future__ import annotations

import copy
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from rollouts import BUSY, CLOSED, ENV_ID, SCENARIOS, TOY, choose, same

from aragog_env.backends.sim import SimBackend
from aragog_env.encoding import ViewEncoder, resolve_action, to_action
from aragog_env.env import resolve_scenario
from aragog_env.observation import PairFeature, RouteFeature
from aragog_env.policy import WAIT, Dispatch
from aragog_env.view import DispatchView

MORE = {
    **SCENARIOS,
    "default": {"scenario": "default", "overrides": {"requests": 40, "rate_rps": 4.0}},
    "arithmetic": {"scenario": "arithmetic", "overrides": {"requests": 20}},
}


def pair(arguments: dict[str, Any], seed: int) -> tuple[Any, SimBackend, Any]:
    """Return the environment, the backend with the same episode, and the first observation."""
    env = gym.make(ENV_ID, **arguments).unwrapped
    observation, _ = env.reset(seed=seed)
    backend = SimBackend(resolve_scenario(arguments["scenario"], arguments.get("overrides")).scenario)
    backend.reset(seed)
    return env, backend, observation


@pytest.mark.parametrize("name", list(MORE))
@pytest.mark.parametrize("seed", [0, 3])
def test_same_bits_as_the_environment(name: str, seed: int) -> None:
    env, backend, observation = pair(MORE[name], seed)
    encoder = ViewEncoder(backend.compiled)
    rng = np.random.default_rng(seed)
    decisions = stricter = 0
    while not backend.done:
        encoded = encoder.encode(backend.view())
        assert env.observation_space.contains(encoded)
        # Where a view cannot tell, the encoder may only err by not waiting.
        if encoded["action_mask"][-1] != observation["action_mask"][-1]:
            assert name in ("busy", "closed") and not encoded["action_mask"][-1]
            encoded["action_mask"][-1] = 1
            stricter += 1
        assert same(encoded, observation), decisions
        action = choose(rng, observation["action_mask"])
        observation, *_ = env.step(action)
        backend.step(to_action(encoded, action))
        decisions += 1
    assert decisions >= 12 and stricter < 0.3 * decisions
    assert stricter == 0 or name == "closed" or stricter == 1
    # With no call ready the view of the last moment gives what the environment shows when all is over.
    over = encoder.encode(backend.view(), can_wait=True)
    assert same({**over, "globals": 0}, {**observation, "globals": 0})


@pytest.mark.parametrize("name", list(MORE))
def test_waiting_by_the_mask_always_ends(name: str) -> None:
    """An agent that waits whenever the mask allows it comes to the end of the episode and is never refused."""
    arguments = MORE[name]
    backend = SimBackend(resolve_scenario(arguments["scenario"], arguments.get("overrides")).scenario)
    encoder = ViewEncoder(backend.compiled)
    for seed in (1, 2):
        backend.reset(seed)
        while not backend.done:
            observation = encoder.encode(backend.view())
            backend.step(to_action(observation, len(observation["action_mask"]) - 1))
        assert np.isfinite(backend.log().requests["finish_s"]).all() or backend.truncated


def test_a_closed_loop_and_tools_are_waited_for() -> None:
    """The mask is not simply strict: with the cluster idle it still waits for users who think."""
    _, backend, _ = pair(CLOSED, 0)
    view = backend.view()
    assert not view.routes["running"].any() and len(view.calls) == 1
    assert ViewEncoder(backend.compiled).encode(view)["action_mask"][-1] == 1


def test_actions_become_decisions() -> None:
    env, _, observation = pair(TOY, 0)
    routes = env.observation_space["routes"].shape[0]
    valid = np.flatnonzero(observation["action_mask"][:-1]).tolist()
    for action in valid:
        assert to_action(observation, action) == Dispatch(action // routes, action % routes)
    last = len(observation["action_mask"]) - 1
    masked = int(np.flatnonzero(observation["action_mask"] == 0)[0])
    for action in (last, masked, -1, last + 1):
        assert to_action(observation, action) is WAIT
        assert resolve_action(observation["action_mask"], action) == (last, action != last)
    # Where waiting would never end: the first valid action.
    observation["action_mask"][last] = 0
    assert resolve_action(observation["action_mask"], last) == (valid[0], True)
    assert to_action(observation, masked) == Dispatch(0, valid[0])


def test_a_call_that_no_server_can_take() -> None:
    """On a live cluster servers go down; nothing but zeros and no warning comes of it."""
    _, backend, _ = pair(BUSY, 0)
    view = backend.view()
    down = DispatchView(
        view.info, view.now_s, view.calls, view.routes.copy(), np.zeros_like(view.allowed), 1, view.served_by
    )
    down.routes["up"] = 0
    observation = ViewEncoder(backend.compiled).encode(down)
    assert not observation["pairs"].any() and not observation["action_mask"][:-1].any()
    assert not observation["routes"][:, RouteFeature.UP].any()
    half = view.allowed.copy()
    half[:, 1] = False
    some = DispatchView(view.info, view.now_s, view.calls, view.routes, half, 1, view.served_by)
    pairs = ViewEncoder(backend.compiled).encode(some)["pairs"].reshape(-1, 2, len(PairFeature))
    assert pairs[0, 0].all() and not pairs[0, 1].any()


def test_an_encoder_notices_the_next_episode_and_can_be_copied() -> None:
    _, backend, _ = pair(TOY, 0)
    used = ViewEncoder(backend.compiled)
    while not backend.done:
        backend.step(to_action(used.encode(backend.view()), 0))
    backend.reset(1)
    fresh = ViewEncoder(backend.compiled)
    while not backend.done:
        view = backend.view()
        observation = fresh.encode(view)
        assert same(used.encode(view), observation) and same(copy.deepcopy(fresh).encode(view), observation)
        backend.step(to_action(observation, 0))


def test_encoding_is_quick() -> None:
    _, backend, _ = pair({"scenario": "default", "overrides": {"requests": 40, "rate_rps": 20.0}}, 0)
    encoder = ViewEncoder(backend.compiled)
    best_s = np.inf
    while not backend.done:
        view = backend.view()
        begin = perf_counter()
        observation = encoder.encode(view)
        best_s = min(best_s, perf_counter() - begin)
        backend.step(to_action(observation, int(np.flatnonzero(observation["action_mask"])[0])))
    assert best_s < 1e-3, "a decision must not wait for its encoding"
