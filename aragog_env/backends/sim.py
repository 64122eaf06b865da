"""The simulated cluster as a backend."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..compiled_scenario import CompiledScenario, compile_scenario
from ..engine.replica import steps_begun
from ..engine.state import NEVER, STRETCH
from ..episode import CALL_DTYPE, REQUEST_DTYPE, EpisodeLog
from ..events import advance, next_event_ps
from ..jit import kernel
from ..latency.compiled import PS_PER_S
from ..outcomes import OutcomeTable
from ..policy import Dispatch, Wait
from ..progress import dispatch_slot
from ..simulation import Simulation
from ..specs.scenario import Scenario
from ..view import VIEW_CALL, VIEW_ROUTE, DispatchView, fill_calls, fill_routes

# mypy: disable-error-code="no-untyped-def"


class SimBackend:
    """A virtual cluster in virtual time (see `backends.base.Backend`)."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.compiled: CompiledScenario = compile_scenario(scenario)
        self.simulation = Simulation(self.compiled)

    @property
    def _env(self) -> np.void:
        env: np.void = self.simulation.progress.env[0]
        return env

    @property
    def done(self) -> bool:
        """Whether the episode is over."""
        return bool(self._env["done"])

    @property
    def truncated(self) -> bool:
        """Whether the horizon cut it."""
        return bool(self._env["truncated"])

    @property
    def now_s(self) -> float:
        """Virtual seconds since the episode began."""
        return float(self._env["now_ps"]) / PS_PER_S

    def reset(self, seed: int) -> None:
        """Begin the episode of `seed`."""
        self.simulation.reset(0, seed)

    def view(self) -> DispatchView:
        """Return the current decision."""
        sim, compiled = self.simulation, self.compiled
        env = self._env
        ready = int(env["ready"])
        calls = np.zeros(ready, VIEW_CALL)
        routes = np.zeros(len(compiled.replicas), VIEW_ROUTE)
        allowed = np.zeros((ready, len(routes)), np.bool_)
        served = np.full((ready, compiled.max_nodes), -1, np.int32)
        _fill(compiled.workflow, compiled.engine, sim.state, sim.progress, 0, ready, calls, routes, allowed, served)
        in_flight = int(env["arrived"]) - int(env["completed"])
        return DispatchView(compiled.info, self.now_s, calls, routes, allowed, in_flight, served)

    def step(self, action: Dispatch | Wait) -> None:
        """Carry out a decision and go on to the next one."""
        sim, compiled = self.simulation, self.compiled
        tables = (compiled.workflow, compiled.engine, sim.state, sim.progress, 0)
        if self.done:
            raise ValueError("the episode is over")
        if isinstance(action, Dispatch):
            self._check(action)
            _dispatch(*tables, action.call, action.route, action.priority)
            return
        until_ps = NEVER if action.until_s == math.inf else round(action.until_s * PS_PER_S)
        if until_ps <= self._env["now_ps"]:
            raise ValueError(f"it is {self.now_s:.6f} s already, so one cannot wait until {action.until_s:.6f} s")
        if min(until_ps, next_event_ps(compiled.workflow, sim.state, sim.progress, 0)) >= NEVER:
            raise ValueError("nothing is running and no request is to come, so waiting would never end")
        self._env["decisions"] += 1
        advance(*tables, until_ps)

    def _check(self, action: Dispatch) -> None:
        ready, routes = int(self._env["ready"]), len(self.compiled.replicas)
        if not 0 <= action.call < ready:
            raise ValueError(f"call {action.call} is not ready (0..{ready - 1} are)")
        if not 0 <= action.route < routes:
            raise ValueError(f"route {action.route} does not exist (0..{routes - 1} do)")
        sim = self.simulation
        if not _is_allowed(self.compiled.workflow, sim.state, sim.progress, action.call, action.route):
            name = self.compiled.replicas[action.route].name
            raise ValueError(f"route {action.route} ({name}) does not serve a candidate model of call {action.call}")

    @property
    def outcomes(self) -> tuple[OutcomeTable, ...]:
        """The outcome table of each workflow, for policies that are handed them (`policy.NeedsOutcomes`)."""
        return self.compiled.outcomes

    @property
    def draws(self) -> tuple[NDArray[np.float64], ...]:
        """Per workflow (Q,): which answers of the tables are right in this episode."""
        tape = self.simulation.tapes[0]
        return () if tape is None else tape.draws

    def log(self) -> EpisodeLog:
        """Return the log of the episode so far."""
        return episode_log(self.simulation, 0)

    def close(self) -> None:
        """Nothing to release."""


@kernel
def _fill(wt, tables, state, progress, e, ready, calls, routes, allowed, served):
    fill_routes(wt, tables, state, e, progress.env[e].now_ps, routes)
    fill_calls(wt, state, progress, e, ready, calls, allowed)
    width = served.shape[1]
    for slot in range(ready):
        q = progress.by_rank[e, calls[slot].request]
        for node in range(width):
            served[slot, node] = state.call[e, q * width + node].model


