"""Small changes to a scenario from the command line or a sweep, with the command line as their location."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import SpecError
from .load import load_arrivals, load_cluster, load_workflow
from .outcome_files import SYNTHETIC, table_label
from .ranges import check_ranges
from .scenario import Scenario
from .workload import ArrivalSpec, MixEntry, TraceFormat


def override(
    scenario: Scenario,
    *,
    rate_rps: float | None = None,
    users: int | None = None,
    arrivals: str | os.PathLike[str] | None = None,
    trace: str | os.PathLike[str] | None = None,
    trace_format: TraceFormat = "auto",
    native_rate: bool = False,
    requests: int | None = None,
    warmup_requests: int | None = None,
    duration_s: float | None = None,
    workflow: str | None = None,
    outcomes: Sequence[str | os.PathLike[str]] = (),
    cluster: str | os.PathLike[str] | None = None,
    slo_s: float | None = None,
    slo_scale: float | None = None,
    ready_slots: int | None = None,
) -> Scenario:
    """Return `scenario` with some of its parts replaced; None leaves a part as it is.

    Args:
        scenario: what to start from.
        rate_rps: mean arrival rate.
        users: number of users of a closed loop.
        arrivals: arrival preset or file; the scenario's rate is kept where it has one.
        trace: trace file to take arrivals from. The scenario's rate is kept (the trace gives the pattern, the
            scenario the load) unless `rate_rps` or `native_rate` says otherwise.
        trace_format: format of `trace`.
        native_rate: keep the rate at which the trace was recorded.
        requests: number of requests; the warm-up keeps its share unless `warmup_requests` is given.
        warmup_requests: number of first requests that count for no metric.
        duration_s: cut the episode here.
        workflow: run only this workflow (a name or path), or several, joined by commas, with equal weights.
        outcomes: outcome table files, each for the workflow that it names; or `synthetic`, for all workflows.
        cluster: cluster preset or file.
        slo_s: absolute latency limit of a request.
        slo_scale: latency limit relative to the request's standalone latency.
        ready_slots: how many ready calls the action can choose from.

    Raises:
        SpecError: a value is out of range or contradicts the scenario.
    """
    locations = dict(scenario.locations)
    workload = scenario.workload
    process = workload.arrivals
    if arrivals is not None:
        process = load_arrivals(_text(arrivals))
        if process.kind != "closed" and workload.arrivals.rate_rps is not None:
            process = replace(process, rate_rps=workload.arrivals.rate_rps)
        _forget(locations, "workload.arrivals", "override 'arrivals'")
    process = _arrivals(process, rate_rps, users, trace, trace_format, native_rate)
    mix = workload.mix
    if workflow is not None:
        mix = tuple(MixEntry(name.strip()) for name in workflow.split(",") if name.strip())
        _forget(locations, "workload.mix", "override 'workflow'")
    for table in outcomes:
        mix = _with_outcomes(mix, _text(table), locations)
    for key, value in (("rate_rps", rate_rps), ("users", users), ("path", trace)):
        if value is not None:
            option = "trace" if key == "path" else key
            _forget(locations, f"workload.arrivals.{key}", f"override '{option}'")
    horizon = scenario.horizon
    if requests is not None and warmup_requests is None:
        warmup_requests = round(horizon.warmup_requests * requests / horizon.requests)
    result = replace(
        scenario,
        cluster=load_cluster(_text(cluster)) if cluster is not None else scenario.cluster,
        workload=replace(workload, arrivals=process, mix=mix),
        horizon=_changed(
            horizon,
            locations,
            "horizon",
            requests=requests,
            warmup_requests=warmup_requests,
            duration_s=duration_s,
        ),
        objective=_changed(scenario.objective, locations, "objective", slo_s=slo_s, slo_scale=slo_scale),
        observation=_changed(scenario.observation, locations, "observation", ready_slots=ready_slots),
        locations=locations,
    )
    check_ranges(result)
    return result


def _arrivals(
    arrivals: ArrivalSpec,
    rate_rps: float | None,
    users: int | None,
    trace: str | os.PathLike[str] | None,
    trace_format: TraceFormat,
    native_rate: bool,
) -> ArrivalSpec:
    if native_rate and rate_rps is not None:
        raise SpecError(
            "the trace cannot keep its own rate and have another; drop one of the two",
            where="override 'rate_rps'",
        )
    if trace is not None:
        rate = None if native_rate else rate_rps or arrivals.rate_rps
        return ArrivalSpec(kind="trace", path=_text(trace), format=trace_format, rate_rps=rate)
    if native_rate:
        if arrivals.kind != "trace":
            raise SpecError(
                f"arrivals of kind '{arrivals.kind}' have no rate of their own",
                where="override 'native_rate'",
            )
        arrivals = replace(arrivals, rate_rps=None)
    if rate_rps is not None:
        if arrivals.kind == "closed":
            raise SpecError("a closed loop has no arrival rate; override 'users' instead", where="override 'rate_rps'")
        arrivals = replace(arrivals, rate_rps=float(rate_rps))
    if users is not None:
        if arrivals.kind != "closed":
            raise SpecError(
                f"arrivals of kind '{arrivals.kind}' have no users; override 'rate_rps' instead",
                where="override 'users'",
            )
        arrivals = replace(arrivals, users=users)
    return arrivals


def _with_outcomes(mix: tuple[MixEntry, ...], table: str, locations: dict[str, str]) -> tuple[MixEntry, ...]:
    where = "override 'outcomes'"
    if table == SYNTHETIC:
        chosen = list(range(len(mix)))
    else:
        name = table_label(Path(table).expanduser(), where)["workflow"]
        known = [load_workflow(entry.workflow).name for entry in mix]
        if name not in known:
            raise SpecError(
                f"'{table}' is a table of the workflow '{name}', which is not in the mix ({', '.join(known)})",
                where=where,
            )
        chosen = [known.index(name)]
    for i in chosen:
        _forget(locations, f"workload.mix[{i}].outcomes", where)
    return tuple(replace(entry, outcomes=table) if i in chosen else entry for i, entry in enumerate(mix))


def _changed(spec: Any, locations: dict[str, str], key: str, **values: object) -> Any:
    given = {name: value for name, value in values.items() if value is not None}
    for name in given:
        _forget(locations, f"{key}.{name}", f"override '{name}'")
    return replace(spec, **given)


def _forget(locations: dict[str, str], key: str, now: str) -> None:
    """Drop the file lines of a key that the override replaces."""
    for known in [known for known in locations if known == key or known.startswith((key + ".", key + "["))]:
        del locations[known]
    locations[key] = now


def _text(path: str | os.PathLike[str]) -> str:
    return os.fspath(path)
