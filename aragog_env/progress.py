"""Requests on their way through their workflows: which calls are ready, and what a finished call sets free.

Compiled, over the same flat state as the engine, so that a decision, the simulation up to the next one, and the bookkeeping
between are one call. Call `request * N + node` is the call of that node (N = most nodes of any workflow in the scenario);
tool stages use the same records. Nothing random happens here: what a call writes, whether a stage is skipped and whether
the answer is right was drawn before the episode (`aragog_env.outcomes`, `aragog_env.workload.tape`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .engine.kv import hash_segments
from .engine.replica import submit
from .engine.state import ALL_SHARED
from .jit import inlined, kernel

# mypy: disable-error-code="no-untyped-def"

OUTPUT_CONTENT = 1 << 48
"""Content id of the first call's output; query rows and templates have smaller ids."""
TEMPLATE_CONTENT = 1 << 47
OWN, COPIES, STAGES = 0, 1, 2
"""`prefix_twins`: only the same stage of other requests; also other copies of the stage; also other stages."""

ENVIRONMENT = np.dtype(
    [
        ("now_ps", "i8"),
        ("horizon_ps", "i8"),
        ("in_flight_ps", "i8"),  # integral of requests in flight since the last observation
        ("requests", "i4"),  # length of the tape
        ("next", "i4"),  # next request of the tape to arrive (open loop)
        ("open", "i4"),  # requests of the tape with an arrival time of their own
        ("arrived", "i4"),
        ("completed", "i4"),
        ("ready", "i4"),  # ready calls
        ("timers", "i4"),
        ("arena", "i8"),  # arena entries used
        ("correct", "i4"),  # completions since the last observation whose answer is right
        ("finished", "i4"),  # completions since the last observation
        ("dispatched", "i4"),
        ("decisions", "i4"),
        ("invalid", "i4"),
        ("overflow", "i4"),  # decisions with more ready calls than slots
        ("done", "i4"),
        ("truncated", "i4"),
    ],
    align=True,
)

REQUEST = np.dtype(
    [
        ("arrival_ps", "i8"),  # -1 before
        ("finish_ps", "i8"),  # -1 before
        ("done", "i8"),  # bit mask of finished nodes
        ("started", "i8"),  # bit mask of nodes that were ready
        ("configuration", "i8"),
        ("delay_ps", "i8"),  # closed loop: think time before the successor arrives
        ("uniform", "f8"),  # common random number: right iff below the success probability
        ("workflow", "i4"),
        ("row", "i4"),  # query, as a row of the stacked outcome tables
        ("rank", "i4"),  # order of arrival
        ("successor", "i4"),  # closed loop: the same user's next request, -1 none
        ("correct", "i4"),  # 1, 0, -1 unknown
        ("repeated", "i4"),  # another request of the episode asks the same query
    ],
    align=True,
)


class WorkflowTables(NamedTuple):
    """The scenario's workflows and outcome tables, stacked. W workflows, N nodes, M models, Q query rows, R routes."""

    nodes: NDArray[np.int32]  # (W,)
    is_tool: NDArray[np.int32]  # (W, N)
    parents: NDArray[np.int64]  # (W, N) bit masks
    context: NDArray[np.int64]  # (W, N) bit masks: whose outputs are part of the prompt
    depth: NDArray[np.int32]  # (W, N) nodes on the longest path to a leaf, itself included
    radix: NDArray[np.int64]  # (W, N) weight of the node's model in the configuration index, 0 for tools
    skip_on: NDArray[np.int32]  # (W, N) node whose model decides whether this one is skipped, -1 none
    template: NDArray[np.int64]  # (W, N) content id
    template_tokens: NDArray[np.int32]  # (W, N)
    prefix_twins: NDArray[np.int32]  # (W, N) who else starts with this template: OWN, COPIES or STAGES
    allowed: NDArray[np.int32]  # (W, N, R) 1 where a route's model is a candidate
    expected_output: NDArray[np.float64]  # (W, N, M) mean output tokens, what a policy may know
    route_model: NDArray[np.int32]  # (R,)
    first_row: NDArray[np.int64]  # (W,) first query row
    first_configuration: NDArray[np.int64]  # (W,) offset into p_correct
    configurations: NDArray[np.int64]  # (W,)
    own_prompt: NDArray[np.int32]  # (Q, N)
    output: NDArray[np.int32]  # (Q, N, M)
    skipped: NDArray[np.int32]  # (Q, N) bit mask over models of `skip_on`
    tool_ps: NDArray[np.int64]  # (Q, N)
    p_correct: NDArray[np.float32]  # flat (sum over workflows of queries * configurations,)


