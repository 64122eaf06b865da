"""Compiled asynchronous scheduling: the next iteration is scheduled while the present one runs.

vLLM keeps up to two iterations in flight (`vllm/v1/engine/core.py:step_with_batch_queue`, `v1/core/sched/async_scheduler.py`).
When one ends, the one after it is already scheduled and starts at once; the scheduler, which now knows the outputs of the
first but not of the second, plans the third. So what it sees lags by one iteration: a request whose last token is in
flight still holds its slot and blocks, and a call that arrives waits one iteration longer.

Here `run_offset` is the number of computed tokens itself (`step` stays 0), requests count as not decoding, and nothing is
jumped over: every iteration is scheduled one by one, as `reference.py` does.
"""

from __future__ import annotations

import numpy as np

from ..jit import inlined, kernel
from .kv import allocate_blocks, register_blocks
from .queue import remove_waiting
from .scheduler import admit_head, free_blocks, make_room
from .state import BOUNDARY, IDLE, ITERATION, NEVER
from .timing import decode_ps, prefill_ps

# mypy: disable-error-code="no-untyped-def"


@inlined
def _register(state, e, spec, c, blocks):
    """Make the first `blocks` blocks of call `c` hittable; those that are already stay so."""
    call = state.call[e]
    if spec.prefix != 0 and blocks > call[c].registered:
        register_blocks(state, e, spec, c, call[c].registered, blocks)
        call[c].registered = blocks


@inlined
def _schedule_running(state, e, r, spec, replica, budget):
    """Give running requests their tokens in list order; return (budget left, whether anything was preempted)."""
    for i in range(replica.running):
        state.run_new[e, r, i] = 0
    preempted = False
    i = np.int64(0)
    while i < replica.running and budget > 0:
        c = state.run_call[e, r, i]
        call = state.call[e, c]
        computed = np.int64(state.run_offset[e, r, i])
        known = call.prompt + call.generated
        new = min(known + call.in_flight - computed, budget)
        last_in_flight = call.in_flight > 0 and computed + 2 - call.in_flight >= call.prompt + call.output
        if new == 0 or last_in_flight:
            i += 1
            continue
        need = ((computed + new + 15) >> 4) - ((computed + 15) >> 4)
        if need > replica.free:
            preempted = True
            i, budget = make_room(state, e, r, spec, replica, i, need, budget)
            if i < 0:
                break
        if spec.prefix != 0:
            allocate_blocks(state, e, spec, replica, c, computed, computed + new)
        else:
            replica.free -= need
        # The contents of tokens in flight are not known yet.
        _register(state, e, spec, c, min(computed + new, known) >> 4)
        state.run_new[e, r, i] = new
        budget -= new
        i += 1
    return budget, preempted


@inlined
def _commit(state, e, r, spec, tables, replica, slot):
    """Advance the scheduled requests and note who samples; return the duration of the iteration in picoseconds."""
    row = spec.latency
    tokens = decodes = kv_tokens = chunks = samplers = 0
    for i in range(replica.running):
        new = np.int64(state.run_new[e, r, i])
        if new == 0:
            continue
        c = state.run_call[e, r, i]
        call = state.call[e, c]
        computed = np.int64(state.run_offset[e, r, i])
        context = call.prompt + call.generated + call.in_flight
        if call.generated + call.in_flight > 0 and computed + 1 == context:
            decodes += 1
            kv_tokens += context
        else:
            chunks += prefill_ps(tables, row, new, computed)
        tokens += new
        state.run_offset[e, r, i] = computed + new
        if computed + new == context:
            call.in_flight += 1
            state.flight_call[e, r, slot, samplers] = c
            samplers += 1
    replica.flight_calls[slot] = samplers
    replica.iterations += 1
    duration = tables.step_ps[row, tokens] + tables.sample_ps[row, samplers] + chunks
    if decodes > 0:
        duration += decode_ps(tables, row, decodes, kv_tokens)
    return duration


