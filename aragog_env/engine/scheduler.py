"""Compiled twin of vLLM V1's `Scheduler.schedule` (`vllm/v1/core/sched/scheduler.py`), one mixed iteration at a time.

`reference.py` says the same in plain Python and defines the truth. What is different here is bookkeeping: the number of
computed tokens of a running request is `run_offset + step`, so that an iteration in which every request decodes changes one
counter and not the requests. A request that has its whole context computed *decodes*; its last token is sampled when the
replica's `step` reaches `run_finish`, and until then nothing about it has to be touched.
"""

from __future__ import annotations

import numpy as np

from ..jit import inlined, kernel
from .kv import allocate_blocks, longest_hit, register_blocks, release_table, take_private, touch_hits
from .queue import enqueue, pop_head
from .state import NOT_DECODING
from .timing import decode_ps, prefill_ps

# mypy: disable-error-code="no-untyped-def"


@inlined
def take_blocks(state, e, spec, replica, c, computed, after):
    """Allocate the KV blocks that call `c` needs to go from `computed` to `after` tokens; they must be free."""
    if spec.prefix != 0:
        allocate_blocks(state, e, spec, replica, c, computed, after)
        register_blocks(state, e, spec, c, computed >> 4, after >> 4)
    else:
        replica.free -= ((after + 15) >> 4) - ((computed + 15) >> 4)


@inlined
def free_blocks(state, e, spec, replica, c, computed):
    """Return all KV blocks of call `c`, which has `computed` tokens."""
    if spec.prefix != 0:
        release_table(state, e, spec, replica, c, computed)
        replica.sharing -= decodes_for_others(state, e, c)
    else:
        replica.free += (computed + 15) >> 4
    replica.blocked = 0


@inlined
def decodes_for_others(state, e, c):
    """Return whether others may hit blocks that call `c` fills while it decodes."""
    return state.call[e, c].shared << 4 > state.call[e, c].prompt


@kernel
def _remove_running(state, e, r, replica, i):
    """Close the gap at position `i` of the running list."""
    for j in range(i, replica.running - 1):
        state.run_call[e, r, j] = state.run_call[e, r, j + 1]
        state.run_offset[e, r, j] = state.run_offset[e, r, j + 1]
        state.run_finish[e, r, j] = state.run_finish[e, r, j + 1]
        state.run_new[e, r, j] = state.run_new[e, r, j + 1]
    replica.running -= 1


@inlined
def _victim(state, e, r, spec, replica):
    """Return the position of the request to preempt: the last one, or the worst (priority, arrival time)."""
    if spec.priority == 0:
        return replica.running - 1
    worst = 0
    for i in range(1, replica.running):
        # Python's max() keeps the first of equals, hence the strict comparison.
        a, b = state.call[e, state.run_call[e, r, worst]], state.call[e, state.run_call[e, r, i]]
        if a.priority < b.priority or (a.priority == b.priority and a.dispatch_ps < b.dispatch_ps):
            worst = i
    return worst


@kernel
def _preempt(state, e, r, spec, replica, i):
    """Preempt the request at position `i` by recompute: its blocks are freed, its generated tokens are kept.

    `run_new[i]` tokens that were already scheduled in this iteration have their blocks too.
    """
    c = state.run_call[e, r, i]
    if state.run_finish[e, r, i] != NOT_DECODING:
        state.call[e, c].generated = state.call[e, c].output - (state.run_finish[e, r, i] - replica.step)
    else:
        replica.prefills -= 1
    computed = state.run_offset[e, r, i] + replica.step + state.run_new[e, r, i]
    free_blocks(state, e, spec, replica, c, computed)
    state.call[e, c].preemptions += 1
    replica.preemptions += 1
    # Asynchronous scheduling: tokens in flight will still be delivered, but count for nothing else.
    state.call[e, c].stale, state.call[e, c].in_flight = state.call[e, c].in_flight, 0
    _remove_running(state, e, r, replica, i)
    enqueue(state, e, spec, replica, c, True)


