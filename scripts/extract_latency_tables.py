"""Extract the shipped latency tables from the measured kernel database of AIConfigurator.

    python -m scripts.extract_latency_tables            # all of them, about 2 minutes
    python -m scripts.extract_latency_tables --only qwen2.5-7b

Needs the extra `tables` (PyPI `aiconfigurator-core` 0.12.0, Apache-2.0, kernel data included; see NOTICE).
It is a build step: the package is never imported at run time. One npz per (model, GPU, tensor parallelism)
goes to `aragog_env/latency/tables`, byte for byte the same on every run.

Only per-operation queries of pure prefill and pure decode steps are used. The package's own mixed-step
estimate averages the attention of a chunk over its prefix (2048 new tokens on 14336 cached ones on an A100:
11.8 ms instead of 94.2 ms).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from aragog_env.errors import SpecError
from aragog_env.latency.model import TABLES, kv_blocks, table_name
from aragog_env.latency.table import FloatArray, LatencyTable
from aragog_env.specs.catalogue import load_gpus, load_models
from aragog_env.specs.hardware import GpuSpec, ModelSpec

PACKAGE: Final = "aiconfigurator-core"
PACKAGE_VERSION: Final = "0.12.0"
MODELS: Final = (
    "qwen2.5-0.5b",
    "qwen2.5-1.5b",
    "qwen2.5-3b",
    "qwen2.5-7b",
    "qwen2.5-14b",
    "qwen2.5-32b",
    "qwen2.5-72b",
    "qwen3-8b",
    "qwen3-32b",
    "llama-3.2-3b",
    "llama-3-8b",
    "llama-3-70b",
    "llama-3.1-8b-fp8",
    "llama-3.1-70b-fp8",
    "phi-4-14b",
)
GPUS: Final = ("a100_sxm", "h100_sxm", "h200_sxm", "l40s", "b200_sxm")
TP: Final = (1, 2, 4, 8)

MEASURED_KV_HEADS: Final = (1, 2, 4, 8)
"""KV heads per GPU that the package has attention data for."""
NEIGHBOURS: Final = (4, 8)

TOKENS: Final = (
    *(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048),
    *(3072, 4096, 6144, 8192, 12288, 16384),
)
CHUNK_NEW: Final = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHUNK_CACHED: Final = (0, 512, 1024, 2048, 4096, 8192, 16384, 32768)
DECODE_BATCH: Final = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
DECODE_CONTEXT: Final = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)

Operations = dict[str, float]


class KernelData:
    """One compiled (model, GPU, TP) of the package, asked operation by operation; times in ms."""

    def __init__(self, model: ModelSpec, gpu: GpuSpec, tp: int) -> None:
        """Compile the model from its public dimensions."""
        from aiconfigurator_core.sdk.engine import EngineHandle

        quantisation = {"gemm_quant_mode": "fp8"} if model.dtype == "fp8" else {}
        with tempfile.TemporaryDirectory() as folder:
            write_config(model, Path(folder))
            self.handle: Any = EngineHandle.compile(
                folder,
                gpu.name,
                "vllm",
                tp_size=tp,
                kvcache_quant_mode="bfloat16",
                fmha_quant_mode="bfloat16",
                **quantisation,
            )

    def prefill(self, new: int, cached: int) -> Operations:
        """Return the operations of a prefill of `new` tokens on `cached` earlier ones."""
        context, _ = self.handle.run_static_per_op(batch_size=1, isl=new + cached, osl=2, prefix=cached)
        return {name: ms for name, ms, _, _ in context}

    def decode(self, batch: int, context: int) -> Operations:
        """Return the operations of one decode step of `batch` requests; `context` includes the new token."""
        _, generation = self.handle.run_static_per_op(batch_size=batch, isl=context - 1, osl=2)
        return {name: ms for name, ms, _, _ in generation}


class InterpolatedHeads:
    """Kernel data of a model whose KV heads per GPU were not measured: linear between the data for 4 and 8.

    Decode attention reads one KV head per head and its weights grow with them, so both are linear to first
    order; the number of query heads stays the model's own.
    """

    def __init__(self, model: ModelSpec, gpu: GpuSpec, tp: int) -> None:
        """Compile both neighbours."""
        low, high = (replace(model, kv_heads=heads * tp) for heads in NEIGHBOURS)
        self.low, self.high = KernelData(low, gpu, tp), KernelData(high, gpu, tp)
        self.weight = (model.kv_heads / tp - NEIGHBOURS[0]) / (NEIGHBOURS[1] - NEIGHBOURS[0])

    def prefill(self, new: int, cached: int) -> Operations:
        """See `KernelData.prefill`."""
        return self._between(self.low.prefill(new, cached), self.high.prefill(new, cached))

    def decode(self, batch: int, context: int) -> Operations:
        """See `KernelData.decode`."""
        return self._between(self.low.decode(batch, context), self.high.decode(batch, context))

    def _between(self, low: Operations, high: Operations) -> Operations:
        return {name: max(0.0, ms + self.weight * (high[name] - ms)) for name, ms in low.items()}


def write_config(model: ModelSpec, folder: Path) -> None:
    """Write the config.json that describes a model to the package by its public dimensions."""
    # Qwen3 normalises queries and keys per head, which the package prices; the others share the Llama block.
    architecture = "Qwen3ForCausalLM" if model.family == "qwen3" else "LlamaForCausalLM"
    config = {
        "architectures": [architecture],
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "max_position_embeddings": 131072,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def extract(data: KernelData | InterpolatedHeads, source: str) -> LatencyTable:
    """Query the grids and return the table."""

    def gemm_ms(tokens: int) -> float:
        operations = data.prefill(tokens, 0)
        return sum(ms for n, ms in operations.items() if n not in ("context_attention", "context_logits_gemm"))

    return LatencyTable(
        tokens=_grid(TOKENS),
        gemm_ms=_grid(gemm_ms(tokens) for tokens in TOKENS),
        chunk_new=_grid(CHUNK_NEW),
        chunk_cached=_grid(CHUNK_CACHED),
        chunk_ms=_outer(CHUNK_NEW, CHUNK_CACHED, lambda n, c: data.prefill(n, c)["context_attention"]),
        decode_batch=_grid(DECODE_BATCH),
        decode_context=_grid(DECODE_CONTEXT),
        decode_ms=_outer(DECODE_BATCH, DECODE_CONTEXT, lambda b, c: data.decode(b, c)["generation_attention"]),
        logits_batch=_grid(DECODE_BATCH),
        logits_ms=_grid(data.decode(batch, 1024)["generation_logits_gemm"] for batch in DECODE_BATCH),
        # The database holds kernels only: no scheduler, sampler or launch gaps. Calibration supplies those.
        overhead_ms=0.0,
        kind="kernel-table",
        source=source,
    )


def _grid(values: Iterable[float]) -> FloatArray:
    return np.array([float(value) for value in values])


def _outer(rows: tuple[int, ...], columns: tuple[int, ...], ask: Callable[[int, int], float]) -> FloatArray:
    return np.array([[ask(row, column) for column in columns] for row in rows])


def kernel_data_version(gpu: GpuSpec) -> str:
    """Return the vLLM version that the package's kernels of this GPU were measured with."""
    from aiconfigurator_core.sdk import perf_database

    return str(perf_database.resolve_query_version(gpu.name, "vllm", "current"))


