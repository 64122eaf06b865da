"""One compiled vLLM server between events: plan a segment, close it, take in a call.

A *segment* is one mixed iteration, or a stretch of decode-only iterations up to the first one that could do anything else:
a request finishes, the KV blocks run out. A call that arrives in the middle of a stretch cuts it at the end of the iteration
under way. So a replica is touched once per segment however many iterations that has.
"""

from __future__ import annotations

from ..jit import inlined, kernel
from .kv import take_private
from .lag import fill_flights, land_flight
from .queue import enqueue
from .scheduler import free_blocks, plan_iteration, take_blocks
from .state import BOUNDARY, IDLE, ITERATION, NEVER, NOBODY, NOT_DECODING, STRETCH
from .timing import steps_until, stretch_ps

# mypy: disable-error-code="no-untyped-def"


@kernel
def clear_replica(state, e, r, tables):
    """Reset replica `r` to an empty server with an empty cache."""
    spec, replica = tables.spec[r], state.replica[e, r]
    replica.begin_ps = 0
    replica.end_ps = NEVER
    replica.offset_sum = replica.busy_ps = replica.iterations = replica.waiting_tokens = 0
    replica.step = replica.planned = replica.running = replica.prefills = replica.waiting = 0
    replica.next_finish = NOT_DECODING
    replica.head = replica.tail = -1
    replica.lru_head = replica.lru_tail = NOBODY
    replica.free = spec.blocks
    replica.cached = replica.spare = replica.virgin = replica.sharing = replica.preemptions = replica.blocked = 0
    replica.up = 1
    replica.mode = IDLE
    replica.flights = replica.flight = 0
    for k in range(16):
        replica.residue[k] = 0
    if spec.prefix != 0:
        for k in range(spec.bucket_mask + 1):
            state.bucket[e, spec.bucket_base + k] = -1


@kernel
def clear_call(state, e, c):
    """Reset the record of call `c`."""
    call = state.call[e]
    call[c].ready_ps = call[c].dispatch_ps = call[c].start_ps = call[c].first_ps = call[c].finish_ps = -1
    call[c].prompt = call[c].output = call[c].generated = call[c].cached = call[c].preemptions = call[c].priority = 0
    call[c].arena = call[c].shared = call[c].kept = 0
    call[c].in_flight = call[c].stale = call[c].registered = 0
    call[c].replica = call[c].model = call[c].next = -1


@inlined
def _affordable_steps(replica, steps):
    """Return how many of `steps` decode-only iterations the free KV blocks last for."""
    cycles = replica.free // replica.running
    if cycles * 16 >= steps:
        return steps
    n = cycles * 16
    free = replica.free - cycles * replica.running
    for k in range(16):
        free -= replica.residue[(-(replica.step + k)) & 15]
        if free < 0 or n >= steps:
            break
        n += 1
    return n


@inlined
def _steps_before_hit(state, e, r, replica, steps):
    """Return how many of `steps` decode-only iterations pass before one registers the block the waiting head misses.

    Then its prefix hit grows and it might fit. Only requests with equal contents can do that to each other.
    """
    keys = state.arena_hash[e]
    for i in range(replica.running):
        arena = state.call[e, state.run_call[e, r, i]].arena
        computed = state.run_offset[e, r, i] + replica.step
        for k in range(computed >> 4, min((computed + steps) >> 4, state.call[e, state.run_call[e, r, i]].shared)):
            if keys[arena + k] == replica.missing:
                steps = min(steps, 16 * (k + 1) - 1 - computed)
                break
    return steps


@kernel
def plan(state, e, r, tables, now):
    """Begin the replica's next segment at `now`, or leave it idle."""
    spec, replica = tables.spec[r], state.replica[e, r]
    if spec.lag != 0:
        fill_flights(state, e, r, tables, now)
        return
    replica.begin_ps = now
    may_admit = replica.waiting > 0 and replica.running < spec.max_seqs and replica.blocked == 0
    if replica.running > 0 and replica.prefills == 0 and not may_admit and replica.running <= spec.budget:
        steps = _affordable_steps(replica, replica.next_finish - replica.step)
        if replica.blocked != 0 and replica.sharing != 0 and replica.missing != 0:
            steps = _steps_before_hit(state, e, r, replica, steps)
        if steps > 0:
            kv_tokens = replica.offset_sum + replica.running * (replica.step + 1)
            replica.planned = steps
            replica.mode = STRETCH
            replica.end_ps = now + stretch_ps(tables, spec.latency, replica.running, kv_tokens, steps)
            return
    while replica.running > 0 or replica.waiting > 0:
        duration = plan_iteration(state, e, r, tables, now)
        if duration > 0:
            replica.mode = ITERATION
            replica.end_ps = now + duration
            return
    replica.mode = IDLE
    replica.end_ps = NEVER


