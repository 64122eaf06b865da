"""Where an action becomes a dispatch: `slot * R + route` sends a ready call, the last action waits for the next event."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from .jit import inlined, kernel, njit, prange
from numpy.typing import NDArray

from .events import advance
from .observation import observe
from .progress import dispatch_slot

# mypy: disable-error-code="no-untyped-def"


class StepArrays(NamedTuple):
    """What a step of E environments returns besides observations."""

    elapsed_ps: NDArray[np.int64]  # (E,) virtual time since the previous observation
    in_flight_ps: NDArray[np.int64]  # (E,) integral of requests in flight over it
    correct: NDArray[np.int32]  # (E,) requests completed right
    finished: NDArray[np.int32]  # (E,) requests completed
    invalid: NDArray[np.int8]  # (E,) the action was masked
    terminated: NDArray[np.bool_]  # (E,) all requests are served
    truncated: NDArray[np.bool_]  # (E,) the horizon cut the episode


def allocate_steps(environments: int) -> StepArrays:
    """Allocate the results of a step."""
    kinds = (np.int64, np.int64, np.int32, np.int32, np.int8, np.bool_, np.bool_)
    return StepArrays(*(np.zeros(environments, kind) for kind in kinds))  # type: ignore[arg-type]


@inlined
def resolve(mask, action):
    """Return (action to carry out, whether it was invalid): a masked action waits, or if it cannot, does the first valid one."""
    last = mask.shape[0] - 1
    if 0 <= action <= last and mask[action]:
        return action, 0
    if mask[last]:
        return last, 1
    for a in range(last):
        if mask[a]:
            return a, 1
    return last, 1


@kernel
def step_environment(wt, tables, state, progress, e, action, out, result):
    """Carry out `action` in environment `e`, simulate to the next decision and observe it."""
    env = progress.env[e]
    routes = wt.route_model.shape[0]
    before_ps = env.now_ps
    result.elapsed_ps[e] = 0
    env.in_flight_ps = env.correct = env.finished = 0
    if not env.done:
        action, invalid = resolve(out.mask[e], action)
        result.invalid[e] = invalid
        env.invalid += invalid
        env.decisions += 1
        if action < out.mask.shape[1] - 1:
            dispatch_slot(wt, tables, state, progress, e, action // routes, action % routes, 0)
            if env.ready == 0:
                advance(wt, tables, state, progress, e)
        else:
            advance(wt, tables, state, progress, e)
        observe(wt, tables, state, progress, e, out)
    result.elapsed_ps[e] = env.now_ps - before_ps
    result.in_flight_ps[e] = env.in_flight_ps
    result.correct[e], result.finished[e] = env.correct, env.finished
    result.terminated[e] = env.done and not env.truncated
    result.truncated[e] = env.truncated


@kernel
def step_one(wt, tables, state, progress, action, out, result):
    """`step_environment` for environment 0."""
    step_environment(wt, tables, state, progress, 0, action, out, result)


@njit(cache=True, parallel=True)
def step_all(wt, tables, state, progress, actions, skip, out, result):
    """`step_environment` for every environment but those in `skip`, over all threads numba may use."""
    for e in prange(actions.shape[0]):
        if not skip[e]:
            step_environment(wt, tables, state, progress, e, actions[e], out, result)
