"""Aragog (arXiv 2511.20975): find a request's viable configurations once, then choose among them stage by stage, under load.

Where each idea of the paper lives:

* section 3.1, which configurations keep accuracy: `router` (a request's viable set), `embedders` and `heads` (the predictor),
  `pruning` (near-monotone pruning, stopping early), training in `fitting` and `selection`; `policies.viability` is the
  interface that policies use, and the oracle.
* section 3.2, state: `curves` (free slots below the profiled saturation point, forecast gain of one more call), from
  `aragog_env.harness.profile`.
* section 3.2, meta-queue, look-ahead and parallel branches: `queue`, with the order that `DispatchView.calls` comes in.
* section 3.2, narrowing: `narrowing`, configurations as bit sets.
* section 3.2, beam search, utilization and flexibility: `plain` to read, `beam` compiled, `round` what both are given.
* Fig. 10, brute force: `exact`.
* rounds, asynchronous dispatch, moving averages, routing budget (sections 3.2 and 4): `policy`.
"""
