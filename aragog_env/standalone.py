"""How long a request would take alone on the cluster: the yardstick of SLO scales, Req95 and rewards."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .engine.state import EngineTables
from .engine.timing import prefill_ps, stretch_ps
from .jit import kernel, njit
from .progress import WorkflowTables

# mypy: disable-error-code="no-untyped-def"


@kernel
def call_alone_ps(tables, r, prompt, output):
    """Return the time of one call on idle replica `r`: prompt in chunks of the token budget, then one token at a time."""
    row, budget = tables.spec[r].latency, tables.spec[r].budget
    total = tables.sample_ps[row, 1]
    done = 0
    while done < prompt:
        new = min(budget, prompt - done)
        total += tables.step_ps[row, new] + prefill_ps(tables, row, new, done)
        if done > 0:
            total += tables.sample_ps[row, 0]
        done += new
    if output > 1:
        total += stretch_ps(tables, row, 1, prompt + 1, output - 1)
    return total


@njit(cache=True)
def _standalone(tables, wt, w, row):
    """Return the latency of one query with the route that ends each stage first."""
    finish = np.zeros(wt.parents.shape[1], np.int64)
    written = np.zeros(wt.parents.shape[1], np.int64)
    chosen = np.full(wt.parents.shape[1], -1)
    last = 0
    for node in range(wt.nodes[w]):
        begin = 0
        for other in range(node):
            if wt.parents[w, node] >> other & 1:
                begin = max(begin, finish[other])
        on = wt.skip_on[w, node]
        skipper = chosen[on] if on >= 0 else -1
        if skipper < 0:
            skipper = wt.expected_output.shape[2] - 1
        if wt.skipped[row, node] >> skipper & 1:
            finish[node] = begin
        elif wt.is_tool[w, node]:
            finish[node] = begin + wt.tool_ps[row, node]
            written[node] = wt.output[row, node, 0]
        else:
            prompt = wt.own_prompt[row, node]
            for other in range(node):
                if wt.context[w, node] >> other & 1:
                    prompt += written[other]
            best = np.int64(-1)
            for r in range(wt.route_model.shape[0]):
                if not wt.allowed[w, node, r]:
                    continue
                model = wt.route_model[r]
                time = call_alone_ps(tables, r, prompt, wt.output[row, node, model])
                if best < 0 or time < best:
                    best, chosen[node] = time, model
            finish[node] = begin + best
            written[node] = wt.output[row, node, chosen[node]]
        last = max(last, finish[node])
    return last


@njit(cache=True)
def _standalone_all(tables, wt, result):
    for w in range(wt.nodes.shape[0]):
        end = wt.first_row[w + 1] if w + 1 < wt.nodes.shape[0] else wt.own_prompt.shape[0]
        for row in range(wt.first_row[w], end):
            result[row] = _standalone(tables, wt, w, row)


def standalone_latency(tables: EngineTables, workflow: WorkflowTables) -> NDArray[np.int64]:
    """Return (Q,) picoseconds that each query takes alone, every stage on the route that ends it first."""
    result = np.zeros(len(workflow.own_prompt), np.int64)
    _standalone_all(tables, workflow, result)
    return result
