"""Fixtures that several test modules share. Compiled code and compiled scenarios are made once per session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from rollouts import ENV_ID, SCENARIOS, Step, episode

# Profiles and trained routers: not the user's, and the same for all worker processes.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).resolve().parent.parent / ".pytest_cache" / "user")

IN_REAL_TIME = (
    "live/", "recording/", "cli/test_evaluate_live", "cli/test_train_grid", "harness/test_profile_live", "harness/test_ray",
)  # fmt: skip
"""Tests of processes that talk to each other in real time. A machine that stands still for seconds, as shared ones do now and
then, fails them; what is really broken fails three times."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests in real time have three tries, where pytest-rerunfailures is installed (as it is with `.[dev]`)."""
    root = Path(__file__).resolve().parent
    for item in items:
        if item.path.is_relative_to(root) and item.path.relative_to(root).as_posix().startswith(IN_REAL_TIME):
            item.add_marker(pytest.mark.flaky(reruns=2))


@pytest.fixture(params=list(SCENARIOS))
def scenario(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of the environment, for each kind of scenario."""
    return SCENARIOS[request.param]


@pytest.fixture
def env(scenario: dict[str, Any]) -> Iterator[Any]:
    """An environment of each kind, as `gym.make` returns it."""
    made = gym.make(ENV_ID, **scenario)
    yield made
    made.close()


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without an account: nothing is written outside of the test's folder, and the client forgets the test afterwards."""
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_SWEEP_ID", "WANDB_PROJECT", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    yield
    wandb.teardown()


@pytest.fixture(scope="session")
def episodes() -> dict[str, tuple[Any, list[Step]]]:
    """One finished episode of each kind of scenario, with its environment: look, do not step."""
    result = {}
    for name, arguments in SCENARIOS.items():
        finished = gym.make(ENV_ID, **arguments).unwrapped
        result[name] = (finished, episode(finished, seed=3))
    return result
