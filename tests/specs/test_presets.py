"""Every preset loads, is valid, and comes back equal from its own YAML."""

from __future__ import annotations

import pickle

import pytest

from aragog_env.specs.catalogue import cluster_models, gpu
from aragog_env.specs.cluster import ClusterSpec
from aragog_env.specs.graph import unroll
from aragog_env.specs.limits import engine_limits
from aragog_env.specs.load import (
    list_presets,
    load_arrivals,
    load_cluster,
    load_scenario,
    load_workflow,
    scenario_hash,
)
from aragog_env.specs.scenario import Scenario
from aragog_env.specs.strict import dump_yaml, loads
from aragog_env.specs.validate import check_cluster, validate_scenario
from aragog_env.specs.workflow import WorkflowSpec
from aragog_env.specs.workload import ArrivalSpec

PAPER_WORKFLOWS = (
    "self_refine_humaneval",
    "self_refine_squad",
    "text_to_sql_bird",
    "voting_mmlu_pro",
    "decomposition_strategyqa",
)


@pytest.mark.parametrize("name", list_presets("scenarios"))
def test_scenario_is_valid_and_round_trips(name: str) -> None:
    scenario = load_scenario(name)
    validate_scenario(scenario)
    again = loads(Scenario, dump_yaml(scenario))
    assert again == scenario
    assert scenario_hash(again) == scenario_hash(scenario)
    assert pickle.loads(pickle.dumps(scenario)) == scenario
    assert scenario.name == name
    assert scenario.description


@pytest.mark.parametrize("name", list_presets("clusters"))
def test_cluster_is_valid_and_round_trips(name: str) -> None:
    cluster = load_cluster(name)
    check_cluster(cluster)
    assert loads(ClusterSpec, dump_yaml(cluster)) == cluster
    assert cluster.name == name
    assert cluster.description
    assert cluster.source
    for replica in cluster.expand():
        limits = engine_limits(replica, cluster)
        assert limits.num_gpu_blocks * 16 > limits.max_model_len
        assert limits.max_num_seqs <= limits.max_num_batched_tokens


@pytest.mark.parametrize("name", list_presets("arrivals"))
def test_arrivals_round_trip_and_name_their_source(name: str) -> None:
    arrivals = load_arrivals(name)
    assert loads(ArrivalSpec, dump_yaml(arrivals)) == arrivals
    assert arrivals.source


@pytest.mark.parametrize("name", list_presets("workflows"))
def test_workflow_unrolls_and_round_trips(name: str) -> None:
    workflow = load_workflow(name)
    assert loads(WorkflowSpec, dump_yaml(workflow)) == workflow
    assert unroll(workflow).n_llm >= 1
    assert workflow.name == name


def test_the_papers_placements() -> None:
    """Aragog section 4: TP 1, 2, 4 on 7 of 8 GPUs; the second small replica takes the eighth."""
    for family in ("qwen", "llama", "mixed"):
        cluster = load_cluster(f"{family}-8xh100")
        assert [replica.tp for replica in cluster.expand()] == [1, 2, 4]
        assert [entry.name for entry in cluster_models(cluster)] == [r.model for r in cluster.replicas]
    for name in ("qwen-8xh100-2x7b", "llama-8xh100-2x3b", "mixed-8xh100-2x8b"):
        assert [replica.tp for replica in load_cluster(name).expand()] == [1, 1, 2, 4]
    four = load_cluster("qwen-4xh100")
    assert sum(replica.tp for replica in four.expand()) == 4
    assert sum(replica.tp for replica in load_cluster("qwen-16xh100-replicated").expand()) == 16
    assert gpu("h100_sxm", four).name == "h100_sxm"


def test_every_pair_of_the_paper_has_a_scenario() -> None:
    names = set(list_presets("scenarios"))
    for workflow in PAPER_WORKFLOWS:
        for family in ("qwen", "llama", "mixed"):
            assert f"aragog-{workflow}-{family}" in names
            scenario = load_scenario(f"aragog-{workflow}-{family}")
            assert [entry.workflow for entry in scenario.workload.mix] == [workflow]
            assert scenario.cluster.name == f"{family}-8xh100"


def test_the_default_mixes_all_workflows() -> None:
    default = load_scenario("default")
    assert tuple(entry.workflow for entry in default.workload.mix) == PAPER_WORKFLOWS
    assert default.horizon.requests == 400
    assert default.horizon.warmup_requests == 40


def test_a_preset_of_arrivals_keeps_what_the_scenario_says() -> None:
    arrivals = load_scenario("bursty").workload.arrivals
    assert arrivals.kind == "mmpp"
    assert arrivals.rate_rps == 2.0
    assert arrivals.mmpp_rates == load_arrivals("azure-code-mmpp").mmpp_rates
    states = list(zip(arrivals.mmpp_rates, arrivals.mmpp_sojourn_s, strict=True))
    mean = sum(rate * sojourn_s for rate, sojourn_s in states) / sum(sojourn_s for _, sojourn_s in states)
    assert mean == pytest.approx(1.0, abs=0.01)


def test_catalogue_names_are_listed() -> None:
    assert {"h100_sxm", "h200_sxm", "a100_sxm", "l40s", "b200_sxm"} <= set(list_presets("gpus"))
    assert {"qwen2.5-7b", "llama-3-70b", "phi-4-14b", "toy-small"} <= set(list_presets("models"))
