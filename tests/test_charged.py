"""`charged:POLICY`: decisions take their time, one after the other, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aragog_env import make_policy
from aragog_env.backends.sim import SimBackend
from aragog_env.charged import ChargedPolicy
from aragog_env.episode import EpisodeLog
from aragog_env.errors import SpecError
from aragog_env.harness.rollout import run_episode
from aragog_env.policy import NeedsOutcomes
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override


def episode(policy: Any, requests: int = 40, rate_rps: float = 20.0) -> EpisodeLog:
    scenario = override(load_scenario("toy"), requests=requests, warmup_requests=0, rate_rps=rate_rps)
    return run_episode(policy, "p", SimBackend(scenario), 3)


@pytest.mark.parametrize("name", ["least_loaded", "fixed:largest"])
def test_a_free_decision_changes_nothing(name: str) -> None:
    free, charged = episode(make_policy(name)), episode(make_policy(f"charged@0:{name}"))
    assert free.calls.tobytes() == charged.calls.tobytes() and free.requests.tobytes() == charged.requests.tobytes()


def test_decisions_come_one_after_the_other_and_servers_go_on() -> None:
    log = episode(make_policy("charged@50:least_loaded"))
    sent_s = np.sort(log.calls["dispatch_s"])
    assert (np.diff(sent_s) >= 0.05 - 1e-9).all() and (
        log.calls["dispatch_s"] - log.calls["ready_s"] >= 0.05 - 1e-9
    ).all()
    # As if a clerk took 50 ms for everybody who comes, in the order in which they come.
    busy_until_s, waits = 0.0, []
    for ready_s in np.sort(log.calls["ready_s"]):
        busy_until_s = max(busy_until_s, ready_s) + 0.05
        waits.append(busy_until_s - ready_s)
    assert np.sum(sent_s) == pytest.approx(np.sum(np.sort(log.calls["ready_s"])) + np.sum(waits), rel=1e-6)
    first, alone = episode(make_policy("charged@50:least_loaded"), 1), episode(make_policy("least_loaded"), 1)
    calls = len(alone.calls)
    longer_s = (first.requests["finish_s"] - first.requests["arrival_s"]) - (
        alone.requests["finish_s"] - alone.requests["arrival_s"]
    )
    assert 0.05 <= longer_s[0] <= 0.05 * calls + 1e-9


def test_what_a_decision_really_took_is_charged() -> None:
    class Slow:
        def __init__(self) -> None:
            self.policy = make_policy("least_loaded")

        def reset(self, scenario: Any, seed: int) -> None:
            self.policy.reset(scenario, seed)

        def act(self, view: Any) -> Any:
            total = 0.0
            for i in range(20_000):
                total += i
            return self.policy.act(view)

    log = episode(ChargedPolicy(Slow()), requests=5)
    held_s = log.calls["dispatch_s"] - log.calls["ready_s"]
    assert (held_s > 0).all() and held_s.sum() >= 0.5 * log.decision_s.sum()


def test_oracles_stay_oracles_and_others_do_not_become_one() -> None:
    assert isinstance(make_policy("charged:per_input:oracle"), NeedsOutcomes)
    assert not isinstance(make_policy("charged@1:least_loaded"), NeedsOutcomes)
    assert episode(make_policy("charged@1:aragog:oracle"), 10).notes["saw_outcomes"] is True


@pytest.mark.parametrize("name", ["charged", "charged:", "charged@x:random", "charged@-1:random", "charged@nan:random"])
def test_bad_names(name: str) -> None:
    with pytest.raises(SpecError, match="expected charged:POLICY"):
        make_policy(name)
