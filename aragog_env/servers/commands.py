"""The command line and environment of one vLLM server, from a replica and how it is served."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import SpecError
from ..specs import catalogue
from ..specs.cluster import ReplicaSpec
from ..specs.limits import engine_limits
from ..specs.strict import location
from .deployment import LOOPBACK, DeploymentSpec, Device, ServeSpec
from .endpoints import Endpoint, replicas_of
from .process import default_python

STARTUP_S: Final = 900.0
"""vLLM on a GPU loads weights and captures graphs for minutes; on the CPU it is healthy in 40 to 60 s."""
BLOCK_TOKENS: Final = 16
"""Tokens in a KV block, as simulated."""
CPU_BLOCK_TOKENS: Final = 32
"""The smallest block that vLLM has on the CPU (`v1/attention/backends/cpu_attn.py`); its default there is 128."""
_QUIET: Final = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
"""A server that we start calls nobody."""


@dataclass(frozen=True)
class ServerSpec:
    """One server to be started."""

    endpoint: Endpoint
    command: tuple[str, ...]
    env: dict[str, str]
    """On top of this process's environment. Holds no secrets."""
    host: str
    port: int
    device: Device
    gpus: tuple[int, ...]
    startup_s: float


def server_specs(
    deployment: DeploymentSpec, ports: Iterable[int], before: Mapping[str, int] | None = None
) -> tuple[ServerSpec, ...]:
    """Return what to start for every replica without a URL, in route order.

    Args:
        deployment: the cluster and how it is served.
        ports: free ports, for servers that name none.
        before: ports that such servers had earlier, by name; they keep them.

    Raises:
        SpecError: two servers want one port or one GPU, or a replica does not fit its hardware.
    """
    free = iter(ports)
    taken_gpus: set[int] = set()
    chosen: list[ServerSpec] = []
    for replica, family in replicas_of(deployment):
        serve = deployment.of(replica.name, family)
        if serve.url is not None:
            continue
        where = location(deployment, f"servers.{replica.name}")
        gpus = () if serve.device == "cpu" else _gpus(serve, replica, taken_gpus, where)
        taken_gpus.update(gpus)
        port = serve.port or (before or {}).get(replica.name) or next(free)
        host = serve.host or LOOPBACK
        if any(port == other.port for other in chosen):
            raise SpecError(f"replica '{replica.name}' wants port {port}, which another server has", where=where)
        chosen.append(_server(deployment, replica, serve, host, port, gpus))
    return tuple(chosen)


def _gpus(serve: ServeSpec, replica: ReplicaSpec, taken: set[int], where: str) -> tuple[int, ...]:
    if serve.gpus is None:
        free = (gpu for gpu in range(len(taken) + replica.tp) if gpu not in taken)
        return tuple(next(free) for _ in range(replica.tp))
    if len(serve.gpus) != replica.tp:
        message = f"replica '{replica.name}' has tp {replica.tp} and needs as many GPUs, got {len(serve.gpus)}"
        raise SpecError(message, where=where)
    if twice := sorted(taken & set(serve.gpus)):
        raise SpecError(f"GPU {twice[0]} of replica '{replica.name}' belongs to another server", where=where)
    return serve.gpus


def _server(
    deployment: DeploymentSpec, replica: ReplicaSpec, serve: ServeSpec, host: str, port: int, gpus: tuple[int, ...]
) -> ServerSpec:
    if serve.model_path and serve.model_path.startswith(("/", ".", "~")) and not Path(serve.model_path).is_dir():
        where = location(deployment, f"servers.{replica.name}.model_path")
        raise SpecError(f"there is no folder '{serve.model_path}' with the weights of '{replica.name}'", where=where)
    name = serve.served_name or replica.model
    model = catalogue.model(replica.model, deployment.cluster)
    # A wildcard address is none that a client can call.
    reach = LOOPBACK if host in ("0.0.0.0", "::") else host
    command = (
        serve.python or default_python(),
        "-m",
        "vllm.entrypoints.openai.api_server",
        *("--model", serve.model_path or model.hf_id),
        *("--served-model-name", name),
        *("--host", host, "--port", str(port)),
        *_engine_arguments(deployment, replica, serve),
        *serve.extra_args,
    )
    priority = replica.scheduling_policy == "priority"
    endpoint = Endpoint(
        replica.name, replica.model, f"http://{reach}:{port}", name, serve.api or "chat", serve.api_key_env, priority
    )
    env = {**_QUIET, **_device_env(serve, gpus), **serve.env}
    device = serve.device or "cuda"
    return ServerSpec(endpoint, command, env, host, port, device, gpus, serve.startup_s or STARTUP_S)


