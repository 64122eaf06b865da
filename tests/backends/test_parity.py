"""The compiled simulator against the reference backend: every view and the whole log, without tolerance."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aragog_env.backends.reference import ReferenceBackend
from aragog_env.backends.sim import SimBackend
from aragog_env.episode import EpisodeLog
from aragog_env.policy import WAIT, Dispatch, Wait
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario
from aragog_env.specs.workflow import FanOutSpec, SkipSpec
from aragog_env.specs.workload import ArrivalSpec
from aragog_env.view import DispatchView

from .scenarios import LARGE, SMALL, llm, random_scenarios, replica, scenario, tool, workflow

Chooser = Callable[[DispatchView, random.Random], Dispatch | Wait]


def anywhere(view: DispatchView, rng: random.Random) -> Dispatch | Wait:
    """Send any ready call to any route that may serve it, with any priority."""
    call = rng.randrange(len(view.calls))
    return Dispatch(call, rng.choice(np.flatnonzero(view.allowed[call]).tolist()), rng.randrange(3))


def hesitant(view: DispatchView, rng: random.Random) -> Dispatch | Wait:
    """Do the same, but wait at a third of the decisions."""
    return WAIT if rng.random() < 0.35 else anywhere(view, rng)


def crowding(view: DispatchView, rng: random.Random) -> Dispatch | Wait:
    """Send the last ready call to its first route, so that all the load is in one place."""
    call = len(view.calls) - 1
    return Dispatch(call, int(np.argmax(view.allowed[call])), rng.randrange(2))


def spreading(view: DispatchView, rng: random.Random) -> Dispatch | Wait:
    """Send the oldest ready call to the route with the fewest calls."""
    held = view.routes["running"] + view.routes["waiting"] + np.where(view.allowed[0], 0, 10**6)
    return Dispatch(0, int(np.argmin(held)))


CHOOSERS = {f.__name__: f for f in (anywhere, hesitant, crowding, spreading)}


def same_views(ours: DispatchView, truth: DispatchView) -> None:
    assert ours.now_s == truth.now_s
    assert ours.in_flight == truth.in_flight
    for name in ("calls", "routes"):
        mine, theirs = getattr(ours, name), getattr(truth, name)
        assert mine.dtype == theirs.dtype and len(mine) == len(theirs)
        for column in mine.dtype.names:
            assert mine[column].tolist() == theirs[column].tolist(), f"{name}.{column} at {truth.now_s} s"
    assert ours.allowed.tolist() == truth.allowed.tolist()
    assert ours.served_by.tolist() == truth.served_by.tolist()


def same_logs(ours: EpisodeLog, truth: EpisodeLog) -> None:
    for f in fields(EpisodeLog):
        mine, theirs = getattr(ours, f.name), getattr(truth, f.name)
        if not isinstance(mine, np.ndarray):
            assert mine == theirs, f.name
        elif mine.dtype.names:
            assert mine.dtype == theirs.dtype and len(mine) == len(theirs), f.name
            for column in mine.dtype.names:
                np.testing.assert_array_equal(mine[column], theirs[column], f"{f.name}.{column}")
        else:
            np.testing.assert_array_equal(mine, theirs, f.name)


def play(made: Scenario, choose: Chooser, seed: int = 0, *, log_every: int = 7) -> EpisodeLog:
    """Run an episode on both backends, hold them against each other at every decision, return the log."""
    ours, truth = SimBackend(made), ReferenceBackend(made)
    rng = random.Random(seed)
    ours.reset(seed)
    truth.reset(seed)
    decisions = 0
    while not truth.done:
        assert not ours.done
        view = truth.view()
        same_views(ours.view(), view)
        if decisions % log_every == log_every - 1:
            same_logs(ours.log(), truth.log())
        action = choose(view, rng)
        step(ours, truth, action, lambda view=view: anywhere(view, rng))
        decisions += 1
    assert (ours.done, ours.truncated, ours.now_s) == (True, truth.truncated, truth.now_s)
    log = truth.log()
    same_logs(ours.log(), log)
    return log


def step(ours: SimBackend, truth: ReferenceBackend, action: Dispatch | Wait, otherwise: Callable[[], Dispatch | Wait]) -> None:
    """Carry out `action` on both; if it is refused (a wait that would never end), by both, do something else."""
    try:
        truth.step(action)
    except ValueError:
        with pytest.raises(ValueError):
            ours.step(action)
        step(ours, truth, otherwise(), otherwise)
    else:
        ours.step(action)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(random_scenarios(), st.sampled_from(sorted(CHOOSERS)), st.integers(0, 3))
def test_random_scenarios(made: Scenario, chooser: str, seed: int) -> None:
    play(made, CHOOSERS[chooser], seed)
