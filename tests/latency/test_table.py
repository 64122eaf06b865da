"""Latency tables: interpolation, extrapolation, compilation to picoseconds, calibration, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aragog_env.errors import SpecError
from aragog_env.latency.compiled import PS_PER_MS, decode_segment, iteration_ps
from aragog_env.latency.table import LatencyTable


def table(**changes: object) -> LatencyTable:
    """A small table whose values are easy to check by hand."""
    arrays: dict[str, object] = {
        "tokens": [1.0, 10.0, 100.0],
        "gemm_ms": [1.0, 2.0, 11.0],
        "chunk_new": [16.0, 32.0],
        "chunk_cached": [0.0, 100.0],
        "chunk_ms": [[1.0, 2.0], [2.0, 6.0]],
        "decode_batch": [1.0, 4.0],
        "decode_context": [100.0, 200.0, 400.0],
        "decode_ms": [[1.0, 2.0, 3.0], [4.0, 6.0, 12.0]],
        "logits_batch": [1.0, 5.0],
        "logits_ms": [0.5, 0.9],
        "overhead_ms": 0.25,
        "kind": "kernel-table",
        "source": "made up",
    }
    return LatencyTable(**{**arrays, **changes})  # type: ignore[arg-type]


def test_prefill_is_read_off_the_grid() -> None:
    # overhead + G(32) + L(1) + A_ctx(32, 100); G(32) = 2 + 22 / 90 * 9
    assert table().iteration_ms([(32, 100)], 0, 0, 1) == pytest.approx(0.25 + 4.2 + 0.5 + 6.0)


def test_chunk_is_bilinear_inside_and_beyond_the_grid() -> None:
    base = 0.25 + 0.5
    # middle of the cell: mean of the corners; G(24) = 2 + 14 / 90 * 9
    assert table().iteration_ms([(24, 50)], 0, 0, 1) == pytest.approx(base + 3.4 + (1 + 2 + 2 + 6) / 4)
    # beyond both ends: (48, 200) = low + 2 (high - low) with low = 3, high = 10; G(48) = 5.8
    assert table().iteration_ms([(48, 200)], 0, 0, 1) == pytest.approx(base + 5.8 + 17.0)


def test_short_chunk_costs_its_share_of_the_smallest_one() -> None:
    # A_ctx(4, 100) = 4 / 16 * A_ctx(16, 100); G(4) = 1 + 3 / 9
    assert table().iteration_ms([(4, 100)], 0, 0, 1) == pytest.approx(0.25 + 4 / 3 + 0.5 + 0.5)


@pytest.mark.parametrize(
    ("decodes", "context", "expected"),
    [
        (1, 50, 1.0),  # clamped below the grid
        (1, 150, 1.5),
        (1, 300, 2.5),
        (1, 600, 4.0),  # on with the last slope
        (4, 300, 9.0),
        (2, 200, 2 + 4 / 3),  # between two batch sizes
        (7, 100, 7.0),  # beyond the largest batch
    ],
)
def test_decode_attention(decodes: int, context: int, expected: float) -> None:
    gemm = float(np.interp(decodes, [1, 10], [1, 2]))
    logits = 0.5 + 0.1 * (decodes - 1)
    total = table().iteration_ms([], decodes, decodes * context, decodes)
    assert total == pytest.approx(0.25 + gemm + logits + expected)


def test_tokens_beyond_the_grid_go_on_with_the_last_slope() -> None:
    assert table().iteration_ms([], 0, 0, 1) == pytest.approx(0.25 + 1.0 + 0.5)
    assert table(gemm_ms=[1, 2, 11]).compile(1, 200).step_ps[200] == round((0.25 + 21.0) * PS_PER_MS)


def test_falling_ends_never_extrapolate_downwards() -> None:
    falling = table(
        gemm_ms=[1.0, 12.0, 11.0],
        logits_ms=[0.9, 0.5],
        decode_ms=[[1.0, 2.0, 1.5], [4.0, 6.0, 5.0]],
        chunk_ms=[[2.0, 6.0], [2.0, 1.0]],
    )
    compiled = falling.compile(100, 100_000)
    assert compiled.step_ps[100_000] == compiled.step_ps[100]
    assert compiled.sample_ps[100] == compiled.sample_ps[5]
    assert (compiled.decode_slope_ps >= 0).all()
    assert falling.iteration_ms([(10_000, 100_000)], 0, 0, 1) >= falling.iteration_ms([(32, 100)], 0, 0, 1)


def test_a_negative_overhead_cannot_stop_the_clock() -> None:
    compiled = table().scaled(1.0, -100.0).compile(4, 64)
    assert (compiled.step_ps >= 1).all()
    assert table().scaled(1.0, -100.0).iteration_ms([], 1, 100, 1) > 0


def test_decode_curve_is_continuous_to_the_picosecond_at_every_segment_boundary() -> None:
    compiled = table().compile(64, 128)
    for batch in range(1, 65):
        for j, point in enumerate(compiled.decode_context[:-1]):
            kv = batch * int(point)
            left = compiled.decode_base_ps[batch, j] + compiled.decode_slope_ps[batch, j] * kv
            right = compiled.decode_base_ps[batch, j + 1] + compiled.decode_slope_ps[batch, j + 1] * kv
            assert left == right
            assert decode_segment.py_func(compiled.decode_context, batch, kv) == j + 1
            assert decode_segment.py_func(compiled.decode_context, batch, kv - 1) == j


def test_row_zero_of_the_decode_tables_is_zero() -> None:
    compiled = table().compile(8, 64)
    assert not compiled.decode_base_ps[0].any() and not compiled.decode_slope_ps[0].any()


chunks = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 5000)), max_size=3)


@settings(deadline=None, max_examples=200)
@given(chunks, st.integers(0, 30), st.integers(1, 3000), st.integers(0, 30))
def test_compiled_table_equals_the_readable_one_to_within_rounding(
    prefills: list[tuple[int, int]], decodes: int, context: int, sampled: int
) -> None:
    measured = table()
    kv_tokens = decodes * context
    picoseconds = iteration_ps(measured.compile(64, 256), prefills, decodes, kv_tokens, sampled)
    exact = measured.iteration_ms(prefills, decodes, kv_tokens, sampled) * PS_PER_MS
    # half a picosecond per look-up, and per KV token on the decode slope
    assert abs(picoseconds - exact) <= 5 + len(prefills) + decodes * max(context, 400)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 63), st.integers(1, 5000))
def test_more_requests_or_more_context_never_take_less_time(decodes: int, context: int) -> None:
    compiled = table().compile(64, 64)
    now = iteration_ps(compiled, [], decodes, decodes * context, decodes)
    assert iteration_ps(compiled, [], decodes, decodes * context + 1, decodes) >= now
    assert iteration_ps(compiled, [], decodes + 1, (decodes + 1) * context, decodes + 1) >= now


def test_affine_calibration_acts_on_the_whole_iteration() -> None:
    measured = table()
    calibrated = measured.scaled(1.5, -0.2, note="fitted")
    for work in (([(32, 100)], 0, 0, 1), ([], 4, 1000, 4), ([(5, 7)], 3, 900, 4)):
        assert calibrated.iteration_ms(*work) == pytest.approx(1.5 * measured.iteration_ms(*work) - 0.2)
    assert calibrated.source == "made up; fitted"
    assert measured.overhead_ms == 0.25


@pytest.mark.parametrize(("scale", "offset"), [(0.0, 0.0), (-1.0, 0.0), (float("nan"), 0.0), (1.0, float("inf"))])
def test_impossible_calibrations_are_refused(scale: float, offset: float) -> None:
    with pytest.raises(SpecError, match="positive finite scale"):
        table().scaled(scale, offset)


def test_npz_round_trip_keeps_everything_and_its_bytes(tmp_path: Path) -> None:
    written = table().scaled(1.1, 0.3, note="x")
    written.save(tmp_path / "a.npz")
    read = LatencyTable.load(tmp_path / "a.npz")
    for name in ("tokens", "gemm_ms", "chunk_ms", "decode_ms", "decode_context", "logits_ms"):
        assert np.array_equal(getattr(read, name), getattr(written, name))
    assert (read.overhead_ms, read.kind, read.source) == (written.overhead_ms, written.kind, written.source)
    read.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such latency table"):
        LatencyTable.load(tmp_path / "missing.npz")
    (tmp_path / "junk.npz").write_bytes(b"junk")
    with pytest.raises(SpecError, match="not a latency table"):
        LatencyTable.load(tmp_path / "junk.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(SpecError, match="not a latency table"):
        LatencyTable.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": [1.0, 1.0, 2.0]}, "tokens must be a strictly increasing list"),
        ({"gemm_ms": [1.0, 2.0]}, "gemm_ms has shape"),
        ({"decode_ms": [[1.0, 2.0, 3.0]]}, "decode_ms has shape"),
        (
            {"decode_context": [100.0], "decode_ms": [[1.0], [2.0]]},
            "decode_context must be a strictly increasing list",
        ),
        ({"chunk_ms": [[1.0, -2.0], [2.0, 6.0]]}, "not negative"),
        ({"logits_ms": [0.5, float("nan")]}, "finite"),
        ({"chunk_cached": [1.0, 100.0]}, "chunk_cached must start at 0"),
        ({"chunk_new": [16.5, 32.0]}, "whole numbers"),
        ({"kind": "guess"}, "kind must be one of"),
        ({"overhead_ms": float("inf")}, "overhead_ms must be"),
    ],
)
def test_impossible_tables_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        table(**changes)
