"""What a live episode writes into its recording, and how it is taken up again from there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import SpecError
from ...grading.grade import Grade
from ...grading.sandbox import isolation
from ...recording.reader import Recording, dtype_text
from ...recording.writer import RecordingWriter
from ...servers.client import CallError, Completion, CompletionRequest
from ...servers.metrics import ServerMetrics
from ...specs.load import scenario_hash
from ...specs.strict import dump_yaml
from ...view import VIEW_CALL, VIEW_ROUTE
from .log import CallTrace
from .progress import LiveRequest

if TYPE_CHECKING:
    from ...compiled_scenario import CompiledScenario
    from ...view import ClusterInfo
    from .episode import LiveEpisode
    from .options import LiveOptions
    from .view import Sent


def open_recording(
    path: Path,
    compiled: CompiledScenario,
    info: ClusterInfo,
    policy: str,
    seed: int,
    options: LiveOptions,
    *,
    resume: bool,
) -> RecordingWriter:
    """Open the recording of an episode for writing (see `RecordingWriter`)."""
    scenario = compiled.scenario
    run = {
        "scenario": scenario.name,
        "scenario_hash": scenario_hash(scenario),
        "scenario_yaml": dump_yaml(scenario),
        "policy": policy,
        "seed": seed,
        "requests": scenario.horizon.requests,
        "workflows": list(info.workflows),
        "nodes": [list(nodes) for nodes in info.nodes],
        "models": list(info.models),
        "routes": list(info.routes),
        "view_call": dtype_text(VIEW_CALL),
        "view_route": dtype_text(VIEW_ROUTE),
        "options": asdict(options),
    }
    if resume and not path.exists():
        raise SpecError("there is no such recording to resume", where=str(path))
    return RecordingWriter(path, run, resume=resume)


def begin_session(episode: LiveEpisode, versions: object, machine: object) -> None:
    """Note who runs, on what, with which servers."""
    servers = [{k: v for k, v in asdict(endpoint).items() if k != "api_key_env"} for endpoint in episode.endpoints]
    episode.record.begin_session(
        episode.clock.offset_s, versions=versions, machine=machine, isolation=list(isolation()), servers=servers
    )


def dispatch_values(episode: LiveEpisode, sent: Sent, decision: int, ask: CompletionRequest) -> dict[str, Any]:
    """Return what the table `calls` says of a call that is about to be sent."""
    call = sent.call
    return {
        "decision": decision,
        "request": call.request.rank,
        "node": call.node,
        "stage": call.stage,
        "attempt": call.attempt,
        "route": sent.route,
        "server": episode.endpoints[sent.route].name,
        "model": episode.info.models[sent.model],
        "priority": sent.priority,
        "ready_s": call.ready_s,
        "dispatch_s": sent.dispatch_s,
        "max_tokens": ask.max_tokens,
        "prompt": ask.prompt,
    }


def call_values(result: Completion | CallError, at: Callable[[float], float], now_s: float) -> dict[str, Any]:
    """Return what the table `calls` says of the end of a call."""
    if isinstance(result, CallError):
        return {"status": result.kind, "error": str(result), "finish_s": now_s, "output": result.partial or None}
    return {
        "status": "ok",
        "first_token_s": at(result.first_token_s),
        "finish_s": at(result.finish_s),
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "output": result.text,
        "output_tokens": result.output_tokens,
        "finish_reason": result.finish_reason,
        "token_s": [at(time_s) for time_s in result.token_s],
        "token_count": result.token_count,
    }


def grade_values(grade: Grade) -> dict[str, Any]:
    """Return what the table `requests` says of a grade; `correct` is NULL where nothing was graded."""
    return {
        "correct": int(grade.correct) if grade.graded else None,
        "score": grade.score if grade.graded else None,
        "grade": grade.status,
        "grade_answer": grade.answer,
        "grade_detail": grade.detail,
        "grade_s": grade.wall_s,
    }


def metrics_values(metrics: ServerMetrics, time_s: float) -> dict[str, Any]:
    """Return what the table `server_metrics` says of a reading."""
    return {"time_s": time_s, **{k: v for k, v in asdict(metrics).items() if k != "block_size"}}


def restore(episode: LiveEpisode, path: Path) -> None:
    """Take up a run where its recording ends: finished requests are finished, finished calls are not sent again.

    The clock goes on at the last time that was written, so that the time in between is no one's latency. Requests that were
    in flight keep their arrival; their calls that were in flight are sent anew.
    """
    with Recording(path) as recording:
        episode.clock.offset_s = recording.last_s
        outputs: dict[int, dict[int, tuple[str, int]]] = {}
        for row in recording.rows("calls"):
            _restore_call(episode, row, outputs)
        episode.decided_s = [row["wall_s"] for row in recording.rows("decisions")]
        episode.retries = sum(row["kind"] == "call tried again" for row in recording.rows("events"))
        tools: dict[int, dict[int, str]] = {}
        for row in recording.rows("tools"):
            tools.setdefault(row["request"], {})[row["node"]] = row["output"]
        for row in recording.rows("requests"):
            _restore_request(episode, row, outputs.get(row["request"], {}), tools.get(row["request"], {}))
    episode.record.lose_calls("the client ended while the call was in flight")
    episode.arrivals.forget(request.tape for request in episode.requests)
    for request in episode.requests:
        if request.status != "in flight":
            over_s = request.finish_s if request.status == "done" else episode.clock.offset_s
            episode.arrivals.finished(request.tape, over_s)
    episode.arrivals.forget(request.tape for request in episode.requests)


def _restore_call(episode: LiveEpisode, row: dict[str, Any], outputs: dict[int, dict[int, tuple[str, int]]]) -> None:
    if row["status"] != "ok":
        return
    model = episode.info.models.index(row["model"])
    outputs.setdefault(row["request"], {})[row["node"]] = (row["output"], model)
    episode.traces[row["call"]] = CallTrace(
        row["request"],
        row["node"],
        model,
        row["route"],
        row["ready_s"],
        row["dispatch_s"],
        row["prompt_tokens"],
        row["output_tokens"],
        row["cached_tokens"],
        row["first_token_s"],
        row["finish_s"],
    )


def _restore_request(
    episode: LiveEpisode, row: dict[str, Any], outputs: dict[int, tuple[str, int]], tools: dict[int, str]
) -> None:
    workflow = episode.info.workflows.index(row["workflow"])
    query = row["query"]
    records = episode.queries.records[workflow]
    if query >= len(records) or records[query].id != row["query_id"]:
        message = f"the data set of '{row['workflow']}' has changed: query {query} was '{row['query_id']}'"
        raise SpecError(message, where=str(episode.record.path))
    runtime = episode.queries.runtimes[workflow]
    request = LiveRequest(row["request"], row["tape"], workflow, query, records[query], runtime, row["arrival_s"])
    request.restore(outputs, tools)
    request.status, request.reason = row["status"], row["reason"] or ""
    if row["finish_s"] is not None:
        request.finish_s = request.end_s = row["finish_s"]
    if row["correct"] is not None:
        request.correct = row["correct"]
    request.graded = row["grade"] is not None
    episode.requests.append(request)
