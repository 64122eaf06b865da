"""One run of an experiment: a (policy, scenario, seed), executed in any process, its log put on disk."""

from __future__ import annotations

import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..errors import PolicyError, SpecError
from ..specs.plain import spec_hash
from ..specs.scenario import Scenario
from .episodes import digest, save_episode
from .metrics import episode_metrics
from .results import Key, RunResult, episode_path
from .rollout import Stopped, run_episode
from .work import Context

if TYPE_CHECKING:
    from ..backends.base import Backend
    from ..policy import Policy

PolicyMaker = Callable[[str], "Policy"]
BackendMaker = Callable[[Scenario], "Backend"]
_BACKENDS_KEPT = 4
_backends: OrderedDict[tuple[object, str], Backend] = OrderedDict()


@dataclass(frozen=True)
class Job:
    """What to run. `scenario` is the one to simulate; in a rate sweep its rate is already `rate_rps`."""

    policy: str
    scenario: Scenario
    seed: int
    folder: str
    rate_rps: float | None = None

    @property
    def key(self) -> Key:
        """What identifies the run within its results folder."""
        return (self.policy, self.scenario.name, self.seed, self.rate_rps)

    def moved(self, folder: str) -> Job:
        """Return the job with its log in another folder."""
        return replace(self, folder=folder)


OnStart = Callable[[Job], None]
OnDone = Callable[[Job, RunResult], None]


def registered_policy(name: str) -> Policy:
    """Make a policy through the registry."""
    from ..registry import make_policy

    return make_policy(name)


def simulated(scenario: Scenario) -> Backend:
    """Make the simulator for a scenario."""
    from ..backends.sim import SimBackend

    return SimBackend(scenario)


class OwnPolicies:
    """Makes policies from the caller's factories, and by the registry for any other name."""

    def __init__(self, factories: Mapping[str, Callable[[], Policy]]) -> None:
        self._factories = dict(factories)

    def __call__(self, name: str) -> Policy:
        """Make the policy called `name`."""
        return self._factories[name]() if name in self._factories else registered_policy(name)


@dataclass(frozen=True)
class Episodes:
    """The work of an evaluation: run a job's episode and write its log."""

    make_policy: PolicyMaker = registered_policy
    make_backend: BackendMaker = simulated

    def __call__(self, job: Job, context: Context) -> RunResult:
        """Run a job; see `execute`."""
        return execute(job, self.make_policy, self.make_backend, context.should_stop)

    def lost(self, job: Job) -> RunResult:
        """Return the result of a job whose process died twice."""
        error = str(PolicyError(job.policy, "its process died (killed, out of memory, or it exited)"))
        policy, scenario, seed, rate = job.key
        return RunResult(policy, scenario, seed, rate, status="failed", error=error)

    def files(self, job: Job) -> Mapping[str, bytes]:
        """Return nothing: a job holds all that its episode needs."""
        return {}

    def needs(self, job: Job) -> Mapping[str, float]:
        """Return one core."""
        return {"num_cpus": 1}


def execute(
    job: Job,
    make_policy: PolicyMaker = registered_policy,
    make_backend: BackendMaker = simulated,
    should_stop: Callable[[], bool] | None = None,
) -> RunResult:
    """Run a job and write its episode log.

    Returns:
        The result; one with status `failed` when the policy (or anything but the input) is at fault.

    Raises:
        SpecError: the scenario is bad input.
        Stopped: the user interrupted.
    """
    result = run_job(job, lambda: _backend(job.scenario, make_backend), make_policy, should_stop)
    if result.status == "failed":
        _backends.clear()  # a backend that was left in the middle of an episode is not used again
    return result


def run_job(
    job: Job,
    backend: Callable[[], Backend],
    make_policy: PolicyMaker = registered_policy,
    should_stop: Callable[[], bool] | None = None,
) -> RunResult:
    """`execute` on a backend that the caller provides."""
    begin = perf_counter()
    policy_name, scenario_name, seed, rate_rps = job.key
    common: dict[str, Any] = {
        "policy": policy_name,
        "scenario": scenario_name,
        "seed": seed,
        "rate_rps": rate_rps,
    }
    try:
        log = run_episode(
            _make(make_policy, policy_name),
            policy_name,
            backend(),
            seed,
            should_stop=should_stop,
        )
    except (SpecError, Stopped):
        raise
    except Exception as error:
        who = str(error) if isinstance(error, PolicyError) else f"{type(error).__name__}: {error}"
        return RunResult(
            **common,
            status="failed",
            error=who,
            traceback=traceback.format_exc(),
            wall_s=perf_counter() - begin,
        )
    log.scenario = scenario_name
    path = episode_path(job.key)
    save_episode(log, Path(job.folder) / path)
    return RunResult(
        **common,
        metrics=episode_metrics(log),
        config=describe_config(job.scenario),
        episode=path,
        digest=digest(log),
        details=replay if isinstance(replay := log.notes.get("replay"), dict) else {},
        wall_s=perf_counter() - begin,
    )


def describe_config(scenario: Scenario) -> dict[str, Any]:
    """Return the few settings that one filters and groups results by."""
    return {
        "cluster": scenario.cluster.name,
        "workflows": [entry.workflow for entry in scenario.workload.mix],
        "arrivals": scenario.workload.arrivals.kind,
        "rate_rps": scenario.workload.arrivals.rate_rps,
        "requests": scenario.horizon.requests,
    }


def _make(make_policy: PolicyMaker, name: str) -> Policy:
    try:
        return make_policy(name)
    except (SpecError, PolicyError):
        raise
    except Exception as error:
        raise PolicyError(name, f"could not be made: {type(error).__name__}: {error}") from error


def _backend(scenario: Scenario, make_backend: BackendMaker) -> Backend:
    """Return a backend, kept between the jobs of this process: it holds compiled code and loaded tables."""
    key = (make_backend, spec_hash(scenario))
    if key not in _backends:
        while len(_backends) >= _BACKENDS_KEPT:
            _backends.popitem(last=False)[1].close()
        _backends[key] = make_backend(scenario)
    _backends.move_to_end(key)
    return _backends[key]
