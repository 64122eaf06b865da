"""The simulated cluster in plain Python: slow, readable, and what the compiled simulator must equal exactly.

It shares no event code with `backends.sim`. Servers are `ReferenceEngine`s; requests walk through their
workflows here, straight from the unrolled graphs and outcome tables.

**One instant.** First iterations end (their last tokens complete calls), then tools end, then requests
arrive, until nothing more is due; a completed call, tool or request makes its successors ready at the same
instant. If any of this was news and calls are ready, the policy is asked, again and again until it waits or
no call is left. Only then do servers that stand between two iterations schedule: an iteration that begins at
an instant sees all that was dispatched at it.

**A prompt** is the template, the query, then the outputs of the stages it reads, in prompt order. Equal
templates of a workflow, equal queries and outputs of the same call are equal tokens, which is what the prefix
cache sees.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ..compiled_scenario import CompiledScenario, compile_scenario
from ..engine.config import EngineRequest
from ..episode import CALL_DTYPE, REQUEST_DTYPE, EpisodeLog
from ..latency.compiled import PS_PER_S
from ..outcomes import OutcomeTable
from ..policy import Dispatch, Wait
from ..specs.graph import Node, WorkflowGraph
from ..specs.scenario import Scenario
from ..view import VIEW_CALL, VIEW_ROUTE, DispatchView
from ..workload.tape import Tape, draw_tape
from .reference_server import Call, Request, Server


class Event(IntEnum):
    """What happens at a time of its own; at one instant in this order."""

    TOOL_END = 0
    ARRIVAL = 1


class ReferenceBackend:
    """A virtual cluster in virtual time (see `backends.base.Backend`), one iteration at a time."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.compiled: CompiledScenario = compile_scenario(scenario)
        self._latencies = [
            table.compile(config.max_num_seqs, config.max_num_batched_tokens)
            for table, config in zip(self.compiled.latencies, self.compiled.engines, strict=True)
        ]
        self._models = [int(m) for m in self.compiled.workflow.route_model]
        duration_s = scenario.horizon.duration_s
        self._horizon_ps = None if duration_s is None else round(duration_s * PS_PER_S)

    def reset(self, seed: int) -> None:
        """Begin the episode of `seed` and go to its first decision."""
        self.load(draw_tape(self.scenario, self.compiled.outcomes, seed))

    def load(self, tape: Tape) -> None:
        """Begin an episode with given traffic and go to its first decision."""
        self._draws = tape.draws
        self._servers = self._make_servers()
        self._requests = [
            Request(index, int(workflow), int(query), float(uniform))
            for index, (workflow, query, uniform) in enumerate(
                zip(tape.workflow, tape.query, tape.uniform, strict=True)
            )
        ]
        self._arrived: list[Request] = []
        self._completed = 0
        self._ready: list[Call] = []
        self._dispatched: list[Call] = []
        self._decisions = 0
        self._contents: dict[tuple[object, ...], int] = {}
        self._events: list[tuple[int, int, int, int]] = []  # (time, kind, request, node)
        self._think_ps: dict[int, int] = {}
        self._now_ps = 0
        self.done = self.truncated = False
        self._plan_arrivals(tape)
        self._advance()

    def _make_servers(self) -> Sequence[Server]:
        engines = zip(self.compiled.engines, self._latencies, strict=True)
        return [Server(config, latency) for config, latency in engines]

    def _plan_arrivals(self, tape: Tape) -> None:
        """Schedule the arrivals that depend on nothing; in a closed loop, note when each user comes back."""
        if tape.think_s is None:
            for request, arrival_s in zip(self._requests, tape.arrival_s, strict=True):
                self._at(round(float(arrival_s) * PS_PER_S), Event.ARRIVAL, request.index)
            return
        users = len(tape.think_s)
        for i in range(len(self._requests)):
            self._think_ps[i] = round(float(tape.think_s[i % users, i // users]) * PS_PER_S)
        for i in range(min(users, len(self._requests))):
            self._at(self._think_ps[i], Event.ARRIVAL, i)

    def _at(self, time_ps: int, kind: int, request: int, node: int = -1) -> None:
        heapq.heappush(self._events, (time_ps, kind, request, node))

    # --- time -----------------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        """Virtual seconds since the episode began."""
        return self._now_ps / PS_PER_S

    def _advance(self, until_s: float = math.inf) -> None:
        """Go on until an event leaves at least one call ready, or `until_s`, or the episode is over."""
        until = [] if until_s == math.inf else [round(until_s * PS_PER_S)]
        while True:
            for server in self._servers:
                server.schedule(self._now_ps)
            times = [server.engine.next_end_ps for server in self._servers]
            ends = [time for time in times if time is not None] + [event[0] for event in self._events[:1]] + until
            if not ends or (self._horizon_ps is not None and min(ends) > self._horizon_ps):
                self.done = self.truncated = True
                self._now_ps = self._now_ps if self._horizon_ps is None else self._horizon_ps
                return
            self._now_ps = min(ends)
            news = self._live_through_instant()
            if self._completed == len(self._requests):
                self.done = True
                return
            if (news and self._ready) or self._now_ps in until:
                return

    def _live_through_instant(self) -> bool:
        """Let everything happen that is due now; return whether a policy may want to know."""
        news = False
        for server in self._servers:
            for call in server.end_iterations(self._now_ps):
                news = self._ended(call) or news
        while self._events and self._events[0][0] == self._now_ps:
            news = self._happen(*heapq.heappop(self._events)[1:]) or news
        return news

    def _ended(self, call: Call) -> bool:
        """A call has its last token; return whether a policy may want to know."""
        self._complete(call)
        return True

    def _happen(self, kind: int, index: int, node: int) -> bool:
        """Let an event happen; return whether a policy may want to know."""
        if kind == Event.TOOL_END:
            self._complete(self._requests[index].calls[node])
        else:
            self._arrive(self._requests[index])
        return True

    # --- requests -------------------------------------------------------------------------------------------

    def _workflow(self, request: Request) -> tuple[WorkflowGraph, OutcomeTable]:
        return self.compiled.graphs[request.workflow], self.compiled.outcomes[request.workflow]

    def _row(self, request: Request) -> int:
        """Return the row of the outcome table that a request is about."""
        return request.query

    def _arrive(self, request: Request) -> None:
        request.arrival_ps = self._now_ps
        request.rank = len(self._arrived)
        self._arrived.append(request)
        self._start_nodes(request)

    def _complete(self, call: Call) -> None:
        call.request.done.add(call.node)
        self._start_nodes(call.request)

    def _start_nodes(self, request: Request) -> None:
        """Start or skip every node whose parents are done; finish the request when no node is left."""
        graph = self._workflow(request)[0]
        for k, node in enumerate(graph.nodes):  # in topological order: one pass is enough
            if k in request.started or not request.done.issuperset(node.parents):
                continue
            request.started.add(k)
            if self._is_skipped(request, k, node):
                request.done.add(k)
                continue
            call = request.calls[k] = Call(request, k, self._now_ps)
            if node.kind == "tool":
                call.output_tokens, tool_s = self._tool(request, k)
                self._at(self._now_ps + round(tool_s * PS_PER_S), Event.TOOL_END, request.index, k)
            else:
                call.prompt_tokens = sum(length for _, length in self._prompt(call))
                self._ready.append(call)
        if len(request.done) == len(graph.nodes):
            self._finish(request)

    def _tool(self, request: Request, k: int) -> tuple[int, float]:
        """Return the tokens that a tool answers with, and its seconds."""
        outcomes = self._workflow(request)[1]
        row = self._row(request)
        return int(outcomes.output_tokens[row, k, 0]), float(outcomes.tool_s[row, k])

    def _is_skipped(self, request: Request, k: int, node: Node) -> bool:
        """Return whether a node is a surplus copy, or its `skip.on` call says that it is not needed."""
        skipped = self._workflow(request)[1].skipped[self._row(request), k]
        return bool(skipped[self._served_by(request, node.skip_on)])

    def _served_by(self, request: Request, node: int) -> int:
        """Return the model that served a node; one that was skipped counts as served by the largest model."""
        call = request.calls.get(node)
        return len(self.compiled.models) - 1 if call is None else call.model

    def _finish(self, request: Request) -> None:
        """Grade a request and, in a closed loop, let its user think about the next one."""
        graph = self._workflow(request)[0]
        request.finish_ps = self._now_ps
        request.configuration = 0
        for k, node in enumerate(graph.nodes):
            if node.kind == "llm":
                digit = self._served_by(request, k)
                request.configuration = request.configuration * len(self.compiled.models) + digit
        request.correct = int(request.uniform < self._p_correct(request, request.configuration))
        self._completed += 1
        following = request.index + self.scenario.workload.arrivals.users
        if following in self._think_ps:
            self._at(self._now_ps + self._think_ps[following], Event.ARRIVAL, following)

    def _p_correct(self, request: Request, configuration: int) -> float:
        """Return how likely a configuration's answer to a request is right."""
        return float(self._workflow(request)[1].p_correct[self._row(request), configuration])

    def _prompt(self, call: Call) -> list[tuple[int, int]]:
        """Return the (content id, tokens) of a prompt's parts."""
        request = call.request
        graph, outcomes = self._workflow(request)
        prompt = graph.stage_of[call.node].prompt
        assert prompt is not None
        own = int(outcomes.own_prompt_tokens[self._row(request), call.node])
        template = min(prompt.template_tokens, own)
        parts = [
            (self._content("template", request.workflow, prompt.template), template),
            (self._content("query", request.workflow, request.query), own - template),
        ]
        for k in graph.nodes[call.node].context:
            if k in request.calls:
                parts.append((self._content("output", request.index, k), request.calls[k].output_tokens))
        if not any(length for _, length in parts):
            # A server refuses an empty prompt; where all that it is made of was skipped, one token stands for it.
            parts[1] = (parts[1][0], 1)
        return parts

    def _content(self, *name: object) -> int:
        """Return the number of a text."""
        return self._contents.setdefault(name, len(self._contents))

    # --- decisions ------------------------------------------------------------------------------------------

    def step(self, action: Dispatch | Wait) -> None:
        """Carry out a decision and go on to the next one."""
        if self.done:
            raise ValueError("the episode is over")
        if isinstance(action, Dispatch):
            self._dispatch(action)
        elif action.until_s < math.inf and round(action.until_s * PS_PER_S) <= self._now_ps:
            raise ValueError(f"it is {self.now_s:.6f} s already, so one cannot wait until {action.until_s:.6f} s")
        elif action.until_s == math.inf and not self._events and not any(server.has_work for server in self._servers):
            raise ValueError("nothing is running and no request is to come, so waiting would never end")
        self._decisions += 1
        if isinstance(action, Wait):
            self._advance(action.until_s)
        elif not self._ready:
            self._advance()

    def _slots(self) -> list[Call]:
        """Return the ready calls: oldest request first, inside a request the deepest node first."""

        def order(call: Call) -> tuple[int, int, int]:
            depth = self._workflow(call.request)[0].nodes[call.node].depth
            return call.request.rank, -depth, call.node

        return sorted(self._ready, key=order)

    def _routes_for(self, call: Call) -> list[bool]:
        candidates = self._workflow(call.request)[0].stage_of[call.node].candidates
        names = [self.compiled.models[m].name for m in self._models]
        return [candidates is None or name in candidates for name in names]

    def _dispatch(self, action: Dispatch) -> None:
        slots, replicas = self._slots(), self.compiled.replicas
        if not 0 <= action.call < len(slots):
            raise ValueError(f"call {action.call} is not ready (0..{len(slots) - 1} are)")
        if not 0 <= action.route < len(replicas):
            raise ValueError(f"route {action.route} does not exist (0..{len(replicas) - 1} do)")
        call, route = slots[action.call], action.route
        if not self._routes_for(call)[route]:
            name = replicas[route].name
            raise ValueError(f"route {route} ({name}) does not serve a candidate model of call {action.call}")
        request = call.request
        call.route, call.model = route, self._models[route]
        call.dispatch_ps, call.sequence = self._now_ps, len(self._dispatched)
        # A server stops at max_model_len (`vllm/v1/core/sched/utils.py:check_stop`).
        room = self.compiled.engines[route].max_model_len - call.prompt_tokens
        call.output_tokens = min(self._written(call), room)
        self._ready.remove(call)
        self._dispatched.append(call)
        asked = EngineRequest(
            request_id=call.sequence,
            arrival_ps=self._now_ps,
            prompt=tuple(part for part in self._prompt(call) if part[1]),
            output_tokens=call.output_tokens,
            output_content_id=self._content("output", request.index, call.node),
            priority=action.priority,
        )
        self._send(call, asked)

    def _written(self, call: Call) -> int:
        """Return the tokens that a call's model writes."""
        outcomes = self._workflow(call.request)[1]
        return int(outcomes.output_tokens[self._row(call.request), call.node, call.model])

    def _send(self, call: Call, asked: EngineRequest) -> None:
        """Hand a call to its server."""
        self._servers[call.route].submit(call, asked)

    def view(self) -> DispatchView:
        """Return the current decision."""
        slots, compiled = self._slots(), self.compiled
        calls = np.zeros(len(slots), VIEW_CALL)
        served = np.full((len(slots), compiled.max_nodes), -1, np.int32)
        for view, models, call in zip(calls, served, slots, strict=True):
            request = call.request
            nodes = self._workflow(request)[0].nodes
            view["request"], view["workflow"], view["node"] = request.rank, request.workflow, call.node
            view["query"] = request.query
            view["depth"] = nodes[call.node].depth
            view["nodes_done"], view["nodes"] = len(request.done), len(nodes)
            view["prompt_tokens"] = call.prompt_tokens
            view["arrival_s"] = request.arrival_ps / PS_PER_S
            view["ready_s"] = call.ready_ps / PS_PER_S
            for k, other in request.calls.items():
                models[k] = other.model
        routes = np.zeros(len(self._servers), VIEW_ROUTE)
        for view, server, model in zip(routes, self._servers, self._models, strict=True):
            engine = server.engine
            view["model"], view["up"] = model, 1
            view["running"], view["waiting"] = len(engine.running), len(engine.waiting)
            view["max_seqs"], view["kv_blocks"] = engine.config.max_num_seqs, engine.config.usable_blocks
            view["kv_blocks_used"] = engine.config.usable_blocks - engine.free_blocks
            view["waiting_tokens"] = server.waiting_tokens
        allowed = np.array([self._routes_for(call) for call in slots], np.bool_)
        in_flight = len(self._arrived) - self._completed
        return DispatchView(
            compiled.info, self.now_s, calls, routes, allowed.reshape(len(slots), -1), in_flight, served
        )

    @property
    def outcomes(self) -> tuple[OutcomeTable, ...]:
        """The outcome table of each workflow."""
        return self.compiled.outcomes

    @property
    def draws(self) -> tuple[NDArray[np.float64], ...]:
        """Per workflow (Q,): which answers of the tables are right in this episode."""
        return self._draws

    # --- records --------------------------------------------------------------------------------------------

    def log(self) -> EpisodeLog:
        """Return the log of the episode so far."""
        compiled = self.compiled
        return EpisodeLog(
            **compiled.log_header,
            policy="",
            seed=-1,
            requests=np.array([tuple(self._request_row(request)) for request in self._arrived], REQUEST_DTYPE),
            calls=np.array([tuple(self._call_row(call)) for call in self._dispatched], CALL_DTYPE),
            decision_s=np.zeros(0),
            busy_s=np.array([server.busy_ps(self._now_ps) / PS_PER_S for server in self._servers]),
            iterations=np.array([server.engine.iterations for server in self._servers], np.int64),
            duration_s=self.now_s,
            truncated=self.truncated,
            outcome_kinds=tuple(table.kind for table in compiled.outcomes),
            notes={
                "num_gpu_blocks": [config.num_gpu_blocks for config in compiled.engines],
                "num_gpu_blocks_given": list(compiled.blocks_given),
                "latency": [f"{table.kind}: {table.source}" for table in compiled.latencies],
                "decisions": self._decisions,
            },
        )

    def _seconds(self, time_ps: int) -> float:
        """Return seconds, nan for what has not happened yet."""
        return time_ps / PS_PER_S if 0 <= time_ps <= self._now_ps else float("nan")

    def _request_row(self, request: Request) -> Iterator[object]:
        """Yield the fields of REQUEST_DTYPE."""
        largest = self._workflow(request)[1].configurations - 1
        yield from (request.workflow, request.query)
        yield from (self._seconds(request.arrival_ps), self._seconds(request.finish_ps))
        yield from (request.configuration, request.correct)
        yield self._p_correct(request, request.configuration) if request.finish_ps >= 0 else float("nan")
        yield self._p_correct(request, largest)
        yield self._alone_s(request)

    def _alone_s(self, request: Request) -> float:
        row = int(self.compiled.workflow.first_row[request.workflow]) + self._row(request)
        return int(self.compiled.standalone_ps[row]) / PS_PER_S

    def _call_row(self, call: Call) -> Iterator[object]:
        """Yield the fields of CALL_DTYPE."""
        yield from (call.request.rank, call.node, call.model, call.route)
        yield from (call.prompt_tokens, call.output_tokens, call.cached_tokens)
        yield self._servers[call.route].preemptions(call)
        for time_ps in (call.ready_ps, call.dispatch_ps, call.start_ps, call.first_token_ps, call.finish_ps):
            yield self._seconds(time_ps)

    def close(self) -> None:
        """Nothing to release."""
