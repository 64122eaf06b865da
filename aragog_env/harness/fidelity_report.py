"""What `fidelity` found, as rows for a table, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ..files import write_atomically
from .fidelity import QUANTITIES, TARGETS, Errors, Fidelity, RunFidelity
from .ranking import Ranking
from .results import finite

HEADER: Final = (
    "traffic",
    "policy",
    "quantity",
    "n",
    "live median / P95",
    "replayed",
    "error median",
    "error P95",
    "each",
)


def rows(found: Fidelity) -> list[list[str]]:
    """Return one row per recording and quantity, then those of all recordings together."""
    result = []
    for run in found.runs:
        result += [[_traffic(run), run.policy, *_cells(key, run.errors[key])] for key in QUANTITIES]
    result += [["all", "", *_cells(key, found.errors[key])] for key in QUANTITIES]
    return result


def short_rows(found: Fidelity) -> tuple[Sequence[str], list[list[str]]]:
    """Return a header and one row per recording: errors of median / P95 of every quantity."""
    header = ("traffic", "policy", "requests", *(f"{name}: median / P95" for name in QUANTITIES.values()))
    body = []
    for run in found.runs:
        body.append([_traffic(run), run.policy, str(run.requests), *(_short(run.errors[key]) for key in QUANTITIES)])
    requests = sum(run.requests for run in found.runs)
    body.append(["all", "", str(requests), *(_short(found.errors[key]) for key in QUANTITIES)])
    return header, body


def _traffic(run: RunFidelity) -> str:
    return run.scenario if run.held_out else f"{run.scenario} (calibrated on it)"


def _short(errors: Errors) -> str:
    return f"{errors.median:+.1%} / {errors.p95:+.1%}" if errors.n else "-"


def _cells(key: str, errors: Errors) -> list[str]:
    if not errors.n:
        return [QUANTITIES[key], "0", "-", "-", "-", "-", "-"]
    return [
        QUANTITIES[key],
        str(errors.n),
        f"{_ms(errors.live_median_s)} / {_ms(errors.live_p95_s)}",
        f"{_ms(errors.replay_median_s)} / {_ms(errors.replay_p95_s)}",
        f"{errors.median:+.1%}",
        f"{errors.p95:+.1%}",
        f"{errors.each:.1%}",
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def ranking_rows(ranking: Ranking) -> tuple[Sequence[str], list[list[str]]]:
    """Return a header and one row per policy, fastest first."""
    again = all(math.isfinite(place.again) for place in ranking.places)
    header = ["policy", "live JCT mean [95%]", "recorded decisions replayed", *(["decided again"] if again else [])]
    table = []
    for place in ranking.places:
        live = place.live
        row = [place.policy, f"{live.value:.3f} s [{live.low:.3f}, {live.high:.3f}]", f"{place.replayed:.3f} s"]
        table.append([*row, *([f"{place.again:.3f} s"] if again else [])])
    return header, table


def sentences(found: Fidelity) -> list[str]:
    """Return what follows from the numbers: targets, ranks, load."""
    lines = []
    for key, (median, p95) in TARGETS.items():
        errors = found.errors[key]
        verdict = "met" if errors.meets(key) else "missed"
        lines.append(
            f"{QUANTITIES[key]}: error {errors.median:+.1%} at the median (at most {median:.0%}), {errors.p95:+.1%} at P95 "
            f"(at most {p95:.0%}): {verdict}."
        )
    lines += [_rank_sentence(ranking) for ranking in found.rankings if len(ranking.places) > 1]
    for run in found.runs:
        if not run.held_out:
            lines.append(f"Careful: {run.recording} is one of those that the cluster was calibrated on.")
        if run.left_out:
            lines.append(
                f"{run.recording}: {run.left_out} requests with failed calls left out, a replay knows no faults."
            )
        if math.isfinite(run.unrecorded):
            lines.append(
                f"{run.policy} on {run.scenario}, deciding again: {run.unrecorded:.1%} of its calls had never been recorded."
            )
    lines.append(_load_sentence(found))
    return lines


def _rank_sentence(ranking: Ranking) -> str:
    n = len(ranking.places)
    text = (
        f"Ranks of {n} policies on {ranking.scenario}: Spearman {ranking.spearman:.2f}, Kendall {ranking.kendall:.2f}"
    )
    if not ranking.swaps:
        text += "; the same order"
    for swap in ranking.swaps:
        how = "each mean inside the other's interval" if swap.close else "clearly another order"
        text += (
            f"; {swap.first} and {swap.second} swap ({how}: {swap.live.value:+.3f} s [{swap.live.low:+.3f}, "
            f"{swap.live.high:+.3f}] live, {swap.replayed:+.3f} s replayed)"
        )
    if math.isfinite(ranking.again_spearman):
        pairs = ", ".join(f"{swap.first} and {swap.second}" for swap in ranking.again_swaps) or "none"
        text += f". Deciding again: Spearman {ranking.again_spearman:.2f}, pairs that swap: {pairs}"
    return text + "."


def _load_sentence(found: Fidelity) -> str:
    machine = found.machine
    now = ", ".join(f"{value:.2f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    busy = ", ".join(f"{run.busy_servers:.2f}" for run in found.runs)
    stolen = ", ".join("unknown" if run.cpu_stolen is None else f"{run.cpu_stolen:.1%}" for run in found.runs)
    before = "; ".join(", ".join(f"{value:g}" for value in run.load) or "unknown" for run in found.runs)
    return (
        f"Load: {machine.get('cpu')} with {machine.get('cores')} cores; before each run {before} (1, 5, 15 minutes), during "
        f"it {busy} servers busy on average; now {now}. Processor time that other machines on the same host took during each "
        f"run: {stolen}."
    )


def markdown(found: Fidelity) -> str:
    """Return the whole report."""
    parts = [f"# Fidelity of the replay on {found.cluster}\n", _table(HEADER, rows(found))]
    for ranking in found.rankings:
        if len(ranking.places) > 1:
            parts += [f"## Policies on {ranking.scenario}\n", _table(*ranking_rows(ranking))]
    parts += ["## In words\n", "\n".join(f"* {line}" for line in sentences(found)) + "\n"]
    return "\n".join(parts)


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(header), " | ".join("---" for _ in header), *(" | ".join(row) for row in body)]
    return "".join(f"| {line} |\n" for line in lines)


def as_data(found: Fidelity) -> dict[str, Any]:
    """Return everything but the single times as plain data."""
    data: dict[str, Any] = finite(
        {
            "cluster": found.cluster,
            "met": found.met,
            "targets": {key: {"median": a, "p95": b} for key, (a, b) in TARGETS.items()},
            "machine": found.machine,
            "all": {key: _numbers(errors) for key, errors in found.errors.items()},
            "recordings": [
                {
                    **{
                        name: getattr(run, name)
                        for name in (
                            "recording", "policy", "seed", "scenario", "held_out", "requests", "left_out", "same_order",
                            "unrecorded", "busy_servers", "load", "cpu_stolen",
                        )
                    },
                    "errors": {key: _numbers(errors) for key, errors in run.errors.items()},
                }
                for run in found.runs
            ],
            "rankings": [{**asdict(ranking), "same": ranking.same} for ranking in found.rankings],
        }
    )  # fmt: skip
    return data


def _numbers(errors: Errors) -> dict[str, float]:
    return {**asdict(errors), "error_median": errors.median, "error_p95": errors.p95}


def write(found: Fidelity, folder: Path) -> list[Path]:
    """Write fidelity.json and fidelity.md; return the files."""
    files = [folder / "fidelity.json", folder / "fidelity.md"]
    write_atomically(files[0], json.dumps(as_data(found), indent=1, allow_nan=False).encode() + b"\n")
    write_atomically(files[1], markdown(found).encode())
    return files
