"""The catalogue: dimensions that add up, names that are suggested."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aragog_env.errors import SpecError
from aragog_env.specs.catalogue import cluster_models, context_length, gpu, load_gpus, load_models, model
from aragog_env.specs.cluster import ClusterSpec, ReplicaSpec
from aragog_env.specs.hardware import GpuSpec, ModelSpec
from aragog_env.specs.load import load_cluster


def parameters(entry: ModelSpec) -> float:
    """Count the weights of a dense decoder with gated MLP; norms and biases are too small to matter."""
    attention = entry.hidden_size * entry.head_dim * (2 * entry.heads + 2 * entry.kv_heads)
    mlp = 3 * entry.hidden_size * entry.intermediate_size
    embeddings = entry.vocab_size * entry.hidden_size * (1 if entry.tie_embeddings else 2)
    return entry.layers * (attention + mlp) + embeddings


@pytest.mark.parametrize("entry", load_models().values(), ids=lambda entry: entry.name)
def test_size_follows_from_the_dimensions(entry: ModelSpec) -> None:
    assert parameters(entry) / 1e9 == pytest.approx(entry.size_b, rel=0.002)


@pytest.mark.parametrize("entry", load_gpus().values(), ids=lambda entry: entry.name)
def test_gpu_defaults_follow_vllm(entry: GpuSpec) -> None:
    # vllm/engine/arg_utils.py:EngineArgs.get_batch_defaults, API server
    if entry.memory_gib >= 160:
        expected = (16384, 1024)
    elif entry.memory_gib >= 70 and "a100" not in entry.name:
        expected = (8192, 1024)
    else:
        expected = (2048, 256)
    assert (entry.max_num_batched_tokens, entry.max_num_seqs) == expected


def test_every_entry_names_its_source() -> None:
    assert all(entry.source for entry in (*load_models().values(), *load_gpus().values()))


def test_kv_cache_bytes_of_a_known_model() -> None:
    # Llama 3 8B: 32 layers x 2 x 8 heads x 128 x 2 bytes = 128 KiB a token.
    assert model("llama-3-8b").kv_bytes_per_token(1) == 131072
    assert model("llama-3-8b").kv_bytes_per_token(4) == 32768
    assert model("llama-3.1-8b-fp8").weight_bytes == model("llama-3-8b").weight_bytes / 2


def test_unknown_names_are_suggested() -> None:
    with pytest.raises(SpecError, match=r"^my.yaml:3: unknown GPU 'h100_smx'\. Did you mean 'h100_sxm'\?"):
        gpu("h100_smx", where="my.yaml:3")
    with pytest.raises(SpecError, match=r"^unknown model 'qwen2\.5-7'\. Did you mean 'qwen2\.5-7b'\?"):
        model("qwen2.5-7")


def test_a_cluster_adds_to_the_catalogue_and_overrides_it() -> None:
    mine = replace(model("qwen2.5-7b"), name="mine", size_b=1.0)
    faster = replace(gpu("l4"), bandwidth_gb_s=999.0)
    replicas = (ReplicaSpec("a", "qwen2.5-7b", "l4"), ReplicaSpec("b", "mine", "l4", max_model_len=100))
    cluster = ClusterSpec("c", replicas, models=(mine,), gpus=(faster,))
    assert model("mine", cluster) is mine
    assert gpu("l4", cluster).bandwidth_gb_s == 999.0
    assert gpu("l4").bandwidth_gb_s == 300.0
    assert [entry.name for entry in cluster_models(cluster)] == ["mine", "qwen2.5-7b"]
    assert [context_length(replica, cluster) for replica in replicas] == [32768, 100]


def test_models_of_a_cluster_are_distinct_and_ordered_by_size() -> None:
    names = [entry.name for entry in cluster_models(load_cluster("qwen-16xh100-replicated"))]
    assert names == ["qwen2.5-7b", "qwen2.5-14b", "qwen2.5-32b"]
