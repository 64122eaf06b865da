"""Throughput-load profiles: how many calls per second an engine completes when it always holds b of them.

Aragog's scheduler (arXiv 2511.20975, section 3.2) plans with two things measured offline per (model, engine): the curve of
throughput against load, and the *saturation point*, the load past which throughput stops rising. Here both are measured on
the simulated engine, with calls drawn from the scenario's own workflows; the file is the same for live servers.

How it is measured: n calls wait at a server that runs at most b of them at a time, so that exactly b are served from the
first completion to the last but b. That is a closed loop of b clients without think time in which no client runs out early.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..compiled_scenario import CompiledScenario, compile_scenario
from ..engine.open_loop import RequestArrays, run_open_loop
from ..engine.state import allocate
from ..errors import SpecError
from ..files import write_atomically
from ..latency.compiled import PS_PER_S
from ..progress import TEMPLATE_CONTENT
from ..specs.load import scenario_hash
from ..specs.scenario import HorizonSpec, ObjectiveSpec, ObservationSpec, Scenario
from ..specs.workload import ArrivalSpec

SCHEMA: Final = 1
SATURATION_SHARE: Final = 0.95
"""An engine is saturated at the smallest load whose throughput is this share of the curve's maximum."""
LOADS: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_CALLS_PER_LOAD: Final = 12
_LEAST_CALLS: Final = 600
_SEED: Final = 0


@dataclass(frozen=True)
class ReplicaProfile:
    """Throughput against load of one kind of replica: a model on certain GPUs with certain server settings.

    Attributes:
        names: the replicas of this kind, by their names in the cluster.
        loads: calls in service at once, ascending.
        throughput_rps: calls completed per second at each load, as measured.
        prompt_tokens: mean prompt of the calls it was measured with.
        output_tokens: mean output of them.
    """

    names: tuple[str, ...]
    model: str
    gpu: str
    tp: int
    max_num_seqs: int
    loads: tuple[int, ...]
    throughput_rps: tuple[float, ...]
    prompt_tokens: float
    output_tokens: float

    def __post_init__(self) -> None:
        """Refuse what is no curve."""
        loads, rates = self.loads, self.throughput_rps
        ascending = all(a < b for a, b in zip((0, *loads), loads, strict=False))
        if not loads or len(loads) != len(rates) or not ascending or not all(0 < x < float("inf") for x in rates):
            raise SpecError(
                "'loads' must be ascending whole numbers from 1 on, with one positive 'throughput_rps' each",
                where=f"profile of {', '.join(self.names)}",
            )

    def curve_rps(self) -> NDArray[np.float64]:
        """Return the smoothed throughput at loads 0, 1, ..., the largest measured one, (loads[-1] + 1,).

        Smoothed means the concave, non-decreasing curve through (0, 0) whose slopes are nearest to the measured ones (least
        squares, weighted by the width of each interval). The paper's ranking needs a marginal gain that falls near saturation;
        measured points carry noise, and some engines lose throughput once KV memory is short.
        """
        grid = np.array([0, *self.loads], np.float64)
        slopes = np.diff([0.0, *self.throughput_rps]) / np.diff(grid)
        fitted = np.maximum(_non_increasing(slopes, np.diff(grid)), 0.0)
        knots = np.concatenate([[0.0], np.cumsum(fitted * np.diff(grid))])
        curve: NDArray[np.float64] = np.interp(np.arange(self.loads[-1] + 1), grid, knots)
        return curve

    def saturation(self, share: float = SATURATION_SHARE) -> int:
        """Return the smallest load at which the smoothed throughput is `share` of its maximum; at least 1."""
        curve = self.curve_rps()
        return max(1, int(np.argmax(curve >= share * curve[-1])))


@dataclass(frozen=True)
class Profile:
    """The profiles of all replicas of a cluster, for the calls of one mix of workflows."""

    scenario: str
    source: str
    """How it was made: ``simulated``, or what measured it."""
    replicas: tuple[ReplicaProfile, ...]

    def of(self, name: str) -> ReplicaProfile:
        """Return the profile of the replica called `name`.

        Raises:
            SpecError: the profile does not cover it.
        """
        for entry in self.replicas:
            if name in entry.names:
                return entry
        known = ", ".join(n for entry in self.replicas for n in entry.names)
        raise SpecError(f"the profile has no replica '{name}' (it has {known}); make it again with 'aragog profile'")

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON, whole or not at all."""
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"
        write_atomically(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile written by `save`.

        Raises:
            SpecError: the file is missing, damaged, or no profile of this schema.
        """
        where = str(path)
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SpecError("there is no such profile; 'aragog profile --out PATH' makes one", where=where) from error
        except (OSError, ValueError) as error:
            raise SpecError(f"this is no JSON file ({error})", where=where) from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise SpecError(f"this is no profile of schema {SCHEMA}; make it again with 'aragog profile'", where=where)
        try:
            entries = tuple(_replica_from(entry) for entry in data["replicas"])
            return cls(str(data["scenario"]), str(data["source"]), entries)
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"the profile lacks or misstates a field ({error})", where=where) from error
        except SpecError as error:
            raise SpecError(error.message, where=where) from error


