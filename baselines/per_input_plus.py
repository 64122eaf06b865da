"""Per-input+ and per-input++: the viable configuration of least predicted latency under the present load.

The two steps that Aragog's motivation takes from static to late binding (section 2, Fig. 4): "+" chooses once, when the
request arrives; "++" chooses again at every stage, among the configurations that agree with what was served.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aragog_env.view import ClusterInfo, DispatchView

from .forecast import WorkflowForecast
from .meta_queue import MetaQueuePolicy


class PerInputPlusPolicy(MetaQueuePolicy):
    """The configuration predicted to answer first, chosen at arrival. See `MetaQueuePolicy` for the arguments."""

    at_arrival = True

    def prepare(self, info: ClusterInfo) -> None:
        """Set up the forecasts."""
        self.forecasts = [
            WorkflowForecast(info, w, graph, self.configurations[w]) for w, graph in enumerate(self.graphs)
        ]

    def admit(self, view: DispatchView, call: int, row: int) -> None:
        """Bind all stages to the configuration predicted to answer first."""
        chosen = self.fastest(view, call, self.viable(view, call))
        self.models[row, : len(chosen)] = chosen

    def fastest(self, view: DispatchView, call: int, among: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return (N,) the models, as bits, of the configuration of least predicted latency in a set."""
        entry = view.calls[call]
        workflow = int(entry["workflow"])
        forecast = self.forecasts[workflow]
        call_latency_s = forecast.call_latency_s(view, int(entry["query"]), *self._held(view))
        latency_s = forecast.workflow_latency_s(call_latency_s, view.served_by[call])
        return self.configurations[workflow].chosen(int(np.where(among, latency_s, np.inf).argmin()))

    def _held(self, view: DispatchView) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (M,) calls in the queue by the model they are bound to, and (M,) their prompt tokens."""
        requests = view.calls["request"].astype(np.int64)
        rows = requests & (len(self.request) - 1)
        bits = np.where(self.request[rows] == requests, self.models[rows, view.calls["node"]], 0)
        bound = bits[:, None] == 1 << np.arange(len(view.info.models))
        return bound.sum(axis=0), view.calls["prompt_tokens"].astype(np.int64) @ bound


class PerInputPlusPlusPolicy(PerInputPlusPolicy):
    """As per-input+, but chosen again at every stage. See `MetaQueuePolicy` for the arguments."""

    def admit(self, view: DispatchView, call: int, row: int) -> None:
        """Leave the choice to `update`; what was served before is bound already."""
        served = view.served_by[call]
        self.models[row] = np.where(served >= 0, 1 << np.maximum(served, 0), 0)

    def update(self, view: DispatchView, first: int, rows: NDArray[np.int64]) -> None:
        """Bind calls that have just become ready: all those of a request together, by one configuration."""
        nodes = view.calls["node"]
        for call in np.flatnonzero(self.models[rows, nodes] == 0):
            row = int(rows[call])
            if self.models[row, nodes[call]]:
                continue  # bound together with a sibling
            workflow = int(view.calls[call]["workflow"])
            bits = self.models[row]
            bound = np.where(bits > 0, np.log2(np.maximum(bits, 1)), -1).astype(np.int32)
            among = self.viable(view, int(call)) & self.configurations[workflow].consistent(bound)
            chosen = self.fastest(view, int(call), among)
            ready = nodes[rows == row]
            unbound = ready[bits[ready] == 0]
            self.models[row, unbound] = chosen[unbound]
