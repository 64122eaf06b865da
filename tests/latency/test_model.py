"""Which latency table a replica gets, and how much KV memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aragog_env.errors import SpecError
from aragog_env.latency.compiled import iteration_ps
from aragog_env.latency.model import (
    TABLES,
    available_tables,
    check_sequence_fits,
    kv_blocks,
    latency_for,
    shipped_calibrations,
    table_name,
)
from aragog_env.latency.roofline import linear_table, linear_weights, roofline_table
from aragog_env.latency.table import LatencyTable
from aragog_env.specs.hardware import GpuSpec, ModelSpec

H100 = GpuSpec(
    name="h100_sxm",
    memory_gib=80.0,
    bandwidth_gb_s=3350,
    bf16_tflops=989,
    fp8_tflops=1979,
    nvlink_gb_s=450,
    price_usd_per_hour=3.0,
    max_num_batched_tokens=8192,
    max_num_seqs=1024,
)
LLAMA_8B = ModelSpec(
    name="llama-3-8b",
    hf_id="meta-llama/Llama-3.1-8B",
    family="llama-3",
    size_b=8.03,
    layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    max_model_len=131072,
)
LLAMA_70B = replace(
    LLAMA_8B, name="llama-3-70b", size_b=70.55, layers=80, hidden_size=8192, intermediate_size=28672, heads=64
)
QWEN3_32B = replace(
    LLAMA_8B, name="qwen3-32b", size_b=32.76, layers=64, hidden_size=5120, intermediate_size=25600, heads=64
)
UNKNOWN = replace(LLAMA_8B, name="unheard-of-8b")


def test_auto_takes_the_kernel_table_and_else_the_roofline() -> None:
    shipped = latency_for(LLAMA_8B, H100, 1)
    assert shipped.kind == "kernel-table" and "aiconfigurator-core 0.12.0" in shipped.source
    fallback = latency_for(UNKNOWN, H100, 1)
    assert fallback.kind == "roofline" and "uncalibrated" in fallback.source


def test_kernel_table_reproduces_published_iteration_times() -> None:
    # Prefill of 512 and 2048 tokens and three decode steps, as the package itself adds them up (ms).
    measured = latency_for(LLAMA_8B, H100, 1, "table")
    times = [
        measured.iteration_ms([(512, 0)], 0, 0, 1),
        measured.iteration_ms([(2048, 0)], 0, 0, 1),
        measured.iteration_ms([], 1, 1024, 1),
        measured.iteration_ms([], 64, 64 * 1024, 64),
        measured.iteration_ms([], 256, 256 * 2048, 256),
    ]
    assert times == pytest.approx([12.0, 43.5, 6.2, 10.4, 30.7], rel=0.01)


def test_roofline_is_near_the_kernel_table_where_both_exist() -> None:
    measured, arithmetic = latency_for(LLAMA_8B, H100, 1, "table"), roofline_table(LLAMA_8B, H100, 1)
    for work in (
        ([(2048, 0)], 0, 0, 1),
        ([(2048, 8192)], 0, 0, 1),
        ([], 1, 1024, 1),
        ([], 256, 256 * 2048, 256),
    ):
        assert arithmetic.iteration_ms(*work) == pytest.approx(measured.iteration_ms(*work), rel=0.25)


def test_every_shipped_table_loads_and_compiles_to_positive_times() -> None:
    assert len(available_tables()) > 200
    for model, gpu, tp in available_tables():
        compiled = LatencyTable.load(TABLES / table_name(model, gpu, tp)).compile(1024, 8192)
        assert compiled.step_ps.min() > 0 and compiled.sample_ps.min() > 0
        assert compiled.decode_slope_ps.min() >= 0
        assert iteration_ps(compiled, [(8192, 100_000)], 0, 0, 1) > iteration_ps(compiled, [(4096, 0)], 0, 0, 1)


def test_shipped_tables_are_small() -> None:
    assert sum(path.stat().st_size for path in TABLES.glob("*.npz")) < 3_000_000


def test_missing_table_names_the_ones_there_are() -> None:
    with pytest.raises(SpecError, match=r"for this model there are .*h100_sxm tp 2"):
        latency_for(LLAMA_70B, replace(H100, name="a30"), 2, "table")
    with pytest.raises(SpecError, match=r"on this GPU there are tables of .*llama-3-8b"):
        latency_for(UNKNOWN, H100, 1, "table")


def test_unknown_kind_and_bad_coefficients_are_refused() -> None:
    with pytest.raises(SpecError, match="Did you mean 'roofline'"):
        latency_for(LLAMA_8B, H100, 1, "rooflin")
    with pytest.raises(SpecError, match="Did you mean 'per_token_ms'"):
        latency_for(LLAMA_8B, H100, 1, "linear:per_tokens_ms=1")
    for bad in ("linear:per_token_ms=fast", "linear:per_token_ms", "linear:per_token_ms=1,per_token_ms=2"):
        with pytest.raises(SpecError, match="must look like per_token_ms"):
            latency_for(LLAMA_8B, H100, 1, bad)
    with pytest.raises(SpecError, match=">= 0"):
        latency_for(LLAMA_8B, H100, 1, "linear:per_token_ms=-1")
    with pytest.raises(SpecError, match="at least one coefficient"):
        latency_for(LLAMA_8B, H100, 1, "linear:overhead_ms=0")


def test_linear_latency_is_exact_everywhere() -> None:
    table = latency_for(
        LLAMA_8B,
        H100,
        1,
        "linear:overhead_ms=5,per_token_ms=0.02,per_decode_ms=0.1,per_kv_token_ms=0.001,"
        "per_context_ms=0.00001,per_sampled_ms=0.05",
    )
    assert table.kind == "linear"
    compiled = table.compile(2048, 65536)
    for chunks, decodes, kv, sampled in [
        ([], 1, 1, 1),
        ([(7, 0), (500, 3000)], 3, 999, 4),
        ([(40_000, 300_000)], 1500, 2_000_000, 1501),
    ]:
        tokens = decodes + sum(new for new, _ in chunks)
        pairs = sum(new * cached for new, cached in chunks)
        expected = 5 + 0.02 * tokens + 0.1 * decodes + 0.001 * kv + 0.00001 * pairs + 0.05 * sampled
        assert table.iteration_ms(chunks, decodes, kv, sampled) == pytest.approx(expected, rel=1e-12)
        assert iteration_ps(compiled, chunks, decodes, kv, sampled) == pytest.approx(
            expected * 1e9, abs=len(chunks) + 2
        )


def test_a_file_of_the_user_is_loaded(tmp_path: Path) -> None:
    linear_table(overhead_ms=3.0, source="my server").save(tmp_path / "mine.npz")
    assert latency_for(LLAMA_8B, H100, 1, str(tmp_path / "mine.npz")).source == "my server"
    with pytest.raises(SpecError, match="no such latency table"):
        latency_for(LLAMA_8B, H100, 1, str(tmp_path / "none.npz"))


def test_shipped_calibration_applies_only_where_it_was_fitted() -> None:
    fitted = shipped_calibrations()[("qwen3-32b", "h100_sxm")]
    work = ([], 32, 32 * 1000, 32)
    plain = latency_for(QWEN3_32B, H100, 2, calibrated=False)
    calibrated = latency_for(QWEN3_32B, H100, 2)
    assert calibrated.iteration_ms(*work) == pytest.approx(fitted.scale * plain.iteration_ms(*work) + fitted.offset_ms)
    assert "calibrated on" in calibrated.source and "calibrated" not in plain.source
    assert "calibrated" not in latency_for(LLAMA_8B, H100, 1).source


def test_calibration_of_the_user_replaces_the_shipped_one() -> None:
    plain = latency_for(QWEN3_32B, H100, 2, calibrated=False)
    own = latency_for(QWEN3_32B, H100, 2, scale=2.0, offset_ms=1.0)
    work = ([(100, 0)], 0, 0, 1)
    assert own.iteration_ms(*work) == pytest.approx(2 * plain.iteration_ms(*work) + 1)
    assert "user's calibration" in own.source


def test_roofline_by_hand() -> None:
    table = roofline_table(LLAMA_8B, H100, 1)
    # 32 layers of (4096 * 128 * (64 + 16) + 3 * 4096 * 14336) weights
    weights = 32 * (4096 * 128 * 80 + 3 * 4096 * 14336)
    assert linear_weights(LLAMA_8B) == weights
    assert np.interp(1, table.tokens, table.gemm_ms) == pytest.approx(2 * weights / (0.75 * 3350e9) * 1e3)
    assert np.interp(8192, table.tokens, table.gemm_ms) == pytest.approx(2 * weights * 8192 / (0.65 * 989e12) * 1e3)


def test_roofline_gains_from_tensor_parallelism_less_than_its_degree() -> None:
    one, eight = (roofline_table(LLAMA_70B, H100, tp).iteration_ms([], 64, 64_000, 64) for tp in (1, 8))
    assert one / 8 < eight < one / 3


def test_kv_blocks_are_near_what_vllm_reports_for_an_8b_model() -> None:
    # vLLM's log for Llama 3.1 8B, 80 GB, utilisation 0.9, 256 sequences, 2048 tokens: 54.9 GiB of KV cache.
    blocks = kv_blocks(LLAMA_8B, replace(H100, memory_gib=79.1), 1, 0.9, 2048, 256)
    assert blocks * 16 * 131072 / 2**30 == pytest.approx(54.9, rel=0.04)


def test_more_gpus_or_less_activation_leave_more_blocks() -> None:
    assert kv_blocks(LLAMA_8B, H100, 2, 0.9, 8192) > 2 * kv_blocks(LLAMA_8B, H100, 1, 0.9, 8192)
    assert kv_blocks(LLAMA_8B, H100, 1, 0.9, 2048) > kv_blocks(LLAMA_8B, H100, 1, 0.9, 8192)


def test_a_model_that_does_not_fit_is_refused_with_numbers_and_a_remedy() -> None:
    with pytest.raises(SpecError) as caught:
        kv_blocks(LLAMA_70B, H100, 1, 0.9, 8192, where="my.yaml:3")
    assert caught.value.where == "my.yaml:3"
    assert "weights take 131.4 GiB per GPU" in caught.value.message
    assert "72.0 GiB (90% of 80.0) are usable" in caught.value.message
    assert caught.value.message.endswith("use tp 2 or a GPU with more memory")
    with pytest.raises(SpecError, match="; use a GPU with more memory"):
        kv_blocks(LLAMA_70B, replace(H100, memory_gib=16.0), 8, 0.9, 8192)


def test_tp_must_divide_the_heads() -> None:
    with pytest.raises(SpecError, match=r"tp 3 cannot split the 32 heads .* possible: 1, 2, 4, 8"):
        kv_blocks(LLAMA_8B, H100, 3, 0.9, 8192)
    with pytest.raises(SpecError, match="cannot split"):
        latency_for(LLAMA_8B, H100, 0)


def test_one_longest_sequence_must_fit() -> None:
    check_sequence_fits(LLAMA_8B, 1001, 16_000)
    with pytest.raises(SpecError, match="lower max_model_len to 16000"):
        check_sequence_fits(LLAMA_8B, 1001, 16_001)
