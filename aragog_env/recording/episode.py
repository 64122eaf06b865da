"""The log of a recorded episode: with it every metric, table and picture works on a recording as on a simulated run."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..compiled_scenario import CompiledScenario
from ..episode import CALL_DTYPE, REQUEST_DTYPE, EpisodeLog
from ..latency.compiled import PS_PER_S
from .reader import Recording
from .run import compiled_scenario, last_session

_NAN: Final = float("nan")


def recorded_log(recording: Recording) -> EpisodeLog:
    """Return the log that the live backend gave when the run ended, with policy, seed and decision times.

    Decision times are those from the view to the action. Of a run that was killed it is the log up to its last trace. Calls
    whose end nobody knows are in it without an end, attempts that failed are not.

    Raises:
        SpecError: the recording is empty, or its workflows have changed since.
    """
    compiled = compiled_scenario(recording)
    session = last_session(recording)
    replicas = len(compiled.replicas)
    end_s = recording.last_s if session["ended_s"] is None else float(session["ended_s"])
    requests = list(recording.rows("requests"))
    calls = _calls(recording, compiled, int(session["session"]))
    in_flight = any(row["status"] == "in flight" for row in requests)
    unfinished = in_flight or len(requests) < recording.run["requests"]
    decisions = recording.rows("decisions")
    retries = sum(row["kind"] == "call tried again" for row in recording.rows("events"))
    return EpisodeLog(
        **compiled.log_header,
        policy=recording.run["policy"],
        seed=recording.run["seed"],
        requests=_requests(requests, compiled),
        calls=calls,
        decision_s=np.array([row["wall_s"] for row in decisions], np.float64),
        busy_s=np.array([_busy_s(calls[calls["route"] == r], end_s) for r in range(replicas)]),
        iterations=np.zeros(replicas, np.int64),
        duration_s=end_s,
        truncated=session["ending"] == "horizon" and unfinished,
        outcome_kinds=tuple("live" for _ in compiled.graphs),
        notes={
            "backend": "live",
            "recording": str(recording.path),
            "retries": retries,
            "failed_requests": {row["request"]: row["reason"] for row in requests if row["status"] == "failed"},
            "standalone_s": "of the outcome table"
            if all(_is_measured(compiled, w) for w in range(len(compiled.graphs)))
            else "mean of the simulated queries",
        },
    )


def _is_measured(compiled: CompiledScenario, workflow: int) -> bool:
    """Return whether query i of a live run is row i of the outcome table."""
    table = compiled.outcomes[workflow]
    return table.kind == "measured" and bool(table.query_ids)


def _requests(rows: list[dict[str, Any]], compiled: CompiledScenario) -> NDArray[np.void]:
    names = [graph.workflow.name for graph in compiled.graphs]
    result = np.zeros(len(rows), REQUEST_DTYPE)
    for into, row in zip(result, rows, strict=True):
        w, query = names.index(row["workflow"]), row["query"]
        configuration = -1 if row["configuration"] is None else row["configuration"]
        into["workflow"], into["query"], into["arrival_s"] = w, query, row["arrival_s"]
        into["finish_s"] = _NAN if row["finish_s"] is None else row["finish_s"]
        into["configuration"] = configuration
        into["correct"] = -1 if row["correct"] is None else row["correct"]
        into["p_correct"] = into["p_largest"] = _NAN
        first, n = int(compiled.workflow.first_row[w]), compiled.outcomes[w].queries
        alone_s = compiled.standalone_ps[first : first + n] / PS_PER_S
        into["standalone_s"] = alone_s.mean()
        # The table may be another one than when this was recorded.
        if _is_measured(compiled, w) and row["query_id"] in (ids := compiled.outcomes[w].query_ids):
            place = query if query < len(ids) and ids[query] == row["query_id"] else ids.index(row["query_id"])
            p = compiled.outcomes[w].p_correct[place]
            into["p_correct"], into["p_largest"] = p[configuration] if configuration >= 0 else _NAN, p[-1]
            into["standalone_s"] = alone_s[place]
    return result


def _calls(recording: Recording, compiled: CompiledScenario, session: int) -> NDArray[np.void]:
    """Return finished calls, and those of the last session that were in flight when it ended, by time of dispatch."""
    models = [model.name for model in compiled.models]
    lost = "status IN ('lost', 'in flight') AND session = ?"
    rows = list(recording.rows("calls", f"status = 'ok' OR ({lost})", (session,)))
    rows.sort(key=lambda row: float(row["dispatch_s"]))
    result = np.zeros(len(rows), CALL_DTYPE)
    for into, row in zip(result, rows, strict=True):
        for name in ("request", "node", "route", "ready_s", "dispatch_s"):
            into[name] = row[name]
        into["model"] = models.index(row["model"])
        into["prompt_tokens"] = row["prompt_tokens"] or _estimated_tokens(recording, row)
        into["start_s"] = into["first_token_s"] = into["finish_s"] = _NAN
        if row["status"] == "ok":
            for name in ("output_tokens", "cached_tokens", "first_token_s", "finish_s"):
                into[name] = row[name]
    return result


def _estimated_tokens(recording: Recording, row: dict[str, Any]) -> int:
    """Return the prompt tokens that the policy saw of a call: no server has counted them."""
    if row["decision"] is None:
        return 0
    seen = recording.view(row["decision"]).calls
    mine = seen[(seen["request"] == row["request"]) & (seen["node"] == row["node"])]
    return int(mine["prompt_tokens"][0]) if len(mine) else 0


def _busy_s(calls: NDArray[np.void], end_s: float) -> float:
    """Return how long a server had at least one of these calls."""
    total, until_s = 0.0, -np.inf
    ends_s = np.where(np.isfinite(calls["finish_s"]), calls["finish_s"], end_s)
    for begin_s, finish_s in sorted(zip(calls["dispatch_s"].tolist(), ends_s.tolist(), strict=True)):
        total += max(0.0, finish_s - max(begin_s, until_s))
        until_s = max(until_s, finish_s)
    return float(total)
