"""What the runs of an evaluation run on: one place to choose, so that everything else is the same for all.

A `Target` makes a `Runner`, which executes jobs. The simulator and replays (`harness.replay`) run in a pool of
processes, real servers (`harness.live`) take one run at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, Self

from ..specs.scenario import Scenario
from .jobs import BackendMaker, Job, PolicyMaker, simulated
from .pool import OnDone, OnStart, Pool, usable_cores

BackendName = Literal["sim", "replay", "live"]
BACKENDS: Final[tuple[BackendName, ...]] = ("sim", "replay", "live")


class Runner(Protocol):
    """Executes jobs. Use as a context manager."""

    def run(self, jobs: Sequence[Job], on_start: OnStart, on_done: OnDone) -> None:
        """Run all jobs; `on_done` is called in this process, one result at a time.

        Raises:
            KeyboardInterrupt: the user interrupted; `on_done` has been called for all that was finished.
            AragogError: bad input, or nothing more can be run.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Target(Protocol):
    """What an evaluation runs on."""

    def adapt(self, scenario: Scenario) -> Scenario:
        """Return a scenario as it is run there."""

    def describe(self) -> dict[str, Any]:
        """Return plain data for the manifest; nothing for the simulator."""

    def runner(self, make_policy: PolicyMaker, workers: int | None) -> Runner:
        """Make what executes the jobs.

        Args:
            make_policy: makes policies by name.
            workers: processes that were asked for; None: as many as make sense.
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

    def runner(self, make_policy: PolicyMaker, workers: int | None) -> Runner:
        """Make the pool, of one process per core by default."""
        return Pool(workers or usable_cores(), make_policy, self.make_backend)
