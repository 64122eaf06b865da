"""One episode: the log's name and times, and what is said about policies that break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aragog_env.errors import PolicyError
from aragog_env.harness.rollout import Stopped, run_episode
from aragog_env.policy import WAIT

from .fakes import FakeBackend, Fixed, Invalid, NoDecision, Raises, Spread, make_scenario


def test_log_carries_policy_seed_and_one_time_per_decision(tmp_path: Path) -> None:
    log = run_episode(Spread(), "mine", FakeBackend(make_scenario(tmp_path, requests=20)), 7)
    assert (log.policy, log.seed) == ("mine", 7)
    assert len(log.decision_s) == 60  # three stages each
    assert (log.decision_s > 0).all()
    assert np.isfinite(log.requests["finish_s"]).all()


def test_decision_time_is_that_of_act_alone(tmp_path: Path) -> None:
    import time

    class Slow(Fixed):
        def act(self, view: Any) -> Any:
            time.sleep(0.002)
            return super().act(view)

    log = run_episode(Slow(), "slow", FakeBackend(make_scenario(tmp_path, requests=3)), 0)
    assert log.decision_s.min() >= 0.002


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Raises(), ("act raised RuntimeError: out of ideas",)),
        (Invalid(), ("Dispatch(call=0, route=7", "does not exist", "call 0 to route 0, 1, 2", "WAIT")),
        (NoDecision(), ("answered (0, 1), which is no decision", "call 0 to route 0, 1, 2")),
    ],
)
def test_broken_policies_are_named_with_what_they_did_and_what_is_valid(
    tmp_path: Path, policy: Any, words: tuple[str, ...]
) -> None:
    with pytest.raises(PolicyError) as caught:
        run_episode(policy, "broken", FakeBackend(make_scenario(tmp_path)), 0)
    assert caught.value.policy == "broken"
    for word in ("policy 'broken'", *words):
        assert word in str(caught.value)


def test_a_reset_that_raises_is_the_policys_fault(tmp_path: Path) -> None:
    class NoReset(Fixed):
        def reset(self, scenario: Any, seed: int) -> None:
            raise KeyError("model.pt")

    with pytest.raises(PolicyError, match="reset raised KeyError"):
        run_episode(NoReset(), "new", FakeBackend(make_scenario(tmp_path)), 0)


def test_decisions_with_more_calls_than_slots_are_counted(tmp_path: Path) -> None:
    class Hoards(Fixed):
        """Waits for the last arrival, then serves all as they come."""

        def reset(self, scenario: Any, seed: int) -> None:
            self.waiting = True

        def act(self, view: Any) -> Any:
            self.waiting = self.waiting and len(view.calls) < 12
            return WAIT if self.waiting else super().act(view)

    log = run_episode(Hoards(), "hoards", FakeBackend(make_scenario(tmp_path, requests=12)), 0)
    # Of 8 slots: waits with 9, 10 and 11 calls, then serves with 12, 11, 10 and 9 in sight.
    assert log.notes["overflow"] == 7


def test_waiting_for_ever_is_the_policys_fault(tmp_path: Path) -> None:
    class Idle(Fixed):
        def act(self, view: Any) -> Any:
            return WAIT

    with pytest.raises(PolicyError, match="waiting would never end"):
        run_episode(Idle(), "idle", FakeBackend(make_scenario(tmp_path)), 0)


def test_should_stop_abandons_the_episode(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run_episode(Fixed(), "f", FakeBackend(make_scenario(tmp_path)), 0, should_stop=lambda: True)
