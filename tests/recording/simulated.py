"""Recordings of simulated runs: what a live run would have written if its servers were exactly those of the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aragog_env.backends.reference_server import Call
from aragog_env.backends.shared_host import SharedHostBackend
from aragog_env.latency.compiled import PS_PER_S
from aragog_env.policy import Dispatch, Policy
from aragog_env.recording.reader import dtype_text
from aragog_env.recording.writer import RecordingWriter
from aragog_env.specs.load import scenario_hash
from aragog_env.specs.strict import dump_yaml
from aragog_env.view import VIEW_CALL, VIEW_ROUTE


def record(
    backend: SharedHostBackend, policy: Policy, name: str, seed: int, path: Path, *, ending: str | None = "drained"
) -> None:
    """Play an episode and write it as a recording; `ending` None is a run that was killed."""
    backend.reset(seed)
    policy.reset(backend.scenario, seed)
    decisions: list[dict[str, Any]] = []
    by_call: dict[tuple[int, int], int] = {}
    while not backend.done:
        view = backend.view()
        action = policy.act(view)
        row: dict[str, Any] = {"action": "wait"}
        if isinstance(action, Dispatch):
            call = view.calls[action.call]
            key = (int(call["request"]), int(call["node"]))
            by_call[key] = len(decisions)
            row = {"action": "dispatch", "request": key[0], "node": key[1]}
            row |= {"route": action.route, "priority": action.priority}
        elif np.isfinite(action.until_s):
            row["until_s"] = action.until_s
        decisions.append(
            {
                "time_s": view.now_s, "wall_s": 0.0, "in_flight": view.in_flight, "ready": len(view.calls),
                "calls": view.calls, "routes": view.routes, "allowed": view.allowed, "served_by": view.served_by, **row,
            }
        )  # fmt: skip
        backend.step(action)
    _write(backend, name, seed, path, decisions, by_call, ending)


def run_row(backend: SharedHostBackend, policy: str, seed: int) -> dict[str, Any]:
    """Return what the table `run` says, as the live backend writes it."""
    scenario, info = backend.scenario, backend.compiled.info
    return {
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
        "options": {},
    }


def _write(
    backend: SharedHostBackend,
    policy: str,
    seed: int,
    path: Path,
    decisions: list[dict[str, Any]],
    by_call: Mapping[tuple[int, int], int],
    ending: str | None,
) -> None:
    compiled = backend.compiled
    writer = RecordingWriter(path, run_row(backend, policy, seed))
    servers = [{"name": r.name, "url": "http://127.0.0.1:1"} for r in compiled.replicas]
    writer.begin_session(0.0, versions={}, machine={}, isolation=[], servers=servers)
    for request in backend._arrived:
        graph, table = backend._workflow(request)
        ids = table.query_ids
        writer.arrival(
            request.rank,
            tape=request.index,
            workflow=graph.workflow.name,
            query=request.query,
            query_id=ids[request.query] if ids else f"q{request.query}",
            arrival_s=request.arrival_ps / PS_PER_S,
        )
        if request.finish_ps >= 0:
            writer.request(
                request.rank, status="done", finish_s=request.finish_ps / PS_PER_S,
                configuration=request.configuration, answer="", correct=request.correct, grade="passed",
            )  # fmt: skip
        for node, call in request.calls.items():
            if graph.nodes[node].kind == "tool" and node in request.done:
                seconds = float(table.tool_s[request.query, node])
                begin_s = call.ready_ps / PS_PER_S
                writer.tool(
                    request=request.rank, node=node, stage=graph.nodes[node].name,
                    start_s=begin_s, finish_s=begin_s + seconds, ok=1, output="x" * call.output_tokens,
                )  # fmt: skip
    for decision in decisions:
        writer.decision(**decision)
    for call in backend._dispatched:
        decision = by_call[call.request.rank, call.node]
        _write_call(backend, writer, call, decision, decisions[decision]["priority"])
    if ending is not None:
        writer.end_session(backend.now_s, ending)
    writer.close()


def _write_call(backend: SharedHostBackend, writer: RecordingWriter, call: Call, decision: int, priority: int) -> None:
    compiled, request = backend.compiled, call.request
    number = writer.dispatch(
        decision=decision,
        request=request.rank,
        node=call.node,
        stage=backend._workflow(request)[0].nodes[call.node].name,
        attempt=1,
        route=call.route,
        server=compiled.replicas[call.route].name,
        model=compiled.models[call.model].name,
        priority=priority,
        ready_s=call.ready_ps / PS_PER_S,
        dispatch_s=call.dispatch_ps / PS_PER_S,
        max_tokens=4096,
        prompt="y" * call.prompt_tokens,
    )
    if 0 <= call.finish_ps <= backend._now_ps:
        token_s = [time_ps / PS_PER_S for time_ps in backend._servers[call.route].token_ps[call.sequence]]
        writer.call(
            number,
            token_s,
            list(range(1, len(token_s) + 1)),
            status="ok",
            first_token_s=call.first_token_ps / PS_PER_S,
            finish_s=call.finish_ps / PS_PER_S,
            prompt_tokens=call.prompt_tokens,
            cached_tokens=call.cached_tokens,
            output="z" * call.output_tokens,
            output_tokens=call.output_tokens,
            finish_reason="stop",
        )
