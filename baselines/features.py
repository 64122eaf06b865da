"""What learned schedulers may do, and what they see beside the observation.

Aragog's scheduler sends a call only to models of its request's remaining viable configurations
(`policies.aragog.narrowing`), and only to servers below their saturation point; it waits only when there is nothing to send.
The same rules (`Rules`), each of which can be left out, narrow the action mask of the observation's ready-call slots here: in
all environments of a vector environment at once, or for the view of one decision. On the way four numbers per call and route
are found (`PairExtra`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aragog_env.compiled_scenario import CompiledScenario
from aragog_env.errors import SpecError
from aragog_env.harness.profile import SATURATION_SHARE
from aragog_env.jit import njit
from aragog_env.observation import ObservationArrays, PairFeature
from aragog_env.outcomes import OutcomeTable
from aragog_env.simulation import Simulation
from aragog_env.view import VIEW_CALL, VIEW_ROUTE, DispatchView
from aragog_env.workload.tape import Tape
from policies.aragog.narrowing import WORD_BITS, configuration_space, pack
from policies.viability import ViableSets, make_viable_sets

from .configurations import Configurations
from .costs import expected_prompt_tokens
from .slots import saturation_slots

# mypy: disable-error-code="no-untyped-def"

NONE: Final = "none"
"""The name of viable sets that hold every configuration."""
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

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.hold <= 1:
            raise SpecError(f"hold must lie between 0 and 1, got {self.hold}")


class PairExtra(IntEnum):
    """Columns of `pairs` behind those of `observation.PairFeature`."""

    OPEN = 0  # the action mask
    KEPT = 1  # share of the request's remaining configurations that stay possible
    WORK = 2  # seconds of calls on idle servers until the answer, by the cheapest of these; scale 10 s
    LOAD = 3  # calls on the route, scale its saturation point


PAIR_WIDTH: Final = len(PairFeature) + len(PairExtra)


class SlotTables(NamedTuple):
    """Configurations as bit sets, cheapest first. V workflows, N nodes, M models, W words of 64 bits, R routes."""

    masks: NDArray[np.uint64]  # (V * N, M, W) configurations with model m at the node
    cost_s: NDArray[np.float64]  # (V, 64 * W) seconds of all calls of a configuration on idle servers, ascending
    node_s: NDArray[np.float64]  # (V * N, M) seconds of the node's call
    route_model: NDArray[np.int64]  # (R,)
    saturation: NDArray[np.int64]  # (R,) calls
    most: NDArray[np.int64]  # (R,) a route with so many calls gets no more
    wait: int
    """Whether waiting is open where something can be sent."""


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
        self._configurations = [
            Configurations(graph, models, feasible, fallback)
            for graph, feasible, fallback in zip(compiled.graphs, space.feasible, space.fallback, strict=True)
        ]
        node_s = idle_call_s(compiled)
        masks = np.zeros((len(compiled.graphs) * space.nodes, models, space.words), np.uint64)
        cost_s = np.full((len(compiled.graphs), space.words * WORD_BITS), np.inf)
        self._order: list[NDArray[np.int64]] = []
        for w, known in enumerate(self._configurations):
            nodes = known.digits.shape[1]
            by_node = np.where(known.digits >= 0, node_s[w, np.arange(nodes), np.maximum(known.digits, 0)], 0.0)
            total = by_node.sum(axis=1)
            order = np.argsort(total, kind="stable")
            cost_s[w, : len(order)] = total[order]
            masks[w * space.nodes : w * space.nodes + nodes] = pack(known.member[..., order], space.words)
            self._order.append(order)
        route_model = compiled.workflow.route_model.astype(np.int64)
        saturation = saturation_slots(compiled.scenario).copy()
        most = (
            saturation_slots(compiled.scenario, rules.hold).copy()
            if rules.hold
            else np.full(len(saturation), _NO_LIMIT)
        )
        self.tables = SlotTables(
            masks, cost_s, node_s.reshape(-1, models), route_model, saturation, most, int(rules.wait)
        )

    def receive_outcomes(self, tables: tuple[OutcomeTable, ...], draws: tuple[NDArray[np.float64], ...] = ()) -> None:
        """Hand the outcome tables to the source of viable sets, as `policy.NeedsOutcomes` describes."""
        if self.sets is not None:
            self.sets.receive_outcomes(tables, draws)
            self.sets.reset(self.compiled.scenario)

    def bits(self, workflow: int, queries: NDArray[np.integer]) -> NDArray[np.uint64]:
        """Return the sets of some queries of a workflow, (n, W), cheapest configuration first."""
        known = self._configurations[workflow]
        members = np.repeat(known.feasible[None], len(queries), axis=0)
        if self.sets is not None:
            info = self.compiled.info
            for row, query in enumerate(queries.tolist()):
                members[row] &= self.sets.viable(info, workflow, query)
            members[~members.any(axis=1), known.fallback] = True
        return pack(members[:, self._order[workflow]], self.words)

    def of_tape(self, tape: Tape) -> NDArray[np.uint64]:
        """Return the set of every request of an episode, (n, W)."""
        if self.is_oracle:
            self.receive_outcomes(self.compiled.outcomes, tape.draws)
        bits = np.zeros((len(tape.workflow), self.words), np.uint64)
        for w in range(len(self._configurations)):
            mine = np.flatnonzero(tape.workflow == w)
            bits[mine] = self.bits(w, tape.query[mine])
        return bits


def idle_call_s(compiled: CompiledScenario) -> NDArray[np.float64]:
    """Return the predicted seconds of every LLM node's call on an idle server of each model, (V, N, M); 0 for tools.

    Of several servers of a model the fastest counts; a model without one takes as long as the slowest that has one.
    """
    info, graphs = compiled.info, compiled.graphs
    width, models = compiled.max_nodes, len(compiled.models)
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
    result = np.full((len(calls), models), np.nan)
    for m in np.unique(routes["model"]):
        result[:, m] = by_route[:, routes["model"] == m].min(axis=1)
    result[~is_llm] = 0.0
    slowest = np.nanmax(result, axis=1, keepdims=True)
    return np.where(np.isnan(result), slowest, result).reshape(len(graphs), width, models)


@njit(cache=True, nogil=True)
def _count(x):
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
            return 64 * word + _count(lowest - np.uint64(1))
    return -1


@njit(cache=True, nogil=True)
def _refine_slot(tables, bits, served, workflow, node, allowed, load, source, target, mask, left, by_model):
    """Write pair features and mask of one ready call; return whether it can be sent now.

    Args:
        tables: `SlotTables`.
        bits: (W,) the request's set at arrival.
        served: (N,) model of each node so far, -1 none.
        workflow: of the call.
        node: of the call.
        allowed: (R,) routes that are up and serve a candidate.
        load: (R,) calls on each route.
        source: (R, P) features of the observation.
        target: (R, P + X) the features with the extra ones behind them.
        mask: (R,) the call's part of the action mask.
        left: (W,) scratch.
        by_model: (M, 2) scratch.
    """
    words, models = bits.shape[0], tables.masks.shape[1]
    first = workflow * served.shape[0]
    for word in range(words):
        left[word] = bits[word]
    spent_s = 0.0
    for k in range(served.shape[0]):
        m = served[k]
        if m >= 0:
            spent_s += tables.node_s[first + k, m]
            for word in range(words):
                left[word] &= tables.masks[first + k, m, word]
    total = 0
    for word in range(words):
        total += _count(left[word])
    for m in range(models):
        kept, cheapest = 0, -1
        for word in range(words):
            both = left[word] & tables.masks[first + node, m, word]
            if both != np.uint64(0):
                kept += _count(both)
                if cheapest < 0:
                    lowest = both & (~both + np.uint64(1))
                    cheapest = 64 * word + _count(lowest - np.uint64(1))
        by_model[m, 0] = kept / total if total > 0 else 0.0
        by_model[m, 1] = max(0.0, tables.cost_s[workflow, cheapest] - spent_s) if cheapest >= 0 else 0.0
    features = source.shape[1]
    any_viable, any_open = False, False
    for r in range(allowed.shape[0]):
        any_viable |= allowed[r] and by_model[tables.route_model[r], 0] > 0
    for r in range(allowed.shape[0]):
        m = tables.route_model[r]
        # Nothing viable is up, or the request was sent outside its set: an answer of lesser quality beats none.
        is_open = allowed[r] and (by_model[m, 0] > 0 or not any_viable) and load[r] < tables.most[r]
        any_open |= is_open
        mask[r] = is_open
        for f in range(features):
            target[r, f] = source[r, f]
        target[r, features] = is_open
        target[r, features + 1] = by_model[m, 0] if allowed[r] else 0.0
        target[r, features + 2] = by_model[m, 1] / (by_model[m, 1] + 10.0) if allowed[r] else 0.0
        target[r, features + 3] = load[r] / (load[r] + tables.saturation[r])
    return any_open


@njit(cache=True, nogil=True)
def _refine_all(
    tables,
    bits,
    by_rank,
    call_model,
    valid,
    request,
    workflow,
    node,
    running,
    waiting,
    allowed,
    source,
    target,
    mask,
    served,
    left,
    by_model,
    load,
):
    """`_refine_slot` for every slot of every environment; empty slots are zero."""
    routes, width = allowed.shape[2], served.shape[0]
    for e in range(bits.shape[0]):
        for r in range(routes):
            load[r] = running[e, r] + waiting[e, r]
        any_open = False
        for slot in range(allowed.shape[1]):
            if valid[e, slot] == 0:
                target[e, slot] = 0.0
                continue
            q = by_rank[e, request[e, slot]]
            for k in range(width):
                served[k] = call_model[e, q * width + k]
            part = mask[e, slot * routes : (slot + 1) * routes]
            any_open |= _refine_slot(
                tables,
                bits[e, q],
                served,
                workflow[e, slot],
                node[e, slot],
                allowed[e, slot],
                load,
                source[e, slot],
                target[e, slot],
                part,
                left,
                by_model,
            )
        if any_open and not tables.wait:
            mask[e, -1] = 0


@njit(cache=True, nogil=True)
def _refine_view(tables, bits, served, workflow, node, load, allowed, source, target, mask, left, by_model):
    """`_refine_slot` for the first calls of a view; empty slots are zero."""
    routes, any_open = allowed.shape[1], False
    for slot in range(target.shape[0]):
        if slot >= bits.shape[0]:
            target[slot] = 0.0
            continue
        part = mask[slot * routes : (slot + 1) * routes]
        any_open |= _refine_slot(
            tables,
            bits[slot],
            served[slot],
            workflow[slot],
            node[slot],
            allowed[slot],
            load,
            source[slot],
            target[slot],
            part,
            left,
            by_model,
        )
    if any_open and not tables.wait:
        mask[-1] = 0


class SlotRefiner:
    """Calls the kernels; owns their scratch memory."""

    def __init__(self, sets: SlotSets) -> None:
        self.sets = sets
        self._left = np.zeros(sets.words, np.uint64)
        self._served = np.zeros(sets.nodes, np.int64)
        self._by_model = np.zeros((len(sets.compiled.models), 2))
        self._load = np.zeros(len(sets.compiled.replicas), np.int64)

    def refine_all(
        self,
        simulation: Simulation,
        out: ObservationArrays,
        bits: NDArray[np.uint64],
        target: NDArray[np.float32],
    ) -> None:
        """Write the pair features of all environments and narrow their masks in place.

        Args:
            simulation: E environments.
            out: their observations; `out.mask` is narrowed. Doing it twice changes nothing.
            bits: (E, n, W) sets of the requests of the tapes (`SlotSets.of_tape`).
            target: (E, K, R, P + X).
        """
        calls, routes = out.view_calls, out.view_routes
        _refine_all(
            self.sets.tables, bits, simulation.progress.by_rank, simulation.state.call["model"], out.calls[:, :, 0],
            calls["request"], calls["workflow"], calls["node"], routes["running"], routes["waiting"], out.allowed,
            out.pairs, target, out.mask, self._served, self._left, self._by_model, self._load,
        )  # fmt: skip

    def refine_view(
        self,
        view: DispatchView,
        bits: NDArray[np.uint64],
        source: NDArray[np.float32],
        mask: NDArray[np.int8],
        target: NDArray[np.float32],
    ) -> None:
        """Write the pair features of a view's first K calls and narrow its mask in place.

        Args:
            view: the decision.
            bits: (at most K, W) sets of the requests of its first calls.
            source: (K, R, P) the observation's pair features.
            mask: (K * R + 1,) the observation's mask.
            target: (K, R, P + X).
        """
        calls, load = view.calls, view.routes["running"] + view.routes["waiting"]
        _refine_view(
            self.sets.tables, bits, view.served_by, calls["workflow"], calls["node"], load.astype(np.int64), view.allowed,
            source, target, mask, self._left, self._by_model,
        )  # fmt: skip
