"""The servers that a person means: a cluster that was started, by name or run folder, or the URLs of a deployment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import SpecError, did_you_mean
from ..specs.cluster import ClusterSpec
from .deployment import DeploymentSpec, load_deployment
from .endpoints import Endpoint, attached
from .state import FILE, ClusterState, default_folder, read_state, running_clusters


@dataclass(frozen=True)
class ServedCluster:
    """A cluster, and where each of its replicas answers."""

    name: str
    cluster: ClusterSpec
    endpoints: tuple[Endpoint, ...]
    folder: Path | None = None
    """Run folder of `aragog cluster up`; None for servers that were only named by their URLs."""

    def describe(self) -> dict[str, object]:
        """Return plain data for a manifest: no keys, only the names of their variables' owners."""
        servers = [
            {"name": e.name, "model": e.model, "url": e.url, "served_name": e.served_name, "api": e.api}
            for e in self.endpoints
        ]
        return {"cluster": self.name, "servers": servers}


def find_servers(name_or_path: str | Path) -> ServedCluster:
    """Return a cluster that is served now; whether its servers answer is not asked.

    Args:
        name_or_path: a cluster that `aragog cluster up` started (its name or run folder), or a deployment (file or preset):
            then its started servers, or the ones that it names by URL.

    Raises:
        SpecError: nothing of this name was started, nor has it URLs.
    """
    path = Path(name_or_path).expanduser()
    if (path / FILE).is_file():
        return _started(path)
    known = running_clusters()
    if str(name_or_path) in known:
        return _started(known[str(name_or_path)])
    deployment = _deployment(name_or_path, known)
    endpoints = attached(deployment)
    if endpoints is not None:
        return ServedCluster(deployment.name, deployment.cluster, endpoints)
    folder = default_folder(deployment.name)
    if not (folder / FILE).is_file():
        message = f"cluster '{deployment.name}' was not started; start it with: aragog cluster up {name_or_path}"
        raise SpecError(message)
    return _served(read_state(folder), deployment, folder)


def _deployment(name_or_path: str | Path, known: dict[str, Path]) -> DeploymentSpec:
    try:
        return load_deployment(name_or_path)
    except SpecError as error:
        if Path(name_or_path).suffix in (".yaml", ".yml"):
            raise
        hint = did_you_mean(str(name_or_path), known)
        message = f"no cluster '{name_or_path}' was started, and no deployment has this name.{hint}"
        raise SpecError(message) from error


def _started(folder: Path) -> ServedCluster:
    state = read_state(folder)
    return _served(state, load_deployment(state.spec), folder)


def _served(state: ClusterState, deployment: DeploymentSpec, folder: Path) -> ServedCluster:
    return ServedCluster(state.name, deployment.cluster, state.endpoints, folder)