def _engine_arguments(deployment: DeploymentSpec, replica: ReplicaSpec, serve: ServeSpec) -> list[str]:
    """Return the limits that the simulator assumes, so that the server has the same ones."""
    limits = engine_limits(replica, deployment.cluster)
    words = [
        *("--max-num-seqs", str(limits.max_num_seqs)),
        *("--max-num-batched-tokens", str(limits.max_num_batched_tokens)),
        *("--max-model-len", str(limits.max_model_len)),
        *("--scheduling-policy", replica.scheduling_policy),
        "--enable-prefix-caching" if replica.enable_prefix_caching else "--no-enable-prefix-caching",
        "--async-scheduling" if replica.async_scheduling else "--no-async-scheduling",
        # The usage block of a response then says how much of the prompt was cached.
        "--enable-prompt-tokens-details",
    ]
    block_tokens = CPU_BLOCK_TOKENS if serve.device == "cpu" else BLOCK_TOKENS
    words += ["--block-size", str(block_tokens)]
    if replica.num_gpu_blocks is not None:
        # As many tokens as the cluster says, which counts blocks of 16, the null block on top.
        usable = (replica.num_gpu_blocks - 1) * BLOCK_TOKENS // block_tokens
        words += ["--num-gpu-blocks-override", str(usable + 1)]
    if serve.dtype is not None:
        words += ["--dtype", serve.dtype]
    if serve.device == "cpu":
        # Compilation takes minutes on a few cores and gains nothing on small models.
        return [
            *words,
            "--enforce-eager",
            *(("--distributed-executor-backend", "uni") if _in_one_process(serve) else ()),
        ]
    if replica.tp > 1:
        words += ["--tensor-parallel-size", str(replica.tp)]
    return [*words, "--gpu-memory-utilization", str(replica.gpu_memory_utilization)]


def _in_one_process(serve: ServeSpec) -> bool:
    """Return whether a CPU server computes in its engine's process.

    vLLM computes in a process of its own otherwise, and while calls come in both spin on shared memory
    (`distributed/device_communicators/shm_broadcast.py`): a few servers on a few cores then keep each other from computing.
    Binding to cores needs that process.
    """
    return serve.device == "cpu" and serve.cpu_cores is None


def _device_env(serve: ServeSpec, gpus: tuple[int, ...]) -> dict[str, str]:
    # A folder needs no hub, and a server that may not ask it starts without a network.
    offline = {"HF_HUB_OFFLINE": "1"} if serve.model_path and Path(serve.model_path).is_dir() else {}
    if serve.device != "cpu":
        return {**offline, "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    memory = {"VLLM_CPU_KVCACHE_SPACE": f"{serve.kv_cache_gb}"} if serve.kv_cache_gb is not None else {}
    # `platforms/cpu.py` accepts the executor "uni" only with this; the engine keeps its own process all the same.
    in_one = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if _in_one_process(serve) else {}
    return {**offline, **memory, **in_one, "VLLM_CPU_OMP_THREADS_BIND": serve.cpu_cores or "nobind"}


def child_environment(spec: ServerSpec, token_name: str, token: str) -> dict[str, str]:
    """Return the whole environment of a server, with its API key where it has one.

    Raises:
        SpecError: the environment lacks the key.
    """
    env = {**os.environ, **spec.env, token_name: token}
    headers = spec.endpoint.headers()
    if headers:
        # Not on the command line, which every user of the machine can read.
        env["VLLM_API_KEY"] = headers["Authorization"].removeprefix("Bearer ")
    return env
