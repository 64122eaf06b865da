"""Results that several test modules read: computed once."""

from __future__ import annotations

from pathlib import Path

import pytest

from aragog_env.episode import EpisodeLog
from aragog_env.harness.evaluate import evaluate
from aragog_env.harness.results import Results, read
from aragog_env.harness.rollout import run_episode

from .fakes import POLICIES, FakeBackend, Spread, make_scenario


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with three policies and four seeds. Do not write to it."""
    base = tmp_path_factory.mktemp("harness")
    out = base / "results"
    evaluate(POLICIES, make_scenario(base, warmup_requests=5), 4, out=out, workers=1, make_backend=FakeBackend)
    return out


@pytest.fixture
def results(folder: Path) -> Results:
    """The same folder, read."""
    return read(folder)


@pytest.fixture
def log(tmp_path: Path) -> EpisodeLog:
    """One episode that ran to its end."""
    return run_episode(Spread(), "spread", FakeBackend(make_scenario(tmp_path)), 3)
