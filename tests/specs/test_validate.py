"""Scenarios whose parts do not fit together, each refused with one sentence and its line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aragog_env.errors import SpecError
from aragog_env.specs.catalogue import cluster_models, model
from aragog_env.specs.cluster import ClusterSpec, LinkSpec, ReplicaSpec
from aragog_env.specs.graph import unroll
from aragog_env.specs.load import ROOT, load_cluster, load_scenario, load_workflow
from aragog_env.specs.scenario import HorizonSpec
from aragog_env.specs.validate import (
    call_limits,
    check_cluster,
    check_workflow,
    stage_candidates,
    validate_scenario,
)
from aragog_env.specs.workload import ArrivalSpec

TOP = """\
name: s
workload:
  arrivals:
    {arrivals}
  mix: [{mix}]
horizon: {{requests: 10, warmup_requests: {warmup}}}
cluster:
  name: c
  replicas:
    - {replica}
    - {{name: b, model: qwen2.5-14b, gpu: h100_sxm}}
{more}"""
POISSON = "{kind: poisson, rate_rps: 1}"
A = "s.yaml:4, key 'workload.arrivals"
R = "s.yaml:10, key 'cluster.replicas[0]"
GOOD = "{name: a, model: qwen2.5-7b, gpu: h100_sxm}"


def check(
    tmp_path: Path,
    *,
    arrivals: str = POISSON,
    mix: str = "toy_chain",
    warmup: int = 1,
    replica: str = GOOD,
    more: str = "",
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(TOP.format(arrivals=arrivals, mix=mix, warmup=warmup, replica=replica, more=more))
    validate_scenario(load_scenario(path))


def refused(tmp_path: Path, message: str, **changes: object) -> None:
    with pytest.raises(SpecError) as caught:
        check(tmp_path, **changes)  # type: ignore[arg-type]
    text = str(caught.value).replace(f"{tmp_path}/", "")
    assert text.startswith(message), text


def test_the_base_of_these_tests_is_valid(tmp_path: Path) -> None:
    check(tmp_path)


@pytest.mark.parametrize(
    ("arrivals", "message"),
    [
        (
            "{kind: poisson, rate_rps: -2}",
            A + ".rate_rps': must be greater than 0, got -2",
        ),
        ("{kind: poisson}", A + "': arrivals of kind 'poisson' need 'rate_rps'"),
        ("{kind: gamma}", A + "': arrivals of kind 'gamma' need 'rate_rps'"),
        (
            "{rate_rps: 1, users: 3}",
            A + ".users': this key has no effect with kind 'poisson' (it is for closed)",
        ),
        ("{kind: closed}", A + "': a closed loop needs 'users' of at least 1"),
        (
            "{kind: closed, users: 1, rate_rps: 1}",
            A + ".rate_rps': this key has no effect with kind 'closed'",
        ),
        (
            "{kind: mmpp, rate_rps: 1, mmpp_rates: [1, 2], mmpp_sojourn_s: [1]}",
            A + ".mmpp_rates': kind 'mmpp' needs two or more mmpp_rates and as many",
        ),
        (
            "{kind: mmpp, rate_rps: 1, mmpp_rates: [0, 0], mmpp_sojourn_s: [1, 1]}",
            A + ".mmpp_rates': at least one rate must be greater than 0",
        ),
        (
            "{kind: schedule, steps: [{start_s: 0, rate_rps: 1}, {start_s: 0, rate_rps: 2}]}",
            A + ".steps': kind 'schedule' needs steps with increasing start_s, the first",
        ),
        ("{kind: schedule}", A + "': kind 'schedule' needs steps"),
        (
            "{kind: schedule, steps: [{start_s: 0, rate_rps: 0}]}",
            A + ".steps': at least one step must have a rate greater than 0",
        ),
        (
            "{kind: schedule, period_s: 5, steps: [{start_s: 0, rate_rps: 1}, {start_s: 5, rate_rps: 2}]}",
            A + ".period_s': the period must end after the last step starts (5 s)",
        ),
        ("{kind: trace}", A + "': kind 'trace' needs 'path', the trace file"),
        (
            "{kind: trace, path: x.csv}",
            A + ".path': there is no trace file 'x.csv'",
        ),
        (
            "{kind: posson}",
            A + ".kind': unknown value 'posson'. Did you mean 'poisson'?",
        ),
    ],
)
def test_arrivals(tmp_path: Path, arrivals: str, message: str) -> None:
    refused(tmp_path, message, arrivals=arrivals)


@pytest.mark.parametrize(
    ("replica", "message"),
    [
        (
            "{name: a, model: qwen2.5-7, gpu: h100_sxm}",
            R + ".model': unknown model 'qwen2.5-7'. Did you mean 'qwen2.5-7b'?",
        ),
        (
            "{name: a, model: qwen2.5-7b, gpu: h100}",
            R + ".gpu': unknown GPU 'h100'. Did you mean 'h100_sxm'?",
        ),
        (
            "{name: a, model: qwen2.5-72b, gpu: h100_sxm}",
            R + "': model 'qwen2.5-72b' does not fit 1 x h100_sxm: its weights take 135",
        ),
        (
            "{name: a, model: llama-3-8b, gpu: l4}",
            R + "': one sequence of max_model_len 131072 does not fit",
        ),
        (
            "{name: a, model: qwen2.5-72b, gpu: h100_sxm, num_gpu_blocks: 9999}",
            R + "': model 'qwen2.5-72b' does not fit 1 x h100_sxm: its weights take 135",
        ),
        (
            "{name: a, model: qwen2.5-7b, gpu: h100_sxm, num_gpu_blocks: 2048}",
            R + "': one sequence of max_model_len 32768 does not fit",
        ),
        (
            "{name: a, model: qwen2.5-7b, gpu: h100_sxm, tp: 8}",
            R + ".tp': tp 8 cannot split the 28 heads and 4 KV heads of 'qwen2.5-7b'",
        ),
        (
            "{name: a, model: qwen2.5-7b, gpu: h100_sxm, tp: 0}",
            R + ".tp': must be at least 1, got 0",
        ),
        (
            "{name: b, model: qwen2.5-7b, gpu: h100_sxm}",
            "s.yaml:11, key 'cluster.replicas[1].name': two replicas are called 'b'",
        ),
        (
            "{name: a, model: qwen2.5-7b, gpu: h100_sxm, role: prefill}",
            R + ".role': role 'prefill' (prefill apart from decode) is not simulated yet",
        ),
        (
            "{name: a, model: qwen2.5-7b, gpu: h100_sxm, role: prefil}",
            R + ".role': unknown value 'prefil'. Did you mean 'prefill'?",
        ),
        (
            "{name: a, model: qwen2.5-7b, gpu: h100_sxm, max_model_len: 40000}",
            R + ".max_model_len': max_model_len 40000 is more than 'qwen2.5-7b' was",
        ),
        (
            "{name: a, model: qwen2.5-7b, gpu: h100_sxm, max_num_seqs: 99, max_num_batched_tokens: 64}",
            R + ".max_num_seqs': max_num_seqs 99 is more than max_num_batched_tokens 64",
        ),
        (
            "{name: a, model: qwen2.5-7b, gpu: h100_sxm, latency: rooflin}",
            R + ".latency': unknown latency 'rooflin'. Did you mean 'roofline'?",
        ),
        (
            "{name: a, model: qwen2.5-7b, gpu: h100_sxm, gpu_memory_utilization: 1.5}",
            R + ".gpu_memory_utilization': must be at most 1, got 1.5",
        ),
        (
            "{name: a, model: qwen2.5-7b, gpu: h100_sxm, max_model_len: 205}",
            "WORKFLOWS/toy_chain/workflow.yaml:9, key 'stages[0]': stage 'draft' may need 210 tokens (prompt "
            "200, output 10), more than replica 'a' accepts (205)",
        ),
    ],
)
def test_replicas(tmp_path: Path, replica: str, message: str) -> None:
    refused(tmp_path, message.replace("WORKFLOWS", str(ROOT / "workflows")), replica=replica)


def test_links_join_known_replicas(tmp_path: Path) -> None:
    more = "  links:\n    - {source: a, target: bb, bandwidth_gb_s: 1}\n"
    refused(
        tmp_path,
        "s.yaml:13, key 'cluster.links[0].target': unknown replica 'bb'. Did you mean 'b'?",
        more=more,
    )


def test_copies_of_a_replica_must_not_clash() -> None:
    replicas = (
        ReplicaSpec("a", "qwen2.5-7b", "h100_sxm", count=2),
        ReplicaSpec("a-1", "qwen2.5-7b", "h100_sxm"),
    )
    with pytest.raises(SpecError, match=r"^cluster 'c', key 'replicas\[1\]\.name': two replicas are called 'a-1'$"):
        check_cluster(ClusterSpec("c", replicas))
    check_cluster(ClusterSpec("c", replicas[:1], (LinkSpec("a-0", "a-1", 1.0),)))
    assert [replica.name for replica in ClusterSpec("c", replicas[:1]).expand()] == ["a-0", "a-1"]


def test_a_cluster_needs_replicas_and_distinct_entries() -> None:
    with pytest.raises(SpecError, match=r"^cluster 'c', key 'replicas': a cluster needs at least one replica$"):
        check_cluster(ClusterSpec("c", ()))
    twice = (model("toy-small"), model("toy-small"))
    cluster = ClusterSpec("c", (ReplicaSpec("a", "toy-small", "l4"),), models=twice)
    with pytest.raises(SpecError, match=r"^cluster 'c', key 'models\[1\]\.name': 'toy-small' is defined twice$"):
        check_cluster(cluster)


def test_mix(tmp_path: Path) -> None:
    refused(tmp_path, "s.yaml:5, key 'workload.mix': the mix needs at least one workflow", mix="")
    refused(
        tmp_path,
        "s.yaml:5, key 'workload.mix[1]': workflow 'toy_chain' is listed twice; give it one entry",
        mix="toy_chain, toy_chain",
    )
    refused(
        tmp_path,
        "s.yaml:5, key 'workload.mix[0].weight': must be greater than 0, got 0",
        mix="{workflow: toy_chain, weight: 0}",
    )
    refused(tmp_path, "s.yaml:5, key 'workload.mix[0]': unknown workflow 'toy_chai'", mix="toy_chai")


def test_horizon(tmp_path: Path) -> None:
    refused(
        tmp_path,
        "s.yaml:6, key 'horizon.warmup_requests': 10 warm-up requests leave none of 10 to measure",
        warmup=10,
    )


FLOW = """\
name: flow
queries: 1
query_tokens: {median: 10, maximum: 50}
stages:
  - name: a
    candidates: [CANDIDATES]
    prompt: {template: t, template_tokens: 5}
    output: {median_by_size_b: {1: 10}, sigma: 0, max_tokens: 20}
    fan_out: {probabilities: [PROBABILITIES]}
  - name: b
    kind: tool
    parents: [a]
    tool_s: {median_s: 0.1}
    tool_output: {median: 5, maximum: 7}
  - name: c
    parents: [b]
    prompt: {template: t, template_tokens: 5, query: false, context: [b, a]}
    output: {median_by_size_b: {1: 10}, sigma: 0, max_tokens: 30}
