"""One live episode: requests, calls on their way, and what the servers, tools and graders report.

The thread that decides owns all state. Calls, health and metrics run in the thread of a `ServerPool`, tools and graders in
threads of their own; what they find comes back through one queue and is applied between decisions.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Sequence
from typing import Any

from ...compiled_scenario import CompiledScenario
from ...errors import AragogError
from ...grading.grade import Grade
from ...grading.tools import ToolResult
from ...policy import Dispatch
from ...recording.writer import RecordingWriter
from ...servers.client import CallError, Completion, CompletionRequest
from ...servers.endpoints import Endpoint
from ...servers.pool import RouteState, ServerPool
from ...view import ClusterInfo
from ...workload.tape import Tape
from .clock import Clock
from .log import CallTrace
from .options import LiveOptions
from .progress import LiveCall, LiveRequest, ReadyCalls, TokenEstimator
from .queries import LiveQueries
from .record import call_values, dispatch_values, grade_values, metrics_values
from .servable import Servable
from .tape import ArrivalQueue
from .view import Routing, Sent
from .work import Workers


class LiveEpisode:
    """The state of a live episode and its way from one decision to the next. `LiveBackend` is its only user.

    Attributes:
        requests: by order of arrival.
        sent: calls on their way, by ticket.
        traces: every call that was sent, by its number in the recording.
        choice: the calls of the present decision, and `states`, what was known of the servers then.
        changes: counts what has happened; two equal counts mean that nothing has.
    """

    def __init__(
        self,
        compiled: CompiledScenario,
        queries: LiveQueries,
        info: ClusterInfo,
        endpoints: Sequence[Endpoint],
        tape: Tape,
        record: RecordingWriter,
        options: LiveOptions,
    ) -> None:
        self.compiled, self.queries, self.info, self.record, self.options = compiled, queries, info, record, options
        self.endpoints = tuple(endpoints)
        self.routing = Routing(compiled)
        self.tape = tape
        self.arrivals = ArrivalQueue(tape)
        self.requests: list[LiveRequest] = []
        self.ready = ReadyCalls()
        self.sent: dict[int, Sent] = {}
        self.traces: dict[int, CallTrace] = {}
        self.tokens = TokenEstimator()
        self.states: tuple[RouteState, ...] = ()
        self.choice: list[LiveCall] = []
        self.changes = self.retries = 0
        self.decided_s: list[float] = []
        """Times of the decisions of earlier sessions."""
        self.clock = Clock()
        self.done = self.truncated = False
        self.duration_s = 0.0
        self._events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._tickets = 0
        self._closed = False
        self._up = [False] * len(self.endpoints)
        self._servable = Servable(self.ready, self.routing, options.unservable_s)
        self._workers = Workers(options.workers, self._events)
        self.pool = ServerPool(
            endpoints, time.perf_counter, self._on_finished, self._on_changed, options.timeouts, options.pool
        )

    def connect(self) -> None:
        """Begin to watch the servers; refuse to go on without one for every model.

        Raises:
            AragogError: no server of some model answers.
        """
        self.pool.start(self.options.ready_s)
        route_model = self.compiled.workflow.route_model
        for m, name in enumerate(self.info.models):
            mine = [r for r in range(len(self.endpoints)) if route_model[r] == m]
            if not any(self.pool.routes[r].up for r in mine):
                endpoint, reason = self.endpoints[mine[0]], self.pool.routes[mine[0]].reason
                raise AragogError(f"no server of model '{name}' answers; '{endpoint.name}' at {endpoint.url}: {reason}")

    @property
    def now_s(self) -> float:
        """Seconds since the clock was started."""
        return self.clock.now_s

    def start(self) -> None:
        """Start the clock and go to the first decision."""
        self.clock.start()
        for request in self.requests:
            if request.status == "in flight":
                self._advance(request, self.now_s)
            elif request.status == "done" and not request.graded:
                self._workers.grade(request)
        self.to_decision()

    @property
    def in_flight(self) -> int:
        """Requests that arrived and are not over."""
        return sum(request.status == "in flight" for request in self.requests)

    @property
    def _moves(self) -> bool:
        """Whether anything is on its way that will change the state by itself."""
        on_its_way = self.sent or self._workers.tools or self.arrivals or self._events.qsize()
        return bool(on_its_way) or self._servable.parked()

    @property
    def expects(self) -> bool:
        """Whether a policy may wait: something is on its way, or a server may come back that a call had better have."""
        return self._moves or bool(self._servable.lacking(self.pool.routes))

    def dispatch(self, call: LiveCall, action: Dispatch, decision: int) -> None:
        """Send a ready call to a route, as decision number `decision` says."""
        request, route = call.request, action.route
        model = int(self.compiled.workflow.route_model[route])
        stage = request.runtime.graph.stage_of[call.node]
        assert stage.output is not None
        room = int(self.compiled.engine.spec[route]["max_len"]) - call.prompt_tokens
        ask = CompletionRequest(
            call.prompt,
            max(1, min(stage.output.max_tokens, room)),
            temperature=self.options.temperature,
            ignore_eos=self.options.ignore_eos,
            priority=action.priority,
        )
        call.attempt += 1
        request.served[call.node] = model
        self.ready.remove(call)
        sent = Sent(call, route, model, self.now_s, action.priority)
        sent.number = self.record.dispatch(**dispatch_values(self, sent, decision, ask))
        ticket = self._tickets
        self._tickets += 1
        self.sent[ticket] = sent
        self.traces[sent.number] = CallTrace(
            request.rank, call.node, model, route, call.ready_s, sent.dispatch_s, call.prompt_tokens
        )
        self.pool.submit(ticket, route, ask)

    def to_decision(self) -> None:
        """Apply what has happened; where no call can be decided about, wait until one can or the episode is over."""
        self.wait(-math.inf, self.changes)

    def wait(self, until_s: float, since: int) -> None:
        """Go on to the next event after the state `since`, or to `until_s`, and to the decision that follows.

        A policy that waits for nothing but a server gets `unservable_s`; then the requests that it holds back fail.
        """
        patience_s = self.now_s + self.options.unservable_s
        while True:
            self._apply_all()
            if self._is_over():
                return
            self.states = tuple(self.pool.routes)
            self.choice = self._servable.now(self.states, self.now_s)
            if self.choice and (self.changes != since or self.now_s >= until_s):
                return
            held_back = bool(self.choice) and until_s == math.inf and not self._moves
            if held_back and self.now_s >= patience_s:
                failures = list(self._servable.held_back(self.pool.routes))
                for request, reason in failures:
                    self._fail(request, reason)
                if not failures:
                    return  # it has come back this very moment
                continue
            self._sleep((patience_s if held_back else until_s) if self.choice else math.inf)

    def _apply_all(self) -> None:
        """Let requests arrive that are due, and take in everything that the other threads found."""
        while self.arrivals and self.arrivals.next_s <= self.now_s:
            due_s, tape = self.arrivals.pop()
            self._arrive(tape, due_s)
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                break
            self._apply(event)
        for request, reason in self._servable.lost(self.pool.routes, self.now_s):
            self._fail(request, reason)

    def _sleep(self, until_s: float) -> None:
        """Wait for the next thing to happen, at most until something is due."""
        deadlines = [until_s, self.arrivals.next_s if self.arrivals else math.inf, self._horizon_s()]
        deadlines += self._servable.due_s()
        remaining_s = min(deadlines) - self.now_s
        if remaining_s <= 0:
            return
        try:
            self._apply(self._events.get(timeout=min(remaining_s, 3600.0)))
        except queue.Empty:
            pass

    def _horizon_s(self) -> float:
        duration_s = self.compiled.scenario.horizon.duration_s
        return math.inf if duration_s is None else duration_s

    def _is_over(self) -> bool:
        """Find out whether the episode is over, and if so end it."""
        if self.done:
            return True
        unfinished = len(self.arrivals) > 0 or any(request.status == "in flight" for request in self.requests)
        if self.now_s >= self._horizon_s():
            self.truncated = unfinished
            self.end("horizon")
        elif not unfinished and not self._workers.grades:
            self.end("drained")
        return self.done

    def _arrive(self, tape: int, due_s: float) -> None:
        workflow, query = int(self.tape.workflow[tape]), int(self.tape.query[tape])
        record = self.queries.records[workflow][query]
        runtime = self.queries.runtimes[workflow]
        request = LiveRequest(len(self.requests), tape, workflow, query, record, runtime, due_s)
        self.requests.append(request)
        self.changes += 1
        self.record.arrival(
            request.rank,
            tape=tape,
            workflow=runtime.workflow.name,
            query=query,
            query_id=record.id,
            arrival_s=due_s,
        )
        self._advance(request, due_s)

    def _advance(self, request: LiveRequest, now_s: float) -> None:
        """Start what can be started of a request; finish it when nothing is left."""
        try:
            calls, tools = request.advance()
            prompts = [request.runtime.prompt(node, request.record, request.outputs) for node in calls]
        except Exception as error:  # a workflow's own function, on whatever a model wrote
            self._fail(request, f"its workflow raised {type(error).__name__}: {error}")
            return
        for node, prompt in zip(calls, prompts, strict=True):
            tokens = self.tokens.estimate(request.workflow, node, prompt)
            self.ready.add(LiveCall(request, node, prompt, tokens, now_s))
        for node in tools:
            self._workers.run_tool(request, node)
        if request.is_complete:
            self._complete(request, now_s)

    def _complete(self, request: LiveRequest, now_s: float) -> None:
        request.status, request.finish_s, request.end_s = "done", now_s, now_s
        configuration, answer = request.configuration(len(self.info.models)), request.runtime.answer(request.outputs)
        self.record.request(request.rank, status="done", finish_s=now_s, configuration=configuration, answer=answer)
        self.arrivals.finished(request.tape, now_s)
        self._workers.grade(request)

    def _fail(self, request: LiveRequest, reason: str) -> None:
        """Give a request up: it counts as unfinished, its other calls are broken off, and the record says why."""
        request.status, request.reason, request.end_s = "failed", reason, self.now_s
        self.ready.drop(request)
        for ticket, sent in self.sent.items():
            if sent.call.request is request:
                self.pool.cancel(ticket, "its request has failed")
        self.changes += 1
        self.record.request(request.rank, status="failed", reason=reason)
        self.record.event(self.now_s, "request failed", reason, request=request.rank)
        self.arrivals.finished(request.tape, self.now_s)

    def _apply(self, event: tuple[Any, ...]) -> None:
        kind, *rest = event
        if kind == "error":
            raise rest[0]
        self.changes += kind != "grade"
        if kind == "call":
            self._call_ended(*rest)
        elif kind == "tool":
            self._tool_ended(*rest)
        elif kind == "grade":
            self._graded(*rest)

    def _call_ended(self, ticket: int, result: Completion | CallError) -> None:
        sent = self.sent.pop(ticket)
        call, request = sent.call, sent.call.request
        trace = self.traces[sent.number]
        if isinstance(result, Completion):
            trace.end(result, self.clock.at)
            self.tokens.learn(request.workflow, call.node, call.prompt, result.prompt_tokens)
            if request.status == "in flight":
                request.complete(call.node, result.text)
                self._advance(request, self.clock.at(result.finish_s))
            return
        trace.failed = True
        if request.status != "in flight":
            return
        self._try_again(call, sent, result)

    def _try_again(self, call: LiveCall, sent: Sent, error: CallError) -> None:
        """Make a call ready again, away from where it failed; or give its request up."""
        request = call.request
        call.last_error = f"{self.endpoints[sent.route].name}: {error}"
        if error.kind == "refused":
            call.refused.add(sent.model)
        else:
            call.excluded.add(sent.route)
        request.served.pop(call.node, None)
        if call.attempt >= self.options.max_attempts:
            self._fail(request, f"stage '{call.stage}': {call.attempt} attempts failed; the last on {call.last_error}")
            return
        self.retries += 1
        self.record.event(self.now_s, "call tried again", call.last_error, route=sent.route, request=request.rank)
        self.ready.add(call)

    def _tool_ended(
        self, request: LiveRequest, node: int, result: ToolResult | Exception, begin_s: float, end_s: float
    ) -> None:
        self._workers.tools -= 1
        stage = request.runtime.graph.nodes[node].name
        if request.status != "in flight":
            return
        if isinstance(result, Exception):
            self._fail(request, f"tool '{stage}' raised {type(result).__name__}: {result}")
            return
        self.record.tool(
            request=request.rank,
            node=node,
            stage=stage,
            start_s=self.clock.at(begin_s),
            finish_s=self.clock.at(end_s),
            ok=int(result.ok),
            output=result.text,
        )
        request.complete(node, result.text)
        self._advance(request, self.clock.at(end_s))

    def _graded(self, request: LiveRequest, grade: Grade | Exception) -> None:
        self._workers.grades -= 1
        request.graded = True
        if isinstance(grade, Exception):
            self.record.request(request.rank, grade="error", grade_detail=f"{type(grade).__name__}: {grade}")
            self.record.event(self.now_s, "grader failed", f"{type(grade).__name__}: {grade}", request=request.rank)
            return
        request.correct = int(grade.correct) if grade.graded else -1
        self.record.request(request.rank, **grade_values(grade))

    def _on_finished(self, ticket: int, route: int, result: Completion | CallError) -> None:
        """Write a call's end at once: the policy may be thinking, and this process may be killed meanwhile."""
        try:
            sent = self.sent[ticket]
            self.record.call(sent.number, **call_values(result, self.clock.at, self.now_s))
            self._events.put(("call", ticket, result))
        except Exception as error:
            self._events.put(("error", error))

    def _on_changed(self, route: int, state: RouteState) -> None:
        if not self.clock.begun:
            self._up[route] = state.up
            return
        try:
            if state.up != self._up[route]:
                self._up[route] = state.up
                kind = "server up" if state.up else "server down"
                self.record.event(self.now_s, kind, state.reason, route=route)
                self._events.put(("route", route))
            elif state.up:
                self.record.metrics(route=route, **metrics_values(state.metrics, self.clock.at(state.read_s)))
        except Exception as error:
            self._events.put(("error", error))

    def end(self, ending: str) -> None:
        """Stop everything and close the recording; only the first call counts."""
        if self._closed:
            return
        self._closed, self.done = True, True
        self.duration_s = self.now_s
        try:
            self.pool.close()
            self._workers.close()
        finally:
            self.record.lose_calls(f"in flight at the end ({ending})")
            self.record.end_session(self.duration_s, ending)
            self.record.close()
