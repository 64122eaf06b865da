"""Load-balancing rules among the models that keep a request viable: the simple late binding that the paper leaves out.

Every call may use any model with which at least one viable configuration remains; no forecast, no joint choice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aragog_env.view import DispatchView

from .meta_queue import MetaQueuePolicy
from .rules import loads


class ViableShortestQueuePolicy(MetaQueuePolicy):
    """The server with the fewest requests. See `MetaQueuePolicy` for the arguments."""

    def admit(self, view: DispatchView, call: int, row: int) -> None:
        """Write the options of every node."""
        self._write(view, call, row)

    def update(self, view: DispatchView, first: int, rows: NDArray[np.int64]) -> None:
        """Narrow the options of requests that had another call sent since."""
        served = view.served_by[first : first + len(rows)]
        sent = (served >= 0) @ (1 << np.arange(served.shape[1]))
        for i in np.flatnonzero(self.sent[rows] != sent):
            if self.sent[rows[i]] != sent[i]:  # else renewed with a sibling
                self._write(view, first + int(i), int(rows[i]))

    def _write(self, view: DispatchView, call: int, row: int) -> None:
        configurations = self.configurations[int(view.calls[call]["workflow"])]
        options = configurations.options(self.viable(view, call))
        self.models[row, : len(options)] = options
        sent = view.served_by[call] >= 0
        self.sent[row] = sent @ (1 << np.arange(len(sent)))


class ViableRandomPolicy(ViableShortestQueuePolicy):
    """Any server, with equal probability. See `MetaQueuePolicy` for the arguments."""

    def pick(self, view: DispatchView, routes: NDArray[np.int64]) -> int:
        """Draw one."""
        return int(self.rng.choice(routes))


class ViablePowerOfTwoPolicy(ViableShortestQueuePolicy):
    """The less loaded of two random servers (Mitzenmacher 2001). See `MetaQueuePolicy` for the arguments."""

    def pick(self, view: DispatchView, routes: NDArray[np.int64]) -> int:
        """Take the better of two draws."""
        two = self.rng.permutation(routes)[:2]
        return int(two[np.argmin(loads(view)[two])])
