"""Serve workloads with the real vLLM scheduler on a virtual clock; runs inside the vLLM environment.

    HF_HUB_OFFLINE=1 .venv-vllm/bin/python scripts/vllm_oracle.py <folder>

Real: `Scheduler`/`AsyncScheduler`, `KVCacheManager`, `BlockPool`, `Request`, and the loop bodies
`EngineCore.step` and `EngineCore.step_with_batch_queue` themselves. Faked: the model (a config only), the
executor (answers with planned tokens and moves the clock), the KV memory (block counts only). Nothing of this
project is imported: every ``*.in.npz`` in the folder holds one workload and the iteration times, and
``*.out.npz`` beside it receives what vLLM did (`scripts/compare_with_vllm.py` writes and reads them).
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import queue
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", VLLM_CPU_KVCACHE_SPACE="1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np
import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.version import __version__ as vllm_version

VOCABULARY = 128_000
LLAMA_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}


def cheap_hash(value: Any) -> bytes:
    """Return eight bytes for anything hashable."""
    return hash(value).to_bytes(8, "little", signed=True)


def segment_tokens(content: int, start: int, stop: int) -> list[int]:
    """Return the token ids of the pairs (content, start..stop): splitmix64 into the vocabulary."""
    salt = np.uint64(content * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    x = np.arange(start, stop, dtype=np.uint64) + salt
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    tokens: list[int] = ((x ^ (x >> np.uint64(31))) % np.uint64(VOCABULARY)).tolist()
    return tokens


class IterationTime:
    """The iteration time formula of `aragog_env.latency.compiled`, written a second time in plain Python."""

    def __init__(self, arrays: Any) -> None:
        self.step = arrays["step_ps"].tolist()
        self.sample = arrays["sample_ps"].tolist()
        self.base = arrays["decode_base_ps"].tolist()
        self.slope = arrays["decode_slope_ps"].tolist()
        self.context = arrays["decode_context"].tolist()
        self.new = arrays["chunk_new"].tolist()
        self.cached = arrays["chunk_cached"].tolist()
        self.table = arrays["chunk_table_ps"].tolist()

    def chunk_ps(self, new: int, cached: int) -> int:
        """Return the attention time of one prefill chunk."""
        scale = 1.0
        if new < self.new[0]:
            scale, new = new / self.new[0], self.new[0]
        i = max([k for k in range(len(self.new) - 1) if new >= self.new[k]], default=0)
        j = max([k for k in range(len(self.cached) - 1) if cached >= self.cached[k]], default=0)
        u = (new - self.new[i]) / (self.new[i + 1] - self.new[i])
        v = (cached - self.cached[j]) / (self.cached[j + 1] - self.cached[j])
        low = self.table[i][j] + (self.table[i][j + 1] - self.table[i][j]) * v
        high = self.table[i + 1][j] + (self.table[i + 1][j + 1] - self.table[i + 1][j]) * v
        return int((low + (high - low) * u) * scale + 0.5)

    def iteration_ps(self, chunks: list[tuple[int, int]], decodes: int, kv_tokens: int, sampled: int) -> int:
        """Return the duration of one iteration."""
        total: int = self.step[decodes + sum(new for new, _ in chunks)] + self.sample[sampled]
        total += sum(self.chunk_ps(new, cached) for new, cached in chunks)
        if decodes:
            segment = sum(kv_tokens >= decodes * point for point in self.context[:-1])
            total += self.base[decodes][segment] + self.slope[decodes][segment] * kv_tokens
        return total


class Recorder:
    """Everything that is compared: times of each request, and every iteration."""

    def __init__(self, count: int) -> None:
        self.first_start = [-1] * count
        self.first_token = [-1] * count
        self.finish = [-1] * count
        self.arrival = [-1] * count
        self.preemptions = [0] * count
        self.cached_tokens = [-1] * count
        self.steps: list[tuple[int, ...]] = []
        self.entries: list[tuple[int, int, int, int]] = []
        self.entry_offset = [0]
        self.preempted: list[int] = []
        self.preempted_offset = [0]


class FakeExecutor:
    """Runs batches one after another on a virtual GPU: `execute_model` plans, a future's `result` waits."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.free_at_ps = 0
        self.pending: Any = None

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Future[Any]:
        """Take a batch; its answer is collected by `sample_tokens` if it computes anything."""
        oracle = self.oracle
        future = _BatchFuture(oracle)
        if scheduler_output.total_num_scheduled_tokens == 0:
            future.answer = ModelRunnerOutput(req_ids=[], req_id_to_index={})
            future.end_ps = max(oracle.now_ps, self.free_at_ps)
            return future
        start_ps = max(oracle.now_ps, self.free_at_ps)
        future.end_ps, future.answer = oracle.record(scheduler_output, start_ps)
        self.free_at_ps = future.end_ps
        self.pending = future
        return _Done(None)

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
        """Return the answer of the batch just taken: a future, or the answer in the synchronous loop."""
        future, self.pending = self.pending, None
        return future if non_block else future.result()

    def shutdown(self) -> None:
        """Nothing to shut down."""