@kernel
def make_room(state, e, r, spec, replica, i, need, budget):
    """Preempt until `need` blocks are free for the request at position `i`; return (its position, budget).

    A victim that was scheduled before in this iteration gives its tokens back. The position is -1 when the request had to
    preempt itself, which ends the scheduling of running requests.
    """
    while need > replica.free:
        v = _victim(state, e, r, spec, replica)
        budget += state.run_new[e, r, v]
        _preempt(state, e, r, spec, replica, v)
        if v == i:
            return -1, budget
        if v < i:
            i -= 1
    return i, budget


@kernel
def _schedule_running(state, e, r, spec, replica, budget):
    """Give running requests their tokens in list order; return (budget left, whether anything was preempted)."""
    for i in range(replica.running):
        state.run_new[e, r, i] = 0
    preempted = False
    i = np.int64(0)
    while i < replica.running and budget > 0:
        c = state.run_call[e, r, i]
        computed = state.run_offset[e, r, i] + replica.step
        new = 1
        if state.run_finish[e, r, i] == NOT_DECODING:
            new = min(state.call[e, c].prompt + state.call[e, c].generated - computed, budget)
        need = ((computed + new + 15) >> 4) - ((computed + 15) >> 4)
        if need > replica.free:
            preempted = True
            i, budget = make_room(state, e, r, spec, replica, i, need, budget)
            if i < 0:
                break
        take_blocks(state, e, spec, replica, c, computed, computed + new)
        state.run_new[e, r, i] = new
        budget -= new
        i += 1
    return budget, preempted


@inlined
def admit_head(state, e, r, spec, replica, now, budget):
    """Try to admit the first waiting call; return its tokens in this iteration, 0 when it does not fit.

    Its whole sequence must fit into free blocks although only the first chunk is allocated
    (`scheduler_reserve_full_isl`), and a hit block that is free counts as taken.
    """
    c = replica.head
    call = state.call[e]
    tokens = call[c].prompt + call[c].generated
    hits = free_hits = 0
    if spec.prefix != 0:
        hits, free_hits = longest_hit(state, e, spec, c, tokens)
    if ((tokens + 15) >> 4) - hits + free_hits > replica.free:
        replica.blocked = 1
        replica.missing = 0
        if spec.prefix != 0 and hits < min((tokens - 1) >> 4, call[c].shared):
            replica.missing = state.arena_hash[e, call[c].arena + hits]
        return 0
    pop_head(state, e, replica)
    if hits > 0:
        touch_hits(state, e, replica, c, hits)
    computed = hits << 4
    new = min(tokens - computed, budget)
    take_blocks(state, e, spec, replica, c, computed, computed + new)
    if spec.prefix != 0:
        replica.sharing += decodes_for_others(state, e, c)
    if call[c].start_ps < 0:
        call[c].start_ps = now
        call[c].cached = computed
    i = replica.running
    state.run_call[e, r, i] = c
    state.run_offset[e, r, i] = computed - replica.step
    state.run_finish[e, r, i] = NOT_DECODING
    state.run_new[e, r, i] = new
    replica.running += 1
    replica.prefills += 1
    return new


@inlined
def _forget_sums(replica):
    """Empty the sums over decoding requests."""
    replica.offset_sum = 0
    replica.next_finish = NOT_DECODING
    for k in range(16):
        replica.residue[k] = 0


@inlined
def _count_decoding(replica, offset, finish):
    """Add a request to the sums over decoding requests."""
    if finish != NOT_DECODING:
        replica.offset_sum += offset
        replica.residue[offset & 15] += 1
        replica.next_finish = min(replica.next_finish, finish)


