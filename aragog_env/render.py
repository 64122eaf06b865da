"""The present state of a simulated cluster as text (render mode `ansi`); `aragog_env.frame` makes the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .engine.state import REPLICA_SPEC
from .latency.compiled import PS_PER_S
from .simulation import Simulation

SPAN: Final = np.dtype(
    [
        ("request", "i4"),  # order of arrival
        ("workflow", "i4"),
        ("node", "i4"),
        ("begin_s", "f8"),
        ("start_s", "f8"),  # the server took it up; `end_s` where it has not
        ("first_s", "f8"),  # first token; `end_s` where there is none yet
        ("end_s", "f8"),  # the present where it has not ended
    ]
)


@dataclass(frozen=True)
class Gauge:
    """The load of one replica now."""

    replica: str
    model: str
    running: int
    max_seqs: int
    waiting: int
    kv_used: float
    """Share of the KV blocks that running requests hold."""


@dataclass(frozen=True)
class Status:
    """What both renderings say in words."""

    scenario: str
    now_s: float
    in_flight: int
    completed: int
    requests: int
    gauges: tuple[Gauge, ...]
    ready: NDArray[np.void]  # (n,) of SPAN: calls that the policy may dispatch now, in slot order


def status(simulation: Simulation, e: int = 0) -> Status:
    """Read the present state of environment `e`."""
    compiled, env = simulation.compiled, simulation.progress.env[e]
    spec: NDArray[np.void] = compiled.engine.spec
    assert spec.dtype == REPLICA_SPEC
    gauges = []
    for r, replica in enumerate(compiled.replicas):
        now = simulation.state.replica[e, r]
        blocks = int(spec["blocks"][r])
        gauges.append(
            Gauge(
                replica.name,
                replica.model,
                int(now["running"]),
                int(spec["max_seqs"][r]),
                int(now["waiting"]),
                (blocks - int(now["free"])) / blocks,
            )
        )
    return Status(
        scenario=compiled.scenario.name,
        now_s=float(env["now_ps"]) / PS_PER_S,
        in_flight=int(env["arrived"]) - int(env["completed"]),
        completed=int(env["completed"]),
        requests=int(env["requests"]),
        gauges=tuple(gauges),
        ready=_ready_spans(simulation, e),
    )


def _ready_spans(simulation: Simulation, e: int) -> NDArray[np.void]:
    """Return the calls that wait for the policy."""
    progress, width = simulation.progress, simulation.compiled.max_nodes
    env = progress.env[e]
    keys = progress.ready[e, : int(env["ready"])]
    rank, node = keys >> 16, keys & 255
    position = progress.by_rank[e][rank]
    spans = np.zeros(len(keys), SPAN)
    spans["request"], spans["node"] = rank, node
    spans["workflow"] = progress.request[e]["workflow"][position]
    spans["begin_s"] = simulation.state.call[e]["ready_ps"][position * width + node] / PS_PER_S
    for name in ("start_s", "first_s", "end_s"):
        spans[name] = float(env["now_ps"]) / PS_PER_S
    return spans


def render_ansi(simulation: Simulation, e: int = 0, *, width: int = 20, most_ready: int = 8) -> str:
    """Return the state of environment `e` as text: one line per replica, then the calls that are ready.

    Args:
        simulation: what to show.
        e: which of its environments.
        width: characters of a bar.
        most_ready: how many ready calls are listed; the others are counted.
    """
    now = status(simulation, e)
    name_width = max(7, *(len(g.replica) for g in now.gauges))
    model_width = max(5, *(len(g.model) for g in now.gauges))
    lines = [
        f"{now.scenario}  t={now.now_s:.3f} s  in flight {now.in_flight}  "
        f"completed {now.completed}/{now.requests}  ready {len(now.ready)}",
        f"{'replica':{name_width}}  {'model':{model_width}}  {'running':{width + 8}}  {'waiting':{width // 2 + 4}}  KV",
    ]
    for g in now.gauges:
        running = f"{_bar(g.running / g.max_seqs, width)} {g.running}/{g.max_seqs}"
        waiting = f"{'▪' * min(g.waiting, width // 2):{width // 2}} {g.waiting}"
        lines.append(
            f"{g.replica:{name_width}}  {g.model:{model_width}}  {running:{width + 8}}  "
            f"{waiting:{width // 2 + 4}}  {_bar(g.kv_used, width // 2)} {g.kv_used:4.0%}"
        )
    graphs = simulation.compiled.graphs
    for call in now.ready[:most_ready]:
        graph = graphs[call["workflow"]]
        lines.append(
            f"  ready: #{call['request']} {graph.workflow.name}/{graph.nodes[call['node']].name}"
            f"  for {now.now_s - call['begin_s']:.3f} s"
        )
    if len(now.ready) > most_ready:
        lines.append(f"  and {len(now.ready) - most_ready} more")
    return "\n".join(lines) + "\n"


def _bar(share: float, width: int) -> str:
    """Return a bar; anything above zero shows."""
    full = min(width, max(round(share * width), 1 if share > 0 else 0))
    return "█" * full + "░" * (width - full)
