"""Recorded runs as a backend: the arrivals, prompts and outputs of a live run, under any policy, on a calibrated cluster.

Requests come when they came. What a call is asked and writes, how long a tool takes, which stages run and whether the answer
is right is what the recordings say of this query; for a turn that none of them has, the workflow's outcome table answers, and
the log says how often (`notes["replay"]`). Times are those of the cluster's model (`shared_host`): calibrate it first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..engine.config import EngineRequest
from ..episode import EpisodeLog
from ..errors import SpecError
from ..policy import WAIT, Dispatch, Wait
from ..queries import QuerySet
from ..recording.reader import Recording
from ..recording.run import check_ended, check_nodes, recorded_scenario
from ..specs.cluster import ClusterSpec
from ..specs.scenario import Scenario
from ..specs.strict import spec_hash
from ..view import ClusterInfo, DispatchView
from ..workload.arrivals import draw_think_times
from ..workload.tape import Stream, Tape, stream
from .reference_server import Call, Request
from .replay_decisions import ARRIVAL, PlannedCall, planned_calls
from .replay_policy import ReplayView
from .replay_turns import Context, Known, RecordedRequest, Turns, read_requests, stand_in
from .shared_host import SharedHostBackend


def replay_scenario(recordings: Sequence[str | Path], cluster: ClusterSpec | None = None) -> Scenario:
    """Return the scenario that recordings are of, on their own or on another cluster.

    Raises:
        SpecError: no recording, or they are of different scenarios.
    """
    if not recordings:
        raise SpecError("a replay needs at least one recording")
    found: Scenario | None = None
    for path in recordings:
        with Recording(path) as recording:
            scenario = recorded_scenario(recording)
        if cluster is not None:
            scenario = replace(scenario, cluster=cluster)
        found = found or scenario
        if traffic_key(scenario) != traffic_key(found):
            message = f"this recording is of another scenario ('{scenario.name}') than {recordings[0]} ('{found.name}')"
            raise SpecError(message, where=str(path))
    assert found is not None
    return found


def traffic_key(scenario: Scenario) -> str:
    """Return a hash of what two recordings must share to be of the same traffic."""
    mix = tuple(replace(entry, outcomes=None) for entry in scenario.workload.mix)
    return spec_hash(replace(scenario.workload, mix=mix))


@dataclass(frozen=True, eq=False)
class Traffic:
    """The traffic of one seed, as it was recorded."""

    seed: int
    tape: Tape
    requests: tuple[RecordedRequest, ...]
    """By number on the tape."""
    plan: dict[tuple[int, int], PlannedCall]
    """What the policy of the first recording of this seed did."""
    path: Path
    truncated: bool
    """Whether the horizon cut that run."""


class ReplayBackend(SharedHostBackend):
    """Recorded traffic on a virtual cluster (see `backends.base.Backend`).

    Args:
        scenario: of the recordings, on the cluster that is to serve them (`replay_scenario`).
        recordings: files of live runs that ended. Those of one seed must have the same traffic; the recorded decisions are
            those of the first of them, and all of them know turns.

    Raises:
        SpecError: a recording is none, empty, unfinished, or of another scenario.
    """

    def __init__(self, scenario: Scenario, recordings: Sequence[str | Path]) -> None:
        super().__init__(scenario)
        self.recordings = tuple(Path(path) for path in recordings)
        if not self.recordings:
            raise SpecError("a replay needs at least one recording")
        self.traffic: dict[int, Traffic] = {}
        self._turns = Turns(self.compiled)
        self._rows = [
            {name: row for row, name in enumerate(table.query_ids)} if table.kind == "measured" else {}
            for table in self.compiled.outcomes
        ]
        with ExitStack() as stack:
            for path in self.recordings:
                self._read(stack.enter_context(Recording(path)))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds whose traffic was recorded."""
        return tuple(self.traffic)

    def _read(self, recording: Recording) -> None:
        """Take in one recording."""
        if traffic_key(recorded_scenario(recording)) != traffic_key(self.scenario):
            message = f"this recording is of another scenario than '{self.scenario.name}' (other arrivals or workflows)"
            raise SpecError(message, where=str(recording.path))
        check_nodes(recording, self.compiled)
        check_ended(recording)
        seed = int(recording.run["seed"])
        requests = self._on_tape(read_requests(recording, self.compiled), int(recording.run["requests"]))
        for request in requests:
            # Where the outcome table has changed since, a question has another number.
            request.query = self._rows[request.workflow].get(request.query_id, request.query)
        known = self.traffic.get(seed)
        if known is None:
            index = {request.rank: i for i, request in enumerate(requests) if request.rank >= 0}
            tape = self._tape(seed, requests)
            cut = any(not request.done for request in requests) or len(requests) < recording.run["requests"]
            plan = planned_calls(recording, index)
            self.traffic[seed] = Traffic(seed, tape, tuple(requests), plan, recording.path, cut)
        elif not _same_traffic(known.requests, requests, arrivals=self.scenario.workload.arrivals.kind != "closed"):
            message = f"this recording and {known.path} have the same seed ({seed}) but other traffic"
            raise SpecError(message, where=str(recording.path))
        for i, request in enumerate(requests):
            if request.rank >= 0:
                self._turns.add(request, own=(seed, i) if known is None else None)

    def _on_tape(self, requests: Sequence[RecordedRequest], length: int) -> list[RecordedRequest]:
        """Return requests by their number on the tape, with a stand-in for those that the horizon kept from coming.

        With arrival times of their own they come after the horizon here too. In a closed loop, where one user may have come
        further than another, whoever is faster in the replay asks once more what they asked last.
        """
        known = {request.tape: request for request in requests}
        users, duration_s = self.scenario.workload.arrivals.users, self.scenario.horizon.duration_s
        result: list[RecordedRequest] = []
        for i in range(length):
            if i in known:
                result.append(known[i])
            elif self.scenario.workload.arrivals.kind != "closed":
                result.append(stand_in(result[-1], i, math.inf if duration_s is None else duration_s + 1.0))
            else:
                result.append(stand_in(result[i - users if i >= users else -1], i, math.inf))
        return result

    def _tape(self, seed: int, requests: Sequence[RecordedRequest]) -> Tape:
        """Return recorded requests as traffic; in a closed loop, with the think times of the seed."""
        workflow = np.array([request.workflow for request in requests], np.int32)
        query = np.array([request.query for request in requests], np.int32)
        tables = self.compiled.outcomes
        draws = tuple(stream(seed, Stream.OUTCOMES, w).random(table.queries) for w, table in enumerate(tables))
        uniform = np.array([draws[w][q % len(draws[w])] for w, q in zip(workflow, query, strict=True)], np.float64)
        arrivals = self.scenario.workload.arrivals
        if arrivals.kind != "closed":
            return Tape(np.array([request.arrival_s for request in requests]), workflow, query, uniform)
        turns = -(-self.scenario.horizon.requests // max(arrivals.users, 1))
        think = draw_think_times(arrivals, turns, stream(seed, Stream.THINKING))
        think[:, :1].sort(axis=0)
        return Tape(np.full(len(requests), np.inf), workflow, query, uniform, think)

    # --- the episode ----------------------------------------------------------------------------------------

    def reset(self, seed: int) -> None:
        """Begin the episode that was recorded under `seed`.

        Raises:
            SpecError: there is none.
        """
        if seed not in self.traffic:
            there = ", ".join(map(str, self.traffic))
            raise SpecError(f"no recording is of seed {seed}; there are recordings of {there}")
        self._now = self.traffic[seed]
        self._known = dict.fromkeys(Known, 0)
        self.load(self._now.tape)

    @property
    def draws(self) -> tuple[NDArray[np.float64], ...]:
        """Nothing, as on the live cluster: nobody knew which answers would be right."""
        return ()

    def view(self) -> DispatchView:
        """Return the current decision; it also knows what the recorded policy did (`ReplayView`)."""
        view = super().view()
        return ReplayView(self, view)

    @cached_property
    def info(self) -> ClusterInfo:
        """What policies may know: the questions are those of the live run."""
        return replace(self.compiled.info, queries=self._questions())

    def _questions(self) -> tuple[QuerySet, ...]:
        """Return the questions as the live backend numbers them; without their data set, what the outcome tables know.

        Raises:
            SpecError: a recorded question is not among them, so no policy could be told what is asked.
        """
        from .live.queries import live_queries

        tables = self.compiled.outcomes
        sets = tuple(table.query_set for table in tables)
        if not all(table.kind == "measured" and table.query_texts for table in tables):
            try:
                sets = live_queries(self.compiled).info(self.compiled).queries
            except SpecError:
                pass
        for traffic in self.traffic.values():
            for request in traffic.requests:
                known = sets[request.workflow]
                if request.query >= len(known.tokens) or (known.ids and known.ids[request.query] != request.query_id):
                    name = self.compiled.graphs[request.workflow].workflow.name
                    raise SpecError(
                        f"question '{request.query_id}' was recorded, but is not among those of '{name}' any more; only the "
                        "policy 'recorded' can be replayed",
                        where=str(traffic.path),
                    )
        return sets

    def log(self) -> EpisodeLog:
        """Return the log of the episode so far."""
        log = super().log()
        total = sum(self._known.values())
        log.notes["replay"] = {
            "recordings": [str(path) for path in self.recordings],
            "calls": total,
            "recorded": self._known[Known.RECORDED],
            "other_context": self._known[Known.OTHER_CONTEXT],
            "never_recorded": self._known[Known.NEVER],
        }
        return log

    # --- what recordings know -------------------------------------------------------------------------------

    def _about(self, request: Request, k: int) -> tuple[RecordedRequest, tuple[int, int], int, Context]:
        """Return what `Turns` is asked about a node: the recorded request, its own key, the node and its context."""
        names = self.compiled.models
        served = {j: names[call.model].name for j, call in request.calls.items() if call.model >= 0}
        context = self._turns.context(request.workflow, k, served)
        return self._now.requests[request.index], (self._now.seed, request.index), k, context

    def _row(self, request: Request) -> int:
        rows = self._rows[request.workflow]
        asked = self._now.requests[request.index].query_id
        return rows.get(asked, request.query % self.compiled.outcomes[request.workflow].queries)

    def _is_skipped(self, request: Request, k: int, node: object) -> bool:
        runs = self._turns.runs(*self._about(request, k))
        return super()._is_skipped(request, k, self._workflow(request)[0].nodes[k]) if runs is None else not runs

    def _tool(self, request: Request, k: int) -> tuple[int, float]:
        return self._turns.tool(*self._about(request, k)) or super()._tool(request, k)

    def _written(self, call: Call) -> int:
        recorded, own, k, context = self._about(call.request, call.node)
        tokens, known = self._turns.written(recorded, own, k, self.compiled.models[call.model].name, context)
        self._known[known] += 1
        return super()._written(call) if tokens is None else tokens

    def _p_correct(self, request: Request, configuration: int) -> float:
        right = self._turns.right(self._now.requests[request.index], (self._now.seed, request.index), configuration)
        return super()._p_correct(request, configuration) if right is None else float(right)

    def _prompt(self, call: Call) -> list[tuple[int, int]]:
        """Return the parts of a recorded prompt; only their lengths are recorded, not where they came from."""
        request = call.request
        found, known = self._turns.prompt(*self._about(request, call.node))
        if found is None:
            return super()._prompt(call)
        graph = self._workflow(request)[0]
        reads = [k for k in graph.nodes[call.node].context if k in request.calls]
        written = sum(request.calls[k].output_tokens for k in reads)
        whole = found.tokens >= found.read_tokens
        tokens = found.tokens
        if known is Known.OTHER_CONTEXT and whole:
            tokens += written - found.read_tokens
        prompt = graph.stage_of[call.node].prompt
        assert prompt is not None
        template = min(prompt.template_tokens, tokens)
        parts = [(self._content("template", request.workflow, prompt.template), template)]
        if whole and tokens - written >= template:
            parts.append((self._content("query", request.workflow, request.query), tokens - written - template))
            parts += [(self._content("output", request.index, k), request.calls[k].output_tokens) for k in reads]
        else:
            # It holds only parts of what was written before it: nobody else begins like this.
            parts.append((self._content("prompt", request.index, call.node), tokens - template))
        return parts

    def _send(self, call: Call, asked: EngineRequest) -> None:
        # A server of another length than the recorded one may have no room for a recorded prompt.
        limit = self.compiled.engines[call.route].max_model_len
        if call.prompt_tokens >= limit:
            name = self.compiled.replicas[call.route].name
            raise SpecError(f"a recorded prompt has {call.prompt_tokens} tokens, but '{name}' takes at most {limit}")
        super()._send(call, asked)

    @property
    def tape_order(self) -> tuple[int, ...]:
        """Number on the tape of each request that arrived, in order of arrival."""
        return tuple(request.index for request in self._arrived)

    # --- recorded decisions ---------------------------------------------------------------------------------

    def recorded_action(self, view: DispatchView) -> Dispatch | Wait:
        """Return what the recorded policy did (`replay_decisions`)."""
        until_s = math.inf
        best: tuple[PlannedCall, int] | None = None
        blocked: list[tuple[int, int]] = []
        for slot, row in enumerate(view.calls):
            index = self._arrived[int(row["request"])].index
            planned = self._now.plan.get((index, int(row["node"])))
            blocked.append((len(self._now.plan) if planned is None else planned.order, slot))
            if planned is None:
                continue
            may_go_s = float(row["ready_s"]) + planned.held_s
            if planned.held_s and may_go_s > view.now_s + 1e-12:
                until_s = min(until_s, may_go_s)
            elif self._has_happened(planned.after) and (best is None or planned.order < best[0].order):
                best = (planned, slot)
        if best is not None:
            return self._as_recorded(view, *best)
        nothing_to_come = not self._events and not any(server.has_work for server in self._servers)
        if until_s < math.inf or not nothing_to_come:
            return Wait(until_s) if until_s < math.inf else WAIT
        if self._now.truncated and self._horizon_ps is not None:
            return Wait(self.scenario.horizon.duration_s + 1.0 if self.scenario.horizon.duration_s else math.inf)
        # What was to come first has not happened, or the call failed in the recording: send it all the same.
        _, slot = min(blocked)
        row = view.calls[slot]
        planned = self._now.plan.get((self._arrived[int(row["request"])].index, int(row["node"])))
        if planned is not None:
            return self._as_recorded(view, planned, slot)
        return Dispatch(slot, int(np.flatnonzero(view.allowed[slot])[0]))

    def _as_recorded(self, view: DispatchView, planned: PlannedCall, slot: int) -> Dispatch:
        if planned.route >= view.allowed.shape[1] or not view.allowed[slot, planned.route]:
            replicas = self.compiled.replicas
            name = replicas[planned.route].name if planned.route < len(replicas) else f"route {planned.route}"
            raise SpecError(
                f"the recorded decisions cannot be carried out on this cluster: {name} may not serve the call"
            )
        return Dispatch(slot, planned.route, planned.priority)

    def _has_happened(self, event: tuple[int, int] | None) -> bool:
        if event is None:
            return True
        request = self._requests[event[0]]
        return request.rank >= 0 and (event[1] == ARRIVAL or event[1] in request.done)


def _same_traffic(a: Sequence[RecordedRequest], b: Sequence[RecordedRequest], *, arrivals: bool) -> bool:
    """Return whether two recordings have the same questions, and where completions do not decide the same arrivals."""
    return all(
        (x.workflow, x.query_id) == (y.workflow, y.query_id)
        and (not arrivals or math.isclose(x.arrival_s, y.arrival_s, abs_tol=1e-6))
        for x, y in zip(a, b, strict=False)
        if x.rank >= 0 and y.rank >= 0
    )
