"""Two real vLLM servers on the CPU, started once for all tests that ask for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from aragog_env.servers import process
from aragog_env.servers.deployment import DeploymentSpec, load_deployment
from aragog_env.servers.endpoints import Endpoint
from aragog_env.servers.launcher import down, up
from aragog_env.servers.state import RunningServer, read_state
from aragog_env.specs.load import ROOT, load_cluster, load_scenario
from aragog_env.specs.override import override
from aragog_env.specs.scenario import Scenario
from aragog_env.specs.strict import dump_yaml

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
MODELS = ROOT / "workflows" / "arithmetic" / "models"
DEPLOYMENT = """\
name: real-two
cluster:
  {cluster}
serve: {{python: {python}, device: cpu, dtype: float32, kv_cache_gb: 1, env: {{VLLM_SERVER_DEV_MODE: "1"}}}}
servers:
{servers}
"""


@dataclass(frozen=True)
class RealCluster:
    """Two servers that run: the smallest model of the arithmetic workflow, and the largest that is trained."""

    file: Path
    """The deployment, for the command line."""
    folder: Path
    """Its run folder, for `aragog cluster` and `find_servers`."""
    deployment: DeploymentSpec
    start_s: float
    """How long the slower one took to be healthy, both starting at once."""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where they answer."""
        return read_state(self.folder).endpoints

    def server(self, index: int) -> RunningServer:
        """Return one of them, as it runs now."""
        return read_state(self.folder).servers[index]

    def pids(self, index: int) -> list[int]:
        """Return the processes of one of them."""
        server = self.server(index)
        return process.members(server.identity, server.token, server.helpers)

    def start_again(self) -> None:
        """Start what does not run."""
        up(self.deployment, self.folder, spec=str(self.file))

    def scenario(self, **changes: Any) -> Scenario:
        """Return the arithmetic scenario on these servers; `changes` as for `override`."""
        base = replace(load_scenario("arithmetic"), cluster=self.deployment.cluster)
        return override(base, **{"warmup_requests": 0, **changes})


def _trained(name: str) -> bool:
    return (MODELS / name / "model.safetensors").exists() and (MODELS / name / "config.json").exists()


@pytest.fixture(scope="session")
def real_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """Start two real servers; they are stopped after the last test. About a minute on two idle cores."""
    if not PYTHON.exists():
        pytest.skip("no .venv-vllm here; make it with: aragog cluster install --cpu")
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("real servers need the machine for themselves; run these tests without -n")
    models = [name for name in ("arithmetic-s", "arithmetic-l", "arithmetic-m") if _trained(name)][:2]
    if len(models) < 2:
        pytest.skip("fewer than two models are trained; make them with: python -m scripts.train_arithmetic")
    folder = tmp_path_factory.mktemp("real")
    base = load_cluster("arithmetic-cpu")
    cluster = replace(base, name="real-two", replicas=tuple(r for r in base.replicas if r.model in models))
    servers = "\n".join(f"  {r.name}: {{model_path: {MODELS / r.model}}}" for r in cluster.replicas)
    text = dump_yaml(cluster).strip().replace("\n", "\n  ")
    file = folder / "real-two.yaml"
    file.write_text(DEPLOYMENT.format(cluster=text, python=PYTHON, servers=servers))
    deployment = load_deployment(file)
    took: list[float] = []
    run_folder = folder / "run"
    try:
        # A loaded machine takes minutes; whatever goes wrong, the message holds the end of the server's log.
        up(deployment, run_folder, spec=str(file), at_once=2, report=lambda name, phase, s: took.append(s))
        yield RealCluster(file, run_folder, deployment, max(took))
    finally:
        if (run_folder / "cluster.json").exists():
            down(run_folder)
