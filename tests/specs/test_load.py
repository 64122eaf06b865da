"""Finding specs by name and path, relative paths, and the hash that names a scenario."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from aragog_env.errors import SpecError
from aragog_env.specs import load
from aragog_env.specs.load import (
    list_presets,
    load_arrivals,
    load_cluster,
    load_scenario,
    load_workflow,
    scenario_hash,
    scenario_workflows,
)
from aragog_env.specs.strict import location

SCENARIO = """\
name: mine
cluster: my-cluster.yaml
workload:
  arrivals:
    kind: trace
    path: trace.csv
  mix:
    - flows/mine/workflow.yaml
    - {workflow: toy_chain, weight: 2}
"""
CLUSTER = """\
name: my-cluster
replicas:
  - {name: a, model: mine-1b, gpu: mine, latency: table.npz}
models:
  - {name: mine-1b, hf_id: me/mine, family: me, size_b: 1, layers: 1, hidden_size: 1, intermediate_size: 1,
     heads: 1, kv_heads: 1, head_dim: 1, vocab_size: 1, max_model_len: 1}
gpus:
  - {name: mine, memory_gib: 1, bandwidth_gb_s: 1, bf16_tflops: 1, nvlink_gb_s: 1, price_usd_per_hour: 1,
     max_num_batched_tokens: 1, max_num_seqs: 1}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scenario.yaml").write_text(SCENARIO)
    (tmp_path / "my-cluster.yaml").write_text(CLUSTER)
    (tmp_path / "trace.csv").write_text("0\n1\n")
    (tmp_path / "table.npz").write_bytes(b"table")
    shutil.copytree(load.ROOT / "workflows" / "toy_single", tmp_path / "flows" / "mine")
    return tmp_path


def test_paths_in_a_file_start_from_its_folder(folder: Path) -> None:
    scenario = load_scenario(folder / "scenario.yaml")
    assert scenario.cluster.name == "my-cluster"
    assert scenario.cluster.models[0].name == "mine-1b"
    assert scenario.cluster.replicas[0].latency == str(folder / "table.npz")
    assert scenario.workload.arrivals.path == str(folder / "trace.csv")
    assert [workflow.name for workflow in scenario_workflows(scenario)] == ["toy_single", "toy_chain"]
    assert location(scenario, "workload.arrivals.kind") == f"{folder}/scenario.yaml:5, key 'workload.arrivals.kind'"
    assert location(scenario.cluster, "replicas[0].gpu") == f"{folder}/my-cluster.yaml:3, key 'replicas[0].gpu'"


def test_an_inline_cluster_keeps_the_scenarios_lines(tmp_path: Path) -> None:
    path = tmp_path / "inline.yaml"
    path.write_text(
        "name: x\ncluster:\n  name: c\n  replicas:\n    - {name: a, model: qwen2.5-7b, gpu: l4}\n"
        "workload:\n  arrivals: poisson\n  mix: [toy_chain]\n"
    )
    scenario = load_scenario(str(path))
    assert location(scenario.cluster, "replicas[0].gpu") == f"{path}:5, key 'cluster.replicas[0].gpu'"
    assert scenario.workload.arrivals == load_arrivals("poisson")


