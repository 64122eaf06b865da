"""One episode: a policy decides, a backend carries it out, and every decision is timed."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import TYPE_CHECKING

import numpy as np

from ..errors import AragogError, PolicyError
from ..policy import Dispatch, NeedsOutcomes, Wait

if TYPE_CHECKING:
    from ..backends.base import Backend
    from ..episode import EpisodeLog
    from ..policy import Policy
    from ..view import DispatchView

_STOP_CHECK_EVERY = 64
_CALLS_LISTED = 3


class Stopped(AragogError):
    """The episode was abandoned because the user interrupted the experiment."""

    exit_code = 130


def run_episode(
    policy: Policy,
    policy_name: str,
    backend: Backend,
    seed: int,
    *,
    should_stop: Callable[[], bool] | None = None,
) -> EpisodeLog:
    """Run one episode to its end and return its log.

    The wall time of a decision is that of `act` alone: building the view and carrying out the decision are
    the backend's work and would be done for every policy.

    Args:
        policy: the policy; its `reset` is called with the backend's scenario and `seed`.
        policy_name: the name that errors and the log carry.
        backend: any backend; its traffic is determined by `seed`.
        seed: the seed of the episode.
        should_stop: asked now and then; True abandons the episode.

    Raises:
        PolicyError: the policy raised, or answered with something that is not possible now.
        Stopped: `should_stop` said so.
    """
    backend.reset(seed)
    if isinstance(policy, NeedsOutcomes):
        tables, draws = backend.outcomes, backend.draws
        _guarded(lambda: policy.receive_outcomes(tables, draws), policy_name, "receive_outcomes")
    _guarded(lambda: policy.reset(backend.scenario, seed), policy_name, "reset")
    decisions_ns: list[int] = []
    slots, overflow = backend.scenario.observation.ready_slots, 0
    while not backend.done:
        if should_stop is not None and len(decisions_ns) % _STOP_CHECK_EVERY == 0 and should_stop():
            raise Stopped("interrupted")
        view = backend.view()
        overflow += len(view.calls) > slots
        action = _ask(policy, policy_name, view, decisions_ns)
        _carry_out(backend, action, view, policy_name)
    log = backend.log()
    log.policy, log.seed = policy_name, seed
    # A live run that was resumed has decisions of earlier processes.
    log.decision_s = np.concatenate([log.decision_s, np.asarray(decisions_ns, dtype=np.float64) * 1e-9])
    log.notes["overflow"] = overflow
    log.notes["saw_outcomes"] = isinstance(policy, NeedsOutcomes)
    return log


def _ask(policy: Policy, name: str, view: DispatchView, decisions_ns: list[int]) -> Dispatch | Wait:
    begin = perf_counter_ns()
    try:
        action = policy.act(view)
    except PolicyError:
        raise
    except Exception as error:
        raise PolicyError(name, f"act raised {type(error).__name__}: {error}") from error
    decisions_ns.append(perf_counter_ns() - begin)
    if isinstance(action, Dispatch | Wait):
        return action
    raise PolicyError(name, f"answered {action!r}, which is no decision; valid: {_valid(view)}")


def _carry_out(backend: Backend, action: Dispatch | Wait, view: DispatchView, name: str) -> None:
    now_s = backend.now_s
    try:
        backend.step(action)
    except ValueError as error:
        message = f"answered {action!r} at t={now_s:.6f} s, which is not possible: {error}; valid: {_valid(view)}"
        raise PolicyError(name, message) from error


def _guarded(call: Callable[[], None], name: str, what: str) -> None:
    try:
        call()
    except PolicyError:
        raise
    except Exception as error:
        raise PolicyError(name, f"{what} raised {type(error).__name__}: {error}") from error


def _valid(view: DispatchView) -> str:
    """Say what would have been valid, for the first few calls."""
    choices = []
    for call, row in enumerate(view.allowed[:_CALLS_LISTED]):
        routes = ", ".join(str(route) for route in np.flatnonzero(row))
        choices.append(f"call {call} to route {routes}")
    more = len(view.calls) - len(choices)
    return "; ".join(choices) + (f"; and {more} more calls" if more > 0 else "") + "; or WAIT while something runs"
