"""Decisions that take their time: `charged:POLICY` lets the clock of the cluster pay for what a policy thinks.

In simulation a decision takes no time, however long it is computed, so that results do not depend on the machine. A real
scheduler decides about one call after the other, and meanwhile servers go on and calls wait. `charged:ppo` charges every
dispatch with the wall time that it really took here; ``charged@0.8:ppo`` with 0.8 ms, which is repeatable and stands for any
other machine (or for decisions that are computed in batches).
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Final

import numpy as np

from .errors import SpecError
from .policy import Dispatch, NeedsOutcomes, Policy, Wait

if TYPE_CHECKING:
    from .specs.scenario import Scenario
    from .view import DispatchView

NAME: Final = "charged"
_RESOLUTION_S: Final = 1e-9
"""Waiting ends within rounding of the stated time."""


class ChargedPolicy:
    """Sends a call only when the decision about it is over; until then nothing else is decided.

    Waiting is free: only decisions that send a call are charged.

    Args:
        policy: decides.
        decision_ms: milliseconds per dispatch; None: as long as `act` took.
    """

    def __init__(self, policy: Policy, decision_ms: float | None = None) -> None:
        self.policy, self.decision_ms = policy, decision_ms
        self._due_s = 0.0
        self._sent: tuple[int, int, Dispatch] | None = None
        if isinstance(policy, NeedsOutcomes):
            self.receive_outcomes = policy.receive_outcomes

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Forget the last episode."""
        self._sent = None
        self.policy.reset(scenario, seed)

    def act(self, view: DispatchView) -> Dispatch | Wait:
        """Decide, wait for as long as that took, and send."""
        if self._sent is None:
            begin = perf_counter()
            action = self.policy.act(view)
            took_s = perf_counter() - begin if self.decision_ms is None else 1e-3 * self.decision_ms
            if isinstance(action, Wait) or took_s < _RESOLUTION_S:
                return action
            call = view.calls[action.call]
            self._sent, self._due_s = (int(call["request"]), int(call["node"]), action), view.now_s + took_s
        if view.now_s < self._due_s - _RESOLUTION_S:
            return Wait(self._due_s)
        (request, node, decided), self._sent = self._sent, None
        found = np.flatnonzero((view.calls["request"] == request) & (view.calls["node"] == node))
        if len(found) and view.allowed[found[0], decided.route]:
            return Dispatch(int(found[0]), decided.route, decided.priority)
        # Its request has failed meanwhile, or the server: the time is lost, and the next decision begins.
        return self.act(view)


def charged(name: str, make: Callable[[str], Policy]) -> ChargedPolicy:
    """Make a policy from ``charged:POLICY`` or ``charged@MS:POLICY``.

    Args:
        name: the whole name.
        make: makes the inner policy by name.

    Raises:
        SpecError: no time or no policy.
    """
    head, _, inner = name.partition(":")
    _, at, text = head.partition("@")
    try:
        decision_ms = float(text) if at else None
    except ValueError:
        decision_ms = -1.0
    if not inner or (decision_ms is not None and not 0 <= decision_ms < float("inf")):
        raise SpecError(f"policy '{name}': expected charged:POLICY, or charged@MS:POLICY with milliseconds, 0 or more")
    return ChargedPolicy(make(inner), decision_ms)
