"""What the runs of an evaluation run on: one place to choose, so that everything else is the same for all.

A `Target` makes a `Runner`, which executes jobs. The simulator and replays (`harness.replay`) run in a pool of
workers (`harness.executor`), real servers (`harness.live`) take one run at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

from ..specs.scenario import Scenario
from .executor import Executor
from .jobs import BackendMaker, Episodes, Job, PolicyMaker, simulated
from .results import RunResult
from .work import JobPool

BackendName = Literal["sim", "replay", "live"]
BACKENDS: Final[tuple[BackendName, ...]] = ("sim", "replay", "live")


Runner: TypeAlias = JobPool[Job, RunResult]
"""Executes the jobs of an evaluation."""


class Target(Protocol):
    """What an evaluation runs on."""

    def adapt(self, scenario: Scenario) -> Scenario:
        """Return a scenario as it is run there."""

    def describe(self) -> dict[str, Any]:
        """Return plain data for the manifest; nothing for the simulator."""

    def runner(self, make_policy: PolicyMaker, executor: Executor) -> Runner:
        """Make what executes the jobs.

        Args:
            make_policy: makes policies by name.
            executor: where, as far as there is a choice.
        """


@dataclass(frozen=True)
class Simulated:
    """The simulator, or anything else that a function makes from a scenario, in a pool of processes."""

    make_backend: BackendMaker = simulated

    def adapt(self, scenario: Scenario) -> Scenario:
        """Return the scenario as it is."""
        return scenario

    def describe(self) -> dict[str, Any]:
        """Return nothing: this is what runs on by default."""
        return {}

    def runner(self, make_policy: PolicyMaker, executor: Executor) -> Runner:
        """Make the pool."""
        return executor.pool(Episodes(make_policy, self.make_backend))
