"""One live episode: requests, calls on their way, and what the servers, tools and graders report.

The thread that decides owns all state. Calls, health and metrics run in the thread of a `ServerPool`, tools and graders in
threads of their own; what they find comes back through one queue and is applied between decisions.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..compiled_scenario import CompiledScenario
from ..errors import AragogError
from ..grading.grade import Grade
from ..grading.tools import ToolResult
from ..policy import Dispatch
from ..recording.writer import RecordingWriter
from ..servers.client import CallError, Completion, CompletionRequest
from ..servers.endpoints import Endpoint
from ..servers.pool import RouteState, ServerPool
from ..view import ClusterInfo
from ..workload.tape import Tape
from .live_log import CallTrace
from .live_options import LiveOptions
from .live_progress import LiveCall, LiveRequest, ReadyCalls, TokenEstimator
from .live_queries import LiveQueries
from .live_record import call_values, dispatch_values, grade_values, metrics_values
from .live_tape import ArrivalQueue
from .live_view import Routing, Sent


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
        self.offset_s = 0.0
        """Where the clock begins: a resumed run goes on where it stood."""
        self.done = self.truncated = False
        self.duration_s = 0.0
        self._events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._working = self._grading = self._tickets = 0
        self._zero_s = math.nan
        self._closed = False
        self._up = [False] * len(self.endpoints)
        self._tools = ThreadPoolExecutor(options.workers, "aragog-tool")
        self._graders = ThreadPoolExecutor(options.workers, "aragog-grader")
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

    def at(self, raw_s: float) -> float:
        """Return a moment of the performance counter as seconds since the episode began."""
        return raw_s - self._zero_s + self.offset_s

    @property
    def now_s(self) -> float:
        """Seconds since the clock was started."""
        return self.offset_s if math.isnan(self._zero_s) else self.at(time.perf_counter())

    @property
    def begun(self) -> bool:
        """Whether the clock runs."""
        return not math.isnan(self._zero_s)

    def start(self) -> None:
        """Start the clock and go to the first decision."""
        self._zero_s = time.perf_counter()
        for request in self.requests:
            if request.status == "in flight":
                self._advance(request, self.now_s)
            elif request.status == "done" and not request.graded:
                self._grade(request)
        self.to_decision()

    @property
    def in_flight(self) -> int:
        """Requests that arrived and are not over."""
        return sum(request.status == "in flight" for request in self.requests)

    @property
    def expects(self) -> bool:
        """Whether anything is on its way that will change the state by itself."""
        parked = any(call.parked_s is not None for call in self.ready)
        return bool(self.sent or self._working or self.arrivals or self._events.qsize() or parked)

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
        """Go on to the next event after the state `since`, or to `until_s`, and to the decision that follows."""
        while True:
            self._apply_all()
            if self._is_over():
                return
            self.states = tuple(self.pool.routes)
            self.choice = self._open_calls(self.states)
            if self.choice and (self.changes != since or self.now_s >= until_s):
                return
            self._sleep(until_s if self.choice else math.inf)

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
        self._give_up_parked()

    def _sleep(self, until_s: float) -> None:
        """Wait for the next thing to happen, at most until something is due."""
        deadlines = [until_s, self.arrivals.next_s if self.arrivals else math.inf, self._horizon_s()]
        deadlines += [c.parked_s + self.options.unservable_s for c in self.ready if c.parked_s is not None]
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
        elif not unfinished and not self._grading:
            self.end("drained")
        return self.done

    def _open_calls(self, states: Sequence[RouteState]) -> list[LiveCall]:
        """Return the ready calls that some server can take now; note since when the others cannot."""
        found = []
        for call in self.ready:
            if self.routing.permitted(states, call):
                call.parked_s = None
                found.append(call)
            elif call.parked_s is None:
                call.parked_s = self.now_s
        return found

    def _give_up_parked(self) -> None:
        """Fail the requests of calls that no server will take, or that have waited too long for one."""
        self._open_calls(self.pool.routes)
        for call in self.ready:
            if call.request.status != "in flight":
                continue
            stage = call.request.runtime.graph.nodes[call.node].name
            if not self.routing.candidates(call):
                self._fail(call.request, f"stage '{stage}': every server refuses the call; {call.last_error}")
            elif call.parked_s is not None and self.now_s - call.parked_s >= self.options.unservable_s:
                waited = f"no server could take the call for {self.now_s - call.parked_s:.0f} s"
                self._fail(call.request, f"stage '{stage}': {waited}; {call.last_error or 'all are down'}")

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
            self._working += 1
            self._tools.submit(self._run_tool, request, node, dict(request.outputs))
        if request.is_complete:
            self._complete(request, now_s)

    def _complete(self, request: LiveRequest, now_s: float) -> None:
        request.status, request.finish_s = "done", now_s
        configuration, answer = request.configuration(len(self.info.models)), request.runtime.answer(request.outputs)
        self.record.request(request.rank, status="done", finish_s=now_s, configuration=configuration, answer=answer)
        self.arrivals.finished(request.tape, now_s)
        self._grade(request)

    def _grade(self, request: LiveRequest) -> None:
        """Have an answer graded in another thread; the request is served, its user does not wait for this."""
        self._grading += 1
        self._graders.submit(request.runtime.grade, request.record, dict(request.outputs)).add_done_callback(
            lambda future: self._events.put(("grade", request, future))
        )

    def _fail(self, request: LiveRequest, reason: str) -> None:
        """Give a request up: it counts as unfinished, and the record says why."""
        request.status, request.reason = "failed", reason
        self.ready.drop(request)
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
            trace.end(result, self.at)
            self.tokens.learn(request.workflow, call.node, call.prompt, result.prompt_tokens)
            if request.status == "in flight":
                request.complete(call.node, result.text)
                self._advance(request, self.at(result.finish_s))
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
            stage = request.runtime.graph.nodes[call.node].name
            self._fail(request, f"stage '{stage}': {call.attempt} attempts failed; the last on {call.last_error}")
            return
        self.retries += 1
        self.record.event(self.now_s, "call tried again", call.last_error, route=sent.route, request=request.rank)
        self.ready.add(call)

    def _run_tool(self, request: LiveRequest, node: int, outputs: dict[int, str]) -> None:
        """Run a tool; in a thread."""
        begin_s = time.perf_counter()
        result: ToolResult | Exception
        try:
            result = request.runtime.run_tool(node, request.record, outputs)
        except Exception as error:
            result = error
        self._events.put(("tool", request, node, result, begin_s, time.perf_counter()))

    def _tool_ended(
        self, request: LiveRequest, node: int, result: ToolResult | Exception, begin_s: float, end_s: float
    ) -> None:
        self._working -= 1
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
            start_s=self.at(begin_s),
            finish_s=self.at(end_s),
            ok=int(result.ok),
            output=result.text,
        )
        request.complete(node, result.text)
        self._advance(request, self.at(end_s))

    def _graded(self, request: LiveRequest, future: Future[Grade]) -> None:
        self._grading -= 1
        request.graded = True
        error = future.exception()
        if error is not None:
            self.record.request(request.rank, grade="error", grade_detail=f"{type(error).__name__}: {error}")
            self.record.event(self.now_s, "grader failed", f"{type(error).__name__}: {error}", request=request.rank)
            return
        grade = future.result()
        request.correct = int(grade.correct) if grade.graded else -1
        self.record.request(request.rank, **grade_values(grade))

    def _on_finished(self, ticket: int, route: int, result: Completion | CallError) -> None:
        """Write a call's end at once: the policy may be thinking, and this process may be killed meanwhile."""
        try:
            sent = self.sent[ticket]
            self.record.call(sent.number, **call_values(result, self.at, self.now_s))
            self._events.put(("call", ticket, result))
        except Exception as error:
            self._events.put(("error", error))

    def _on_changed(self, route: int, state: RouteState) -> None:
        if not self.begun:
            self._up[route] = state.up
            return
        try:
            if state.up != self._up[route]:
                self._up[route] = state.up
                kind = "server up" if state.up else "server down"
                self.record.event(self.now_s, kind, state.reason, route=route)
                self._events.put(("route", route))
            elif state.up:
                self.record.metrics(route=route, **metrics_values(state.metrics, self.at(state.read_s)))
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
            self._tools.shutdown(wait=False, cancel_futures=True)
            self._graders.shutdown(wait=False, cancel_futures=True)
        finally:
            self.record.lose_calls(f"in flight at the end ({ending})")
            self.record.end_session(self.duration_s, ending)
            self.record.close()
