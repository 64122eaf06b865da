"""The deployments that are shipped: what they start, from wherever the command is given."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from aragog_env.errors import SpecError
from aragog_env.servers.commands import server_specs
from aragog_env.servers.deployment import PRESETS, load_deployment
from aragog_env.servers.launcher import ServerError, up
from aragog_env.specs.load import ROOT, load_scenario

SHIPPED = sorted(path.stem for path in PRESETS.glob("*.yaml"))
MODELS = ROOT / "workflows" / "arithmetic" / "models"


def need_models(*names: str) -> None:
    for name in names:
        if not (MODELS / name / "model.safetensors").exists():
            pytest.skip(f"the model {name} is not trained; python -m scripts.train_arithmetic")


@pytest.mark.parametrize("name", SHIPPED)
def test_names_stand_for_themselves(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    deployment = load_deployment(name)
    assert deployment.name == name and deployment == load_deployment(PRESETS / f"{name}.yaml")
    assert set(deployment.servers) == {replica.name for replica in deployment.cluster.expand()}
    assert not any(serve.url for serve in deployment.servers.values())


def test_the_scenario_runs_on_the_cluster_that_is_served() -> None:
    assert load_scenario("arithmetic").cluster == load_deployment("arithmetic-cpu").cluster


@pytest.mark.parametrize("name", ["arithmetic-cpu", "arithmetic-cpu-2"])
def test_what_the_arithmetic_servers_are_started_with(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = load_deployment(name)
    need_models(*(replica.model for replica in deployment.cluster.expand()))
    monkeypatch.chdir(tmp_path)
    specs = server_specs(load_deployment(name), count(9001))
    assert [spec.endpoint.name for spec in specs] == [replica.name for replica in deployment.cluster.expand()]
    for spec in specs:
        words = " ".join(spec.command)
        for option in (
            f"--model {MODELS / spec.endpoint.model} --served-model-name {spec.endpoint.model} --host 127.0.0.1",
            "--max-model-len 512",
            "--max-num-seqs 16",
            "--block-size 32",
            "--dtype float32",
            "--enforce-eager",
            "--enable-prefix-caching",
        ):
            assert option in words, option
        assert spec.env["HF_HUB_OFFLINE"] == "1" and spec.env["VLLM_CPU_KVCACHE_SPACE"] == "1"
        assert spec.env["VLLM_NO_USAGE_STATS"] == "1" and spec.device == "cpu" and spec.gpus == ()
        assert Path(spec.command[0]).parts[-3:] == (".venv-vllm", "bin", "python")


def test_without_the_environment_the_error_says_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    deployment = load_deployment("arithmetic-cpu")
    need_models(*(replica.model for replica in deployment.cluster.expand()))
    missing = replace(deployment, serve=replace(deployment.serve, python=str(tmp_path / "bin" / "python")))
    with pytest.raises(ServerError, match=r"No such file or directory; 'aragog cluster install --cpu' makes"):
        up(missing, tmp_path / "run")


def test_a_name_that_is_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown cluster 'arithmetic-gpu'"):
        load_deployment("arithmetic-gpu")
