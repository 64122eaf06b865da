"""When would a call end on a route? Forecast from what a client of a live cluster can see, and the latency model.

Not a simulation: the batch a call will run in is taken to be the present one. Output lengths are expectations of the length
model, never true values.
"""

from __future__ import annotations

from .engine.timing import decode_ps, prefill_ps
from .jit import inlined

# mypy: disable-error-code="no-untyped-def"


@inlined
def decode_iteration_ps(tables, row, batch, kv_tokens):
    """Return the time of one iteration in which `batch` requests generate, with `kv_tokens` tokens of context in all."""
    return tables.step_ps[row, batch] + tables.sample_ps[row, batch] + decode_ps(tables, row, batch, kv_tokens)


@inlined
def predict_ps(tables, r, running, waiting, waiting_tokens, kv_tokens, prompt, output):
    """Return the predicted time from dispatch to the last token, in picoseconds (float64).

    Args:
        tables: engine tables.
        r: the replica.
        running: requests it runs.
        waiting: requests in its queue.
        waiting_tokens: prompt tokens of those.
        kv_tokens: KV cache in use.
        prompt: prompt tokens of the call.
        output: its expected output tokens.
    """
    spec = tables.spec[r]
    row, budget = spec.latency, spec.budget
    batch = min(running + waiting + 1, spec.max_seqs)
    to_prefill = waiting_tokens + prompt
    rounds = to_prefill // budget
    prefill = float(rounds * tables.step_ps[row, budget] + tables.step_ps[row, to_prefill - rounds * budget])
    prefill += prefill_ps(tables, row, prompt, 0)
    kv_at_half = min(kv_tokens + to_prefill + int(batch * output / 2), spec.blocks * 16)
    generating = output * decode_iteration_ps(tables, row, batch, kv_at_half)
    # Beyond the sequence slots or the KV cache, a call waits for its share of the running ones to leave.
    slots_short = max(0, running + waiting + 1 - spec.max_seqs) / spec.max_seqs
    kv_short = max(0, kv_tokens + to_prefill - spec.blocks * 16) / (spec.blocks * 16)
    return prefill + generating * (1.0 + max(slots_short, kv_short))
