"""Fits recover the processes that made the data, and the shipped presets come from the script."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from aragog_env.specs.load import load_arrivals
from aragog_env.specs.strict import loads
from aragog_env.specs.workload import ArrivalSpec
from aragog_env.workload.arrivals import draw_arrivals
from aragog_env.workload.traces import Trace
from scripts.fit_traces import Source, fit_mmpp, hourly_rates, main, schedule_preset, trace_presets


def test_mmpp_fit_recovers_two_states() -> None:
    spec = ArrivalSpec(kind="mmpp", rate_rps=5.0, mmpp_rates=(3.0, 0.5), mmpp_sojourn_s=(20, 80))
    times = draw_arrivals(spec, 30_000, np.random.Generator(np.random.PCG64(1)))
    fit = fit_mmpp(np.bincount(times.astype(np.int64)), 1.0, 2, iterations=40)
    assert fit.rates_rps == pytest.approx([15, 2.5], rel=0.1)
    assert fit.sojourn_s == pytest.approx([20, 80], rel=0.25)


def test_presets_of_a_trace_are_valid_specs() -> None:
    times = draw_arrivals(
        ArrivalSpec(kind="gamma", rate_rps=4.0, cv=2.0), 2000, np.random.Generator(np.random.PCG64(1))
    )
    trace = Trace(times - times[0], np.ones(2000, np.int64), np.ones(2000, np.int64), "x", "azure2023")
    made = trace_presets("x", trace, Source("x.csv", "a title", 3.0, 2))
    specs = {name: loads(ArrivalSpec, text) for name, text in made.items()}
    assert set(specs) == {"x-gamma", "x-mmpp"}
    assert specs["x-gamma"].cv == pytest.approx(2.0, rel=0.1)
    assert specs["x-mmpp"].rate_rps == pytest.approx(4.0, rel=0.15)
    assert all("a title" in spec.source for spec in specs.values())


def test_hourly_rates_sum_clients_and_average_days(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv.gz"
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["client_id", "start_s", "rate_rps"])
        for day in range(2):
            for hour in range(24):
                for client in range(2):
                    writer.writerow([client, day * 86400 + hour * 3600, hour + 10 * day])
    rates, days = hourly_rates(path)
    assert rates == pytest.approx([2 * (hour + 5) for hour in range(24)])
    assert days == 2
    spec = loads(ArrivalSpec, schedule_preset("m", path))
    assert (spec.kind, len(spec.steps), spec.period_s) == ("schedule", 24, 86400)


def test_nothing_found(tmp_path: Path) -> None:
    assert main(["--data", str(tmp_path), "--to", str(tmp_path / "out")]) == 1


def test_shipped_fits_keep_what_the_traces_show() -> None:
    # Azure code is bursty (gaps vary 13 times their mean), conversation nearly Poisson (1.09).
    code, conv = load_arrivals("azure-code-mmpp"), load_arrivals("azure-conv-gamma")
    assert (code.rate_rps, conv.rate_rps) == (2.566, 5.53)
    assert conv.cv == pytest.approx(1.09, abs=0.01)
    gaps = np.diff(draw_arrivals(code, 100_000, np.random.Generator(np.random.PCG64(0))))
    assert 8 < gaps.std() / gaps.mean() < 16
    day = load_arrivals("servegen-m-small-day")
    rates = [step.rate_rps for step in day.steps]
    assert np.mean(rates) == pytest.approx(1.0, abs=1e-3) and max(rates) / min(rates) > 1.8
