"""What learned schedulers may do, and what they see beside the observation.

Aragog's scheduler sends a call only to models of its request's remaining viable configurations
(`policies.aragog.narrowing`), and only to servers below their saturation point; it waits only when there is nothing to send.
The same rules (`Rules`), each of which can be left out, narrow the action mask of the calls that a learned scheduler is shown,
and seven numbers per call and route are found on the way (`PairExtra`). Here are the rules and the tables; `refiner` computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aragog_env.compiled_scenario import CompiledScenario
from aragog_env.errors import SpecError, did_you_mean
from aragog_env.harness.profile import SATURATION_SHARE
from aragog_env.jit import njit
from aragog_env.observation import PairFeature
from aragog_env.outcomes import OutcomeTable
from aragog_env.view import VIEW_CALL, VIEW_ROUTE, DispatchView
from aragog_env.workload.tape import Tape
from policies.aragog.narrowing import WORD_BITS, configuration_space, pack
from policies.viability import ViableSets, make_viable_sets

from .configurations import Configurations
from .costs import expected_prompt_tokens
from .slots import saturation_slots, slowing

# mypy: disable-error-code="no-untyped-def"

NONE: Final = "none"
"""The name of viable sets that hold every configuration."""
ORDERS: Final = ("arrival", "work", "price")
_NO_LIMIT: Final = 1 << 30


@dataclass(frozen=True)
class Rules:
    """Which of the environment's actions a learned scheduler may take.

    Raises:
        SpecError: a number out of its range.
    """

    viable: str = NONE
    """Source of viable sets as `policies.viability.make_viable_sets` takes it; `none`: any candidate model."""
    hold: float = SATURATION_SHARE
    """Calls are held back from servers whose load already gives this share of their maximum throughput; 0: never."""
    wait: bool = False
    """Whether it may wait although something can be sent. An event or two later hardly anything is different, so that whether
    waiting pays is very hard to learn; `hold` makes most of that choice."""
    window: int = 0
    """So many of the oldest ready calls are looked at, and of these calls that can be sent now are shown first; 0: the oldest
    ones are shown, whether they can be sent or not."""
    order: str = "arrival"
    """In which order calls are shown apart from that: the oldest first (`arrival`), those whose requests need the least
    work until their answer (`work`), or cost the least until then (`price`); the latter two need a window."""
    point_s: float = 0.0
    """The price of accuracy: how many seconds one point of expected loss (`ViableSets.losses`) costs a request. Above 0 the
    price of a configuration has this in it, and instead of viable sets everything is open that loses at most `most_loss`;
    0: hard sets, as Aragog has them."""
    most_loss: float = 20.0
    """In points, where accuracy has a price: what is expected to lose more is not considered."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.hold <= 1:
            raise SpecError(f"hold must lie between 0 and 1, got {self.hold}")
        if self.order not in ORDERS:
            hint = did_you_mean(str(self.order), ORDERS)
            raise SpecError(f"order must be one of {', '.join(ORDERS)}, got '{self.order}'.{hint}")
        if self.window < 0 or (self.order != "arrival" and not self.window):
            raise SpecError(f"window must not be negative, and above 0 with order={self.order}; got {self.window}")
        if not (self.point_s >= 0 and self.most_loss > 0):
            raise SpecError(f"point_s must be 0 or more and most_loss above 0, got {self.point_s} and {self.most_loss}")
        if self.point_s and self.viable == NONE:
            raise SpecError(
                "point_s needs to know what configurations lose: viable must be router, oracle or a checkpoint"
            )

    def looked_at(self, slots: int) -> int:
        """Return how many of the oldest ready calls are looked at where `slots` are shown."""
        return max(slots, self.window)


class PairExtra(IntEnum):
    """Columns of `pairs` behind those of `observation.PairFeature`."""

    OPEN = 0  # the action mask
    KEPT = 1  # share of the request's remaining configurations that stay possible
    WORK = 2  # seconds of calls on idle servers until the answer, by the cheapest of these; scale 10 s
    LOAD = 3  # calls on the route, scale its saturation point
    PRICE = 4  # seconds that all calls together lose until the answer, this call here, loads as they are; scale 30 s
    BEST = 5  # the least price over all routes / this one's
    CAPTIVE = 6  # ready calls looked at that only this model may serve, scale the route's saturation point


