"""The check against measured serving points: reading, simulating, fitting, reporting."""

from __future__ import annotations

import gzip
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from aragog_env.engine.config import EngineConfig
from aragog_env.engine.open_loop import run_compiled
from aragog_env.engine.reference import run_reference
from aragog_env.errors import SpecError
from aragog_env.latency.model import shipped_calibrations
from aragog_env.latency.roofline import linear_table
from scripts.check_latency import ClosedLoop, Row, classify, closed_loop_tpot, read_rows
from scripts.latency_report import Point, calibrations, errors, fit, group_errors, render, totals

MEASUREMENTS = Path(__file__).parents[3] / "shared/data/aiconfigurator_silicon/silicon_sample.csv.gz"
RECORD = {
    "backend": "vllm",
    "mode": "agg",
    "model_path": "Qwen/Qwen3-32B",
    "precision": "",
    "silicon_data_source": "x; silicon_concurrency=8",
    "system": "h100_sxm",
    "tp_size": "2.0",
    "isl": "1024",
    "osl": "128",
    "silicon_ttft_ms": "154.2",
    "silicon_tpot_ms": "18.0",
}
CONFIG = EngineConfig(max_num_seqs=64, max_num_batched_tokens=512, max_model_len=400, num_gpu_blocks=2000)


def point(tp: int, simulated_ms: float, measured_ms: float, **changes: object) -> Point:
    made = Point("m", "g", tp, 100, 10, 4, measured_ms, simulated_ms, preemptions=0, peak_share=0.1)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_rows_are_kept_or_counted_with_a_reason() -> None:
    assert classify(RECORD) == Row("qwen3-32b", "h100_sxm", 2, 1024, 128, 8, 154.2, 18.0)
    for changes, reason in [
        ({"backend": "sglang"}, "served by sglang"),
        ({"mode": "disagg"}, "separate prefill and decode"),
        ({"model_path": "openai/gpt-oss-120b"}, "mixture-of-experts"),
        ({"precision": "fp4"}, "FP4"),
        ({"silicon_data_source": "x"}, "in flight not recorded"),
        ({"system": "a30"}, "no table for Qwen/Qwen3-32B"),
    ]:
        assert reason in str(classify({**RECORD, **changes}))


def test_decode_only_closed_loop_has_a_known_tpot() -> None:
    # One client, no other work: every iteration takes 5 ms and gives one token.
    tpot_ms, preemptions = closed_loop_tpot(
        CONFIG, linear_table(overhead_ms=5.0).compile(64, 512), ClosedLoop(100, 50, 1, 3)
    )
    assert (tpot_ms, preemptions) == (pytest.approx(5.0), 0)


def test_both_engines_give_the_same_tpot() -> None:
    latency = linear_table(overhead_ms=5.0, per_token_ms=0.05, per_kv_token_ms=0.001).compile(64, 512)
    config = replace(CONFIG, num_gpu_blocks=120)
    loop = ClosedLoop(150, 60, 20, 3, shortest=0.5)
    compiled, reference = (closed_loop_tpot(config, latency, loop, run) for run in (run_compiled, run_reference))
    assert compiled == reference
    assert compiled[1] > 0


def test_affine_change_of_the_iterations_is_the_same_change_of_the_tpot() -> None:
    """A closed loop's schedule does not depend on durations, so calibrating TPOTs calibrates iterations."""
    table = linear_table(overhead_ms=5.0, per_token_ms=0.05, per_kv_token_ms=0.001)
    loop = ClosedLoop(150, 60, 20, 3, shortest=0.5)
    plain, _ = closed_loop_tpot(CONFIG, table.compile(64, 512), loop)
    changed, _ = closed_loop_tpot(CONFIG, table.scaled(1.3, 0.7).compile(64, 512), loop)
    assert changed == pytest.approx(1.3 * plain + 0.7, rel=1e-6)


def test_fit_recovers_an_affine_relation() -> None:
    points = [point(tp, s, 1.2 * s + 0.5) for tp in (1, 2, 4) for s in (5.0, 10.0, 40.0)]
    fitted = fit(points)
    assert (fitted.scale, fitted.offset_ms) == (pytest.approx(1.2), pytest.approx(0.5))
    assert errors(points, fitted) == pytest.approx(0.0, abs=1e-12)
    assert errors([point(1, 9.0, 10.0)]) == pytest.approx(-0.1)


def test_calibrated_errors_hold_their_own_tp_out() -> None:
    points = [point(tp, s, (2.0 if tp == 4 else 1.0) * s) for tp in (1, 2, 4) for s in (5.0, 10.0, 40.0)]
    of_four = next(entry for entry in group_errors(points) if entry.tp == 4)
    assert of_four.calibrated_mape == pytest.approx(0.5)
    assert of_four.misses and of_four.reason


def test_report_names_every_missing_group_and_accounts_for_all_rows() -> None:
    points = [point(tp, s, s * (1.3 if tp == 8 else 1.0)) for tp in (2, 4, 8) for s in (5.0, 10.0, 40.0)]
    table = group_errors(points)
    assert totals(table)["mape"] == pytest.approx((1 - 1 / 1.3) / 3)
    text = render(table, calibrations(points), Counter({"other": 12}), [])
    assert "What became of the 21 points" in text
    assert "* m, g, TP 8: low throughout" in text


def test_missing_measurements_are_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        read_rows(tmp_path / "none.csv")


def test_compressed_and_plain_files_are_read(tmp_path: Path) -> None:
    text = ",".join(RECORD) + "\n" + ",".join(RECORD.values()) + "\n"
    (tmp_path / "a.csv").write_text(text)
    with gzip.open(tmp_path / "b.csv.gz", "wt") as stream:
        stream.write(text)
    assert read_rows(tmp_path / "a.csv") == read_rows(tmp_path / "b.csv.gz")


@pytest.mark.skipif(not MEASUREMENTS.is_file(), reason="the measurements are not here")
def test_all_measurements_are_accounted_for() -> None:
    rows, excluded = read_rows(MEASUREMENTS)
    assert len(rows) + sum(excluded.values()) == 5221
    counts = Counter((row.model, row.gpu) for row in rows)
    assert all(counts[key] == entry.rows for key, entry in shipped_calibrations().items())


@pytest.mark.slow
@pytest.mark.skipif(not MEASUREMENTS.is_file(), reason="the measurements are not here")
def test_counted_rows_meet_the_bars() -> None:
    from scripts.check_latency import Setting, simulate

    rows, _ = read_rows(MEASUREMENTS)
    table = group_errors([simulate(row, Setting(), run_compiled) for row in rows])
    over_all = totals(table)
    assert over_all["rows"] == 195
    assert over_all["mape"] <= 0.16 and over_all["calibrated_mape"] <= 0.10
    assert all(entry.reason for entry in table if entry.misses)
