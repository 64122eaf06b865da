"""Where an action becomes a dispatch: `slot * R + route` sends a ready call, the last action waits for the next event."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core import types
from numba.experimental import structref
from numpy.typing import NDArray

from .engine.state import NEVER
from .events import advance
from .jit import inlined, kernel, njit, prange
from .latency.compiled import PS_PER_S
from .observation import observe
from .progress import dispatch_slot

# mypy: disable-error-code="no-untyped-def"


class StepArrays(NamedTuple):
    """What a step of E environments returns besides observations."""

    objective: NDArray[np.float64]  # (3,) input: reference latency in s, accuracy weight, discount rate per s
    reward: NDArray[np.float64]  # (E,) sum of the two parts
    latency: NDArray[np.float64]  # (E,) minus the integral of requests in flight, over the reference latency
    accuracy: NDArray[np.float64]  # (E,) accuracy weight for each request completed right
    elapsed_s: NDArray[np.float64]  # (E,) virtual time since the previous observation
    discount: NDArray[np.float64]  # (E,) exp(-beta * elapsed)
    time_s: NDArray[np.float64]  # (E,) virtual time since the episode began
    overflow: NDArray[np.int32]  # (E,) ready calls beyond the slots
    invalid: NDArray[np.bool_]  # (E,) the action was masked
    terminated: NDArray[np.bool_]  # (E,) all requests are served
    truncated: NDArray[np.bool_]  # (E,) the horizon cut the episode


def allocate_steps(environments: int, reference_s: float, accuracy_weight: float, beta_per_s: float) -> StepArrays:
    """Allocate the results of a step, for a reward of the given scale (`aragog_env.reward`)."""
    return StepArrays(
        objective=np.array([reference_s, accuracy_weight, beta_per_s]),
        reward=np.zeros(environments),
        latency=np.zeros(environments),
        accuracy=np.zeros(environments),
        elapsed_s=np.zeros(environments),
        discount=np.zeros(environments),
        time_s=np.zeros(environments),
        overflow=np.zeros(environments, np.int32),
        invalid=np.zeros(environments, np.bool_),
        terminated=np.zeros(environments, np.bool_),
        truncated=np.zeros(environments, np.bool_),
    )


@structref.register
class HandleType(types.StructRef):
    """numba type of `Handle`."""


class Handle(structref.StructRefProxy):
    """All arrays of a simulation as one object for compiled code: handing over 60 arrays costs 20 us, a handle 1 us."""

    def __new__(cls, *arrays: Any) -> Handle:
        """Take workflow tables, engine tables, engine state, progress, observations and step results."""
        handle: Handle = structref.StructRefProxy.__new__(cls, *arrays)
        return handle


structref.define_proxy(Handle, HandleType, ["wt", "tables", "state", "progress", "out", "result"])


@inlined
def resolve(mask, action):
    """Return (action to carry out, whether it was invalid).

    A masked action waits, or where waiting would never end does the first valid thing.
    """
    last = mask.shape[0] - 1
    if 0 <= action <= last and mask[action]:
        return action, False
    if mask[last]:
        return last, True
    for a in range(last):
        if mask[a]:
            return a, True
    return last, True


@kernel
def begin_environment(wt, tables, state, progress, e, out, result):
    """Observe environment `e` at the start of an episode."""
    observe(wt, tables, state, progress, e, out)
    result.reward[e] = result.latency[e] = result.accuracy[e] = result.elapsed_s[e] = 0.0
    result.discount[e] = 1.0
    result.invalid[e] = False
    _report_state(progress, e, out, result)


@inlined
def _report_state(progress, e, out, result):
    env = progress.env[e]
    result.time_s[e] = env.now_ps / PS_PER_S
    result.overflow[e] = max(0, env.ready - out.allowed.shape[1])
    result.terminated[e] = env.done != 0 and env.truncated == 0
    result.truncated[e] = env.truncated != 0


@kernel
def step_environment(wt, tables, state, progress, e, action, out, result):
    """Carry out `action` in environment `e`, simulate to the next decision and observe it."""
    env = progress.env[e]
    before_ps = env.now_ps
    env.in_flight_ps = env.correct = env.finished = 0
    result.invalid[e] = False
    if not env.done:
        action, invalid = resolve(out.mask[e], action)
        result.invalid[e] = invalid
        env.invalid += invalid
        env.decisions += 1
        env.overflow += env.ready > out.allowed.shape[1]
        routes = wt.route_model.shape[0]
        if action < out.mask.shape[1] - 1:
            dispatch_slot(wt, tables, state, progress, e, action // routes, action % routes, np.int64(0))
        if env.ready == 0 or action == out.mask.shape[1] - 1:
            advance(wt, tables, state, progress, e, NEVER)
        observe(wt, tables, state, progress, e, out)
    elapsed_s = (env.now_ps - before_ps) / PS_PER_S
    result.elapsed_s[e] = elapsed_s
    result.discount[e] = np.exp(-result.objective[2] * elapsed_s)
    result.latency[e] = -(env.in_flight_ps / PS_PER_S) / result.objective[0]
    result.accuracy[e] = result.objective[1] * env.correct
    result.reward[e] = result.latency[e] + result.accuracy[e]
    _report_state(progress, e, out, result)


@njit(cache=True)
def begin_one(handle, e):
    """`begin_environment` for environment `e`."""
    begin_environment(handle.wt, handle.tables, handle.state, handle.progress, e, handle.out, handle.result)


@njit(cache=True)
def step_one(handle, e, action):
    """`step_environment` for environment `e`."""
    step_environment(handle.wt, handle.tables, handle.state, handle.progress, e, action, handle.out, handle.result)


@njit(cache=True, parallel=True)
def _step_all(wt, tables, state, progress, actions, skip, out, result):
    for e in prange(actions.shape[0]):
        if not skip[e]:
            step_environment(wt, tables, state, progress, np.int64(e), actions[e], out, result)


@njit(cache=True)
def step_all(handle, actions, skip):
    """`step_environment` for every environment but those in `skip`, over all threads numba may use."""
    _step_all(handle.wt, handle.tables, handle.state, handle.progress, actions, skip, handle.out, handle.result)
