"""Prometheus text of several vLLM versions."""

from __future__ import annotations

from aragog_env.servers.metrics import ServerMetrics, read_metrics, samples

# A page of vLLM 0.32 (CPU), shortened.
V1 = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="small"} 3.0
vllm:num_requests_waiting{engine="0",model_name="small"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="small",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="small"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="small"} 1000.0
vllm:prefix_cache_queries_created{engine="0",model_name="small"} 1.7637e+09
vllm:prefix_cache_hits_total{engine="0",model_name="small"} 640.0
vllm:num_preemptions_total{engine="0",model_name="small"} 1.0
vllm:prompt_tokens_total{engine="0",model_name="small"} 1000.0
vllm:generation_tokens_total{engine="0",model_name="small"} 77.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="4096",num_gpu_blocks_override="None"} 1.0
"""


def test_a_page_of_today() -> None:
    assert read_metrics(V1) == ServerMetrics(3, 2, 0.25, 4096, 16, 1000, 640, 1, 1000, 77)


def test_older_names_and_missing_series() -> None:
    old = 'vllm:gpu_cache_usage_perc{model_name="m"} 0.5\nvllm:gpu_prefix_cache_hits_total{model_name="m"} 9\n'
    assert read_metrics(old) == ServerMetrics(kv_usage=0.5, prefix_hits=9)
    assert read_metrics("") == read_metrics("<html>no metrics here</html>\n\n{}") == ServerMetrics()


def test_several_engines_behind_one_address_are_added_up() -> None:
    second = V1.replace('engine="0"', 'engine="1"').replace("0.25", "0.75")
    both = read_metrics(V1 + second)
    assert (both.running, both.kv_usage, both.kv_blocks, both.block_size) == (6, 0.5, 8192, 16)


def test_odd_lines() -> None:
    text = 'a{x="say \\"hi\\", {ok}"} 1\nb NaN\nc{} 2 1700000000\nd{broken 3\ne one\n'
    assert [(name, labels) for name, labels, _ in samples(text)] == [
        ("a", {"x": 'say "hi", {ok}'}),
        ("b", {}),
        ("c", {}),
    ]
    assert read_metrics("vllm:num_requests_running NaN\n").running is None