@kernel
def _is_allowed(wt, state, progress, slot, route):
    key = progress.ready[0, slot]
    w = progress.request[0, progress.by_rank[0, key >> 16]].workflow
    return wt.allowed[w, key & 255, route] != 0 and state.replica[0, route].up != 0


@kernel
def _dispatch(wt, tables, state, progress, e, slot, route, priority):
    env = progress.env[e]
    env.decisions += 1
    dispatch_slot(wt, tables, state, progress, e, slot, route, priority)
    if env.ready == 0:
        advance(wt, tables, state, progress, e, NEVER)


def _seconds(times_ps: NDArray[np.int64], now_ps: int) -> NDArray[np.float64]:
    """Return seconds, nan for what has not happened by `now_ps`."""
    return np.where((times_ps < 0) | (times_ps > now_ps), np.nan, times_ps / PS_PER_S)


def episode_log(sim: Simulation, e: int) -> EpisodeLog:
    """Return the log of environment `e`, without policy name and decision times."""
    compiled, env = sim.compiled, sim.progress.env[e]
    scenario, wt = compiled.scenario, compiled.workflow
    now_ps, width = int(env["now_ps"]), compiled.max_nodes
    order = sim.progress.by_rank[e, : int(env["arrived"])]
    tape_requests = sim.progress.request[e][order]
    requests = np.zeros(len(order), REQUEST_DTYPE)
    requests["workflow"] = tape_requests["workflow"]
    requests["query"] = tape_requests["row"] - wt.first_row[tape_requests["workflow"]]
    requests["arrival_s"] = tape_requests["arrival_ps"] / PS_PER_S
    requests["finish_s"] = _seconds(tape_requests["finish_ps"], now_ps)
    requests["configuration"], requests["correct"] = tape_requests["configuration"], tape_requests["correct"]
    first = wt.first_configuration[tape_requests["workflow"]]
    configurations = wt.configurations[tape_requests["workflow"]]
    base = first + requests["query"] * configurations
    requests["p_largest"] = wt.p_correct[base + configurations - 1]
    done = tape_requests["finish_ps"] >= 0
    requests["p_correct"] = np.nan
    requests["p_correct"][done] = wt.p_correct[base[done] + requests["configuration"][done]]
    requests["standalone_s"] = compiled.standalone_ps[tape_requests["row"]] / PS_PER_S
    rank = np.full(int(env["requests"]), -1, np.int32)
    rank[order] = np.arange(len(order))
    raw = sim.state.call[e]
    index = np.flatnonzero((raw["dispatch_ps"] >= 0) & (raw["replica"] >= 0))
    index = index[np.argsort(raw["sequence"][index], kind="stable")]
    chosen = raw[index]
    calls = np.zeros(len(index), CALL_DTYPE)
    calls["request"], calls["node"] = rank[index // width], index % width
    for mine, theirs in (
        ("model", "model"),
        ("route", "replica"),
        ("prompt_tokens", "prompt"),
        ("output_tokens", "output"),
        ("cached_tokens", "cached"),
        ("preemptions", "preemptions"),
    ):
        calls[mine] = chosen[theirs]
    for name in ("ready", "dispatch", "start", "finish"):
        calls[f"{name}_s"] = _seconds(chosen[f"{name}_ps"], now_ps)
    calls["first_token_s"] = _seconds(chosen["first_ps"], now_ps)
    replica = sim.state.replica[e]
    running = np.where(replica["mode"] >= STRETCH, now_ps - replica["begin_ps"], 0)
    begun = [steps_begun(sim.state, e, r, compiled.engine, now_ps) for r in range(len(replica))]
    objective = scenario.objective
    return EpisodeLog(
        scenario=scenario.name,
        policy="",
        seed=-1,
        workflows=tuple(g.workflow.name for g in compiled.graphs),
        models=tuple(m.name for m in compiled.models),
        replicas=tuple(r.name for r in compiled.replicas),
        replica_models=tuple(int(m) for m in wt.route_model),
        replica_gpus=tuple(r.tp for r in compiled.replicas),
        replica_usd_per_hour=compiled.usd_per_hour,
        node_names=tuple(tuple(n.name for n in g.nodes) for g in compiled.graphs),
        requests=requests,
        calls=calls,
        decision_s=np.zeros(0),
        busy_s=(replica["busy_ps"] + running) / PS_PER_S,
        iterations=replica["iterations"] + np.array(begun, np.int64),
        duration_s=now_ps / PS_PER_S,
        warmup_requests=scenario.horizon.warmup_requests,
        truncated=bool(env["truncated"]),
        slo_s=objective.slo_s,
        slo_scale=objective.slo_scale,
        outcome_kinds=tuple(o.kind for o in compiled.outcomes),
        notes={
            "num_gpu_blocks": [c.num_gpu_blocks for c in compiled.engines],
            "num_gpu_blocks_given": list(compiled.blocks_given),
            "latency": [f"{t.kind}: {t.source}" for t in compiled.latencies],
            "decisions": int(env["decisions"]),
        },
    )