class _Done(Future):  # type: ignore[type-arg]
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.set_result(value)


class _BatchFuture(Future):  # type: ignore[type-arg]
    """A future whose waiting moves the virtual clock."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.oracle = oracle
        self.end_ps = 0
        self.answer: Any = None

    def result(self, timeout: float | None = None) -> Any:
        self.oracle.now_ps = max(self.oracle.now_ps, self.end_ps)
        return self.answer


class Oracle:
    """One workload served by the real scheduler."""

    def __init__(self, path: Path, model_folder: str) -> None:
        with np.load(path, allow_pickle=False) as data:
            self.data = {name: data[name] for name in data.files}
        self.limits = json.loads(str(self.data["config"]))
        self.times = IterationTime(self.data)
        self.now_ps = 0
        self.recorder = Recorder(len(self.data["request_id"]))
        self.index = {int(r): i for i, r in enumerate(self.data["request_id"])}
        self.wall_s = 0.0
        self.core = self._engine_core(model_folder)
        self.scheduler = self.core.scheduler
        preempt = self.scheduler._preempt_request

        def count_preemption(request: Request, *args: Any, **kwargs: Any) -> None:
            i = self.index[int(request.request_id)]
            self.recorder.preemptions[i] += 1
            self.recorder.preempted.append(int(request.request_id))
            preempt(request, *args, **kwargs)

        self.scheduler._preempt_request = count_preemption

    def _engine_core(self, model_folder: str) -> EngineCore:
        limits = self.limits
        asynchronous = bool(limits["async_scheduling"])
        cache = CacheConfig(block_size=limits["block_size"], enable_prefix_caching=limits["enable_prefix_caching"])
        cache.num_gpu_blocks = limits["num_gpu_blocks"]
        vllm_config = VllmConfig(
            model_config=ModelConfig(
                model=model_folder,
                skip_tokenizer_init=True,
                max_model_len=limits["max_model_len"],
                dtype="bfloat16",
            ),
            scheduler_config=SchedulerConfig(
                max_num_seqs=limits["max_num_seqs"],
                # The constructor refuses budgets below this; the scheduler itself does not care.
                max_num_batched_tokens=max(limits["max_num_batched_tokens"], limits["max_num_seqs"]),
                max_model_len=limits["max_model_len"],
                is_encoder_decoder=False,
                enable_chunked_prefill=True,
                policy=limits["scheduling_policy"],
                async_scheduling=asynchronous,
            ),
            cache_config=cache,
            device_config=DeviceConfig("cpu"),
        )
        vllm_config.scheduler_config.max_num_batched_tokens = limits["max_num_batched_tokens"]
        vllm_config.scheduler_config.async_scheduling = asynchronous
        cache.enable_prefix_caching = limits["enable_prefix_caching"]
        spec = FullAttentionSpec(block_size=limits["block_size"], num_kv_heads=8, head_size=128, dtype=torch.bfloat16)
        kv_cache = KVCacheConfig(
            num_blocks=limits["num_gpu_blocks"],
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        )
        core = object.__new__(EngineCore)
        core.vllm_config = vllm_config
        core.log_stats = False
        core._weight_version = "default"
        core.model_executor = FakeExecutor(self)
        core.structured_output_manager = StructuredOutputManager(vllm_config)
        core.scheduler = (AsyncScheduler if asynchronous else Scheduler)(
            vllm_config=vllm_config,
            kv_cache_config=kv_cache,
            structured_output_manager=core.structured_output_manager,
            block_size=limits["block_size"],
            log_stats=False,
        )
        core.batch_queue_size = vllm_config.max_concurrent_batches
        core.batch_queue = deque(maxlen=core.batch_queue_size) if core.batch_queue_size > 1 else None
        if core.batch_queue_size != (2 if asynchronous else 1):
            raise RuntimeError(f"unexpected batch queue of {core.batch_queue_size}")
        core.is_mm_encoder_only = core.is_pooling_model = False
        core.check_for_draft_tokens = False
        core.aborts_queue = queue.Queue()
        core.step_fn = core.step if core.batch_queue is None else core.step_with_batch_queue
        return core

    def _request(self, i: int, arrival_ps: int) -> Request:
        data = self.data
        first, last = data["segment_offset"][i], data["segment_offset"][i + 1]
        prompt: list[int] = []
        for content, length in zip(
            data["segment_content"][first:last], data["segment_length"][first:last], strict=True
        ):
            prompt.extend(segment_tokens(int(content), 0, int(length)))
        self.recorder.arrival[i] = arrival_ps
        hasher = get_request_block_hasher(self.limits["block_size"], cheap_hash)
        return Request(
            # Padded, because vLLM breaks ties of the priority queue by comparing the strings.
            request_id=f"{int(data['request_id'][i]):012d}",
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(max_tokens=int(data["output_tokens"][i]), ignore_eos=True),
            pooling_params=None,
            arrival_time=arrival_ps,
            priority=int(data["priority"][i]),
            block_hasher=hasher if self.limits["enable_prefix_caching"] else None,
        )

    def record(self, scheduler_output: Any, start_ps: int) -> tuple[int, ModelRunnerOutput]:
        """Note a scheduled batch; return its end and the model's answer. Counters have already advanced."""
        rec, scheduler = self.recorder, self.scheduler
        names = list(scheduler_output.num_scheduled_tokens)
        chunks: list[tuple[int, int]] = []
        answers: list[list[int]] = []
        decodes = kv_tokens = sampled = 0
        for name in names:
            new = scheduler_output.num_scheduled_tokens[name]
            request = scheduler.requests[name]
            i = self.index[int(name)]
            before = request.num_computed_tokens - new
            samples = not request.is_prefill_chunk
            # `AsyncScheduler` has already counted the token that this batch will sample as a placeholder.
            waiting_for = request.num_output_placeholders - int(samples and isinstance(scheduler, AsyncScheduler))
            outputs = request.num_output_tokens + waiting_for
            if outputs > 0 and before + 1 == request.num_prompt_tokens + outputs:
                decodes += 1
                kv_tokens += before + 1
            else:
                chunks.append((new, before))
            answers.append(
                segment_tokens(int(self.data["output_content_id"][i]), outputs, outputs + 1) if samples else []
            )
            sampled += samples
            if rec.first_start[i] < 0:
                rec.first_start[i], rec.cached_tokens[i] = start_ps, before
            rec.entries.append((int(name), new, before, int(samples)))
        end_ps = start_ps + self.times.iteration_ps(chunks, decodes, kv_tokens, sampled)
        rec.entry_offset.append(len(rec.entries))
        rec.preempted_offset.append(len(rec.preempted))
        running, waiting = scheduler.get_request_counts()
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        rec.steps.append((self.now_ps, start_ps, end_ps, decodes, kv_tokens, running, waiting, free))
        return end_ps, ModelRunnerOutput(
            req_ids=names, req_id_to_index={n: k for k, n in enumerate(names)}, sampled_token_ids=answers
        )

    def run(self) -> None:
        """Serve the workload: the body of `EngineCore.run_busy_loop` on the virtual clock."""
        data, core = self.data, self.core
        due: list[tuple[int, int, int]] = []
        followers: dict[int, list[int]] = {}
        for i, after in enumerate(data["after"].tolist()):
            if after < 0:
                heapq.heappush(due, (int(data["arrival_ps"][i]), int(data["request_id"][i]), i))
            else:
                followers.setdefault(after, []).append(i)
        begin = time.perf_counter()
        while True:
            if not self.scheduler.has_requests() and not core.batch_queue:
                if not due:
                    break
                self.now_ps = max(self.now_ps, due[0][0])
            while due and due[0][0] <= self.now_ps:
                arrival_ps, _, i = heapq.heappop(due)
                core.scheduler.add_request(self._request(i, arrival_ps))
            outputs, _ = core.step_fn()
            for answer in (outputs or {}).values():
                for output in answer.outputs:
                    i = self.index[int(output.request_id)]
                    if self.recorder.first_token[i] < 0:
                        self.recorder.first_token[i] = self.now_ps
                    if output.finish_reason is not None:
                        self.recorder.finish[i] = self.now_ps
                        for k in followers.pop(int(data["request_id"][i]), ()):
                            arrival_ps = self.now_ps + int(data["delay_ps"][k])
                            heapq.heappush(due, (arrival_ps, int(data["request_id"][k]), k))
        self.wall_s = time.perf_counter() - begin

    def save(self, path: Path) -> None:
        """Write what happened."""
        rec = self.recorder
        calls = [
            rec.arrival,
            rec.first_start,
            rec.first_token,
            rec.finish,
            rec.preemptions,
            rec.cached_tokens,
        ]
        np.savez_compressed(
            path,
            request_id=self.data["request_id"],
            calls=np.array(calls, np.int64).T,
            steps=np.array(rec.steps, np.int64).reshape(-1, 8),
            entries=np.array(rec.entries, np.int64).reshape(-1, 4),
            entry_offset=np.array(rec.entry_offset, np.int64),
            preempted=np.array(rec.preempted, np.int64),
            preempted_offset=np.array(rec.preempted_offset, np.int64),
            wall_s=np.float64(self.wall_s),
            version=np.str_(vllm_version),
        )


def main() -> None:
    """Serve every ``*.in.npz`` of the folder given on the command line."""
    folder = Path(sys.argv[1])
    logging.disable(logging.WARNING)
    init_none_hash(cheap_hash)
    with tempfile.TemporaryDirectory() as model_folder:
        Path(model_folder, "config.json").write_text(json.dumps(LLAMA_CONFIG))
        for path in sorted(folder.glob("*.in.npz")):
            oracle = Oracle(path, model_folder)
            oracle.run()
            oracle.save(path.with_name(path.name.replace(".in.npz", ".out.npz")))


if __name__ == "__main__":
    main()
