"""Where the servers of a cluster answer: what a client needs to know, and nothing that must stay secret."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import SpecError
from ..specs.cluster import ReplicaSpec
from .deployment import Api, DeploymentSpec


@dataclass(frozen=True)
class Endpoint:
    """One server: a replica's address under the OpenAI API."""

    name: str
    """The replica's name."""
    model: str
    """The cluster's name of its model."""
    url: str
    """Without /v1, e.g. ``http://127.0.0.1:8101``."""
    served_name: str
    """What goes into the field `model` of a request."""
    api: Api = "chat"
    api_key_env: str | None = None
    """Environment variable that holds the key; looked up when a client is made."""
    priority: bool = False
    """Whether the server schedules by priority; others refuse requests that name one."""

    def headers(self) -> dict[str, str]:
        """Return the headers of every request.

        Raises:
            SpecError: the environment lacks the key.
        """
        if self.api_key_env is None:
            return {}
        key = os.environ.get(self.api_key_env)
        if not key:
            raise SpecError(f"the environment variable '{self.api_key_env}' with the key of '{self.name}' is not set")
        return {"Authorization": f"Bearer {key}"}


def attached(deployment: DeploymentSpec) -> tuple[Endpoint, ...] | None:
    """Return the endpoints of a deployment whose every server has a URL; None when some must be started."""
    found = []
    for replica, family in replicas_of(deployment):
        serve = deployment.of(replica.name, family)
        if serve.url is None:
            return None
        found.append(
            Endpoint(
                replica.name,
                replica.model,
                serve.url.rstrip("/").removesuffix("/v1"),
                serve.served_name or replica.model,
                serve.api or "chat",
                serve.api_key_env,
                replica.scheduling_policy == "priority",
            )
        )
    return tuple(found)


def replicas_of(deployment: DeploymentSpec) -> list[tuple[ReplicaSpec, str]]:
    """Return (replica, its name before `count` was expanded) of every server, in route order."""
    families = [spec.name for spec in deployment.cluster.replicas for _ in range(spec.count)]
    return list(zip(deployment.cluster.expand(), families, strict=True))


def in_route_order(
    endpoints: Sequence[Endpoint], replicas: Sequence[str], models: Sequence[str]
) -> tuple[Endpoint, ...]:
    """Return one endpoint per replica, in the order of `replicas`.

    Raises:
        SpecError: a replica has no endpoint, or one that serves another model.
    """
    known: Mapping[str, Endpoint] = {endpoint.name: endpoint for endpoint in endpoints}
    for name, model in zip(replicas, models, strict=True):
        if name not in known:
            raise SpecError(f"no server answers for replica '{name}' (there are: {', '.join(known) or 'none'})")
        if known[name].model != model:
            raise SpecError(f"replica '{name}' serves '{model}', but its server has '{known[name].model}'")
    return tuple(known[name] for name in replicas)
