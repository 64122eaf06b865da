"""The findings as Markdown tables, the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, Final

from aragog_env.harness.statistics import Estimate

from . import paper
from .findings import BASELINES, Data, spans

LABELS: Final = {
    "aragog": "Aragog",
    "per_input": "per-input",
    "per_workflow": "per-workflow",
    "per_input_plus": "per-input+",
    "per_input_plus_plus": "per-input++",
    "jct_mean_s": "mean",
    "jct_p25_s": "P25",
    "jct_p50_s": "median",
    "jct_p95_s": "P95",
    "default": "default: B = 4, 8 GPUs, full space, learned router",
    "beam_1": "B = 1 (greedy)",
    "beam_2": "B = 2",
    "beam_8": "B = 8",
    "oracle": "true viable sets (oracle), no routing time",
    "free_routing": "learned router, no routing time",
    "no_tie_break": "tie-break off",
    "no_look_ahead": "look-ahead off",
    "lifo": "youngest request first",
    "embedder": "another embedder: all-MiniLM-L6-v2 instead of n-grams",
    "constrained": "constrained space",
    "4_gpus": "4 GPUs",
    "same_cluster": "oracle, on the baselines' cluster with the second small replica",
    "viable_shortest_queue": "shortest queue among viable, instead of Aragog's search",
    "viable_power_of_two": "power of two among viable, instead of Aragog's search",
    "viable_random": "random viable, instead of Aragog's search",
    "per_workflow_2_points": "per-workflow may lose 2 points of accuracy",
    "no_second_replica": "baselines without the second small replica",
}


def percent(value: float | Estimate | None, *, sign: bool = True, digits: int = 1) -> str:
    """Format a fraction, with its interval where there is one."""
    if value is None:
        return ""
    form = f"{{:+.{digits}f}}" if sign else f"{{:.{digits}f}}"
    if not isinstance(value, Estimate):
        return form.format(100 * value)
    text = form.format(100 * value.value)
    if not isfinite(value.low):
        return text
    return f"{text} [{form.format(100 * value.low)}, {form.format(100 * value.high)}]"


def number(value: Estimate) -> str:
    """Format an estimate with three significant digits."""
    if not isfinite(value.low):
        return f"{value.value:.3g}"
    return f"{value.value:.3g} [{value.low:.3g}, {value.high:.3g}]"


def span(value: Sequence[float] | None, *, sign: bool = True) -> str:
    """Format a range of fractions."""
    return " to ".join(percent(end, sign=sign) for end in value) if value else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the rest are numbers."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def markdown(data: Data) -> str:
    """Return the whole report."""
    parts = [
        "# Aragog's evaluation, reproduced\n",
        _preface(data["size"]),
        "## Throughput ceiling, learned router\n",
        _ceilings(data),
        "## Same knowledge, same eight GPUs\n",
        _even(data),
        "## Ranges over pairs\n",
        _ranges(data),
        "## Latency at the highest rate\n",
        _latencies(data),
        "## Accuracy\n",
        _accuracy(data),
    ]
    parts += ["## Who knows what\n", _knowledge(data)]
    parts += ["## What is possible\n", _limits(data)]
    if data["binding"]:
        parts += ["## Binding strategies (Fig. 4)\n", _binding(data)]
    for entry in data["ablations"]:
        parts += [f"## Ablations: {paper.WORKFLOWS[entry['workflow']]}, Qwen\n", _ablations(entry)]
    if data.get("routing"):
        parts += ["## Routing overhead (Fig. 15)\n", _routing(data["routing"])]
    if data.get("search"):
        parts += ["## Scheduler time and quality (Fig. 10)\n", _search(data["search"])]
    return "\n".join(parts)


def _limits(data: Data) -> str:
    header = [
        "pair",
        "largest everywhere, 7 GPUs",
        "2 points lost, nothing known, 7 GPUs",
        "2 points lost, probabilities known, 7 GPUs",
        "answers known, 7 GPUs",
        "answers known, 8 GPUs",
        "oracle per-input, 7 GPUs",
        "oracle per-input, 8 GPUs",
        "room over it with 7 GPUs, answers known, %",
    ]
    columns = (
        "largest_7",
        "nothing_7",
        "probabilities_7",
        "oracle_7",
        "oracle_8",
        "per_input_7",
        "per_input_8",
    )
    rows = [
        [_name(entry)]
        + [f"{entry['rps'][column]:.3g}" for column in columns]
        + [percent(entry["rps"]["oracle_7"] / entry["rps"]["per_input_8"] - 1)]
        for entry in data["limits"]
    ]
    return (
        "Fluid limits in requests per second, from the offline profiles alone: no scheduler exceeds them in the long run, "
        "whatever it foresees (`scripts/reproduction/fluid.py`). Losses are against the largest configuration.\n\n"
        + table(header, rows)
    )


def _preface(size: Data) -> str:
    return (
        f"Simulated. Size: {size['name']}; seeds: {size['seeds']}; an episode at the highest rate has {size['fillings']:g} "
        "times the requests that saturate all servers (the table says how many). Brackets: 95% bootstrap intervals "
        "over seeds, gains and cuts paired by seed. Throughput is taken between 20% and 80% of an episode's completions; the "
        f"ceiling is the highest over the sweep. The highest rate is {max(size['fractions']):g} times what all servers could "
        "complete on an equal mix of stages. Baselines know the true viable sets, pay for no router, and have a second "
        f"replica of the smallest model; Aragog's viable sets come from '{size['viable']}'.\n"
    )


def _name(entry: Data) -> str:
    return f"{paper.WORKFLOWS[entry['workflow']]}, {entry['family']}"


def _ceilings(data: Data) -> str:
    rows = []
    for pair in data["pairs"]:
        ceiling, gains, told = pair["ceiling_rps"], pair["gain"], pair["paper"]["gain"] or {}
        row = [_name(pair), str(pair["requests"][-1]), *(number(ceiling[s]) for s in ("aragog", *BASELINES))]
        for baseline in BASELINES:
            row += [percent(gains[baseline]), percent(told.get(baseline))]
        rows.append(row)
    header = ("pair", "requests", "Aragog, req/s", "per-input, req/s", "per-workflow, req/s")
    return table((*header, "gain vs per-input, %", "paper", "gain vs per-workflow, %", "paper"), rows)


def _even(data: Data) -> str:
    rows = []
    for entry in data["knowledge"]:
        ceiling, even, right = entry["ceiling_rps"], entry["even"], entry["accuracy"]
        row = [_name(entry), *(number(ceiling[s]) for s in ("aragog_oracle_8_gpus", *BASELINES))]
        row += [percent(even["gain"][b]) for b in BASELINES]
        row += [percent(even["cut"]["jct_p50_s"][b], sign=False) for b in BASELINES]
        rows.append([*row, *(percent(right[s], sign=False) for s in ("aragog_oracle_8_gpus", *BASELINES))])
    header = ["pair", "Aragog, req/s", "per-input, req/s", "per-workflow, req/s"]
    header += [
        "gain vs per-input, %",
        "gain vs per-workflow, %",
        "median latency cut vs per-input, %",
        "vs per-workflow, %",
    ]
    header += ["right: Aragog, %", "per-input, %", "per-workflow, %"]
    return (
        "Three schedulers that know the true viable sets, as in Fig. 4, on the same eight GPUs (the built-in router runs on "
        "a CPU). This compares scheduling alone.\n\n" + table(header, rows)
    )


def _knowledge(data: Data) -> str:
    compared = {
        "oracles": "oracles, 7 GPUs against 8: vs per-input, %",
        "oracles_per_workflow": "vs per-workflow, %",
        "routers": "both with the router, 7 GPUs each: vs per-input, %",
        "routers_8_gpus": "8 GPUs each: vs per-input, %",
        "learned_8_gpus": "router against oracle, 8 GPUs each: vs per-input, %",
        "learned_8_gpus_per_workflow": "vs per-workflow, %",
    }
    answers = {
        "aragog_oracle": "right: Aragog oracle, %",
        "per_input": "per-input oracle, %",
        "aragog": "Aragog router, %",
        "per_input_router": "per-input router, %",
    }
    rows = [
        [_name(entry), *(percent(entry["gain"][k]) for k in compared)]
        + [percent(entry["accuracy"][k], sign=False) for k in answers]
        for entry in data["knowledge"]
    ]
    return (
        "Gains in throughput ceiling. An oracle knows which answers will be right in the "
        "episode, so its share of right answers is above what its configurations reach on average.\n\n"
    ) + table(["pair", *compared.values(), *answers.values()], rows)


def _ranges(data: Data) -> str:
    rows = []
    for families, gain_range, cuts in (
        (("qwen", "llama"), paper.GAIN_RANGE, paper.CUT_RANGE),
        (("mixed",), paper.MIXED_GAIN_RANGE, {"jct_mean_s": paper.MIXED_CUT_RANGE}),
    ):
        found = spans(data, families)
        if not found:
            continue
        of = f"{' and '.join(found['families'])} ({found['pairs']} pairs"
        for ours, label in ((found, f"{of}, learned router)"), (found["even"], f"{of}, oracles, 8 GPUs each)")):
            rows.append([f"{label}: throughput gain, %", *_beside(ours["gain"], gain_range)])
            for name, told in cuts.items():
                rows.append([f"{label}: {LABELS[name]} latency cut, %", *_beside(ours["cut"][name], told, sign=False)])
        told_loss = f"at most {100 * paper.LARGEST_ACCURACY_LOSS:.1f}"
        rows.append(
            [f"{of}, learned router): accuracy loss, points", span(found["loss"], sign=False), told_loss, "", ""]
        )
    return table(("quantity", "ours vs per-input", "paper", "ours vs per-workflow", "paper"), rows)


def _beside(ours: Data, told: Data, *, sign: bool = True) -> list[str]:
    return [span(values[b], sign=sign) for b in BASELINES for values in (ours, told)]


def _latencies(data: Data) -> str:
    rows = []
    for pair in data["pairs"]:
        row = [_name(pair), f"{pair['curves']['aragog']['rates_rps'][-1]:g}"]
        row.append(number(pair["curves"]["aragog"]["jct_p50_s"][-1]))
        for b in BASELINES:
            row += [percent(pair["cut"][name][b].value, sign=False) for name in pair["cut"]]
        rows.append(row)
    names = [LABELS[name] for name in paper.CUT_RANGE]
    header = ["pair", "rate, req/s", "Aragog's median, s"]
    header += [f"{name} cut vs {LABELS[b]}, %" for b in BASELINES for name in names]
    return table(header, rows)


def _accuracy(data: Data) -> str:
    rows = []
    for pair in data["pairs"]:
        a = pair["accuracy"]
        values = [percent(a["largest"], sign=False)] + [
            percent(a[name], sign=False) for name in ("aragog", "loss", "per_input", "per_workflow")
        ]
        rows.append([_name(pair), *values])
    header = ("pair", "largest, %", "Aragog, %", "loss, points", "per-input, %", "per-workflow, %")
    told = "; ".join(
        f"{family}: " + ", ".join(f"{top:.2f}/{ours:.2f}" for top, ours in values)
        for family, values in paper.ACCURACY.items()
    )
    return (
        table(header, rows)
        + f"\nThe paper (Fig. 14, largest/Aragog by height, pairs unnamed): {told}. Largest loss 2%.\n"
    )


def _binding(data: Data) -> str:
    strategies = list(paper.BINDING)
    rows = []
    for entry in data["binding"]:
        for strategy in strategies:
            told = entry["paper"][strategy]
            row = [_name(entry), LABELS[strategy], number(entry["ceiling_rps"][strategy])]
            rows.append([*row, percent(entry["share"][strategy], sign=False), percent(told, sign=False)])
    others = "; ".join(
        f"{LABELS[s]} {100 * v['another']:.0f}/{100 * v['the third']:.0f}" for s, v in paper.BINDING.items()
    )
    return (
        table(("pair", "strategy", "ceiling, req/s", "share of the best, %", "paper"), rows)
        + f"\nThe paper's other two workflows, whose names cannot be read: {others}.\n"
    )


def _ablations(entry: Data) -> str:
    rows = []
    for name, variant in entry["variants"].items():
        told = variant["paper"] or {}
        row = [LABELS.get(name, name), number(variant["ceiling_rps"]["aragog"])]
        for b in BASELINES:
            row += [percent(variant["gain"][b]), percent(told.get(b))]
        rows.append([*row, number(variant["jct_p50_s"]), percent(variant["loss"], sign=False)])
    header = ("variant", "ceiling, req/s", "gain vs per-input, %", "paper", "gain vs per-workflow, %", "paper")
    return table((*header, "median latency, s", "accuracy loss, points"), rows)


def _routing(routing: list[dict[str, Any]]) -> str:
    rows = [
        [
            _name(r),
            f"{1e3 * r['routing_s']:.1f}",
            percent(r["share"]["low rate"], sign=False, digits=2),
            percent(r["share"]["high rate"], sign=False, digits=2),
        ]
        for r in routing
    ]
    told = {name: f"at most {100 * share:g}" for name, share in paper.ROUTING_SHARE.items()}
    rows.append(["the paper", "", told["low rate"], told["high rate"]])
    return table(("pair", "routing, ms", "share of latency at the lowest rate, %", "at the highest rate, %"), rows)


def _search(periods: Sequence[Data]) -> str:
    rows = []
    for period in periods:
        when = f"every {period['poll_s']:g} s" if period["poll_s"] else "at every event"
        for name, told in paper.SEARCH.items():
            ours = period["searches"][name]
            row = [f"{name}; {period['rounds']} rounds, held {when}", f"{1e3 * ours['seconds']:.3f}"]
            row.append(f"{1e3 * told['seconds']:g}")
            for key in ("utilisation", "flexibility"):
                row += [percent(ours[key], sign=False), percent(told[key], sign=False)]
            rows.append(row)
    header = ("search", "median time, ms", "paper", "utilisation, % of the best", "paper")
    return table((*header, "flexibility, % of the best", "paper"), rows)
