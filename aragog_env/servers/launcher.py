"""Start, watch and stop the vLLM servers of a cluster.

Each server is a process of its own that outlives the command: in its own process group, output in a log file, known by a
state file in the run folder. Starting again starts what does not run; stopping stops exactly what was started.
"""

from __future__ import annotations

import fcntl
import secrets
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from ..errors import AragogError, SpecError
from . import process
from .commands import STARTUP_S, ServerSpec, child_environment, server_specs
from .deployment import DeploymentSpec
from .endpoints import Endpoint, attached, replicas_of
from .probe import is_healthy
from .state import FILE, ClusterState, RunningServer, default_folder, read_state, write_state

Phase = Literal["waiting", "starting", "healthy", "running already", "attached"]
Report = Callable[[str, Phase, float], None]
"""Told about (server, phase, seconds since its start)."""
_POLL_S: Final = 0.5
_LOG_LINES: Final = 15


class ServerError(AragogError):
    """A server did not come up; the message holds the end of its log."""


@dataclass(frozen=True)
class ServerStatus:
    """What `status` knows of one server."""

    server: RunningServer
    running: bool
    healthy: bool
    memory_bytes: int


def up(
    deployment: DeploymentSpec,
    folder: Path | None = None,
    *,
    spec: str = "",
    at_once: int | None = None,
    report: Report = lambda name, phase, seconds: None,
) -> ClusterState:
    """Start every server of a deployment that does not run yet, and wait until all are healthy.

    Args:
        deployment: what to start.
        folder: run folder for state and logs; default: one per cluster name below ~/.local/state/aragog.
        spec: what the deployment was read from, for the state file.
        at_once: how many servers may be starting at the same time; default: one on the CPU, where they would only take
            each other's cores, all on GPUs.
        report: told about progress, several times a second.

    Raises:
        ServerError: a server ended or was not healthy in time. What this call started is stopped again.
        SpecError: the deployment is unusable.
    """
    folder = folder or default_folder(deployment.name)
    with _locked(folder):
        given = attached(deployment)
        if given is not None:
            return _attach(deployment, folder, spec, given, report)
        before = read_state(folder).servers if (folder / FILE).exists() else ()
        # A server that is started again keeps its port, so that clients find it where it was.
        ports = {s.endpoint.name: port for s in before if s.pid and (port := urlsplit(s.endpoint.url).port)}
        specs = server_specs(deployment, _free_ports(), ports)
        servers = _still_running(before, specs)
        for name in servers:
            report(name, "running already", 0.0)
        missing = [s for s in specs if s.endpoint.name not in servers]
        cpu = any(s.device == "cpu" for s in missing)
        started: list[RunningServer] = []
        try:
            for batch in _batches(missing, at_once or (1 if cpu else len(missing) or 1)):
                fresh = [(_start(s, folder), s.startup_s) for s in batch]
                started += [server for server, _ in fresh]
                servers |= {server.endpoint.name: server for server, _ in fresh}
                # Before anything can go wrong, so that whatever happens to us `down` finds what runs.
                write_state(folder, _state(deployment, spec, servers))
                _wait(fresh, report)
                for server, _ in fresh:
                    helpers = tuple(process.session(server.pid))
                    servers[server.endpoint.name] = replace(server, helpers=helpers)
        except BaseException:
            gone = {server.pid for server in started}
            for server in started:
                process.stop(server.identity, server.token, patience_s=5.0)
            write_state(folder, _state(deployment, spec, {n: s for n, s in servers.items() if s.pid not in gone}))
            raise
        state = _state(deployment, spec, servers)
        write_state(folder, state)
        return state


def down(folder: Path, *, patience_s: float = 20.0) -> list[str]:
    """Stop the servers that were started from this run folder; return the names of those that ran.

    Raises:
        SpecError: nothing was started from it.
    """
    with _locked(folder):
        state = read_state(folder)
        stopped = [
            server.endpoint.name
            for server in state.servers
            if server.pid and process.stop(server.identity, server.token, server.helpers, patience_s=patience_s)
        ]
        (folder / FILE).unlink(missing_ok=True)
        return stopped


def status(folder: Path) -> list[ServerStatus]:
    """Return what runs, which of it answers, and how much memory it holds."""
    result = []
    for server in read_state(folder).servers:
        pids = process.members(server.identity, server.token, server.helpers) if server.pid else []
        running = process.is_running(server.pid, server.start) if server.pid else False
        healthy = is_healthy(server.endpoint.url, timeout_s=5.0)
        result.append(ServerStatus(server, running, healthy, process.memory_bytes(pids)))
    return result