PAIR_WIDTH: Final = len(PairFeature) + len(PairExtra)


class SlotTables(NamedTuple):
    """Configurations as bit sets, cheapest first. V workflows, N nodes, M models, W words of 64 bits, R routes."""

    masks: NDArray[np.uint64]  # (V * N, M, W) configurations with model m at the node
    cost_s: NDArray[np.float64]  # (V, 64 * W) seconds of all calls of a configuration on idle servers, ascending
    node_s: NDArray[np.float64]  # (V * N, M) seconds of the node's call on an idle server
    digits: NDArray[np.int8]  # (V, 64 * W, N) model of each node in a configuration, -1 none
    skip_on: NDArray[np.int64]  # (V * N,) node whose model decides whether this one is skipped, -1 none
    runs: NDArray[np.float64]  # (V * N, M) share of all queries for which the node runs, by the model of `skip_on`
    route_model: NDArray[np.int64]  # (R,)
    saturation: NDArray[np.int64]  # (R,) calls
    slowing: NDArray[np.float64]  # (R,) by which share of an idle server's time each other call makes a call longer
    most: NDArray[np.int64]  # (R,) a route with so many calls gets no more
    wait: int
    """Whether waiting is open where something can be sent."""
    window: int
    """As in `Rules`."""
    order: int
    """Index into `ORDERS`."""


class Choices(NamedTuple):
    """What n requests may run: configurations, cheapest first, as bit sets of W words, and what their losses cost."""

    bits: NDArray[np.uint64]  # (n, W)
    loss_s: NDArray[np.float32]  # (n, 64 * W); (n, 0) where accuracy has no price


class SlotSets:
    """Rules and the viable sets of requests, in the form that the kernels below want.

    Args:
        compiled: the scenario.
        rules: what may be done.

    Raises:
        SpecError: no such source of viable sets.
    """

    def __init__(self, compiled: CompiledScenario, rules: Rules) -> None:
        self.compiled, self.rules = compiled, rules
        self.sets: ViableSets | None = None if rules.viable == NONE else make_viable_sets(rules.viable)
        self.is_oracle = self.sets is not None and self.sets.name == "oracle"
        space = configuration_space(compiled.scenario)
        models = len(compiled.models)
        self.words, self.nodes = space.words, space.nodes
        self.loss_width = space.words * WORD_BITS if rules.point_s else 0
        self._configurations = [
            Configurations(graph, models, feasible, fallback)
            for graph, feasible, fallback in zip(compiled.graphs, space.feasible, space.fallback, strict=True)
        ]
        saturation = saturation_slots(compiled.scenario).copy()
        node_s = idle_call_s(compiled)
        masks = np.zeros((len(compiled.graphs) * space.nodes, models, space.words), np.uint64)
        cost_s = np.full((len(compiled.graphs), space.words * WORD_BITS), np.inf)
        digits = np.full((len(compiled.graphs), space.words * WORD_BITS, space.nodes), -1, np.int8)
        self._order: list[NDArray[np.int64]] = []
        for w, known in enumerate(self._configurations):
            nodes = known.digits.shape[1]
            by_node = np.where(known.digits >= 0, node_s[w, np.arange(nodes), np.maximum(known.digits, 0)], 0.0)
            total = by_node.sum(axis=1)
            order = np.argsort(total, kind="stable")
            cost_s[w, : len(order)], digits[w, : len(order), :nodes] = total[order], known.digits[order]
            masks[w * space.nodes : w * space.nodes + nodes] = pack(known.member[..., order], space.words)
            self._order.append(order)
        route_model = compiled.workflow.route_model.astype(np.int64)
        most = (
            saturation_slots(compiled.scenario, rules.hold).copy()
            if rules.hold
            else np.full(len(saturation), _NO_LIMIT)
        )
        self.tables = SlotTables(
            masks, cost_s, node_s.reshape(-1, models), digits, compiled.workflow.skip_on.reshape(-1).astype(np.int64),
            _run_shares(compiled), route_model, saturation, slowing(compiled.scenario).copy(), most, int(rules.wait),
            rules.window, ORDERS.index(rules.order),
        )  # fmt: skip

    def receive_outcomes(self, tables: tuple[OutcomeTable, ...], draws: tuple[NDArray[np.float64], ...] = ()) -> None:
        """Hand the outcome tables to the source of viable sets, as `policy.NeedsOutcomes` describes."""
        if self.sets is not None:
            self.sets.receive_outcomes(tables, draws)
            self.sets.reset(self.compiled.scenario)

    def choices(self, workflow: int, queries: NDArray[np.integer]) -> Choices:
        """Return what some queries of a workflow may run, n rows, cheapest configuration first."""
        known, order = self._configurations[workflow], self._order[workflow]
        members = np.repeat(known.feasible[None], len(queries), axis=0)
        loss_s = np.zeros((len(queries), self.loss_width), np.float32)
        if self.sets is not None:
            if self.rules.point_s:
                losses = self.sets.losses(workflow, queries)
                members &= losses <= self.rules.most_loss
                loss_s[:, : len(order)] = self.rules.point_s * losses[:, order]
            else:
                info = self.compiled.info
                for row, query in enumerate(queries.tolist()):
                    members[row] &= self.sets.viable(info, workflow, query)
            members[~members.any(axis=1), known.fallback] = True
        return Choices(pack(members[:, order], self.words), loss_s)

    def of_tape(self, tape: Tape) -> Choices:
        """Return what every request of an episode may run, n rows."""
        if self.is_oracle:
            self.receive_outcomes(self.compiled.outcomes, tape.draws)
        result = self.no_choices(len(tape.workflow))
        for w in range(len(self._configurations)):
            mine = np.flatnonzero(tape.workflow == w)
            result.bits[mine], result.loss_s[mine] = self.choices(w, tape.query[mine])
        return result

    def no_choices(self, *shape: int) -> Choices:
        """Return empty sets."""
        return Choices(np.zeros((*shape, self.words), np.uint64), np.zeros((*shape, self.loss_width), np.float32))