@kernel
def _launch(state, e, r, spec, tables, replica, begin):
    """Schedule one iteration that runs from `begin`; return (whether it has any tokens, whether it preempted)."""
    budget = np.int64(spec.budget)
    old = replica.running
    budget, preempted = _schedule_running(state, e, r, spec, replica, budget)
    if not preempted:
        while budget > 0 and replica.waiting > 0 and replica.running < spec.max_seqs:
            new = admit_head(state, e, r, spec, replica, begin, budget)
            if new == 0:
                break
            budget -= new
        for i in range(old, replica.running):
            c = state.run_call[e, r, i]
            state.call[e, c].registered = (state.run_offset[e, r, i] + state.run_new[e, r, i]) >> 4
    if budget == spec.budget:
        return False, preempted
    slot = (replica.flight + replica.flights) & 1
    replica.flight_end_ps[slot] = begin + _commit(state, e, r, spec, tables, replica, slot)
    replica.flights += 1
    return True, preempted


@kernel
def fill_flights(state, e, r, tables, now):
    """Schedule until two iterations are in flight or there is nothing to schedule."""
    spec, replica = tables.spec[r], state.replica[e, r]
    if replica.flights == 0:
        replica.begin_ps = now
    while replica.flights < 2:
        begin = now if replica.flights == 0 else replica.flight_end_ps[replica.flight]
        scheduled, preempted = _launch(state, e, r, spec, tables, replica, begin)
        if not scheduled and (replica.flights > 0 or not preempted):
            break
    if replica.flights > 0:
        replica.mode = ITERATION
        replica.end_ps = replica.flight_end_ps[replica.flight]
    else:
        replica.mode = IDLE
        replica.end_ps = NEVER


@kernel
def land_flight(state, e, r, tables, now):
    """Deliver the tokens of the iteration that ended; return how many calls finished (`state.finished`)."""
    spec, replica = tables.spec[r], state.replica[e, r]
    slot = replica.flight
    count = 0
    i = 0
    for k in range(replica.flight_calls[slot]):
        c = state.flight_call[e, r, slot, k]
        call = state.call[e, c]
        call.generated += 1
        if call.first_ps < 0:
            call.first_ps = now
        if call.stale > 0:
            # Preempted meanwhile: the token counts, its place in the engine is gone.
            call.stale -= 1
            replica.waiting_tokens += 1
            if call.generated >= call.output:
                remove_waiting(state, e, replica, c)
        else:
            # Both lists are in scheduling order.
            while state.run_call[e, r, i] != c:
                i += 1
            call.in_flight -= 1
            computed = np.int64(state.run_offset[e, r, i])
            _register(state, e, spec, c, (computed - call.in_flight) >> 4)
            if call.generated >= call.output:
                free_blocks(state, e, spec, replica, c, computed)
                state.run_call[e, r, i] = -1
        if call.generated >= call.output:
            call.finish_ps = now
            state.finished[e, count] = c
            count += 1
    if count > 0:
        _close_gaps(state, e, r, replica)
    replica.flight = slot ^ 1
    replica.flights -= 1
    replica.begin_ps = now
    replica.mode = BOUNDARY
    if replica.flights == 0 and replica.running == 0 and replica.waiting == 0:
        replica.mode = IDLE
        replica.end_ps = NEVER
    return count


@inlined
def _close_gaps(state, e, r, replica):
    """Drop finished requests from the running list."""
    kept = 0
    for i in range(replica.running):
        if state.run_call[e, r, i] < 0:
            continue
        state.run_call[e, r, kept] = state.run_call[e, r, i]
        state.run_offset[e, r, kept] = state.run_offset[e, r, i]
        state.run_finish[e, r, kept] = state.run_finish[e, r, i]
        kept += 1
    replica.prefills -= replica.running - kept
    replica.running = kept