@inlined
def _close_stretch(state, e, r, spec, replica, steps):
    """Account for `steps` decode-only iterations of all running requests."""
    first = replica.step
    replica.step += steps
    replica.iterations += steps
    if spec.prefix == 0 or replica.sharing == 0:
        used = (steps >> 4) * replica.running
        for k in range(steps & 15):
            used += replica.residue[(-(first + k)) & 15]
        if spec.prefix == 0:
            replica.free -= used
        else:
            take_private(state, e, spec, replica, used)
        return
    for i in range(replica.running):
        computed = state.run_offset[e, r, i] + first
        # Which request gets which block does not matter: blocks lose their content when they are handed out.
        if (computed + 15) >> 4 != (computed + steps + 15) >> 4 or computed >> 4 != (computed + steps) >> 4:
            take_blocks(state, e, spec, replica, state.run_call[e, r, i], computed, computed + steps)


@kernel
def close_segment(state, e, r, tables):
    """End the current segment; return how many calls finished (listed in `state.finished`)."""
    spec, replica = tables.spec[r], state.replica[e, r]
    now = replica.end_ps
    replica.busy_ps += now - replica.begin_ps
    if spec.lag != 0:
        return land_flight(state, e, r, tables, now)
    if replica.mode == STRETCH:
        _close_stretch(state, e, r, spec, replica, replica.planned)
    replica.mode = BOUNDARY
    if replica.next_finish > replica.step:
        return 0
    count = kept = 0
    replica.next_finish = NOT_DECODING
    for i in range(replica.running):
        c = state.run_call[e, r, i]
        finish, offset = state.run_finish[e, r, i], state.run_offset[e, r, i]
        if finish <= replica.step:
            # The last sampled token is never computed: it has no KV.
            free_blocks(state, e, spec, replica, c, offset + replica.step)
            replica.offset_sum -= offset
            replica.residue[offset & 15] -= 1
            state.call[e, c].finish_ps = now
            state.call[e, c].generated = state.call[e, c].output
            state.finished[e, count] = c
            count += 1
            continue
        state.run_call[e, r, kept] = c
        state.run_finish[e, r, kept] = finish
        state.run_offset[e, r, kept] = offset
        replica.next_finish = min(replica.next_finish, finish)
        kept += 1
    replica.running = kept
    if kept == 0 and replica.waiting == 0:
        replica.mode = IDLE
        replica.end_ps = NEVER
    return count


@inlined
def _cut_stretch(state, e, r, spec, tables, replica, now):
    """Let the current stretch end with the iteration under way at `now`."""
    kv_tokens = replica.offset_sum + replica.running * (replica.step + 1)
    steps, duration = steps_until(
        tables, spec.latency, replica.running, kv_tokens, replica.planned, now - replica.begin_ps
    )
    replica.planned = steps
    replica.end_ps = replica.begin_ps + duration


@kernel
def steps_begun(state, e, r, tables, now):
    """Return how many iterations of the replica's current stretch have begun before `now` (at least 1), 0 outside one."""
    spec, replica = tables.spec[r], state.replica[e, r]
    if replica.mode != STRETCH:
        return 0
    kv_tokens = replica.offset_sum + replica.running * (replica.step + 1)
    steps, _ = steps_until(tables, spec.latency, replica.running, kv_tokens, replica.planned, now - replica.begin_ps)
    return steps


@kernel
def free_now(state, e, r, tables, now):
    """Return the free KV blocks at `now`, without those that the current stretch has taken so far."""
    replica = state.replica[e, r]
    steps = steps_begun(state, e, r, tables, now)
    free = replica.free - (steps >> 4) * replica.running
    for k in range(steps & 15):
        free -= replica.residue[(-(replica.step + k)) & 15]
    return free


@kernel
def submit(state, e, r, tables, c, now):
    """Hand call `c` to replica `r` at `now`; iterations that begin at `now` or later see it."""
    spec, replica = tables.spec[r], state.replica[e, r]
    state.call[e, c].dispatch_ps = now
    state.call[e, c].replica = r
    enqueue(state, e, spec, replica, c, False)
    if replica.mode == IDLE:
        replica.mode = BOUNDARY
        replica.end_ps = now
    elif replica.mode == STRETCH and replica.blocked == 0 and replica.running < spec.max_seqs:
        _cut_stretch(state, e, r, spec, tables, replica, now)
