"""Compiled waiting queue of a replica (`vllm/v1/core/sched/request_queue.py`), linked through the calls themselves."""

from __future__ import annotations

from ..jit import inlined, kernel

# mypy: disable-error-code="no-untyped-def"


@inlined
def before(state, e, a, b):
    """Return whether call `a` precedes call `b` under vLLM's priority policy (`v1/request.py:Request.__lt__`)."""
    x, y = state.call[e, a], state.call[e, b]
    if x.priority != y.priority:
        return x.priority < y.priority
    if x.dispatch_ps != y.dispatch_ps:
        return x.dispatch_ps < y.dispatch_ps
    return x.sequence < y.sequence


@inlined
def enqueue(state, e, spec, replica, c, preempted):
    """Put call `c` into the waiting queue: by priority, else at the end, or at the front when it was preempted."""
    call = state.call[e]
    replica.waiting += 1
    replica.waiting_tokens += call[c].prompt + call[c].generated
    if spec.priority != 0:
        previous, here = -1, replica.head
        while here >= 0 and not before(state, e, c, here):
            previous, here = here, call[here].next
    elif preempted:
        previous, here = -1, replica.head
    else:
        previous, here = replica.tail, -1
    call[c].next = here
    if previous >= 0:
        call[previous].next = c
    else:
        replica.head = c
        replica.blocked = 0
    if here < 0:
        replica.tail = c


@inlined
def pop_head(state, e, replica):
    """Take the first call out of the waiting queue."""
    call = state.call[e]
    c = replica.head
    replica.waiting -= 1
    replica.waiting_tokens -= call[c].prompt + call[c].generated
    replica.head = call[c].next
    if replica.head < 0:
        replica.tail = -1
    replica.blocked = 0
    return c


@kernel
def remove_waiting(state, e, replica, c):
    """Take call `c` out of the waiting queue, wherever it stands."""
    call = state.call[e]
    if replica.head == c:
        pop_head(state, e, replica)
        return
    before_c = replica.head
    while call[before_c].next != c:
        before_c = call[before_c].next
    call[before_c].next = call[c].next
    if replica.tail == c:
        replica.tail = before_c
    replica.waiting -= 1
    replica.waiting_tokens -= call[c].prompt + call[c].generated