def refusal(model: ModelSpec, gpu: GpuSpec, tp: int) -> str | None:
    """Return why no table is made for this combination, or None."""
    if model.dtype == "fp8" and gpu.fp8_tflops is None:
        return "no FP8 on this GPU"
    try:
        kv_blocks(model, gpu, tp, 0.92, gpu.max_num_batched_tokens)
    except SpecError as error:
        return error.message
    return None


def extract_one(model: ModelSpec, gpu: GpuSpec, tp: int, out: Path) -> str:
    """Write one table, and return what to tell the user."""
    from aiconfigurator_core.sdk.errors import PerfDataNotAvailableError

    name = table_name(model.name, gpu.name, tp)
    source = f"{PACKAGE} {PACKAGE_VERSION}, kernels of vLLM {kernel_data_version(gpu)} on {gpu.name}"
    measured = max(1, model.kv_heads // tp) in MEASURED_KV_HEADS
    if not measured:
        source += f"; linear between {NEIGHBOURS[0]} and {NEIGHBOURS[1]} KV heads per GPU"
    if tp > 2 and gpu.nvlink_gb_s < 100:
        # Measured at 3 GB/s and below: that server had no peer-to-peer copies between its PCIe switches.
        source += "; slow all-reduce over PCIe, as measured without peer-to-peer copies"
    try:
        data = KernelData(model, gpu, tp) if measured else InterpolatedHeads(model, gpu, tp)
        extract(data, source).save(out / name)
    except PerfDataNotAvailableError as error:
        return f"skip  {name}: {str(error).splitlines()[0]}"
    return f"wrote {name}"


def main() -> None:
    """Write every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="extract this model only")
    parser.add_argument("--out", type=Path, default=TABLES, help="folder of the npz files")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # the package warns about operations of mixture-of-experts models
    if (version := importlib.metadata.version(PACKAGE)) != PACKAGE_VERSION:
        raise SystemExit(f"needs {PACKAGE} {PACKAGE_VERSION}, found {version}: pip install '.[tables]'")
    options.out.mkdir(parents=True, exist_ok=True)
    models, gpus = load_models(), load_gpus()
    for name in (options.only,) if options.only else MODELS:
        for gpu in (gpus[gpu_name] for gpu_name in GPUS):
            for tp in TP:
                if reason := refusal(models[name], gpu, tp):
                    print(f"skip  {table_name(name, gpu.name, tp)}: {reason}")
                    continue
                print(extract_one(models[name], gpu, tp, options.out), flush=True)


if __name__ == "__main__":
    main()