"""


def flow(tmp_path: Path, candidates: str = "qwen2.5-7b", probabilities: str = "0.5, 0.5") -> Path:
    path = tmp_path / "flow.yaml"
    path.write_text(FLOW.replace("CANDIDATES", candidates).replace("PROBABILITIES", probabilities))
    return path


def test_candidates(tmp_path: Path) -> None:
    cluster = load_cluster("qwen-8xh100")
    check_workflow(unroll(load_workflow(flow(tmp_path, "qwen2.5-7b, llama-3-8b"))), cluster)
    with pytest.raises(SpecError) as caught:
        check_workflow(unroll(load_workflow(flow(tmp_path, "llama-3-8b"))), cluster)
    assert str(caught.value) == (
        f"{tmp_path}/flow.yaml:6, key 'stages[0].candidates': no candidate of stage 'a' (llama-3-8b) is in "
        "cluster 'qwen-8xh100', which has qwen2.5-7b, qwen2.5-14b, qwen2.5-32b"
    )
    with pytest.raises(SpecError, match=r"candidates\[1\]': unknown model 'qwen2\.5-7c'\. Did you mean 'qwen2\.5-7b'"):
        check_workflow(unroll(load_workflow(flow(tmp_path, "qwen2.5-7b, qwen2.5-7c"))), cluster)


def test_candidates_become_model_indices() -> None:
    models = cluster_models(load_cluster("qwen-8xh100"))
    stage = load_workflow("toy_chain").stages[0]
    assert stage_candidates(stage, models) == (0, 1, 2)
    assert stage_candidates(replace(stage, candidates=("qwen2.5-32b", "qwen2.5-7b")), models) == (0, 2)


def test_longest_calls_count_every_copy_and_tool(tmp_path: Path) -> None:
    assert call_limits(unroll(load_workflow(flow(tmp_path)))) == (
        (55, 20),
        (55, 20),
        (0, 7),
        (5 + 7 + 40, 30),
    )


def test_number_of_configurations(tmp_path: Path) -> None:
    cluster = load_cluster("qwen-8xh100")
    check_workflow(unroll(load_workflow(flow(tmp_path, probabilities="0, 0, 0, 0, 0, 1"))), cluster)  # 3^7 = 2187
    with pytest.raises(
        SpecError, match=r"key 'stages': 3 models for 8 LLM calls make 6561 configurations; at most 4096"
    ):
        check_workflow(unroll(load_workflow(flow(tmp_path, probabilities="0, 0, 0, 0, 0, 0, 1"))), cluster)


def test_specs_made_in_python_are_checked_too() -> None:
    toy = load_scenario("toy")
    made = replace(toy, locations={}, horizon=HorizonSpec(requests=-1))
    with pytest.raises(SpecError, match=r"^scenario 'toy', key 'horizon.requests': must be at least 1, got -1$"):
        validate_scenario(made)
    bad = replace(toy.cluster, replicas=(replace(toy.cluster.replicas[0], tp=-1),), locations={})
    with pytest.raises(SpecError, match=r"^cluster 'toy-3', key 'replicas\[0\]\.tp': must be at least 1, got -1$"):
        validate_scenario(replace(toy, cluster=bad))
    unread = replace(toy, workload=replace(toy.workload, arrivals=ArrivalSpec(preset="poisson")))
    with pytest.raises(SpecError, match=r"a preset is filled in when a scenario file is read"):
        validate_scenario(unread)