def _attach(
    deployment: DeploymentSpec, folder: Path, spec: str, given: tuple[Endpoint, ...], report: Report
) -> ClusterState:
    for endpoint in given:
        endpoint.headers()  # a missing key is better known now
        if not is_healthy(endpoint.url, timeout_s=10.0):
            raise ServerError(f"server '{endpoint.name}' does not answer at {endpoint.url}/health")
        report(endpoint.name, "attached", 0.0)
    state = ClusterState(deployment.name, spec, tuple(RunningServer(endpoint) for endpoint in given))
    write_state(folder, state)
    return state


def _still_running(before: Sequence[RunningServer], specs: Sequence[ServerSpec]) -> dict[str, RunningServer]:
    """Return the servers of an earlier start that run, answer and are wanted as they are; stop what is left of others."""
    wanted = {spec.endpoint.name: _without_port(spec.command) for spec in specs}
    found = {}
    for server in before:
        if not server.pid:
            continue
        name = server.endpoint.name
        as_wanted = wanted.get(name) == _without_port(server.command)
        if (
            as_wanted
            and process.is_running(server.pid, server.start)
            and is_healthy(server.endpoint.url, timeout_s=10.0)
        ):
            found[name] = server
        else:
            process.stop(server.identity, server.token, server.helpers)
    return found


def _without_port(command: Sequence[str]) -> tuple[str, ...]:
    """Return a command without its port, which may have been any free one."""
    port = command.index("--port")
    return (*command[:port], *command[port + 2 :])


def _start(spec: ServerSpec, folder: Path) -> RunningServer:
    endpoint = spec.endpoint
    if _port_taken(spec.host, spec.port):
        message = f"port {spec.port} of server '{endpoint.name}' is in use by another program; give it another 'port'"
        raise SpecError(message)
    log = folder / f"{endpoint.name}.log"
    token = secrets.token_hex(16)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        file.write(f"\n--- {time.strftime('%F %T')} {shlex.join(spec.command)}\n".encode())
    try:
        pid = process.start_detached(spec.command, child_environment(spec, process.TOKEN_NAME, token), log)
    except OSError as error:
        message = f"cannot start server '{endpoint.name}': {spec.command[0]}: {error.strerror}"
        if spec.device == "cpu" and isinstance(error, FileNotFoundError):
            message += "; 'aragog cluster install --cpu' makes an environment with vLLM for the CPU in .venv-vllm"
        raise ServerError(message) from error
    start = process.began(pid) or ""
    return RunningServer(
        endpoint, pid, start, token, log=str(log), command=spec.command, gpus=spec.gpus, device=spec.device
    )


def _wait(fresh: list[tuple[RunningServer, float]], report: Report) -> None:
    """Wait until all are healthy, or one is not going to be."""
    begin = time.monotonic()
    waiting = dict(enumerate(fresh))
    while waiting:
        for key, (server, startup_s) in list(waiting.items()):
            seconds, name = time.monotonic() - begin, server.endpoint.name
            if is_healthy(server.endpoint.url, timeout_s=2.0):
                report(name, "healthy", seconds)
                del waiting[key]
            elif not process.is_running(server.pid, server.start):
                raise ServerError(_obituary(server, f"ended after {seconds:.0f} s"))
            elif seconds > (startup_s or STARTUP_S):
                raise ServerError(_obituary(server, f"is not healthy after {seconds:.0f} s"))
            else:
                report(name, "starting", seconds)
        if waiting:
            time.sleep(_POLL_S)


def _obituary(server: RunningServer, what: str) -> str:
    end = process.tail(Path(server.log), _LOG_LINES)
    return f"server '{server.endpoint.name}' {what}; the end of its log {server.log}:\n{end}"


def _state(deployment: DeploymentSpec, spec: str, servers: dict[str, RunningServer]) -> ClusterState:
    """Return the state in route order; replicas with a URL stand beside those that were started."""
    chosen = []
    for replica, family in replicas_of(deployment):
        serve = deployment.of(replica.name, family)
        if replica.name in servers:
            chosen.append(servers[replica.name])
        elif serve.url is not None:
            single = replace(deployment, cluster=replace(deployment.cluster, replicas=(replica,)))
            chosen += [RunningServer(endpoint) for endpoint in attached(single) or ()]
    return ClusterState(deployment.name, spec, tuple(chosen))


def _batches(specs: list[ServerSpec], size: int) -> Iterator[list[ServerSpec]]:
    for i in range(0, len(specs), size):
        yield specs[i : i + size]


def _free_ports() -> Iterator[int]:
    """Yield ports that nobody listens on now."""
    given: set[int] = set()
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in given:
            given.add(port)
            yield port


def _port_taken(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep two commands from starting or stopping the same cluster at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AragogError(f"another command is starting or stopping the cluster in {folder}") from error
        yield
