"""The Gymnasium environment over real servers: every step dispatches a stage of a real workflow."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from .backends.live import LiveBackend, LiveOptions
from .backends.live.progress import LiveRequest
from .encoding import ViewEncoder, resolve_action, to_action
from .env import resolve_scenario, spaces
from .episode import EpisodeLog
from .errors import SpecError, did_you_mean
from .observation import Observation
from .reward import Reward
from .servers.endpoints import Endpoint
from .servers.find import find_servers
from .specs.scenario import Scenario


class StageDispatchLiveEnv(gym.Env[Observation, int]):
    """Dispatch the stages of agentic workflows to real vLLM servers, in real time.

    ## Description

    `StageDispatchEnv` (`aragog/StageDispatch-v0`) with a real cluster in the place of the simulated one: requests are
    questions of real data sets and arrive when the simulator's would, calls go to servers under the OpenAI API, outputs feed
    the next stages, answers are graded. Spaces, slots, mask, reward and info mean the same, so that an agent trained in
    simulation acts here unchanged.

    ## Action Space

    `Discrete(K * R + 1)`, as in simulation: `slot * R + route` sends the call in ready slot `slot` to route `route`, the last
    action waits until the next event. A masked action never raises and sets `info["invalid_action"]`. Routes of servers that
    are down, or that failed a call while others can take it, are masked.

    ## Observation Space

    The `Dict` of `StageDispatchEnv`. A server's load is our own calls there to the moment, plus those of other clients as of
    the last reading of `/metrics`; prompt lengths are estimates until servers have counted some (docs/live.md).

    ## Starting State

    The first arrival. `reset(seed=s)` draws the traffic that the simulated environment has under seed s, and returns when a
    server of every model answers and the first request is there. The clock starts then. Servers are as they are: their prefix
    caches may hold the prompts of earlier episodes.

    ## Rewards

    Those of `StageDispatchEnv` in seconds of the wall clock, in which the agent's own thinking counts: minus the integral of
    requests in flight, divided by the scenario's SLO latency, plus `accuracy_weight` for each answer graded as right since the
    last step. Grading runs beside the servers, so this part may come some steps after the completion; by the last step all of
    it has come. A failed request leaves the system when it fails and earns nothing.

    ## Episode End

    Terminated when every request is served or has failed and all answers are graded; truncated when `horizon.duration_s` is
    over. A request fails when its calls cannot be served within the bounds of `LiveOptions`.

    ## Information

    As in simulation: `action_mask`, `dt`, `discount`, `invalid_action`, `reward/latency`, `reward/accuracy`, `overflow`,
    `time_s`, and on the last step `metrics`. `reset` gives `action_mask`, `time_s`, `seed` and `recording`, the file that
    the episode is recorded in (docs/recordings.md).

    `copy` and `pickle` are refused, since servers cannot be copied. `close()` ends the episode and its threads; what was
    recorded stays and can be resumed.

    ## Arguments

    * `scenario`, `overrides`: as for `StageDispatchEnv`.
    * `cluster`: servers started by `aragog cluster up`, by name, run folder or deployment file; their cluster takes the place
      of the scenario's. Without `cluster` and `endpoints`: the running cluster that has the name of the scenario's.
    * `endpoints`: instead, where each replica answers: `Endpoint` objects, or {replica name: URL}.
    * `recording`: a folder for one file per episode (default: recordings).
    * `datasets`: file or folder of a workflow's data set, by workflow.
    * `options`: a `LiveOptions`.

    ## References

    See `StageDispatchEnv`; docs/live.md for servers and faults.

    ## Version History

    * v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        scenario: str | Path | Scenario = "arithmetic",
        overrides: dict[str, Any] | None = None,
        *,
        cluster: str | Path | None = None,
        endpoints: Sequence[Endpoint] | Mapping[str, str] | None = None,
        recording: str | Path = "recordings",
        datasets: Mapping[str, str | Path] | None = None,
        options: LiveOptions | None = None,
        render_mode: None = None,
    ) -> None:
        if cluster is not None and endpoints is not None:
            raise SpecError("give either 'cluster' or 'endpoints', not both")
        self.render_mode = render_mode
        self.compiled = resolve_scenario(scenario, overrides)
        if endpoints is None:
            served = find_servers(cluster if cluster is not None else self.compiled.scenario.cluster.name)
            endpoints = served.endpoints
            if cluster is not None:
                self.compiled = resolve_scenario(replace(self.compiled.scenario, cluster=served.cluster), None)
        elif isinstance(endpoints, Mapping):
            endpoints = _endpoints(endpoints, self.compiled.scenario)
        self.observation_space: gym.Space[Any]
        self.action_space: gym.Space[Any]
        self.observation_space, self.action_space = spaces(self.compiled)
        self.reward = Reward(self.compiled)
        if Path(recording).suffix in (".db", ".sqlite"):
            raise SpecError("every episode has a file of its own: name a folder", where="recording")
        self._backend = LiveBackend(
            self.compiled.scenario, endpoints, recording=recording, datasets=datasets, options=options
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; returns at its first decision.

        Raises:
            AragogError: no server of some model answers.
        """
        super().reset(seed=seed)
        episode_seed = seed if seed is not None else int(self.np_random.integers(2**31))
        self._backend.reset(episode_seed)
        self._encoder, self._decisions, self._overflows = ViewEncoder(self.compiled), 0, 0
        self._account = _Account(self._backend.episode.requests)
        observation = self._observe()
        self._time_s = self._seen_s
        self._account.until(self._seen_s)
        return observation, {
            "action_mask": observation["action_mask"].copy(),
            "time_s": self._time_s,
            "seed": episode_seed,
            "recording": str(self._backend.recording),
        }

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Carry out one decision and go on, in real time, to the next.

        Raises:
            gymnasium.error.ResetNeeded: there is no episode.
        """
        if self._backend.recording is None:
            raise gym.error.ResetNeeded("call reset before step")
        invalid = False
        if not self._backend.done:
            chosen, invalid = resolve_action(self._shown["action_mask"], int(action))
            self._decisions += 1
            self._overflows += self._overflow > 0
            self._backend.step(to_action(self._shown, chosen))
        observation = self._observe()
        dt = self._seen_s - self._time_s
        self._time_s = self._seen_s
        in_flight_s, right = self._account.until(self._seen_s)
        latency = -in_flight_s / self.reward.reference_s
        accuracy = self.reward.accuracy_weight * right
        truncated = self._backend.truncated
        terminated = self._backend.done and not truncated
        info: dict[str, Any] = {
            "action_mask": observation["action_mask"].copy(),
            "dt": dt,
            "discount": math.exp(-self.reward.beta_per_s * dt),
            "invalid_action": invalid,
            "reward/latency": latency,
            "reward/accuracy": accuracy,
            "overflow": self._overflow,
            "time_s": self._time_s,
        }
        if terminated or truncated:
            info["metrics"] = self._final_metrics()
        return observation, latency + accuracy, terminated, truncated, info

    def _observe(self) -> Observation:
        """Look at the present decision, or at what is left when the episode is over."""
        backend = self._backend
        over = backend.done
        view = backend.final_view() if over else backend.view()
        self._seen_s = view.now_s
        self._overflow = max(0, len(view.calls) - self._encoder.slots)
        observation = self._encoder.encode(view, can_wait=over or backend.episode.expects)
        # What the next action is measured by, whatever becomes of the arrays that were handed out.
        self._shown: Observation = {**observation, "action_mask": observation["action_mask"].copy()}
        return observation

    @property
    def time_s(self) -> float:
        """Seconds since the episode began, as of the last observation."""
        return self._time_s

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the mask as booleans, under the name sb3-contrib's MaskablePPO looks for."""
        return self._shown["action_mask"].astype(np.bool_)

    def log(self) -> EpisodeLog:
        """Return every request and call of the episode so far."""
        return self._backend.log()

    def close(self) -> None:
        """End the episode, if one is under way; its recording is complete up to here and can be resumed."""
        self._backend.close()

    def _final_metrics(self) -> dict[str, float]:
        from .harness.metrics import episode_metrics

        log = self._backend.log()
        log.notes["overflow"] = self._overflows
        # Whoever steps the environment decides: there are decisions to count, but none to time.
        return episode_metrics(log) | {"decisions": float(self._decisions)}

    def __copy__(self) -> NoReturn:
        copy.copy(self._backend)  # raises, with the reason
        raise AssertionError

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        copy.deepcopy(self._backend)
        raise AssertionError

    def __reduce__(self) -> NoReturn:
        self._backend.__reduce__()


def _endpoints(urls: Mapping[str, str], scenario: Scenario) -> list[Endpoint]:
    """Return endpoints of replicas whose servers call the models as the cluster does."""
    replicas = {replica.name: replica for replica in scenario.cluster.expand()}
    for name in urls:
        if name not in replicas:
            raise SpecError(f"the cluster has no replica '{name}'.{did_you_mean(name, replicas)}", where="endpoints")
    return [
        Endpoint(
            name,
            replicas[name].model,
            url.rstrip("/").removesuffix("/v1"),
            replicas[name].model,
            priority=replicas[name].scheduling_policy == "priority",
        )
        for name, url in urls.items()
    ]


class _Account:
    """Adds up what the reward is made of: seconds in flight, and right answers.

    Times come from several threads and are a little older than the moment at which they are taken in. So the integral is
    always that from the beginning, and a step gets what was added: over an episode that sums up to the completion times.

    Args:
        requests: of the episode; it grows.
    """

    def __init__(self, requests: Sequence[LiveRequest]) -> None:
        self._requests = requests
        self._seen = 0
        self._open: list[LiveRequest] = []
        """In flight, or not graded yet."""
        self._closed_s = self._total_s = 0.0
        self._counted: set[int] = set()

    def until(self, now_s: float) -> tuple[float, int]:
        """Return (request-seconds in flight, answers found right) since the last call."""
        self._open += self._requests[self._seen :]
        self._seen = len(self._requests)
        right, open_s, left = 0, 0.0, []
        for request in self._open:
            over = request.status != "in flight"
            if not over:
                open_s += now_s - request.arrival_s
            elif request.rank not in self._counted:
                self._counted.add(request.rank)
                self._closed_s += request.end_s - request.arrival_s
            if over and (request.graded or request.status == "failed"):
                right += request.status == "done" and request.correct == 1
            else:
                left.append(request)
        self._open = left
        before_s, self._total_s = self._total_s, self._closed_s + open_s
        return self._total_s - before_s, right
