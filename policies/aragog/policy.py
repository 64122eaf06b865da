"""Aragog's scheduler as a policy: rounds of joint, load-aware choices of (call, model), stage by stage.

arXiv 2511.20975, section 3.2. A *round* is held whenever an engine has fewer calls than its profiled saturation point. It
assigns ready calls to free slots by beam search (`beam`), ranked by forecast throughput gain (`curves`); each call may only go
to a model of its request's remaining viable configurations (`narrowing`). Whatever finds no slot waits in the meta-queue
(`queue`), not in an engine: its model is chosen when there is room for it, with the load of that moment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError, did_you_mean
from aragog_env.harness.profile import SATURATION_SHARE, Profile, profile_scenario
from aragog_env.policy import WAIT, Dispatch, Wait
from aragog_env.specs.limits import engine_limits
from aragog_env.view import DispatchView

from ..viability import make_viable_sets
from .beam import beam_search
from .curves import Curves, curves_for
from .exact import exact_search
from .narrowing import Space, configuration_space
from .queue import MetaQueue, MovingAverage
from .round import Assignment, Round, Settings

if TYPE_CHECKING:
    from aragog_env.outcomes import OutcomeTable
    from aragog_env.specs.scenario import Scenario

Search = Literal["beam", "exact"]
SEARCHES: Final[tuple[Search, ...]] = ("beam", "exact")
_CLOCK_S: Final = 1e-9
"""Moments closer than this are the same: the cluster's clock counts picoseconds, the view's is in floating point."""


@dataclass
class _Plan:
    """The dispatches of a round that are still to be made, and what the cluster looks like when nothing else happened."""

    now_s: float
    calls: int
    """Ready calls."""
    occupancy: NDArray[np.int32]
    """(R,) calls in each engine."""
    steps: list[tuple[int, int]]
    """(call, route) in reverse order, calls numbered as the view will number them."""
    until_s: float
    """When a request that is being routed becomes available, if one is."""


class AragogPolicy:
    """Just-in-time choice of models among the viable ones.

    Args:
        viable: where viable sets come from: ``router``, ``oracle``, or a checkpoint (see `policies.viability`).
        beam: B, partial assignments kept by the search; 1 is greedy. The paper uses 4.
        tie: gains tie when they differ by at most this share of the gain per placed call.
        look_ahead: try calls behind one that cannot be placed.
        tie_break: decide ties by the share of configurations kept.
        order: ``fifo`` as in the paper, ``lifo``, or ``fewest_left`` (requests with the fewest stages left first).
        search: ``beam``, or ``exact`` for the best assignment of each round (slow where many slots are free).
        saturation: an engine is full at the smallest load with this share of its maximum throughput.
        profile: path of a file made by `aragog profile`; by default the simulated cluster is profiled once and remembered.
        charge_routing: routing takes time on the cluster's clock: no stage of a request is sent before its router is done, and
            routing stops when the expected first-stage wait is over. Else routing takes no time and has no limit.
        least_budget_s: with `charge_routing`, routing may take this long even where no wait is expected.
        poll_s: look at the engines once in so many seconds, as the paper's scheduler does (it does not say how often), so that
            several slots may have become free; 0 holds a round as soon as anything changes.
        same: stages that must use one model, e.g. ``critique+refine`` (the paper's constrained space).

    Raises:
        SpecError: an argument that is not possible.
    """

    def __init__(
        self,
        viable: str = "router",
        beam: int = 4,
        tie: float = 0.01,
        look_ahead: bool = True,
        tie_break: bool = True,
        order: str = "fifo",
        search: Search = "beam",
        saturation: float = SATURATION_SHARE,
        profile: str = "",
        charge_routing: bool = False,
        least_budget_s: float = 0.04,
        poll_s: float = 0.0,
        same: str = "",
    ) -> None:
        if beam < 1 or tie < 0 or poll_s < 0:
            raise SpecError(
                "policy 'aragog': beam must be at least 1, tie and poll_s not negative, "
                f"got beam={beam}, tie={tie}, poll_s={poll_s}"
            )
        if search not in SEARCHES:
            hint = did_you_mean(search, SEARCHES)
            raise SpecError(f"policy 'aragog': search must be 'beam' or 'exact', got '{search}'.{hint}")
        self.sets = make_viable_sets(viable)
        self.settings = Settings(beam, tie, tie_break, look_ahead)
        self.search: Search = search
        self.order, self.same = order, same
        self.saturation, self.profile = saturation, profile
        self.charge_routing, self.least_budget_s = charge_routing, least_budget_s
        self.poll_s = poll_s
        self.first_wait = MovingAverage()
        self.record: list[Round] | None = None
        """Set it to a list to keep the rounds that are searched (`scripts/beam_quality.py`)."""
        self._scenario: Scenario | None = None

    def receive_outcomes(self, tables: tuple[OutcomeTable, ...], draws: tuple[NDArray[np.float64], ...] = ()) -> None:
        """Hand the outcome tables to the source of viable sets: an oracle reads them, a router is trained on them."""
        self.sets.receive_outcomes(tables, draws)

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Forget the last episode, and profile the cluster if it is a new one. Nothing here is random."""
        if scenario != self._scenario:
            self._prepare(scenario)
            self._scenario = scenario
        self.sets.reset(scenario)
        self.queue.clear()
        self.first_wait.clear()
        self._plan: _Plan | None = None
        self._next_poll_s = 0.0

    def _prepare(self, scenario: Scenario) -> None:
        cluster = scenario.cluster
        replicas = cluster.expand()
        limits = [engine_limits(r, cluster).max_num_seqs for r in replicas]
        profile = Profile.load(self.profile) if self.profile else profile_scenario(scenario)
        self.curves: Curves = curves_for(profile, [r.name for r in replicas], limits, self.saturation)
        self.space: Space = configuration_space(scenario, self.same)
        self.queue = MetaQueue(self.space, self.order)

    def act(self, view: DispatchView) -> Dispatch | Wait:
        """Make the next dispatch of the round, hold a new round, or wait."""
        occupancy: NDArray[np.int32] = view.routes["running"] + view.routes["waiting"]
        if not self._still_holds(view, occupancy):
            if view.now_s < self._next_poll_s - _CLOCK_S:
                return Wait(self._next_poll_s)
            self._plan = self._hold_round(view, occupancy)
        plan = self._plan
        assert plan is not None
        if not plan.steps:
            return Wait(plan.until_s) if plan.until_s < math.inf else WAIT
        call, route = plan.steps.pop()
        plan.calls -= 1
        plan.occupancy[route] += 1
        if view.calls["nodes_done"][call] == 0:
            self.first_wait.add(view.now_s - float(view.calls["ready_s"][call]))
        return Dispatch(call, route)

    def _still_holds(self, view: DispatchView, occupancy: NDArray[np.int32]) -> bool:
        """Return whether nothing but our own dispatches happened since the round."""
        plan = self._plan
        return (
            plan is not None
            and plan.now_s == view.now_s
            and plan.calls == len(view.calls)
            and bool((plan.occupancy == occupancy).all())
        )

    def _hold_round(self, view: DispatchView, occupancy: NDArray[np.int32]) -> _Plan:
        self.queue.admit(view, self._route)
        free = np.where(view.routes["up"] != 0, self.curves.slots - occupancy, 0).astype(np.int32)
        waiting, until_s = np.arange(len(view.calls)), math.inf
        if self.charge_routing:
            known_s = self.queue.known_s(view)
            routed = known_s <= view.now_s + _CLOCK_S
            waiting, until_s = waiting[routed], float(known_s[~routed].min(initial=math.inf))
        steps: list[tuple[int, int]] = []
        if len(waiting) and (free > 0).any():
            waiting = self.queue.arrange(view, waiting)
            assignment = self._search(self._round(view, waiting, occupancy, free))
            placed = np.flatnonzero(assignment.route >= 0)
            # Dispatches are made in the view's order, so that each one shifts those behind it by one.
            pairs = sorted(zip(waiting[placed].tolist(), assignment.route[placed].tolist(), strict=True))
            steps = [(call - k, route) for k, (call, route) in enumerate(pairs)][::-1]
        if self.poll_s > 0:
            until_s = self._next_poll_s = self.poll_s * (math.floor((view.now_s + _CLOCK_S) / self.poll_s) + 1)
        return _Plan(view.now_s, len(view.calls), occupancy.copy(), steps, until_s)

    def _round(
        self, view: DispatchView, waiting: NDArray[np.int64], occupancy: NDArray[np.int32], free: NDArray[np.int32]
    ) -> Round:
        kinds = self.queue.kinds(view)
        round_ = Round(
            request=view.calls["request"][waiting],
            kind=kinds[waiting],
            remaining=self.queue.remaining(view, kinds)[waiting],
            allowed=view.allowed[waiting],
            masks=self.space.masks,
            route_model=np.ascontiguousarray(view.routes["model"]),
            occupancy=occupancy,
            free=free,
            gain_rps=self.curves.gain_rps,
        )
        if self.record is not None:
            self.record.append(round_)
        return round_

    def _search(self, round_: Round) -> Assignment:
        if self.search == "exact":
            return exact_search(round_)
        return beam_search(round_, self.settings)

    def _route(self, view: DispatchView, i: int) -> tuple[NDArray[np.bool_], float]:
        """Return the viable set of call i's request, and when it is known.

        A request routes while it waits for its first stage. Its budget is the expected wait, an exponential moving average
        over recent first stages (section 4); at high rates that is long, at low rates `least_budget_s` keeps it from nothing.
        """
        call = view.calls[i]
        workflow, query = int(call["workflow"]), int(call["query"])
        budget_s = math.inf
        # A request that is under way already was routed before, whatever the wait is now.
        if self.charge_routing and not (view.served_by[i] >= 0).any():
            wait_s = 0.0 if math.isnan(self.first_wait.value) else self.first_wait.value
            budget_s = max(self.least_budget_s, wait_s)
        members = self.sets.viable(view.info, workflow, query, budget_s)
        known_s = float(call["arrival_s"])
        if self.charge_routing:
            known_s += self.sets.routing_s(workflow, query)
        return members, known_s
