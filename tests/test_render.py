from __future__ import annotations

import copy
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from rollouts import BUSY, ENV_ID, TOY, episode, replay, same

from aragog_env.frame import _call_spans, _tool_spans, render_frame, window_length_s
from aragog_env.render import SPAN, render_ansi, status
from aragog_env.vector_env import StageDispatchVectorEnv


@pytest.fixture(scope="module")
def busy() -> Any:
    """The busy scenario in the middle of an episode."""
    env = gym.make(ENV_ID, render_mode="rgb_array", **BUSY).unwrapped
    steps = episode(env, 3)
    env.reset(seed=3)
    replay(env, [step.action for step in steps[:40]])
    return env


def states(env: Any) -> list[bytes]:
    return [array.tobytes() for array in (*env.simulation.state, *env.simulation.progress)]


def test_text_says_what_the_arrays_say(busy: Any) -> None:
    text = render_ansi(busy.simulation)
    env, replicas = busy.simulation.progress.env[0], busy.simulation.state.replica[0]
    lines = text.splitlines()
    assert lines[0].startswith(f"busy  t={env['now_ps'] * 1e-12:.3f} s  in flight {env['arrived'] - env['completed']}")
    assert f"completed {env['completed']}/20  ready {env['ready']}" in lines[0]
    for r, name in enumerate(("a", "b")):
        line = next(line for line in lines if line.startswith(f"{name} "))
        assert f" {replicas['running'][r]}/12" in line and "%" in line
        assert line.count("▪") == min(replicas["waiting"][r], 10)
    assert sum(line.startswith("  ready: #") for line in lines) == min(env["ready"], 8)


def test_text_of_the_beginning() -> None:
    env = gym.make(ENV_ID, render_mode="ansi", **TOY)
    env.reset(seed=1)
    assert env.render() == (
        f"toy  t={env.unwrapped.time_s:.3f} s  in flight 1  completed 0/12  ready 1\n"
        "replica  model       running                       waiting         KV\n"
        "toy-s    toy-small   ░░░░░░░░░░░░░░░░░░░░ 0/8                 0    ░░░░░░░░░░   0%\n"
        "toy-m    toy-medium  ░░░░░░░░░░░░░░░░░░░░ 0/8                 0    ░░░░░░░░░░   0%\n"
        "toy-l    toy-large   ░░░░░░░░░░░░░░░░░░░░ 0/8                 0    ░░░░░░░░░░   0%\n"
        "  ready: #0 toy_chain/draft  for 0.000 s\n"
    )


def test_a_long_list_of_ready_calls_is_cut(busy: Any) -> None:
    env = copy.deepcopy(busy)
    wait = env.action_space.n - 1
    while env.action_masks()[wait] and len(status(env.simulation).ready) < 4:
        env.step(wait)
    ready = status(env.simulation).ready
    assert len(ready) >= 4
    assert f"  and {len(ready) - 2} more\n" in render_ansi(env.simulation, most_ready=2)
    assert (ready["begin_s"] <= env.time_s).all() and (np.diff(ready["request"]) >= 0).all()


def test_bars_are_the_calls_of_the_log(busy: Any) -> None:
    log = busy.log()
    spans = _call_spans(log, busy.time_s)
    assert len(spans) == len(log.calls) > 25
    assert (spans["begin_s"] <= spans["start_s"]).all() and (spans["start_s"] <= spans["first_s"]).all()
    assert (spans["first_s"] <= spans["end_s"]).all() and (spans["end_s"] <= busy.time_s + 1e-9).all()
    running = status(busy.simulation).gauges
    for r, gauge in enumerate(running):
        mine = log.calls[log.calls["route"] == r]
        assert np.isnan(mine["finish_s"]).sum() == gauge.running + gauge.waiting
        assert 0.0 <= gauge.kv_used <= 1.0
    assert max(gauge.kv_used for gauge in running) > 0


def test_tools_have_bars() -> None:
    env = gym.make(ENV_ID, **BUSY).unwrapped
    episode(env, 3)
    spans = _tool_spans(env.simulation, 0)
    assert len(spans) > 0 and spans.dtype == SPAN
    tool = env.compiled.workflow.is_tool
    assert all(tool[span["workflow"], span["node"]] for span in spans)
    assert (spans["end_s"] >= spans["begin_s"]).all()


def test_a_frame_is_a_picture_that_moves(busy: Any) -> None:
    before = states(busy)
    first = busy.render()
    assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3
    assert 400 < first.shape[0] < 1200 and first.shape[1] == 1100
    assert states(busy) == before  # looking changes nothing
    assert same(first, busy.render())
    shades = np.unique(first.reshape(-1, 3), axis=0)
    assert len(shades) > 100  # coloured bars on white
    assert (first == 255).all(axis=2).mean() > 0.4
    later = copy.deepcopy(busy)
    replay(later, [0] * 5)
    second = later.render()
    assert second.shape == first.shape and not same(first, second)


def test_a_frame_uses_no_global_state_of_matplotlib(busy: Any) -> None:
    busy.render()
    assert "matplotlib.pyplot" not in sys.modules


def test_bars_appear_where_calls_run(busy: Any) -> None:
    """Colour between two moments of the time axis comes from calls that run then, and only from these."""
    log, now = busy.log(), busy.time_s
    picture = render_frame(log, busy.simulation, window_s=now)
    empty = log.__class__(**{**vars(log), "calls": log.calls[:0]})
    blank = render_frame(empty, busy.simulation, window_s=now)
    chart = slice(60, 300), slice(150, 870)
    difference = (picture[chart] != blank[chart]).any(axis=2)
    assert difference.mean() > 0.1
    busy_columns = difference.any(axis=0)
    # From the first dispatch on there is always a call in this episode.
    begin = int(log.calls["dispatch_s"].min() / now * busy_columns.size)
    assert busy_columns[begin + 5 : -20].mean() > 0.95 and not busy_columns[: max(begin - 5, 0)].any()


def test_the_window_is_a_round_number_that_holds_some_requests(busy: Any) -> None:
    seconds = window_length_s(busy.simulation)
    digits = f"{seconds:.10e}"
    assert digits[0] in "125" and float(digits[1:].partition("e")[0]) == 0.0
    assert seconds > 2 * float(busy.compiled.standalone_ps.mean()) * 1e-12


def test_render_modes() -> None:
    quiet = gym.make(ENV_ID, **TOY).unwrapped
    quiet.reset(seed=1)
    assert quiet.render() is None
    envs = StageDispatchVectorEnv(2, "toy", {"requests": 12}, render_mode="ansi")
    envs.reset(seed=1)
    texts = envs.render()
    single = gym.make(ENV_ID, render_mode="ansi", **TOY).unwrapped
    single.reset(seed=2)
    assert len(texts) == 2 and texts[1] == single.render() != texts[0]


def test_a_vector_environment_renders_each_of_its_episodes() -> None:
    envs = StageDispatchVectorEnv(2, BUSY["scenario"], render_mode="rgb_array")
    envs.reset(seed=[99, 3])
    for _ in range(10):
        envs.step(np.zeros(2, int))
    one, two = envs.render()
    single = gym.make(ENV_ID, render_mode="rgb_array", **BUSY).unwrapped
    single.reset(seed=3)
    replay(single, [0] * 10)
    assert same(two, single.render()) and not same(one, two)
