"""The policy side of the contract: a view goes in, a dispatch (or `WAIT`) comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .outcomes import OutcomeTable
    from .specs.scenario import Scenario
    from .view import DispatchView


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send one ready call to one route.

    Attributes:
        call: index into the view's ready calls (`view.calls`), 0 = oldest request first.
        route: index into the view's routes.
        priority: passed to servers that run vLLM's priority scheduling (lower first); others ignore it.
    """

    call: int
    route: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing until the next event (an arrival or a completion), or until `until_s` if that comes first.

    Attributes:
        until_s: seconds since the episode began, later than `view.now_s`. E.g. the moment a router is done with a request.
    """

    until_s: float = math.inf


WAIT: Final = Wait()
"""Do nothing until the next event."""


@runtime_checkable
class Policy(Protocol):
    """Chooses a ready call and a route, or waits. See `aragog_env.registry` for how policies are named."""

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Forget the last episode; all randomness of the next one comes from `seed`."""

    def act(self, view: DispatchView) -> Dispatch | Wait:
        """Decide; called whenever at least one call is ready, again after each dispatch while calls remain."""


@runtime_checkable
class NeedsOutcomes(Protocol):
    """A policy that is handed the outcome tables: an oracle (whose name says so), or one that trains offline on them.

    No policy finds outcomes in its view; this is the one open door, and results record who went through it.
    """

    def receive_outcomes(self, tables: tuple[OutcomeTable, ...], draws: tuple[NDArray[np.float64], ...] = ()) -> None:
        """Take the outcomes of each workflow of the scenario; called before every `reset`.

        Args:
            tables: probabilities that answers are right, and lengths.
            draws: per workflow (Q,) in [0, 1): in this episode the answer to a query is right under every configuration whose
                probability is above its number. Empty where nobody knows (a live cluster): then take 0.5. Oracles may use
                it; a router that trained on it would have seen the exam.
        """
