"""How a cluster is served for real: what stands beside a `ClusterSpec`, which says what is served but not where.

A deployment names a cluster and adds interpreter, paths, ports and devices, or the URLs of servers that run already. It is a
file of its own because none of this changes what is simulated: a scenario keeps its hash wherever it is served.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml

from ..errors import SpecError, did_you_mean
from ..specs.bounds import Bound, Count, NonNegativeInt, Positive
from ..specs.cluster import ClusterSpec
from ..specs.load import ROOT, load_cluster
from ..specs.strict import Reference, load_file, location

Device = Literal["cuda", "cpu"]
Api = Literal["chat", "completions"]
LOOPBACK: Final = "127.0.0.1"
PRESETS: Final = Path(__file__).parent / "deployments"
"""Deployments that are shipped, known by name."""


@dataclass(frozen=True)
class ServeSpec:
    """How one server is started, or where it already runs; None: as the deployment's `serve` says, else the default."""

    url: str | None = None
    """A server that runs already, e.g. ``http://10.0.0.5:8000``; it is neither started nor stopped."""
    api_key_env: str | None = None
    """Name of the environment variable with the API key. The key itself is never written anywhere."""
    served_name: str | None = None
    """What clients send as `model`; default: the cluster's name of the model."""
    api: Api | None = None
    """``chat`` (default): /v1/chat/completions, with the model's chat template; ``completions``: the text as it is."""
    model_path: str | None = None
    """Folder with the weights, seen from the file; default: the model's Hugging Face id."""
    python: str | None = None
    """Interpreter of the environment that has vLLM, seen from the file, or a command on the PATH; default: ours."""
    host: str | None = None
    """Address to listen on; default: 127.0.0.1, which no other machine can reach."""
    port: Annotated[int, Bound(1, 65535)] | None = None
    """Default: any free one."""
    device: Device | None = None
    """Default: cuda."""
    gpus: tuple[NonNegativeInt, ...] | None = None
    """GPUs of this machine, `tp` of them; default: the next free ones in the order of the replicas."""
    dtype: str | None = None
    kv_cache_gb: Count | None = None
    """cpu: memory for the KV cache in whole GB (VLLM_CPU_KVCACHE_SPACE)."""
    cpu_cores: str | None = None
    """cpu: which cores compute, e.g. ``0`` or ``0-3`` (VLLM_CPU_OMP_THREADS_BIND); default: not bound."""
    startup_s: Positive | None = None
    """How long a server may take until it is healthy; default: 900."""
    env: dict[str, str] = field(default_factory=dict)
    """More environment variables, on top of the deployment's."""
    extra_args: tuple[str, ...] = ()
    """More arguments for vLLM, after the deployment's."""


@dataclass(frozen=True)
class DeploymentSpec:
    """A cluster and how its replicas are served."""

    name: str
    cluster: ClusterSpec
    serve: ServeSpec = field(default_factory=ServeSpec)
    """What holds for every replica."""
    servers: dict[str, ServeSpec] = field(default_factory=dict)
    """What holds for one replica, by its name (or the name before `count` was expanded); goes before `serve`."""
    description: str = ""
    locations: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each key stands in its file, for error messages."""

    def of(self, replica: str, family: str = "") -> ServeSpec:
        """Return how the replica is served; `family` is its name before `count` was expanded."""
        own = self.servers.get(replica) or self.servers.get(family) or ServeSpec()
        return _merge(self.serve, own)


def _merge(common: ServeSpec, own: ServeSpec) -> ServeSpec:
    """Return `own` with what it leaves open taken from `common`."""
    values: dict[str, Any] = {
        f.name: getattr(own, f.name) if getattr(own, f.name) is not None else getattr(common, f.name)
        for f in fields(ServeSpec)
    }
    values["env"] = {**common.env, **own.env}
    values["extra_args"] = (*common.extra_args, *own.extra_args)
    return ServeSpec(**values)


def load_deployment(name_or_path: str | Path) -> DeploymentSpec:
    """Return a shipped deployment by name, or one from its file; the name or file of a plain cluster gives the defaults.

    Raises:
        SpecError: no such file, or it does not fit.
    """
    path = Path(name_or_path).expanduser()
    if (PRESETS / f"{name_or_path}.yaml").is_file():
        path = PRESETS / f"{name_or_path}.yaml"
    if path.suffix not in (".yaml", ".yml"):
        cluster = load_cluster(name_or_path)
        return DeploymentSpec(cluster.name, cluster)
    if "replicas" in _top_level_keys(path):
        cluster = load_cluster(path)
        return DeploymentSpec(cluster.name, cluster)
    references: dict[type, Reference] = {ClusterSpec: partial(_cluster, path.parent)}
    return _checked(_anchored(load_file(DeploymentSpec, path, references), path.parent))


def _cluster(folder: Path, name: str, where: str) -> ClusterSpec:
    """Return the cluster that a deployment names, by preset or by a path seen from its folder."""
    seen = folder / Path(name).expanduser()
    return load_cluster(seen if seen.is_file() else name, where=where)


def _top_level_keys(path: Path) -> set[str]:
    """Return the keys of a YAML mapping, to tell clusters from deployments; errors are left to the strict reader."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return set()
    return {str(key.value) for key, _ in node.value} if isinstance(node, yaml.MappingNode) else set()


def _anchored(spec: DeploymentSpec, folder: Path) -> DeploymentSpec:
    """Make the paths of a deployment independent of the working directory."""
    servers = {name: _anchor(serve, folder) for name, serve in spec.servers.items()}
    return replace(spec, serve=_anchor(spec.serve, folder), servers=servers)


def _anchor(serve: ServeSpec, folder: Path) -> ServeSpec:
    return replace(serve, model_path=_absolute(serve.model_path, folder), python=_absolute(serve.python, folder))


def _absolute(name: str | None, folder: Path) -> str | None:
    """Return a path as seen from `folder` or from the repository; a name that is neither stays as it is.

    Symbolic links are kept: the interpreter of a virtual environment is one, and without it is another interpreter.
    """
    if name is None:
        return None
    for base in (folder, ROOT):
        seen = base / Path(name).expanduser()
        if seen.exists():
            return os.path.abspath(seen)
    return name


def _checked(spec: DeploymentSpec) -> DeploymentSpec:
    """Refuse entries for replicas that the cluster does not have, and keys that exclude each other."""
    known = {replica.name for replica in (*spec.cluster.replicas, *spec.cluster.expand())}
    for name in spec.servers:
        if name not in known:
            message = f"the cluster '{spec.cluster.name}' has no replica '{name}'.{did_you_mean(name, known)}"
            raise SpecError(message, where=location(spec, f"servers.{name}"))
    for key, serve in (("serve", spec.serve), *((f"servers.{n}", s) for n, s in spec.servers.items())):
        if serve.url is not None and not serve.url.startswith(("http://", "https://")):
            message = f"expected a URL that begins with http:// or https://, got '{serve.url}'"
            raise SpecError(message, where=location(spec, f"{key}.url"))
        if any(word.startswith("--api-key") for word in serve.extra_args):
            message = "a key does not belong into a file or on a command line; name its variable with 'api_key_env'"
            raise SpecError(message, where=location(spec, f"{key}.extra_args"))
    if spec.serve.url is not None and len(spec.cluster.expand()) > 1:
        message = "one URL cannot be that of every replica; give each its own under 'servers'"
        raise SpecError(message, where=location(spec, "serve.url"))
    return spec
