"""What all rules over viable configurations share: one queue in front of the servers, and per call the models it may use.

Aragog's baselines "use the same FIFO + depth scheduling" as Aragog (section 5): calls wait in one queue by arrival of their
request and, inside it, by depth (the order of `view.calls`); one is sent when a server that it may use has a free slot, and
blocked calls are skipped. Subclasses say which models a call may use. Sent early instead (`hold=false`), calls would queue at
the servers by the time they became ready, and the second stage of an old request would wait behind the first of young ones.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from aragog_env.outcomes import OutcomeTable
from aragog_env.policy import Dispatch, Wait
from aragog_env.specs.graph import unroll
from aragog_env.specs.load import scenario_workflows
from aragog_env.specs.scenario import Scenario
from aragog_env.view import ClusterInfo, DispatchView
from policies.aragog.narrowing import configuration_space
from policies.viability import make_viable_sets

from .configurations import Configurations
from .rules import loads
from .slots import saturation_slots

_ROWS = 1024
_FRONT = 256
_NOBODY = -1
_SAME_TIME_S = 1e-9


class MetaQueuePolicy(ABC):
    """A rule over viable configurations.

    What it remembers of a request is a row that a later request overwrites, so that memory does not grow with the episode.

    Args:
        viable: where viable configurations come from: 'router', 'oracle' or a router's checkpoint.
        same: stages that must use one model, as for `aragog`: ``critique+refine``, or ``vote`` for all voters.
        hold: keep calls back while every server they may use is at its saturation point.
        charge_routing: a request can be sent only after the time that its routing took; oracles take none.
    """

    at_arrival = False
    """Whether a rule must see a request when it arrives, since its choice depends on the load of that moment."""

    def __init__(
        self, viable: str = "router", *, same: str = "", hold: bool = True, charge_routing: bool = False
    ) -> None:
        self.sets = make_viable_sets(viable)
        self.same = same
        self.hold, self.charge_routing = hold, charge_routing

    def receive_outcomes(self, tables: tuple[OutcomeTable, ...], draws: tuple[NDArray[np.float64], ...] = ()) -> None:
        """Hand the tables to the source of viable sets."""
        self.sets.receive_outcomes(tables, draws)

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Forget all requests."""
        self.sets.reset(scenario)
        self.rng = np.random.default_rng(seed)
        self.graphs = tuple(unroll(w) for w in scenario_workflows(scenario))
        space = configuration_space(scenario, self.same)
        models = int(space.masks.shape[1])
        self.configurations = tuple(
            Configurations(graph, models, feasible, fallback)
            for graph, feasible, fallback in zip(self.graphs, space.feasible, space.fallback, strict=True)
        )
        self.nodes = max(len(graph.nodes) for graph in self.graphs)
        self.slots = saturation_slots(scenario) if self.hold else None  # (R,)
        self.info: ClusterInfo | None = None
        self._lay_out(_ROWS)

    def prepare(self, info: ClusterInfo) -> None:  # noqa: B027  most rules need nothing
        """Compute what depends on the cluster only; called at the first decision of an episode."""

    @abstractmethod
    def admit(self, view: DispatchView, call: int, row: int) -> None:
        """Write `self.models[row]`, the models that each node may use as bits, for a request that is new."""

    def update(self, view: DispatchView, first: int, rows: NDArray[np.int64]) -> None:  # noqa: B027  most choose once
        """Renew `self.models` of requests that moved on. `rows`: row of each ready call from `first` on."""

    def pick(self, view: DispatchView, routes: NDArray[np.int64]) -> int:
        """Choose one of the possible routes: the one with the fewest requests, the first of equals."""
        return int(routes[np.argmin(loads(view)[routes])]) if len(routes) > 1 else int(routes[0])

    def viable(self, view: DispatchView, call: int) -> NDArray[np.bool_]:
        """Return (C,) the configurations the request of a call can still end up with."""
        entry = view.calls[call]
        workflow = int(entry["workflow"])
        configurations = self.configurations[workflow]
        usable = configurations.usable(self.sets.viable(view.info, workflow, int(entry["query"])))
        served = view.served_by[call]
        return usable & configurations.consistent(served) if served.max() >= 0 else usable

    def act(self, view: DispatchView) -> Dispatch | Wait:
        """Send the first call that has a free server among those it may use."""
        if self.info is not view.info:
            self.info = view.info
            self.prepare(view.info)
        calls = view.calls
        while int(calls["request"][-1]) - int(calls["request"][0]) >= len(self.request):
            self._grow()
        bit = np.left_shift(1, view.routes["model"].astype(np.int64))  # (R,)
        up = view.routes["up"] > 0
        free = up if self.slots is None else up & (loads(view) < self.slots)
        free_bits = int(np.bitwise_or.reduce(bit[free], initial=0))
        routed_in_s = math.inf
        for first, end in self._parts(len(calls), bool(free_bits)):
            rows = self._rows(view, first, end)
            self.update(view, first, rows)
            wanted = self.models[rows, calls["node"][first:end]]  # bits
            allowed, open_bits = view.allowed[first:end], np.int64(free_bits)
            if not allowed.all():
                wanted = _without_lost_models(wanted, bit, allowed)
                open_bits = np.bitwise_or.reduce(np.where(allowed & free, bit, 0), axis=1)  # (calls,)
            possible = (wanted & open_bits) != 0
            if self.charge_routing:
                late_s = self.routed_s[rows] - view.now_s
                possible &= late_s <= _SAME_TIME_S
                routed_in_s = min(routed_in_s, late_s[late_s > _SAME_TIME_S].min(initial=math.inf))
            call = int(possible.argmax())
            if possible[call]:
                routes = np.flatnonzero(free & view.allowed[first + call] & ((wanted[call] & bit) != 0))
                return Dispatch(first + call, self.pick(view, routes))
        return Wait(until_s=view.now_s + float(routed_in_s))

    def _parts(self, calls: int, any_free: bool) -> list[tuple[int, int]]:
        """Return which calls to look at, part by part.

        Under overload thousands of calls wait, and the first that can be sent is near the front as a rule.
        """
        if self.at_arrival:
            return [(0, calls)]
        parts = [(0, min(calls, _FRONT)), (_FRONT, calls)]
        return [(first, end) for first, end in parts if first < end] if any_free else []

    def _rows(self, view: DispatchView, first: int, end: int) -> NDArray[np.int64]:
        """Return the row of the request of each ready call from `first` to `end`, after admitting those that are new."""
        requests = view.calls["request"][first:end].astype(np.int64)
        rows = requests & (len(self.request) - 1)
        for i in np.flatnonzero(self.request[rows] != requests):
            row, call = int(rows[i]), first + int(i)
            if self.request[row] == requests[i]:
                continue  # admitted with a sibling
            self.request[row] = requests[i]
            self.models[row] = 0
            self.admit(view, call, row)
            entry = view.calls[call]
            self.routed_s[row] = entry["arrival_s"]
            if self.charge_routing:
                self.routed_s[row] += self.sets.routing_s(int(entry["workflow"]), int(entry["query"]))
        return rows

    def _lay_out(self, size: int) -> None:
        """Make empty rows."""
        self.request: NDArray[np.int64] = np.full(size, _NOBODY)  # whose row this is
        self.models: NDArray[np.int64] = np.zeros((size, self.nodes), np.int64)  # bits; 0 where not chosen yet
        self.sent: NDArray[np.int64] = np.zeros(size, np.int64)  # nodes sent when `models` was written, as bits
        self.routed_s: NDArray[np.float64] = np.zeros(size)

    def _grow(self) -> None:
        """Double the rows: the requests that have ready calls must all fit, and do where they lie apart by less."""
        old = (self.request, self.models, self.sent, self.routed_s)
        known = np.flatnonzero(self.request != _NOBODY)
        self._lay_out(2 * len(self.request))
        rows = old[0][known] & (len(self.request) - 1)
        for array, before in zip((self.request, self.models, self.sent, self.routed_s), old, strict=True):
            array[rows] = before[known]


def _without_lost_models(
    wanted: NDArray[np.int64], bit: NDArray[np.int64], allowed: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the models that calls want and can have; a call that can have none of them may use any: better than no answer."""
    possible = np.bitwise_or.reduce(np.where(allowed, bit, 0), axis=1)
    return np.asarray(np.where((wanted & possible) == 0, possible, wanted & possible))
