"""Servers as processes: started, watched, stopped, and never mistaken for others. A stand-in plays vLLM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aragog_env.cli import main
from aragog_env.errors import SpecError
from aragog_env.servers import process
from aragog_env.servers.commands import server_specs
from aragog_env.servers.deployment import DeploymentSpec, load_deployment
from aragog_env.servers.endpoints import attached
from aragog_env.servers.launcher import ServerError, down, status, up
from aragog_env.servers.probe import is_healthy
from aragog_env.servers.state import FILE, read_state
from tests.live.fake_server import FakeServer

FAKE = Path(__file__).with_name("fake_server.py")

Write = Callable[..., DeploymentSpec]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a deployment of two replicas whose vLLM is the stand-in."""
    package = tmp_path / "path" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(f"import runpy; runpy.run_path({str(FAKE)!r}, run_name='__main__')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def deployment(serve: str = "", servers: str = "", count: int = 1) -> DeploymentSpec:
        text = f"""\
name: pair
cluster:
  name: pair
  replicas:
    - {{name: s, model: toy-small, gpu: h100_sxm, count: {count}, max_num_seqs: 8, num_gpu_blocks: 2049}}
    - {{name: l, model: toy-large, gpu: h100_sxm, scheduling_policy: priority}}
serve: {{device: cpu, startup_s: 20{serve}}}
servers: {{{servers}}}
"""
        (tmp_path / "pair.yaml").write_text(text)
        return load_deployment(tmp_path / "pair.yaml")

    return deployment


@pytest.fixture(autouse=True)
def stop_all(tmp_path: Path) -> Iterator[None]:
    yield
    folder = tmp_path / "run"
    if (folder / FILE).exists():
        down(folder, patience_s=2.0)


def test_up_status_down(write: Write, tmp_path: Path) -> None:
    phases: list[tuple[str, str]] = []
    state = up(write(), tmp_path / "run", report=lambda name, phase, seconds: phases.append((name, phase)))
    assert [(e.name, e.model, e.served_name, e.priority) for e in state.endpoints] == [
        ("s", "toy-small", "toy-small", False),
        ("l", "toy-large", "toy-large", True),
    ]
    assert all(e.url.startswith("http://127.0.0.1:") for e in state.endpoints)
    # On the CPU one after the other.
    assert [p for p in phases if p[1] == "healthy"] == [("s", "healthy"), ("l", "healthy")]
    assert phases.index(("s", "healthy")) < [name for name, _ in phases].index("l")
    found = status(tmp_path / "run")
    assert all(entry.running and entry.healthy and entry.memory_bytes > 1 << 20 for entry in found)
    pids = [entry.server.pid for entry in found]
    assert all(os.getpgid(pid) == pid and os.getsid(pid) == pid for pid in pids), (
        "out of reach of this terminal's Ctrl-C"
    )
    assert read_state(tmp_path / "run") == state and all(server.helpers for server in state.servers)
    assert "fake server --model" in Path(found[0].server.log).read_text()
    assert down(tmp_path / "run") == ["s", "l"]
    assert not any(process.began(pid) for pid in pids) and not any(is_healthy(e.url) for e in state.endpoints)
    with pytest.raises(SpecError, match="no cluster was started"):
        status(tmp_path / "run")


def test_up_again_starts_only_what_is_missing(write: Write, tmp_path: Path) -> None:
    first = up(write(), tmp_path / "run")
    os.kill(first.servers[1].pid, signal.SIGKILL)
    second = up(write(), tmp_path / "run")
    assert second.servers[0] == first.servers[0] and second.servers[1].pid != first.servers[1].pid
    assert second.endpoints == first.endpoints, "clients find it where it was"
    assert all(entry.healthy for entry in status(tmp_path / "run"))
    # Another wish: started anew.
    third = up(write(serve=", extra_args: [--token-s, '0.5']"), tmp_path / "run")
    assert third.servers[0].pid != first.servers[0].pid and not process.began(first.servers[0].pid)


def test_a_server_that_dies_shows_its_log_and_leaves_nothing(write: Write, tmp_path: Path) -> None:
    deployment = write(servers="l: {extra_args: [--crash]}")
    with pytest.raises(ServerError, match=r"server 'l' ended after .*(?s:.)*CUDA out of memory \(not really\)"):
        up(deployment, tmp_path / "run")
    state = read_state(tmp_path / "run")
    assert state.servers == ()
    with pytest.raises(ServerError, match="server 's' is not healthy after 1 s"):
        up(write(servers="s: {startup_s: 1, extra_args: [--startup-s, '60']}"), tmp_path / "run")


def test_no_such_interpreter(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="cannot start server 's': /nowhere/python: No such file"):
        up(write(serve=", python: /nowhere/python"), tmp_path / "run")


def test_a_port_in_use(write: Write, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SpecError, match=f"port {port} of server 's' is in use"):
            up(write(servers=f"s: {{port: {port}}}"), tmp_path / "run")
    with pytest.raises(SpecError, match="wants port 4000, which another server has"):
        server_specs(write(serve=", port: 4000"), iter(()))


def test_the_command_of_a_server(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sesame")
    deployment = write(
        serve=", python: py, dtype: bfloat16, kv_cache_gb: 2, env: {A: b}, api_key_env: MY_KEY",
        servers="l: {device: cuda, model_path: org/large, host: 0.0.0.0, port: 4001, env: {C: d}, extra_args: [-x]}",
    )
    small, large = server_specs(deployment, iter([4000]))
    text = " ".join(small.command)
    assert text.startswith(
        "py -m vllm.entrypoints.openai.api_server --model toy/toy-small --served-model-name toy-small "
    )
    for words in (
        "--host 127.0.0.1 --port 4000",
        "--max-num-seqs 8",
        "--max-num-batched-tokens 8192",
        "--max-model-len 8192",
        "--block-size 32 --num-gpu-blocks-override 1025",  # no smaller blocks on the CPU; as many tokens
        "--enable-prefix-caching",
        "--dtype bfloat16",
        "--enforce-eager --distributed-executor-backend uni",
    ):
        assert words in text
    assert small.env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0", "vLLM's CPU platform accepts 'uni' only so"
    assert small.env["VLLM_CPU_KVCACHE_SPACE"] == "2" and small.env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert small.env["VLLM_NO_USAGE_STATS"] == "1" and small.env["A"] == "b" and "CUDA_VISIBLE_DEVICES" not in small.env
    text = " ".join(large.command)
    assert "--host 0.0.0.0 --port 4001" in text and "--scheduling-policy priority" in text and text.endswith(" -x")
    assert "--block-size 16" in text and "--num-gpu-blocks-override" not in text
    assert "--model org/large" in text and "--gpu-memory-utilization 0.92" in text and "--enforce-eager" not in text
    assert large.endpoint.url == "http://127.0.0.1:4001" and large.gpus == (0,)
    assert "--distributed-executor-backend" not in text and "VLLM_ENABLE_V1_MULTIPROCESSING" not in large.env
    assert large.env["CUDA_VISIBLE_DEVICES"] == "0" and large.env["A"] == "b" and large.env["C"] == "d"
    assert not any("sesame" in part for spec in (small, large) for part in (*spec.command, *spec.env.values()))


def test_gpus(write: Write) -> None:
    deployment = write(serve="", servers="s: {device: cuda}, l: {device: cuda, gpus: [0]}", count=2)
    with pytest.raises(SpecError, match="GPU 0 of replica 'l' belongs to another server"):
        server_specs(deployment, iter(range(4000, 4010)))
    deployment = write(servers="s: {device: cuda}, l: {device: cuda, gpus: [1, 2]}")
    with pytest.raises(SpecError, match="tp 1 and needs as many GPUs, got 2"):
        server_specs(deployment, iter(range(4000, 4010)))
    deployment = write(servers="s: {device: cuda}, l: {device: cuda}", count=2)
    assert [spec.gpus for spec in server_specs(deployment, iter(range(4000, 4010)))] == [(0,), (1,), (2,)]


def test_attached_servers_are_neither_started_nor_stopped(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeServer() as a, FakeServer() as b:
        servers = f"s: {{url: '{a.url}/v1', api_key_env: K}}, l: {{url: '{b.url}', served_name: big, api: completions}}"
        deployment = write(servers=servers)
        with pytest.raises(SpecError, match="variable 'K'"):
            up(deployment, tmp_path / "run")
        monkeypatch.setenv("K", "sesame-open")
        state = up(deployment, tmp_path / "run")
        assert state.endpoints == attached(deployment)
        assert [(e.url, e.served_name, e.api) for e in state.endpoints] == [
            (a.url, "toy-small", "chat"),
            (b.url, "big", "completions"),
        ]
        assert "sesame-open" not in (tmp_path / "run" / FILE).read_text()
        b.stop()
        assert [entry.healthy for entry in status(tmp_path / "run")] == [True, False]
        with pytest.raises(ServerError, match="'l' does not answer at"):
            up(deployment, tmp_path / "run")
        assert down(tmp_path / "run") == [] and is_healthy(a.url)


@pytest.mark.parametrize(
    ("serve", "servers", "message"),
    [
        ("", "x: {port: 1}", "the cluster 'pair' has no replica 'x'"),
        ("", "s: {url: 'localhost:80'}", "begins with http:// or https://"),
        (", url: 'http://h'", "", "one URL cannot be that of every replica"),
        (", extra_args: [--api-key, k]", "", "a key does not belong into a file"),
        (", prot: 1", "", "Did you mean 'port'"),
        ("", "s: {port: 99999}", "at most 65535"),
        ("", "s: {model_path: ./nothing}", "there is no folder './nothing' with the weights of 's'"),
    ],
)
def test_deployments_that_cannot_be(serve: str, servers: str, message: str, write: Write) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        server_specs(write(serve, servers), iter((4000, 4001)))
    assert "pair.yaml:" in str(caught.value)


def test_a_plain_cluster_is_a_deployment_with_defaults() -> None:
    deployment = load_deployment("qwen-4xh100")
    assert attached(deployment) is None and deployment.cluster.name == "qwen-4xh100"
    specs = server_specs(deployment, iter(range(4000, 4100)))
    gpus = [gpu for spec in specs for gpu in spec.gpus]
    assert gpus == list(range(len(gpus))) and specs[0].command[0] == sys.executable


def test_only_what_was_started_is_stopped(tmp_path: Path) -> None:
    """The process id of a server that has ended may belong to anybody."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as bystander:
        try:
            for helpers in ((), (process.Identity(bystander.pid, "1"),)):
                ours = process.Identity(bystander.pid, "1")
                assert not process.stop(ours, "token-of-ours", helpers, patience_s=0.2)
            assert bystander.poll() is None
        finally:
            bystander.kill()


@pytest.mark.parametrize("hidden", [False, True])
def test_helpers_that_outlive_their_server_are_stopped(hidden: bool, tmp_path: Path) -> None:
    """Also those whose environment cannot be seen, as with vLLM, which sets the titles of its processes."""
    code = (
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    )
    token = "0123456789"
    env = {**os.environ, **({} if hidden else {process.TOKEN_NAME: token})}
    pid = process.start_detached([sys.executable, "-c", code], env, tmp_path / "log")
    start = process.began(pid)
    assert start
    deadline = time.monotonic() + 20
    while not (text := (tmp_path / "log").read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    helper = int(text)
    leader = process.Identity(pid, start)
    assert process.members(leader, token) == sorted([pid, helper])
    helpers = process.session(pid) if hidden else ()
    os.kill(pid, signal.SIGKILL)
    while process.is_running(pid, start):
        time.sleep(0.01)
    assert process.members(leader, token, helpers) == [helper]
    assert process.stop(leader, token, helpers, patience_s=5.0) and not process.began(helper)
    assert not process.stop(leader, token, helpers)


def test_commands(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write()
    assert main(["cluster", "status"]) == 2 and "there are 0 clusters" in capsys.readouterr().err
    assert main(["cluster", "up", str(tmp_path / "pair.yaml")]) == 0
    try:
        output = capsys.readouterr()
        assert "toy-large" in output.out and "http://127.0.0.1:" in output.out and "s: healthy after" in output.err
        assert main(["cluster", "status"]) == 0 and "ok" in capsys.readouterr().out
        assert main(["cluster", "status", "pair", "--json"]) == 0 and '"healthy": true' in capsys.readouterr().out
        assert main(["cluster", "logs", "--server", "l"]) == 0 and "fake server" in capsys.readouterr().out
        assert main(["cluster", "logs", "--server", "x"]) == 2 and "no server 'x'" in capsys.readouterr().err
        assert main(["cluster", "status", "pear"]) == 2 and "Did you mean 'pair'" in capsys.readouterr().err
    finally:
        assert main(["cluster", "down"]) == 0
    assert "stopped: s, l" in capsys.readouterr().out
