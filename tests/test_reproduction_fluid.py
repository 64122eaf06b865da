"""Fluid limits, by hand-computed mixes of configurations."""

from __future__ import annotations

import numpy as np
import pytest

from aragog_env.backends.sim import SimBackend
from aragog_env.harness.rollout import run_episode
from aragog_env.registry import make_policy
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from scripts.reproduction.fluid import engine_seconds, fixed_rps, limit_rps, limit_within_rps

# One query; configuration 0 takes a second of model 0, configuration 1 two seconds of model 1.
SECONDS = np.array([[[1.0, 0.0], [0.0, 2.0]]])


def test_the_best_mix_keeps_all_engines_busy() -> None:
    # Two thirds on model 0: it is busy 2/3 s per request, and so is model 1.
    assert limit_rps(SECONDS, np.ones((1, 2), np.bool_)) == pytest.approx(1.5, rel=0.01)
    assert limit_rps(SECONDS, np.array([[False, True]])) == pytest.approx(0.5)
    assert fixed_rps(SECONDS, np.array([0])) == 1.0


def test_accuracy_limits_the_mix() -> None:
    gap = np.array([[0.1, 0.0]])
    # A fifth on model 0 loses two points; model 1 is busy 1.6 s per request.
    assert limit_within_rps(SECONDS, gap, 0.02) == pytest.approx(1 / 1.6, rel=0.01)
    assert limit_within_rps(SECONDS, gap, 1.0) == pytest.approx(1.5, rel=0.01)
    # Knowing which of two queries bears the small model is worth something.
    known = np.array([[0.2, 0.0], [0.0, 0.0]])
    assert limit_within_rps(np.repeat(SECONDS, 2, axis=0), known, 0.0) > 1.9 * limit_within_rps(SECONDS, gap, 0.0)


def test_no_policy_exceeds_the_limit() -> None:
    scenario = override(load_scenario("aragog-self_refine_humaneval-qwen"), rate_rps=100.0, requests=300)
    table, seconds = engine_seconds(scenario)
    assert seconds.shape == (table.queries, table.configurations, len(table.models))
    name = "fixed:largest"
    log = run_episode(make_policy(name), name, SimBackend(scenario), 0)
    reached = len(log.requests) / float(log.requests["finish_s"].max())
    limit = fixed_rps(seconds, np.full(table.queries, table.configurations - 1))
    assert 0.3 * limit < reached < 1.1 * limit
