"""The default reward: minus the requests in flight over time, plus accuracy when a request completes.

Summed over an episode, the first part is minus the sum of all workflow completion times (Little's law), in units of the SLO;
so a request contributes about -JCT / SLO, and both parts are O(1) per request.
"""

from __future__ import annotations

import numpy as np

from .compiled_scenario import CompiledScenario
from .latency.compiled import PS_PER_S


def reference_latency_s(compiled: CompiledScenario) -> float:
    """Return the latency that counts as one unit: the SLO, or `slo_scale` times the mean standalone latency of the mix."""
    objective = compiled.scenario.objective
    if objective.slo_s is not None:
        return objective.slo_s
    table = compiled.workflow
    ends = [*table.first_row[1:], len(compiled.standalone_ps)]
    weights = np.array([entry.weight for entry in compiled.scenario.workload.mix])
    means = np.array(
        [compiled.standalone_ps[a:b].mean() / PS_PER_S for a, b in zip(table.first_row, ends, strict=True)]
    )
    return float(objective.slo_scale * (weights @ means) / weights.sum())


class Reward:
    """The scale of a scenario's reward; `action.step_environment` computes it."""

    def __init__(self, compiled: CompiledScenario) -> None:
        self.reference_s = reference_latency_s(compiled)
        self.accuracy_weight = compiled.scenario.objective.accuracy_weight
        self.beta_per_s = compiled.scenario.objective.beta_per_s

    @property
    def objective(self) -> tuple[float, float, float]:
        """(reference latency in s, accuracy weight, discount rate per s)."""
        return self.reference_s, self.accuracy_weight, self.beta_per_s
