"""Check the shipped latency tables and the simulator against measured serving points.

    python -m scripts.check_latency --csv silicon_sample.csv [--write] [--engine reference]

The points are the 5,221 of `systems/silicon_sample.csv` in PyPI `aiconfigurator-core` 0.12.0: fixed prompt
and output length, a fixed number of requests in flight, mean time per output token (TPOT). Every vLLM row
of a dense model with a shipped table is simulated as such a closed loop and compared, without calibration
and with an affine one (`scale * t + offset`) fitted per (model, GPU) to the rows of all *other* tensor
parallelisms. `--write` renews `docs/latency_check.md`, its JSON twin and
`aragog_env/latency/calibration.yaml`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from aragog_env.engine.config import EngineConfig, EngineRequest, EngineRun
from aragog_env.engine.open_loop import run_compiled
from aragog_env.engine.reference import run_reference
from aragog_env.errors import SpecError
from aragog_env.latency.compiled import PS_PER_MS, CompiledLatency
from aragog_env.latency.model import available_tables, kv_blocks, latency_for
from aragog_env.latency.roofline import linear_weights
from aragog_env.specs.catalogue import load_gpus, load_models
from aragog_env.specs.hardware import GpuSpec, ModelSpec
from scripts.latency_report import Point, write_report

Runner = Callable[[EngineConfig, CompiledLatency, Sequence[EngineRequest]], EngineRun]

MODELS: Final = {
    ("Qwen/Qwen3-32B", ""): "qwen3-32b",
    ("meta-llama/Llama-3.1-70B", "fp8"): "llama-3.1-70b-fp8",
    ("nvidia/Llama-3.1-8B-Instruct-FP8", "fp8"): "llama-3.1-8b-fp8",
}
"""(model_path, precision) of the measurements -> name in our catalogue."""
MIXTURES: Final = (
    "MiniMax",
    "Kimi",
    "gpt-oss",
    "DeepSeek",
    "Qwen3-235B",
    "GLM",
    "Mixtral",
    "Qwen3.5",
    "Step",
    "MiMo",
)
REQUESTS_PER_CLIENT: Final = 10
"""The published protocol of most of these rows sends ten requests per client and counts all of them."""
GPU_MEMORY_UTILIZATION: Final = 0.9


@dataclass(frozen=True)
class Row:
    """One measurement, as far as it matters here."""

    model: str
    gpu: str
    tp: int
    isl: int
    osl: int
    concurrency: int
    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True)
class Setting:
    """What the measurements do not record."""

    shortest: float = 1.0
    """Lengths are uniform between this share of the nominal length and all of it."""
    block_factor: float = 1.0
    """Factor on the estimated number of KV blocks."""


VARIANTS: Final = {
    "lengths uniform in 80..100 % of the nominal ones (that benchmark's usual client setting)": Setting(shortest=0.8),
    "KV blocks 10 % fewer than estimated": Setting(block_factor=0.9),
    "KV blocks 10 % more": Setting(block_factor=1.1),
    "KV blocks 50 % more": Setting(block_factor=1.5),
}


def main() -> None:
    """Simulate, compare, print, and write the report if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="silicon_sample.csv or .csv.gz; default: the installed package's")
    parser.add_argument("--write", action="store_true", help="renew docs/latency_check.* and the calibrations")
    parser.add_argument("--engine", choices=("compiled", "reference"), default="compiled")
    parser.add_argument("--limit", type=int, help="simulate the first rows only (nothing is written then)")
    options = parser.parse_args()
    try:
        rows, excluded = read_rows(options.csv or default_csv())
    except SpecError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    runner = run_compiled if options.engine == "compiled" else run_reference
    begin = time.perf_counter()
    points = [simulate(row, Setting(), runner) for row in rows[: options.limit]]
    print(f"{len(points)} rows simulated in {time.perf_counter() - begin:.0f} s\n")
    variants: list[tuple[str, list[Point]]] = []
    if options.limit is None:
        variants = [(name, [simulate(row, setting, runner) for row in rows]) for name, setting in VARIANTS.items()]
    write_report(points, excluded, variants, write=options.write and options.limit is None)


def default_csv() -> Path:
    """Return the measurements inside the installed package, else those beside the repository."""
    if spec := importlib.util.find_spec("aiconfigurator_core"):
        return Path(str(spec.origin)).parent / "systems" / "silicon_sample.csv"
    beside = Path(__file__).parents[2] / "shared/data/aiconfigurator_silicon/silicon_sample.csv.gz"
    if beside.is_file():
        return beside
    raise SpecError("no measurements found: install the extra 'tables' or give --csv silicon_sample.csv")


def read_rows(path: Path) -> tuple[list[Row], Counter[str]]:
    """Return the rows to simulate, and how many others there are for which reason."""
    if not path.is_file():
        raise SpecError("no such file; give the path of silicon_sample.csv", where=str(path))
    opened = gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="")
    rows: list[Row] = []
    excluded: Counter[str] = Counter()
    with opened as stream:
        for record in csv.DictReader(stream):
            row = classify(record)
            if isinstance(row, Row):
                rows.append(row)
            else:
                excluded[row] += 1
    return rows, excluded