class ProgressState(NamedTuple):
    """Requests, ready calls and timers of E environments. n = requests of the tape."""

    env: NDArray[np.void]  # (E,) of ENVIRONMENT
    request: NDArray[np.void]  # (E, n) of REQUEST
    by_rank: NDArray[np.int32]  # (E, n) request by order of arrival
    ready: NDArray[np.int64]  # (E, n * N) sorted keys of ready calls, see `ready_key`
    timer_ps: NDArray[np.int64]  # (E, n * (N + 1)) binary heap: tools that run, users that think
    timer_id: NDArray[np.int64]  # (E, n * (N + 1)) call, or n * N + request for an arrival
    segment_id: NDArray[np.int64]  # (E, N + 3) scratch for prompt contents
    segment_length: NDArray[np.int64]  # (E, N + 3)


@inlined
def ready_key(rank, depth, node):
    """Return the sort key of a ready call: requests in order of arrival, inside a request the deepest call first."""
    return (rank << 16) | ((255 - depth) << 8) | node


@inlined
def ready_call(progress, e, slot):
    """Return (request, node) of the ready call in `slot`."""
    key = progress.ready[e, slot]
    return progress.by_rank[e, key >> 16], key & 255


@inlined
def _insert_ready(progress, e, key):
    env, ready = progress.env[e], progress.ready[e]
    i = env.ready
    while i > 0 and ready[i - 1] > key:
        ready[i] = ready[i - 1]
        i -= 1
    ready[i] = key
    env.ready += 1


@inlined
def remove_ready(progress, e, slot):
    """Take the call in `slot` off the ready list."""
    env, ready = progress.env[e], progress.ready[e]
    for i in range(slot, env.ready - 1):
        ready[i] = ready[i + 1]
    env.ready -= 1


@kernel
def push_timer(progress, e, time_ps, which):
    """Add a timer; equal times fire in order of `which` (tools before arrivals)."""
    times, ids, env = progress.timer_ps[e], progress.timer_id[e], progress.env[e]
    i = env.timers
    env.timers += 1
    while i > 0:
        up = (i - 1) >> 1
        if times[up] < time_ps or (times[up] == time_ps and ids[up] <= which):
            break
        times[i], ids[i] = times[up], ids[up]
        i = up
    times[i], ids[i] = time_ps, which


@kernel
def pop_timer(progress, e):
    """Remove the earliest timer and return its id."""
    times, ids, env = progress.timer_ps[e], progress.timer_id[e], progress.env[e]
    first = ids[0]
    env.timers -= 1
    n = env.timers
    time_ps, which = times[n], ids[n]
    i = 0
    while 2 * i + 1 < n:
        k = 2 * i + 1
        if k + 1 < n and (times[k + 1] < times[k] or (times[k + 1] == times[k] and ids[k + 1] < ids[k])):
            k += 1
        if time_ps < times[k] or (time_ps == times[k] and which <= ids[k]):
            break
        times[i], ids[i] = times[k], ids[k]
        i = k
    times[i], ids[i] = time_ps, which
    return first


@inlined
def _is_skipped(wt, state, e, q, request, node):
    """Return whether a node is skipped, which the model that served its `skip_on` stage decides."""
    mask = wt.skipped[request.row, node]
    if mask == 0:
        return False
    on = wt.skip_on[request.workflow, node]
    model = -1
    if on >= 0:
        model = state.call[e, q * wt.parents.shape[1] + on].model
    if model < 0:
        # A stage that was skipped counts as served by the largest model; a surplus copy is skipped under every model.
        model = wt.expected_output.shape[2] - 1
    return (mask >> model) & 1 != 0


@kernel
def start_nodes(wt, state, progress, e, q, now):
    """Start every node of request `q` whose parents are done; finish the request when nothing is left."""
    request, call = progress.request[e, q], state.call[e]
    w, width = request.workflow, wt.parents.shape[1]
    nodes = wt.nodes[w]
    for node in range(nodes):
        bit = np.int64(1) << node
        if request.started & bit or wt.parents[w, node] & ~request.done:
            continue
        request.started |= bit
        c = q * width + node
        if _is_skipped(wt, state, e, q, request, node):
            request.done |= bit
            continue
        call[c].ready_ps = now
        if wt.is_tool[w, node]:
            call[c].output = wt.output[request.row, node, 0]
            push_timer(progress, e, now + wt.tool_ps[request.row, node], c)
            continue
        prompt = wt.own_prompt[request.row, node]
        for other in range(node):
            if wt.context[w, node] >> other & 1:
                prompt += call[q * width + other].output
        # A server refuses an empty prompt; where all that a prompt is made of was skipped, one token stands for it.
        call[c].prompt = max(1, prompt)
        _insert_ready(progress, e, ready_key(request.rank, wt.depth[w, node], node))
    if request.done == (np.int64(1) << nodes) - 1 and request.finish_ps < 0:
        _finish_request(wt, state, progress, e, q, now)