@inlined
def _commit_running(state, e, r, spec, tables, replica, begin):
    """Advance requests from position `begin` on by what was scheduled; return (tokens, sampled, decodes, kv, chunks_ps).

    Called after `step` was increased. Rebuilds the sums over decoding requests that a stretch needs for those positions.
    """
    row = spec.latency
    tokens = sampled = decodes = kv_tokens = chunks = 0
    before = replica.step - 1
    for i in range(begin, replica.running):
        new = np.int64(state.run_new[e, r, i])
        offset = state.run_offset[e, r, i]
        computed = offset + before
        if new == 0:
            offset -= 1
            if state.run_finish[e, r, i] != NOT_DECODING:
                state.run_finish[e, r, i] += 1
        elif state.run_finish[e, r, i] != NOT_DECODING:
            decodes += 1
            sampled += 1
            kv_tokens += computed + 1
        else:
            c = state.run_call[e, r, i]
            total = state.call[e, c].prompt + state.call[e, c].generated
            if state.call[e, c].generated > 0 and computed + 1 == total:
                decodes += 1
                kv_tokens += total
            else:
                tokens += new
                chunks += prefill_ps(tables, row, new, computed)
            offset += new - 1
            if computed + new == total:
                sampled += 1
                state.call[e, c].generated += 1
                state.run_finish[e, r, i] = replica.step + state.call[e, c].output - state.call[e, c].generated
                replica.prefills -= 1
        state.run_offset[e, r, i] = offset
        _count_decoding(replica, np.int64(offset), state.run_finish[e, r, i])
    return tokens, sampled, decodes, kv_tokens, chunks


@inlined
def _decode_blocks(state, e, r, spec, replica):
    """Let every running request decode one token when all do and the blocks suffice; return whether that was so."""
    need = np.int64(replica.residue[(-replica.step) & 15])
    if need > replica.free:
        return False
    if spec.prefix == 0:
        replica.free -= need
        return True
    if replica.sharing == 0:
        take_private(state, e, spec, replica, need)
        return True
    for i in range(replica.running):
        computed = state.run_offset[e, r, i] + replica.step
        if computed & 15 == 0 or computed & 15 == 15:
            take_blocks(state, e, spec, replica, state.run_call[e, r, i], computed, computed + 1)
    return True


@kernel
def plan_iteration(state, e, r, tables, now):
    """Schedule one iteration that begins at `now`; return its duration in picoseconds (0: nothing could be scheduled)."""
    spec, replica = tables.spec[r], state.replica[e, r]
    budget = np.int64(spec.budget)
    old = replica.running
    preempted = False
    replica.blocked = 0
    uniform = replica.prefills == 0 and old <= budget and _decode_blocks(state, e, r, spec, replica)
    if uniform:
        budget -= old
    else:
        budget, preempted = _schedule_running(state, e, r, spec, replica, budget)
    if not preempted:
        while budget > 0 and replica.waiting > 0 and replica.running < spec.max_seqs:
            new = admit_head(state, e, r, spec, replica, now, budget)
            if new == 0:
                break
            budget -= new
    if budget == spec.budget:
        if preempted:
            _forget_sums(replica)
            for i in range(replica.running):
                _count_decoding(replica, np.int64(state.run_offset[e, r, i]), state.run_finish[e, r, i])
        return 0
    replica.step += 1
    replica.iterations += 1
    if uniform:
        decoding, kv_decoding = old, replica.offset_sum + old * replica.step
        begin = old
    else:
        decoding = kv_decoding = begin = 0
        _forget_sums(replica)
    tokens, sampled, decodes, kv_tokens, chunks = _commit_running(state, e, r, spec, tables, replica, begin)
    decodes += decoding
    sampled += decoding
    kv_tokens += kv_decoding
    tokens += decodes
    row = spec.latency
    duration = tables.step_ps[row, tokens] + tables.sample_ps[row, sampled] + chunks
    if decodes > 0:
        duration += decode_ps(tables, row, decodes, kv_tokens)
    for i in range(begin, replica.running):
        c = state.run_call[e, r, i]
        if state.run_finish[e, r, i] != NOT_DECODING and state.call[e, c].first_ps < 0:
            state.call[e, c].first_ps = now + duration
    return duration
