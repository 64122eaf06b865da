"""The backend contract: the same environment, policies and harness run over anything that has these methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..episode import EpisodeLog
    from ..outcomes import OutcomeTable
    from ..policy import Dispatch, Wait
    from ..specs.scenario import Scenario
    from ..view import DispatchView


class Backend(Protocol):
    """A cluster that serves workflows, stopped at decisions: moments at which at least one call is ready."""

    scenario: Scenario

    @property
    def done(self) -> bool:
        """Whether the episode is over (drained, or cut at the horizon)."""

    @property
    def truncated(self) -> bool:
        """Whether the horizon cut the episode while requests were in flight."""

    @property
    def now_s(self) -> float:
        """Seconds since the episode began."""

    def reset(self, seed: int) -> None:
        """Begin an episode; all its randomness comes from `seed`. Stops at the first decision."""

    def view(self) -> DispatchView:
        """Return what a policy may see now. Valid until the next `step`."""

    def step(self, action: Dispatch | Wait) -> None:
        """Carry out a decision, then go on to the next one.

        That is at the same instant while calls are ready and the action was no wait, else after the next event.

        Raises:
            ValueError: the action names a call that is not ready or a route that cannot serve it.
        """

    @property
    def outcomes(self) -> tuple[OutcomeTable, ...]:
        """The outcome table of each workflow, for policies that are handed them (`policy.NeedsOutcomes`)."""

    @property
    def draws(self) -> tuple[NDArray[np.float64], ...]:
        """Per workflow (Q,): which answers of the tables are right in this episode (`policy.NeedsOutcomes`)."""

    def log(self) -> EpisodeLog:
        """Return the log of the episode so far, with empty `policy` and `decision_s`: the caller knows those.

        (`decision_s` holds what the caller cannot know: decisions of earlier processes, in a live run that was resumed.)
        """

    def close(self) -> None:
        """Release what the backend holds."""