@inlined
def _finish_request(wt, state, progress, e, q, now):
    """Grade the request and, in a closed loop, set its user thinking."""
    env, request = progress.env[e], progress.request[e, q]
    w, width = request.workflow, wt.parents.shape[1]
    models = wt.expected_output.shape[2]
    configuration = np.int64(0)
    for node in range(wt.nodes[w]):
        model = state.call[e, q * width + node].model
        # A stage that was skipped did not matter; it counts as served by the largest model.
        configuration += wt.radix[w, node] * (model if model >= 0 else models - 1)
    request.configuration = configuration
    request.finish_ps = now
    query = request.row - wt.first_row[w]
    p = wt.p_correct[wt.first_configuration[w] + query * wt.configurations[w] + configuration]
    request.correct = 1 if request.uniform < p else 0
    env.correct += request.correct
    env.finished += 1
    env.completed += 1
    if request.successor >= 0:
        push_timer(progress, e, now + request.delay_ps, state.call.shape[1] + request.successor)


@inlined
def arrive(wt, state, progress, e, q, now):
    """Let request `q` enter the system."""
    env = progress.env[e]
    request = progress.request[e, q]
    request.arrival_ps = now
    request.rank = env.arrived
    progress.by_rank[e, env.arrived] = q
    env.arrived += 1
    start_nodes(wt, state, progress, e, q, now)


@kernel
def complete_call(wt, state, progress, e, c, now):
    """Mark the call (or tool) `c` as done and start what waited for it."""
    width = wt.parents.shape[1]
    q = c // width
    progress.request[e, q].done |= np.int64(1) << (c - q * width)
    start_nodes(wt, state, progress, e, q, now)


@kernel
def dispatch_slot(wt, tables, state, progress, e, slot, route, priority):
    """Send the ready call in `slot` to `route`: an action becomes a dispatch here."""
    env = progress.env[e]
    q, node = ready_call(progress, e, slot)
    request = progress.request[e, q]
    width = wt.parents.shape[1]
    c = q * width + node
    call = state.call[e]
    model = wt.route_model[route]
    call[c].model = model
    call[c].priority = priority
    # A server stops at max_model_len (`vllm/v1/core/sched/utils.py:check_stop`).
    call[c].output = min(wt.output[request.row, node, model], tables.spec[route].max_len - call[c].prompt)
    call[c].generated = 0
    call[c].sequence = env.dispatched
    if tables.spec[route].prefix != 0:
        call[c].replica = route
        _hash_prompt(wt, tables, state, progress, e, q, node)
    remove_ready(progress, e, slot)
    env.dispatched += 1
    submit(state, e, route, tables, c, env.now_ps)


@inlined
def _hash_prompt(wt, tables, state, progress, e, q, node):
    """Lay out the prompt's contents (template, query, parents' outputs, own output) and hash their blocks."""
    env, request = progress.env[e], progress.request[e, q]
    w, width = request.workflow, wt.parents.shape[1]
    ids, lengths, call = progress.segment_id[e], progress.segment_length[e], state.call[e]
    c = q * width + node
    template = min(wt.template_tokens[w, node], wt.own_prompt[request.row, node])
    ids[0], lengths[0] = TEMPLATE_CONTENT + wt.template[w, node], template
    ids[1], lengths[1] = request.row, wt.own_prompt[request.row, node] - template
    count = 2
    for other in range(node):
        if wt.context[w, node] >> other & 1:
            ids[count], lengths[count] = OUTPUT_CONTENT + q * width + other, call[q * width + other].output
            count += 1
    if lengths[:count].sum() == 0:
        lengths[1] = 1
    ids[count], lengths[count] = OUTPUT_CONTENT + c, call[c].output
    call[c].arena = env.arena
    call[c].shared = _shared_blocks(wt, tables, request, w, node, template, call[c])
    env.arena += hash_segments(state, e, env.arena, ids, lengths, count + 1, call[c].shared) + 1


@inlined
def _shared_blocks(wt, tables, request, w, node, template, call):
    """Return how many leading blocks of a call another call might ask for.

    Requests share templates, and queries where one is asked twice; what a request's stages write is its own. Preemption by
    priority and asynchronous scheduling can leave a second copy of a block behind, which only records tell apart.
    """
    spec = tables.spec[call.replica]
    twins = wt.prefix_twins[w, node]
    if twins == STAGES or template == 0 or spec.priority != 0 or spec.lag != 0:
        return ALL_SHARED
    if twins == COPIES:
        return call.prompt >> 4
    if request.repeated != 0:
        return wt.own_prompt[request.row, node] >> 4
    return template >> 4
