"""The scripts of docs/interop.md, run as a user runs them; and policies that decide on observations."""

from __future__ import annotations

import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rollouts import choose, same

from aragog_env.backends.sim import SimBackend
from aragog_env.env import StageDispatchEnv
from aragog_env.harness.results import read
from aragog_env.harness.rollout import run_episode
from aragog_env.observation import Observation
from aragog_env.observation_policy import ObservationPolicy
from aragog_env.registry import make_policy
from aragog_env.specs.load import load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario
from scripts.interop.compare import BESIDE

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "interop.md").read_text()
NEEDS = {"sb3_single": "sb3_contrib", "sb3_vector": "sb3_contrib", "torchrl_ppo": "torchrl", "cleanrl_ppo": "torch"}


def busy() -> Scenario:
    return override(load_scenario("default"), requests=20, warmup_requests=0, rate_rps=15.0)


class AtRandom(ObservationPolicy):
    """Draws from what the mask leaves."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def choose(self, observation: Observation) -> int:
        self.seen.append(observation)
        return choose(self.rng, observation["action_mask"].astype(bool))


def test_a_policy_sees_and_does_what_it_would_in_the_environment() -> None:
    policy = AtRandom()
    log = run_episode(policy, "random", SimBackend(busy()), 3)
    env = StageDispatchEnv(busy())
    observation, _ = env.reset(seed=3)
    rng, over = np.random.default_rng(3), False
    for seen in policy.seen:
        assert not over and same(seen, observation)
        observation, _, over, _, _ = env.step(choose(rng, observation["action_mask"].astype(bool)))
    assert over and env.log().calls.tobytes() == log.calls.tobytes()


def test_choices_depend_on_the_seed_alone() -> None:
    policy, backend = AtRandom(), SimBackend(busy())
    first, again, other = (run_episode(policy, "random", backend, seed).calls.tobytes() for seed in (1, 1, 2))
    assert first == again != other


class Watched:
    """Counts decisions of a policy, and those in which it wanted a masked action."""

    def __init__(self, policy: Any) -> None:
        self.decisions = self.masked = 0
        ask = policy.choose

        def watch(observation: Observation) -> int:
            action = ask(observation)
            self.decisions += 1
            self.masked += observation["action_mask"][action] == 0
            return int(action)

        policy.choose = watch


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NEEDS)
def test_script(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    words = ["--steps", "512", "--requests", "20", "--seeds", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", f"scripts.interop.{name}", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    losses = [float(value) for value in re.findall(r"\bloss (\S+?),?\s", done.stdout)]
    assert losses and all(math.isfinite(value) for value in losses), done.stdout
    (model,) = (path for path in (tmp_path / "run").iterdir() if path.stem == "model")
    trained = f"scripts.interop.{name}:Trained:{model}"
    results = read(tmp_path / "run" / "results")
    assert {(run.policy, run.seed) for run in results.ok} == {(p, 0) for p in (trained, *BESIDE)}
    assert all(run.metrics["completed"] == 20 for run in results.ok)
    shown = re.findall(r"^ ?(\S+) +\d", done.stdout, re.M)
    assert {trained, *BESIDE} <= set(shown), "the table"
    policy = make_policy(trained)
    watched = Watched(policy)
    run_episode(policy, trained, SimBackend(busy()), 5)
    assert watched.decisions > 40 and watched.masked == 0


@pytest.mark.parametrize("name", NEEDS)
def test_the_page_shows_what_the_script_does(name: str) -> None:
    """Every line of a block is a line of its script, and the command is there."""
    source = (ROOT / "scripts" / "interop" / f"{name}.py").read_text()
    section = PAGE.partition(f"scripts/interop/{name}.py)")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.S)
    known = {line.strip() for line in source.splitlines()}
    assert [line for line in block.splitlines() if line.strip() not in known | {"", "..."}] == []
    assert f"python -m scripts.interop.{name}" in PAGE