def classify(record: dict[str, str]) -> Row | str:
    """Return the row to simulate, or why it cannot be."""
    if record["backend"] != "vllm":
        return f"served by {record['backend']}, not vLLM"
    if record["mode"] != "agg":
        return "vLLM with separate prefill and decode servers"
    if any(name in record["model_path"] for name in MIXTURES):
        return "vLLM, mixture-of-experts model (no tables: dense models only)"
    if record["precision"] == "fp4":
        return "vLLM, FP4 weights (no tables)"
    concurrency = re.search(r"silicon_concurrency=(\d+)", record["silicon_data_source"])
    if concurrency is None:
        return "vLLM, number of requests in flight not recorded"
    name = MODELS.get((record["model_path"], record["precision"]))
    gpu, tp = record["system"], int(float(record["tp_size"]))
    if name is None or (name, gpu, tp) not in available_tables():
        return f"vLLM, no table for {record['model_path']} {record['precision']} on {gpu}".strip()
    return Row(
        model=name,
        gpu=gpu,
        tp=tp,
        isl=int(record["isl"]),
        osl=int(record["osl"]),
        concurrency=int(concurrency[1]),
        ttft_ms=float(record["silicon_ttft_ms"]),
        tpot_ms=float(record["silicon_tpot_ms"]),
    )


def simulate(row: Row, setting: Setting, runner: Runner) -> Point:
    """Serve the row's closed loop on the uncalibrated table and return both numbers."""
    model, gpu = load_models()[row.model], load_gpus()[row.gpu]
    budget, seqs = gpu.max_num_batched_tokens, gpu.max_num_seqs
    blocks = kv_blocks(model, gpu, row.tp, GPU_MEMORY_UTILIZATION, budget, seqs)
    config = EngineConfig(
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        max_model_len=row.isl + row.osl,
        num_gpu_blocks=int(blocks * setting.block_factor),
        enable_prefix_caching=False,
    )
    table = latency_for(model, gpu, row.tp, "table", calibrated=False)
    loop = ClosedLoop(row.isl, row.osl, row.concurrency, REQUESTS_PER_CLIENT, setting.shortest)
    tpot_ms, preemptions = closed_loop_tpot(config, table.compile(seqs, budget), loop, runner)
    return Point(
        model=row.model,
        gpu=row.gpu,
        tp=row.tp,
        isl=row.isl,
        osl=row.osl,
        concurrency=row.concurrency,
        measured_ms=row.tpot_ms,
        simulated_ms=tpot_ms,
        preemptions=preemptions,
        peak_share=_peak_share(row, model, gpu),
    )


def _peak_share(row: Row, model: ModelSpec, gpu: GpuSpec) -> float:
    """Return which share of the peak rate the linear layers need if the recorded numbers are right."""
    lifetime_s = (row.ttft_ms + row.tpot_ms * (row.osl - 1)) / 1e3
    tokens_per_s = row.concurrency / lifetime_s * (row.isl + row.osl)
    peak = gpu.fp8_tflops if model.dtype == "fp8" and gpu.fp8_tflops else gpu.bf16_tflops
    return 2 * linear_weights(model) * tokens_per_s / (peak * 1e12 * row.tp)


@dataclass(frozen=True)
class ClosedLoop:
    """Clients that each send one request after the other, without think time."""

    isl: int
    osl: int
    concurrency: int
    requests_per_client: int
    shortest: float = 1.0

    def requests(self) -> list[EngineRequest]:
        """Return all requests: each client's first at time zero, the next when the one before it is done."""
        count = self.concurrency * self.requests_per_client
        rng = np.random.default_rng(0)
        prompts = rng.integers(int(self.isl * self.shortest), self.isl, count, endpoint=True)
        outputs = rng.integers(int(self.osl * self.shortest), self.osl, count, endpoint=True)
        return [
            EngineRequest(
                request_id=index,
                arrival_ps=0,
                prompt=((2 * index, int(prompts[index])),),
                output_tokens=int(outputs[index]),
                output_content_id=2 * index + 1,
                after=index - self.concurrency if index >= self.concurrency else None,
            )
            for index in range(count)
        ]


def closed_loop_tpot(
    config: EngineConfig, latency: CompiledLatency, loop: ClosedLoop, runner: Runner = run_compiled
) -> tuple[float, int]:
    """Return the mean time per output token in ms over all requests, and the number of preemptions."""
    requests = loop.requests()
    run = runner(config, latency, requests)
    tokens = {request.request_id: request.output_tokens for request in requests}
    tpot_ps = [(call.finish_ps - call.first_token_ps) / (tokens[call.request_id] - 1) for call in run.calls]
    return float(np.mean(tpot_ps)) / PS_PER_MS, sum(call.preemptions for call in run.calls)


if __name__ == "__main__":
    main()
