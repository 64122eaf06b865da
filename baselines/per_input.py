"""Per-input: the cheapest viable configuration of each request, chosen once when it arrives.

The class of routers such as RouteLLM and MasRouter in Aragog's evaluation (section 5): the query decides, load does not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aragog_env.view import ClusterInfo, DispatchView

from .costs import expected_prompt_tokens, static_cost
from .meta_queue import MetaQueuePolicy


class PerInputPolicy(MetaQueuePolicy):
    """The viable configuration of least static cost. See `MetaQueuePolicy` for the arguments."""

    def prepare(self, info: ClusterInfo) -> None:
        """Compute what configurations cost."""
        self.cost: list[NDArray[np.float64]] = [  # per workflow (C,)
            static_cost(info, w, expected_prompt_tokens(info, w, graph)) for w, graph in enumerate(self.graphs)
        ]

    def admit(self, view: DispatchView, call: int, row: int) -> None:
        """Choose the cheapest."""
        workflow = int(view.calls[call]["workflow"])
        cheapest = int(np.where(self.viable(view, call), self.cost[workflow], np.inf).argmin())
        chosen = self.configurations[workflow].chosen(cheapest)
        self.models[row, : len(chosen)] = chosen
