"""Shortest remaining work first, and each call where everybody together loses the least: a strong rule for mean latency.

Of the calls that can be sent, the one goes first whose request needs the least work until its answer, on idle servers with
its cheapest remaining viable configuration: what is nearly done leaves, and fewer requests are in flight (by Little's law that
is the mean completion time; Schrage 1968 for one server). It goes to the server with the least *price*
(`features.PairExtra.PRICE`): the seconds of this call and of the rest of its request on present loads, and the seconds that
other calls lose by them. Unlike Aragog's search this looks at the whole rest of the request: a model that is free now
may leave no way around a busy one later.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aragog_env.harness.profile import SATURATION_SHARE
from aragog_env.observation import PairFeature
from aragog_env.outcomes import OutcomeTable
from aragog_env.policy import WAIT, Dispatch, Wait
from aragog_env.specs.scenario import Scenario
from aragog_env.view import DispatchView

from .features import PairExtra, Rules
from .learned import SlotEncoder

_OPEN, _KEPT, _PRICE = (len(PairFeature) + extra for extra in (PairExtra.OPEN, PairExtra.KEPT, PairExtra.PRICE))


class ShortestWorkPolicy:
    """The rule. What it knows is what learned schedulers see.

    Args:
        viable: where viable configurations come from: 'router', 'oracle' or a router's checkpoint.
        order: 'work', or 'arrival' for the oldest request first.
        window: how many of the oldest ready calls it looks at.
        hold: calls are held back from servers whose load gives this share of their maximum throughput.
        point_s: seconds that one point of expected accuracy loss costs, see `features.Rules.point_s`; 0: hard sets.
        most_loss: in points, see there.
    """

    def __init__(
        self, viable: str = "router", order: str = "work", window: int = 256, hold: float = SATURATION_SHARE,
        point_s: float = 0.0, most_loss: float = 20.0,
    ) -> None:  # fmt: skip
        self.rules = Rules(viable, hold, False, window, order, point_s, most_loss)
        self._scenario: Scenario | None = None
        self._outcomes: tuple[tuple[OutcomeTable, ...], tuple[NDArray[np.float64], ...]] | None = None

    def receive_outcomes(self, tables: tuple[OutcomeTable, ...], draws: tuple[NDArray[np.float64], ...] = ()) -> None:
        """Hand the tables to the source of viable sets."""
        self._outcomes = (tables, draws)

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Forget the last episode; nothing here is random."""
        if scenario != self._scenario:
            self._scenario = scenario
            self._encoder = SlotEncoder(scenario, self.rules, 1)
        if self._outcomes is not None:
            self._encoder.receive_outcomes(*self._outcomes)
        self._encoder.begin()

    def act(self, view: DispatchView) -> Dispatch | Wait:
        """Send the first of the calls that can be sent, if there is one."""
        if self._encoder.blocked(view):
            return WAIT
        seen = self._encoder.encode(view)
        pairs = seen.pairs[0]
        is_open = pairs[:, _OPEN] > 0
        if not is_open.any():
            return WAIT
        # Outside its viable set, which only a lost server can cause, a call has no price.
        price = np.where(pairs[:, _KEPT] > 0, pairs[:, _PRICE], 1.0)
        return Dispatch(int(seen.chosen[0]), int(np.where(is_open, price, np.inf).argmin()))