def test_a_preset_of_arrivals_can_be_changed_in_place(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    given = "{preset: azure-conv-gamma, cv: 3}"
    text = f"name: x\ncluster: toy-3\nworkload:\n  arrivals: {given}\n  mix: [toy_chain]\n"
    path.write_text(text)
    arrivals = load_scenario(path).workload.arrivals
    assert (arrivals.kind, arrivals.cv, arrivals.rate_rps) == ("gamma", 3.0, 5.53)
    path.write_text(text.replace("conv-gamma", "conv-gama"))
    with pytest.raises(SpecError) as caught:
        load_scenario(path)
    assert str(caught.value) == (
        f"{path}:4, key 'workload.arrivals.preset': unknown arrival process 'azure-conv-gama'. "
        "Did you mean 'azure-conv-gamma'?"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_scenario("defalt"), r"^unknown scenario 'defalt'\. Did you mean 'default'\?$"),
        (
            lambda: load_cluster("qwen-8xh10"),
            r"^unknown cluster 'qwen-8xh10'\. Did you mean 'qwen-8xh100'\?$",
        ),
        (lambda: load_arrivals("poison"), r"^unknown arrival process 'poison'\. Did you mean 'poisson'\?$"),
        (lambda: load_workflow("toy_chian"), r"^unknown workflow 'toy_chian'\. Did you mean 'toy_chain'\?$"),
        (
            lambda: load_scenario("no/such.yaml"),
            r"^there is no file 'no/such.yaml' \(a scenario was expected\)$",
        ),
        (lambda: load_workflow("no/such"), r"^no/such: cannot read this file \(No such file or directory\)$"),
    ],
)
def test_unknown_names_are_suggested(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(SpecError, match=message):
        call()


def test_an_unknown_name_in_a_file_has_its_line(folder: Path) -> None:
    path = folder / "scenario.yaml"
    path.write_text(SCENARIO.replace("my-cluster.yaml", "toy-33"))
    with pytest.raises(
        SpecError, match=r"scenario.yaml:2, key 'cluster': unknown cluster 'toy-33'\. Did you mean 'toy-3'"
    ):
        load_scenario(path)
    path.write_text(SCENARIO.replace("toy_chain", "toy_chan"))
    with pytest.raises(
        SpecError, match=r"scenario.yaml:9, key 'workload.mix\[1\].workflow': unknown workflow 'toy_chan'"
    ):
        scenario_workflows(load_scenario(path))
    path.write_text(SCENARIO.replace("- flows/mine/workflow.yaml", "- flows/none.yaml"))
    with pytest.raises(SpecError, match=r"flows/none.yaml: cannot read this file"):
        scenario_workflows(load_scenario(path))


def test_own_folders_of_workflows_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = folder / "flows" / "toy_chain"
    shutil.copytree(folder / "flows" / "mine", copy)
    monkeypatch.setenv("ARAGOG_WORKFLOWS", str(folder / "flows"))
    assert load_workflow("toy_chain").name == "toy_single"  # the copy in the user's folder
    assert load_workflow("voting_mmlu_pro").name == "voting_mmlu_pro"
    assert "mine" in list_presets("workflows")


def test_a_missing_folder_of_workflows_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "ROOT", tmp_path)
    monkeypatch.delenv("ARAGOG_WORKFLOWS", raising=False)
    with pytest.raises(SpecError, match=r"the folder 'workflows' is missing beside aragog_env .*pip install -e \."):
        load_workflow("toy_chain")


def test_hash_depends_on_content_and_not_on_where_it_lies(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    original = scenario_hash(load_scenario(folder / "scenario.yaml"))
    moved = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, moved)
    assert scenario_hash(load_scenario(moved / "scenario.yaml")) == original
    for name, old, new in (
        ("trace.csv", "1", "2"),
        ("my-cluster.yaml", "bf16_tflops: 1", "bf16_tflops: 2"),
        ("my-cluster.yaml", "layers: 1", "layers: 2"),
        ("flows/mine/workflow.yaml", "median: 100", "median: 99"),
        ("scenario.yaml", "weight: 2", "weight: 3"),
        ("table.npz", "table", "tables"),
    ):
        text = (moved / name).read_text()
        assert old in text
        (moved / name).write_text(text.replace(old, new))
        assert scenario_hash(load_scenario(moved / "scenario.yaml")) != original
        (moved / name).write_text(text)
    assert scenario_hash(load_scenario(moved / "scenario.yaml")) == original


def test_hash_of_a_missing_trace_is_refused(folder: Path) -> None:
    scenario = load_scenario(folder / "scenario.yaml")
    (folder / "trace.csv").unlink()
    with pytest.raises(SpecError, match=r"scenario.yaml:6, key 'workload.arrivals.path': cannot read the file"):
        scenario_hash(scenario)


def test_locations_survive_replace_and_do_not_count() -> None:
    scenario = load_scenario("toy")
    renamed = replace(scenario, name="other")
    assert renamed.locations == scenario.locations
    assert replace(renamed, name="toy", locations={}) == scenario