def idle_call_s(compiled: CompiledScenario) -> NDArray[np.float64]:
    """Return the predicted seconds of every LLM node's call on an idle server of each model, (V, N, M); 0 for tools.

    Of several servers of a model the fastest counts; a model without one takes as long as the slowest that has one.
    """
    info, graphs = compiled.info, compiled.graphs
    width = compiled.max_nodes
    calls = np.zeros(len(graphs) * width, VIEW_CALL)
    calls["workflow"], calls["node"] = np.divmod(np.arange(len(calls)), width)
    for w, graph in enumerate(graphs):
        calls["prompt_tokens"][w * width : (w + 1) * width] = expected_prompt_tokens(info, w, graph)
    routes = np.zeros(len(compiled.replicas), VIEW_ROUTE)
    routes["model"], routes["up"] = compiled.workflow.route_model, 1
    is_llm = (info.radix > 0).reshape(-1)
    allowed = np.ascontiguousarray(np.broadcast_to(is_llm[:, None], (len(calls), len(routes))))
    served = np.full((len(calls), width), -1, np.int32)
    by_route = DispatchView(info, 0.0, calls, routes, allowed, 0, served).predicted_latency_s()
    models = len(compiled.models)
    result = np.full((len(calls), models), np.nan)
    for m in np.unique(routes["model"]):
        result[:, m] = by_route[:, routes["model"] == m].min(axis=1)
    result[~is_llm] = 0.0
    slowest = np.nanmax(result, axis=1, keepdims=True)
    return np.where(np.isnan(result), slowest, result).reshape(len(graphs), width, models)


def _run_shares(compiled: CompiledScenario) -> NDArray[np.float64]:
    """Return for which share of a workflow's queries each node runs, (V * N, M), by the model that served `skip_on`."""
    table, models = compiled.workflow, len(compiled.models)
    result = np.ones((len(compiled.graphs), table.skipped.shape[1], models))
    ends = [*table.first_row[1:], len(table.skipped)]
    for w, (first, end) in enumerate(zip(table.first_row, ends, strict=True)):
        skipped = table.skipped[first:end, :, None] >> np.arange(models) & 1
        result[w] = 1.0 - skipped.mean(axis=0)
    return result.reshape(-1, models)


@njit(cache=True, nogil=True)
def count(x):
    """Return the number of bits set in a word."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True, nogil=True)
def first_of(words):
    """Return the smallest member of a set, (W,) words of bits; -1 if it is empty."""
    for word in range(words.shape[0]):
        if words[word] != np.uint64(0):
            lowest = words[word] & (~words[word] + np.uint64(1))
            return 64 * word + count(lowest - np.uint64(1))
    return -1
