"""All figures of merit of the reproduction as plain data: what is written as JSON, and what tables and figures show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from aragog_env.harness.statistics import Estimate, bootstrap

from . import paper
from .limits import limits
from .measure import LATENCIES, Curve, Measured, cut, gain
from .plan import (
    FOUR_GPUS,
    Pair,
    Size,
    ablated_pairs,
    ablation_settings,
    binding_pairs,
    binding_settings,
    bound_rps,
    knowledge_settings,
    main_settings,
    pairs,
    rates_for,
    requests_at,
)

BASELINES = ("per_input", "per_workflow")
Data = dict[str, Any]


def collect(measured: Measured, size: Size) -> Data:
    """Return everything that the runs show.

    Raises:
        AragogError: a run is missing or failed.
    """
    return {
        "size": {**asdict(size), "steady_part": "20% to 80% of completions"},
        "pairs": [_pair(measured, size, pair) for pair in pairs(size)],
        "knowledge": [_knowledge(measured, size, pair) for pair in pairs(size)],
        "binding": [_binding(measured, size, pair) for pair in binding_pairs(size)],
        "limits": [limits(pair) for pair in pairs(size)],
        "ablations": [_ablations(measured, size, pair) for pair in ablated_pairs(size)],
    }


def _pair(measured: Measured, size: Size, pair: Pair) -> Data:
    rates = rates_for(pair, size.fractions)
    curves = {name: measured.curve(pair, setting, rates) for name, setting in main_settings(pair, size).items()}
    ours = curves["aragog"]
    accuracy = ours.top
    return {
        "workflow": pair.workflow,
        "family": pair.family,
        "bound_rps": bound_rps(pair.on(ours.setting.cluster)),
        "requests": [requests_at(pair, size, rate) for rate in rates],
        "curves": {name: _curve(curve) for name, curve in curves.items()},
        "ceiling_rps": {name: curve.best.estimate("throughput_rps") for name, curve in curves.items()},
        "gain": {b: gain(ours.ceiling, curves[b].ceiling) for b in BASELINES},
        "cut": {
            name: {b: cut(ours.top.values[name], curves[b].top.values[name]) for b in BASELINES} for name in LATENCIES
        },
        "accuracy": {
            "largest": accuracy.mean("accuracy_expected") / accuracy.mean("accuracy_relative"),
            "aragog": accuracy.estimate("accuracy_expected"),
            "loss": _loss(ours),
            "per_input": curves["per_input"].top.estimate("accuracy_expected"),
            "per_workflow": curves["per_workflow"].top.estimate("accuracy_expected"),
        },
        "paper": {"gain": paper.GAIN.get((pair.workflow, pair.family))},
    }


def _loss(curve: Curve) -> Estimate:
    """Return the accuracy lost against the largest configuration on the same requests, in fractions, at the highest rate."""
    reached, relative = curve.top.values["accuracy_expected"], curve.top.values["accuracy_relative"]
    return bootstrap(reached / relative - reached)


def _curve(curve: Curve) -> Data:
    names = ("throughput_rps", *LATENCIES, "accuracy_expected", "utilisation", "decision_p50_ms")
    return {
        "policy": curve.setting.policy,
        "cluster": curve.setting.cluster,
        "rates_rps": [point.rate_rps for point in curve.points],
        **{name: [point.estimate(name) for point in curve.points] for name in names},
    }


def _knowledge(measured: Measured, size: Size, pair: Pair) -> Data:
    rates = rates_for(pair, size.top_fractions)
    settings = main_settings(pair, size) | knowledge_settings(pair, size)
    curves = {name: measured.curve(pair, setting, rates) for name, setting in settings.items()}
    compared = {
        "oracles": ("aragog_oracle", "per_input"),
        "oracles_per_workflow": ("aragog_oracle", "per_workflow"),
        "routers": ("aragog", "per_input_router"),
        "routers_8_gpus": ("aragog_8_gpus", "per_input_router_8_gpus"),
        "learned_8_gpus": ("aragog_8_gpus", "per_input"),
        "learned_8_gpus_per_workflow": ("aragog_8_gpus", "per_workflow"),
    }
    even = curves["aragog_oracle_8_gpus"]
    return {
        "workflow": pair.workflow,
        "family": pair.family,
        "ceiling_rps": {name: curve.best.estimate("throughput_rps") for name, curve in curves.items()},
        "gain": {name: gain(curves[a].ceiling, curves[b].ceiling) for name, (a, b) in compared.items()},
        "accuracy": {name: curve.top.mean("accuracy") for name, curve in curves.items()},
        "even": {
            "gain": {b: gain(even.ceiling, curves[b].ceiling) for b in BASELINES},
            "cut": {
                name: {b: cut(even.top.values[name], curves[b].top.values[name]) for b in BASELINES}
                for name in LATENCIES
            },
        },
    }


def _binding(measured: Measured, size: Size, pair: Pair) -> Data:
    rates = rates_for(pair, size.top_fractions)
    settings = {name: s for name, s in main_settings(pair, size).items() if name != "aragog"} | binding_settings(pair)
    ceilings = {name: measured.curve(pair, setting, rates).best for name, setting in settings.items()}
    best = max(point.mean("throughput_rps") for point in ceilings.values())
    return {
        "workflow": pair.workflow,
        "family": pair.family,
        "ceiling_rps": {name: point.estimate("throughput_rps") for name, point in ceilings.items()},
        "share": {name: point.mean("throughput_rps") / best for name, point in ceilings.items()},
        "paper": {name: paper.BINDING[name].get(pair.workflow) for name in ceilings},
    }


def _ablations(measured: Measured, size: Size, pair: Pair) -> Data:
    rates = rates_for(pair, size.top_fractions)
    default = {name: measured.curve(pair, setting, rates) for name, setting in main_settings(pair, size).items()}
    found = {"default": _variant(default, {}, paper.ABLATIONS["default"].get(pair.workflow))}
    for name, settings in ablation_settings(pair, size).items():
        at = rates_for(pair, size.top_fractions, FOUR_GPUS) if name == "4_gpus" else rates
        own = {key: measured.curve(pair, setting, at) for key, setting in settings.items()}
        found[name] = _variant(own, default, paper.ABLATIONS.get(name, {}).get(pair.workflow))
    return {"workflow": pair.workflow, "family": pair.family, "variants": found}


def _variant(own: Mapping[str, Curve], default: Mapping[str, Curve], reported: Mapping[str, float] | None) -> Data:
    """Compare a variant with its own baselines where it has some, else with the default ones."""
    curves = {**default, **own}
    ours = curves["aragog"]
    return {
        "policy": next(iter(own.values())).setting.policy,
        "ceiling_rps": {name: curve.best.estimate("throughput_rps") for name, curve in curves.items()},
        "gain": {b: gain(ours.ceiling, curves[b].ceiling) for b in BASELINES},
        "jct_p50_s": ours.top.estimate("jct_p50_s"),
        "loss": _loss(ours),
        "paper": dict(reported) if reported else None,
    }


def spans(data: Data, families: tuple[str, ...]) -> Data:
    """Return the smallest and largest gain and cut over the pairs of these families; `even`: as oracles on eight GPUs each."""
    chosen = [pair for pair in data["pairs"] if pair["family"] in families]
    if not chosen:
        return {}
    even = [entry["even"] for entry in data["knowledge"] if entry["family"] in families]
    return {
        "pairs": len(chosen),
        "families": list(dict.fromkeys(pair["family"] for pair in chosen)),
        **_spans(chosen),
        "loss": _span([p["accuracy"]["loss"].value for p in chosen]),
        "even": _spans(even),
    }


def _spans(entries: list[Data]) -> Data:
    return {
        "gain": {b: _span([e["gain"][b].value for e in entries]) for b in BASELINES},
        "cut": {name: {b: _span([e["cut"][name][b].value for e in entries]) for b in BASELINES} for name in LATENCIES},
    }


def _span(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def plain(value: Any) -> Any:
    """Return data with estimates as dictionaries, for JSON."""
    if isinstance(value, Estimate):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
