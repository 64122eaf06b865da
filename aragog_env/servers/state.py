"""The state file of a cluster: which servers run, where they answer, and how to recognise their processes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import SpecError
from ..files import write_atomically
from .endpoints import Endpoint
from .process import Identity

SCHEMA: Final = 1
FILE: Final = "cluster.json"


@dataclass(frozen=True)
class RunningServer:
    """One server as it was started. `pid` is 0 for one that was attached by its URL."""

    endpoint: Endpoint
    pid: int = 0
    start: str = ""
    """When the process began; with the id it is an identity."""
    token: str = ""
    """Random text in the environment of the server and its helpers."""
    helpers: tuple[Identity, ...] = ()
    """Processes of its own when it was healthy for the first time."""
    log: str = ""
    command: tuple[str, ...] = ()
    gpus: tuple[int, ...] = ()
    device: str = ""

    @property
    def identity(self) -> Identity:
        """Its process."""
        return Identity(self.pid, self.start)


@dataclass(frozen=True)
class ClusterState:
    """All servers of a cluster, in route order. Holds names of environment variables with keys, never keys."""

    name: str
    spec: str
    """The file or preset that it was started from."""
    servers: tuple[RunningServer, ...]

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where the servers answer."""
        return tuple(server.endpoint for server in self.servers)


def default_folder(name: str) -> Path:
    """Return the run folder of the cluster `name`: logs and state."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "aragog" / "clusters" / name


def write_state(folder: Path, state: ClusterState) -> None:
    """Write the state, whole or not at all; readable by its owner only."""
    text = json.dumps({"schema": SCHEMA, **asdict(state)}, indent=1)
    write_atomically(folder / FILE, text.encode(), mode=0o600)


def read_state(folder: Path) -> ClusterState:
    """Return the state in a run folder.

    Raises:
        SpecError: there is none, or it is damaged.
    """
    path = folder / FILE
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError(
            "no cluster was started with this run folder (see 'aragog cluster up')", where=str(folder)
        ) from error
    except (OSError, ValueError) as error:
        raise SpecError(f"cannot read this state file ({error})", where=str(path)) from error
    if data.get("schema") != SCHEMA:
        raise SpecError(f"this state file has schema {data.get('schema')}, not {SCHEMA}", where=str(path))
    servers = []
    for entry in data["servers"]:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        helpers = tuple(Identity(**helper) for helper in entry.get("helpers", ()))
        servers.append(RunningServer(**{**values, "endpoint": Endpoint(**entry["endpoint"]), "helpers": helpers}))
    return ClusterState(data["name"], data["spec"], tuple(servers))


def running_clusters() -> dict[str, Path]:
    """Return the run folders in the default place, by cluster name."""
    base = default_folder("x").parent
    return {path.parent.name: path.parent for path in sorted(base.glob(f"*/{FILE}"))}
