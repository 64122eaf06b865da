"""Imitation: it learns to do what a policy does, goes on where it was interrupted, and says what it cannot learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from toys import SMALL, make_run  # noqa: E402

from aragog_env.backends.sim import SimBackend  # noqa: E402
from aragog_env.errors import SpecError  # noqa: E402
from aragog_env.harness.rollout import run_episode  # noqa: E402
from aragog_env.registry import make_policy  # noqa: E402
from aragog_env.specs.load import load_scenario  # noqa: E402
from aragog_env.specs.override import override  # noqa: E402
from aragog_env.specs.scenario import Scenario  # noqa: E402
from baselines.imitation import Imitation, ImitationSettings, train  # noqa: E402
from baselines.network import OPEN  # noqa: E402
from baselines.training_run import TrainingRun  # noqa: E402

QUICK: dict[str, Any] = {**SMALL, "width": 16, "minibatch": 64, "hold": 0.0, "wait": True}


ARAGOG: dict[str, Any] = {"expert": "aragog:oracle", "viable": "oracle", "hold": 0.95, "wait": False}


def busy() -> Scenario:
    return override(load_scenario("toy"), requests=60, warmup_requests=0, rate_rps=120.0, ready_slots=4)


def test_a_rule_is_learned(tmp_path: Path) -> None:
    """The oldest call to the route with the fewest requests: the network sees the numbers it depends on."""
    settings = ImitationSettings(**QUICK | {"steps": 2400, "rounds": 2, "expert": "least_loaded", "epochs": 20})
    train(busy(), settings, tmp_path, tell=lambda line: None)
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [row["update"] for row in curve] == [1, 2] and curve[-1]["steps"] >= 2400
    assert curve[-1]["agreement"] > 0.85 and curve[-1]["unseen"] == 0
    logs = [
        run_episode(make_policy(name), name, SimBackend(busy()), 5)
        for name in ("least_loaded", f"imitation:{tmp_path}")
    ]
    shares = [np.bincount(log.calls["route"], minlength=3) / len(log.calls) for log in logs]
    assert shares[1] == pytest.approx(shares[0], abs=0.1)


def test_an_oracle_is_imitated_within_its_viable_sets(tmp_path: Path) -> None:
    """Aragog plans several dispatches; where the network does something else, it must plan again."""
    settings = ImitationSettings(**QUICK | {"steps": 400, "rounds": 2, **ARAGOG})
    learner = Imitation(make_run(tmp_path, busy(), settings))
    for _ in range(2):
        learner.collect()
        row = learner.fit()
    assert row["agreement"] > 0.4 and learner.unseen == 0
    open_ = torch.cat((learner.inputs[2][..., OPEN].flatten(1) > 0.5, learner.inputs[4].unsqueeze(1)), 1)
    assert open_.gather(1, learner.actions.unsqueeze(1)).all()


def test_what_the_network_may_not_do_cannot_be_learned(tmp_path: Path) -> None:
    """Large is viable in the end, never the small model alone: an expert that uses it everywhere is mostly out of reach."""
    settings = ImitationSettings(**QUICK | {"steps": 300, "rounds": 1, "expert": "fixed:smallest", "viable": "oracle"})
    learner = Imitation(make_run(tmp_path, busy(), settings))
    learner.collect()
    assert learner.unseen > 0


def test_calls_beyond_the_slots_are_left_out(tmp_path: Path) -> None:
    scenario = override(busy(), ready_slots=1)
    settings = ImitationSettings(**QUICK | {"steps": 200, "rounds": 1, "expert": "test_imitation:LastFirst"})
    learner = Imitation(make_run(tmp_path, scenario, settings))
    learner.collect()
    assert learner.unseen > 0 and learner.actions.max() < 4


class LastFirst:
    """Sends the youngest ready call to the first route."""

    def reset(self, scenario: Any, seed: int) -> None: ...

    def act(self, view: Any) -> Any:
        from aragog_env.policy import Dispatch

        return Dispatch(len(view.calls) - 1, 0)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ImitationSettings(**QUICK | {"steps": 600, "rounds": 3, "expert": "earliest_finish", "epochs": 2})
    train(busy(), settings, tmp_path / "whole", tell=lambda line: None)
    asked = 0

    def stop(self: TrainingRun) -> bool:
        nonlocal asked
        asked += 1
        return asked > 1

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "stop", property(stop))
        train(busy(), settings, tmp_path / "parts", tell=lambda line: None)
    train(None, ImitationSettings, tmp_path / "parts", resume=True, tell=lambda line: None)  # type: ignore[arg-type]
    whole, parts = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["updates"] == parts["updates"] == 3
    assert all(torch.equal(value, parts["network"][name]) for name, value in whole["network"].items())
    assert torch.equal(whole["actions"], parts["actions"])


def test_unknown_experts_are_refused(tmp_path: Path) -> None:
    learner = Imitation(make_run(tmp_path, busy(), ImitationSettings(**QUICK | {"expert": "aragok"})))
    with pytest.raises(SpecError, match="unknown policy 'aragok'"):
        learner.collect()