def _replica_from(entry: dict[str, Any]) -> ReplicaProfile:
    lists = {key: tuple(entry[key]) for key in ("names", "loads", "throughput_rps")}
    return ReplicaProfile(**{**entry, **lists})


def _non_increasing(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the non-increasing sequence nearest to `values` (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (a, wa, na), (b, wb, nb) = blocks[-2:]
            blocks[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return np.repeat([mean for mean, _, _ in blocks], [length for _, _, length in blocks])


def profile_scenario(scenario: Scenario, *, cached: bool = True) -> Profile:
    """Return the profile of a scenario's cluster under the calls of its workflows, measured on the simulated engine.

    Kept in memory and in the user's cache folder; arrivals, horizon and objective do not matter.

    Args:
        scenario: any valid scenario.
        cached: False measures again and writes nothing.

    Raises:
        SpecError: the scenario cannot run.
    """
    plain = replace(
        scenario,
        name="",
        description="",
        workload=replace(scenario.workload, arrivals=ArrivalSpec("poisson", 1.0)),
        horizon=HorizonSpec(1),
        objective=ObjectiveSpec(),
        observation=ObservationSpec(),
    )
    compiled = compile_scenario(scenario)
    if not cached:
        return _measure(compiled)
    return _remembered(_key(plain, compiled), compiled)


@lru_cache(maxsize=32)
def _remembered(key: str, compiled: CompiledScenario) -> Profile:
    path = cache_folder() / f"{key}.json"
    try:
        return Profile.load(path)
    except SpecError:
        profile = _measure(compiled)
    try:
        profile.save(path)
    except OSError:
        pass  # A read-only home only means that the next process measures again.
    return profile


def cache_folder() -> Path:
    """Return where profiles are kept: `aragog-gym/profiles` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aragog-gym" / "profiles"


def _key(plain: Scenario, compiled: CompiledScenario) -> str:
    """Return a hash of all that determines a profile: cluster, mix, lengths of calls, iteration times, engine, this module."""
    digest = hashlib.sha256(scenario_hash(plain).encode())
    for path in (Path(__file__), *sorted(Path(__file__).parents[1].glob("engine/*.py"))):
        digest.update(path.read_bytes())
    lengths = (compiled.workflow.output, compiled.workflow.own_prompt, compiled.workflow.skipped)
    for array in (*lengths, *compiled.engine):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def _measure(compiled: CompiledScenario) -> Profile:
    """Measure one curve per distinct kind of replica."""
    cluster = compiled.scenario.cluster
    kinds: dict[object, list[int]] = {}
    for r, spec in enumerate(compiled.replicas):
        kinds.setdefault(replace(spec, name=""), []).append(r)
    entries = []
    for routes in kinds.values():
        r = routes[0]
        spec = compiled.replicas[r]
        limit = compiled.engines[r].max_num_seqs
        loads = sorted({*(b for b in LOADS if b < limit), limit})
        calls = draw_calls(compiled, r, max(_LEAST_CALLS, _CALLS_PER_LOAD * loads[-1]))
        entries.append(
            ReplicaProfile(
                names=tuple(compiled.replicas[k].name for k in routes),
                model=spec.model,
                gpu=spec.gpu,
                tp=spec.tp,
                max_num_seqs=limit,
                loads=tuple(loads),
                throughput_rps=tuple(closed_loop_rps(compiled, r, calls, b) for b in loads),
                prompt_tokens=float(calls.prompt.mean()),
                output_tokens=float(calls.output.mean()),
            )
        )
    return Profile(f"{compiled.scenario.name} on {cluster.name}", "simulated", tuple(entries))


@dataclass(frozen=True, eq=False)
class CallSample:
    """Calls of a mix of workflows, in random order. n calls."""

    prompt: NDArray[np.int32]  # (n,) tokens
    output: NDArray[np.int32]  # (n,) tokens
    template: NDArray[np.int64]  # (n,) content id of the prompt's shared beginning
    template_tokens: NDArray[np.int64]  # (n,)


def draw_calls(compiled: CompiledScenario, route: int, n: int) -> CallSample:
    """Return n calls as the workflows of the scenario make them when the model of `route` serves every stage.

    Requests are drawn by the weights of the mix, queries uniformly, and every stage that is not skipped makes one call.
    """
    rng = np.random.default_rng(_SEED)
    wt, model = compiled.workflow, int(compiled.workflow.route_model[route])
    weights = np.array([entry.weight for entry in compiled.scenario.workload.mix])
    counts = np.maximum(1, rng.multinomial(n, weights / weights.sum()))
    columns: list[NDArray[np.int64]] = []
    for w, count in enumerate(counts):
        rows = wt.first_row[w] + rng.integers(compiled.outcomes[w].queries, size=count)
        written: list[NDArray[np.int64]] = []
        for node in range(wt.nodes[w]):
            runs = (wt.skipped[rows, node] >> model & 1) == 0
            written.append(np.where(runs, wt.output[rows, node, model], 0).astype(np.int64))
            if wt.is_tool[w, node]:
                continue
            own = wt.own_prompt[rows, node].astype(np.int64)
            context = sum((written[k] for k in range(node) if wt.context[w, node] >> k & 1), np.zeros_like(own))
            shared = np.minimum(own, wt.template_tokens[w, node])
            template = np.full_like(own, TEMPLATE_CONTENT + wt.template[w, node])
            columns.append(np.stack([np.maximum(1, own + context), written[node], template, shared])[:, runs])
    calls = np.concatenate(columns, axis=1)
    limit = compiled.engines[route].max_model_len
    calls[1] = np.minimum(calls[1], limit - calls[0])
    calls = calls[:, calls[1] >= 1]
    calls = calls[:, rng.permutation(calls.shape[1])[:n]]
    if calls.shape[1] == 0:
        raise SpecError(
            f"replica '{compiled.replicas[route].name}': no call of the scenario fits max_model_len={limit}"
        )
    return CallSample(calls[0].astype(np.int32), calls[1].astype(np.int32), calls[2].copy(), calls[3].copy())


def closed_loop_rps(compiled: CompiledScenario, route: int, calls: CallSample, load: int) -> float:
    """Return calls per second of the engine behind `route` while it holds `load` calls."""
    n = min(len(calls.prompt), max(_LEAST_CALLS, _CALLS_PER_LOAD * load))
    load = min(load, n // 3)
    spec = compiled.engine.spec[route : route + 1].copy()
    spec["max_seqs"], spec["block_base"], spec["bucket_base"] = load, 0, 0
    tables = compiled.engine._replace(spec=spec)
    requests = _backlog(calls, n)
    state = allocate(tables, 1, n, int(requests.arena[-1]))
    run_open_loop(state, 0, tables, requests)
    finish_ps = np.sort(state.call[0]["finish_ps"])
    # The first `load` calls began together, and from the last `load` on the batch empties: neither is steady.
    first, last = load - 1, n - load - 1
    if finish_ps[last] <= finish_ps[first]:
        first, last = 0, n - 1
    return float((last - first) * PS_PER_S / (finish_ps[last] - finish_ps[first]))


def _backlog(calls: CallSample, n: int) -> RequestArrays:
    """Return the first n calls as requests that all wait from the start: template, rest of the prompt, output."""
    ids = np.stack([calls.template[:n], 2 * np.arange(n), 2 * np.arange(n) + 1], axis=1).ravel()
    prompt, output = calls.prompt[:n], calls.output[:n]
    shared = calls.template_tokens[:n]
    lengths = np.stack([shared, prompt - shared, output], axis=1).ravel().astype(np.int64)
    none = np.full(n, -1, np.int32)
    blocks = (prompt.astype(np.int64) + output) // 16 + 1
    return RequestArrays(
        arrival_ps=np.zeros(n, np.int64),
        open_order=np.arange(n, dtype=np.int64),
        prompt=prompt,
        output=output,
        priority=np.zeros(n, np.int32),
        first_child=none,
        next_sibling=none.copy(),
        delay_ps=np.zeros(n, np.int64),
        segment_start=np.arange(0, 3 * n + 1, 3, dtype=np.int64),
        segment_id=ids.astype(np.int64),
        segment_length=lengths,
        arena=np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64),
        shared=(shared >> 4).astype(np.int32),
    )


def show(profile: Profile, share: float = SATURATION_SHARE) -> tuple[Sequence[str], list[list[str]]]:
    """Return a header and one row per kind of replica, for a table."""
    header = ("replicas", "model", "GPUs", "calls (prompt/output)", "max calls/s", "saturation", "calls/s at load")
    rows = []
    for p in profile.replicas:
        curve, point = p.curve_rps(), p.saturation(share)
        marks = sorted({*(b for b in (1, 8, 32, 128, 512) if b < len(curve)), point})
        rows.append(
            [
                ", ".join(p.names),
                p.model,
                f"{p.tp} x {p.gpu}",
                f"{p.prompt_tokens:.0f}/{p.output_tokens:.0f} tokens",
                f"{curve[-1]:.1f}",
                f"{point} of {p.max_num_seqs}",
                ", ".join(f"{b}: {curve[b]:.1f}" for b in marks),
            ]
        )
    return header, rows
