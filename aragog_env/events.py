"""The event loop of one simulated cluster: from one decision to the next.

At one instant, first iterations end, then tools, then requests arrive; then the policy is asked. What it dispatches at that
instant is seen by iterations that begin at that instant, which is why replicas are planned when the loop is entered again.
"""

from __future__ import annotations

import numpy as np

from .engine.replica import close_segment, plan
from .engine.state import BOUNDARY, NEVER
from .jit import inlined, kernel
from .progress import arrive, complete_call, pop_timer

# mypy: disable-error-code="no-untyped-def"


@inlined
def next_event_ps(wt, state, progress, e):
    """Return when something happens next without a dispatch, NEVER if nothing does."""
    env, replica = progress.env[e], state.replica[e]
    when = NEVER
    if env.next < env.open:
        when = progress.request[e, env.next].arrival_ps
    if env.timers > 0:
        when = min(when, progress.timer_ps[e, 0])
    for r in range(replica.shape[0]):
        when = min(when, replica[r].end_ps)
    return when


@inlined
def _fire(wt, tables, state, progress, e, now):
    """Carry out everything that happens at `now`; return whether a policy may want to know."""
    env, replica = progress.env[e], state.replica[e]
    news = False
    for r in range(replica.shape[0]):
        if replica[r].end_ps == now and replica[r].mode != BOUNDARY:
            for k in range(close_segment(state, e, r, tables)):
                complete_call(wt, state, progress, e, np.int64(state.finished[e, k]), now)
                news = True
    while True:
        if env.timers > 0 and progress.timer_ps[e, 0] == now:
            which = pop_timer(progress, e)
            if which < state.call.shape[1]:
                state.call[e, which].finish_ps = now
                complete_call(wt, state, progress, e, which, now)
            else:
                arrive(wt, state, progress, e, which - state.call.shape[1], now)
        elif env.next < env.open and progress.request[e, env.next].arrival_ps == now:
            # A request that starts with a tool that takes no time has set a timer for this very instant.
            q = np.int64(env.next)
            env.next += 1
            arrive(wt, state, progress, e, q, now)
        else:
            return news
        news = True


@kernel
def advance(wt, tables, state, progress, e, until_ps):
    """Simulate until an event leaves at least one call ready, or the time is `until_ps`, or the episode is over."""
    env, replica = progress.env[e], state.replica[e]
    while True:
        for r in range(replica.shape[0]):
            if replica[r].mode == BOUNDARY:
                plan(state, e, r, tables, env.now_ps)
        when = min(next_event_ps(wt, state, progress, e), until_ps)
        if when > env.horizon_ps:
            # The horizon cuts the episode; without one, nothing can happen any more and it ends where it stands.
            env.done = env.truncated = 1
            when = env.horizon_ps if env.horizon_ps < NEVER - 1 else env.now_ps
            env.in_flight_ps += (env.arrived - env.completed) * (when - env.now_ps)
            env.now_ps = when
            return
        env.in_flight_ps += (env.arrived - env.completed) * (when - env.now_ps)
        env.now_ps = when
        news = _fire(wt, tables, state, progress, e, when)
        if env.completed == env.requests:
            env.done = 1
            return
        if (news and env.ready > 0) or when == until_ps:
            return
