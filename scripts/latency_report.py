"""Errors of the latency check by group, as Markdown and JSON, and the calibrations fitted on the way."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import yaml
from numpy.typing import NDArray

from aragog_env.latency.model import CALIBRATIONS, Calibration

REPOSITORY: Final = Path(__file__).parents[1]
REPORT: Final = REPOSITORY / "docs" / "latency_check.md"
UNCALIBRATED_BAR: Final = 0.16
CALIBRATED_BAR: Final = 0.10
OUTSIDE: Final = {
    ("llama-3.1-8b-fp8", "h200_sxm"): "recorded concurrency contradicts the measured times",
    ("llama-3.1-70b-fp8", "b200_sxm"): "B200 is outside the bar, and these servers ran an FP8 KV cache",
}
"""Groups that are simulated and shown but count neither for the totals nor as a calibration."""


@dataclass(frozen=True)
class Point:
    """A measured and a simulated TPOT."""

    model: str
    gpu: str
    tp: int
    isl: int
    osl: int
    concurrency: int
    measured_ms: float
    simulated_ms: float
    preemptions: int
    peak_share: float
    """Share of the GPUs' peak rate that the recorded numbers imply by Little's law, for the linear layers
    alone.
    """


@dataclass(frozen=True)
class Fit:
    """measured = scale * simulated + offset_ms, least squares of the relative error."""

    scale: float
    offset_ms: float


@dataclass(frozen=True)
class GroupError:
    """Errors of one (model, GPU, TP); `calibrated` holds this TP out of the fit."""

    model: str
    gpu: str
    tp: int
    rows: int
    mape: float
    median: float
    bias: float
    calibrated_mape: float
    calibrated_bias: float
    counted: bool
    preempted_rows: int
    mape_without_preempted: float
    reason: str

    @property
    def misses(self) -> bool:
        """Whether either error is above its bar."""
        return self.mape > UNCALIBRATED_BAR or self.calibrated_mape > CALIBRATED_BAR


def fit(points: Sequence[Point]) -> Fit:
    """Fit the affine calibration to relative errors, so that slow and fast rows weigh the same.

    In a closed loop without think time the schedule does not depend on the durations, and every iteration
    gives a request one token: an affine change of the iteration time is the same affine change of the TPOT.
    """
    simulated, measured = _columns(points)
    design = np.stack([simulated / measured, 1.0 / measured], axis=1)
    (scale, offset_ms), *_ = np.linalg.lstsq(design, np.ones(measured.size), rcond=None)
    return Fit(float(scale), float(offset_ms))


def errors(points: Sequence[Point], by: Fit | None = None) -> NDArray[np.float64]:
    """Return simulated / measured - 1 of every point."""
    simulated, measured = _columns(points)
    if by is not None:
        simulated = by.scale * simulated + by.offset_ms
    return np.asarray(simulated / measured - 1.0)


def _columns(points: Sequence[Point]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([p.simulated_ms for p in points]), np.array([p.measured_ms for p in points])


def group_errors(points: Iterable[Point]) -> list[GroupError]:
    """Return the error table, one entry per (model, GPU, TP)."""
    groups: dict[tuple[str, str, int], list[Point]] = defaultdict(list)
    for point in points:
        groups[point.model, point.gpu, point.tp].append(point)
    table = []
    for (model, gpu, tp), members in sorted(groups.items()):
        others = [p for k, g in groups.items() if k[:2] == (model, gpu) and k[2] != tp for p in g]
        plain = errors(members)
        held_out = errors(members, fit(others)) if len(others) > 2 else np.full(len(members), np.nan)
        smooth = [p for p in members if not p.preemptions]
        entry = GroupError(
            model=model,
            gpu=gpu,
            tp=tp,
            rows=len(members),
            mape=float(np.abs(plain).mean()),
            median=float(np.median(np.abs(plain))),
            bias=float(plain.mean()),
            calibrated_mape=float(np.abs(held_out).mean()),
            calibrated_bias=float(held_out.mean()),
            counted=(model, gpu) not in OUTSIDE,
            preempted_rows=len(members) - len(smooth),
            mape_without_preempted=float(np.abs(errors(smooth)).mean()) if smooth else float("nan"),
            reason="",
        )
        table.append(replace(entry, reason=_reason(entry, [*members, *others]) if entry.misses else ""))
    return table


def _reason(entry: GroupError, family: Sequence[Point]) -> str:
    """Say why a group misses, from its own numbers and all points of its model and GPU."""
    key = (entry.model, entry.gpu)
    if key == ("llama-3.1-8b-fp8", "h200_sxm"):
        short, long = min(p.osl for p in family), max(p.osl for p in family)
        by_length = [float(errors([p for p in family if p.osl == osl]).mean()) for osl in (short, long)]
        return (
            f"{OUTSIDE[key]}: over this model and GPU the error falls from {by_length[0]:+.0%} at {short} "
            f"output tokens to {by_length[1]:+.0%} at {long}, as if most of the other requests' prefills had "
            f"not taken place; by Little's law they would need up to {max(p.peak_share for p in family):.0%} "
            "of the FP8 peak rate for the linear layers alone"
        )
    parts = [OUTSIDE[key]] if key in OUTSIDE else []
    if entry.preempted_rows:
        parts.append(
            f"{entry.preempted_rows} of {entry.rows} rows run out of KV memory in the simulation and hang "
            f"on the estimated number of blocks; the other rows: {entry.mape_without_preempted:.1%} "
            "uncalibrated"
        )
    if entry.bias < -0.9 * entry.mape:
        parts.append(
            "low throughout: the kernel sums hold no scheduler, sampler or launch gaps, and the kernels "
            "shrink with TP while those do not"
        )
    return "; ".join(parts) or "no single cause found"


def calibrations(points: Sequence[Point]) -> list[Calibration]:
    """Fit every counted (model, GPU) on all its rows."""
    result = []
    for model, gpu in sorted({(p.model, p.gpu) for p in points} - OUTSIDE.keys()):
        members = [p for p in points if (p.model, p.gpu) == (model, gpu)]
        fitted = fit(members)
        result.append(
            Calibration(
                model=model,
                gpu=gpu,
                scale=round(fitted.scale, 4),
                offset_ms=round(fitted.offset_ms, 3),
                tp=tuple(sorted({p.tp for p in members})),
                rows=len(members),
                source="vLLM rows of silicon_sample.csv, aiconfigurator-core 0.12.0 (docs/latency_check.md)",
            )
        )
    return result


def totals(table: Sequence[GroupError]) -> dict[str, float]:
    """Return the errors over all counted rows."""
    counted = [entry for entry in table if entry.counted]
    weights = [entry.rows for entry in counted]
    all_weights = [entry.rows for entry in table]
    return {
        "all_mape": float(np.average([entry.mape for entry in table], weights=all_weights)),
        "all_calibrated_mape": float(np.average([entry.calibrated_mape for entry in table], weights=all_weights)),
        "rows": float(sum(weights)),
        "mape": float(np.average([entry.mape for entry in counted], weights=weights)),
        "bias": float(np.average([entry.bias for entry in counted], weights=weights)),
        "calibrated_mape": float(np.average([entry.calibrated_mape for entry in counted], weights=weights)),
        "calibrated_bias": float(np.average([entry.calibrated_bias for entry in counted], weights=weights)),
    }


def write_report(
    points: Sequence[Point],
    excluded: Counter[str],
    variants: Sequence[tuple[str, Sequence[Point]]],
    *,
    write: bool,
) -> None:
    """Print the report; with `write`, also renew it on disk together with the calibrations."""
    table = group_errors(points)
    fitted = calibrations(points)
    text = render(table, fitted, excluded, [(name, totals(group_errors(other))) for name, other in variants])
    print(text)
    if not write:
        return
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(text, encoding="utf-8")
    summary = {
        "totals": totals(table),
        "bars": {"mape": UNCALIBRATED_BAR, "calibrated_mape": CALIBRATED_BAR},
        "groups": [{**asdict(entry), "misses": entry.misses} for entry in table],
        "calibrations": [asdict(entry) for entry in fitted],
        "not_simulated": dict(excluded.most_common()),
    }
    REPORT.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    head = "# Written by `python -m scripts.check_latency --write`: iteration = scale * table + offset_ms.\n"
    entries = [{**asdict(entry), "tp": list(entry.tp)} for entry in fitted]
    CALIBRATIONS.write_text(head + yaml.safe_dump(entries, sort_keys=False, width=110), encoding="utf-8")


def render(
    table: Sequence[GroupError],
    fitted: Sequence[Calibration],
    excluded: Counter[str],
    variants: Sequence[tuple[str, dict[str, float]]],
) -> str:
    """Return the report as Markdown."""
    total = totals(table)
    simulated = sum(entry.rows for entry in table)
    everything = simulated + sum(excluded.values())
    lines = [
        "# Latency check: simulated against measured time per output token",
        "",
        f"Over the {total['rows']:.0f} counted rows (dense models, H100 and H200): mean absolute error "
        f"**{total['mape']:.1%}** without calibration (bias {total['bias']:+.1%}, bar "
        f"{UNCALIBRATED_BAR:.0%}), **{total['calibrated_mape']:.1%}** with an affine calibration fitted to"
        f" the other TP degrees (bias {total['calibrated_bias']:+.1%}, bar {CALIBRATED_BAR:.0%}). All "
        f"{simulated} simulated rows, including the groups that are not counted for the reasons below: "
        f"{total['all_mape']:.1%} and {total['all_calibrated_mape']:.1%}.",
        "",
        *_METHOD,
        "",
        "## By model, GPU and TP",
        "",
        "`cal.`: with `scale * t + offset` fitted to the same model and GPU at all other TP degrees. Rows"
        " marked `no` are shown but not counted in the totals.",
        "",
        "| model | GPU | TP | rows | MAPE | median | bias | cal. MAPE | cal. bias | counted | meets bars |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for e in table:
        lines.append(
            f"| {e.model} | {e.gpu} | {e.tp} | {e.rows} | {e.mape:.1%} | {e.median:.1%} | {e.bias:+.1%} | "
            f"{e.calibrated_mape:.1%} | {e.calibrated_bias:+.1%} | {'yes' if e.counted else 'no'} | "
            f"{'**no**' if e.misses else 'yes'} |"
        )
    lines += ["", "## Groups that miss a bar", ""]
    lines += [f"* {e.model}, {e.gpu}, TP {e.tp}: {e.reason}." for e in table if e.misses]
    lines += ["", "## Calibrations shipped", "", "Fitted to all counted rows of the model and GPU.", ""]
    lines += [
        "| model | GPU | scale | offset ms | TP degrees | rows |",
        "| --- | --- | ---: | ---: | --- | ---: |",
    ]
    for c in fitted:
        degrees = ", ".join(map(str, c.tp))
        lines.append(f"| {c.model} | {c.gpu} | {c.scale:.4f} | {c.offset_ms:.3f} | {degrees} | {c.rows} |")
    if variants:
        lines += [
            "",
            "## What the unknowns are worth",
            "",
            "| variant | MAPE | cal. MAPE |",
            "| --- | ---: | ---: |",
        ]
        lines += [f"| {name} | {v['mape']:.1%} | {v['calibrated_mape']:.1%} |" for name, v in variants]
    lines += ["", f"## What became of the {everything:,} points", "", "| rows | |", "| ---: | --- |"]
    lines.append(f"| {total['rows']:.0f} | simulated and counted |")
    lines.append(f"| {simulated - total['rows']:.0f} | simulated and shown, not counted |")
    lines += [f"| {count} | not simulated: {reason} |" for reason, count in excluded.most_common()]
    return "\n".join(lines) + "\n"


_METHOD: Final = (
    "Measurements: `systems/silicon_sample.csv` of PyPI `aiconfigurator-core` 0.12.0. Each row is "
    "simulated as a closed loop: fixed prompt and output length, a fixed number of clients without think "
    "time, ten requests per client, all counted, as in the benchmark most rows come from. Budget and "
    "sequence limit are vLLM's defaults for the GPU, prefix cache off, 90 % of the memory, KV blocks "
    "*estimated*, KV cache 16 bit (the published server commands of the Llama 70B rows leave it so on "
    "H200 and choose FP8 on B200). TTFT is not compared: it hangs on ramp and warm-up, which are not "
    "recorded. The kernels were measured on vLLM 0.24, the servers ran 0.12 where that is recorded.",
    "",
    "Regenerate: `python -m scripts.check_latency --write`.",
)
