"""How good a network is: what training episodes show by the way, and greedy episodes of fixed traffic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from aragog_env.specs.scenario import Scenario

from .features import Rules
from .network import Inputs, Network
from .training_env import TrainingEnv

EVALUATION_SEED: Final = 900_000
"""First seed of the traffic that models are compared on while training: neither training nor published evaluations use it."""
_MOST_DECISIONS: Final = 10


def observed(env: TrainingEnv) -> Inputs:
    """Return the present observations as tensors that share the environment's memory, but `can_wait`."""
    calls, routes, pairs, summary, mask, *foreseen = env.arrays
    return Inputs(*(torch.from_numpy(array) for array in (calls, routes, pairs, summary, mask[:, -1] != 0, *foreseen)))


class EpisodeMeter:
    """Means over the episodes that ended since the last `take`."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {}

    def add(self, info: dict[str, Any]) -> None:
        """Note what a step of the vector environment tells of episodes that ended."""
        if "metrics" not in info:
            return
        ended = info["_metrics"]
        for key, values in info["metrics"].items():
            if not key.startswith("_"):
                self._found.setdefault(key, []).extend(values[ended].tolist())

    def take(self) -> dict[str, float]:
        """Return the means, and forget; nothing where no episode ended."""
        found, self._found = self._found, {}
        if not found:
            return {}
        means = {key: float(np.nanmean(values)) for key, values in found.items() if not np.isnan(values).all()}
        return {"episodes": float(len(next(iter(found.values()))))} | means


class Evaluator:
    """Runs greedy episodes, the same traffic each time.

    Args:
        scenario: with the objective of training.
        rules: which actions are open.
        episodes: how many, side by side.
        choose: the greedy action of each row of logits.
    """

    def __init__(self, scenario: Scenario, rules: Rules, episodes: int, choose: Callable[[Tensor], Tensor]) -> None:
        self.scenario, self.rules, self.episodes, self.choose = scenario, rules, episodes, choose
        self._env: TrainingEnv | None = None

    def __call__(self, network: Network, device: torch.device) -> dict[str, float]:
        """Return mean completion time, accuracy and reward per request.

        A policy that would rather wait than decide takes for ever: where episodes are still running after many decisions per
        call, their number is all that is returned.
        """
        env = self._env = self._env or TrainingEnv(self.episodes, self.scenario, self.rules)
        env.reset(seed=EVALUATION_SEED)
        meter = EpisodeMeter()
        running, reward = np.ones(self.episodes, np.bool_), 0.0
        for _ in range(_MOST_DECISIONS * self.scenario.horizon.requests * env.compiled.max_nodes):
            with torch.inference_mode():
                logits = network(*observed(env).to(device).policy)
            _, rewards, terminated, truncated, info = env.step(self.choose(logits).cpu().numpy())
            reward += float(rewards[running].sum())
            if "metrics" in info:
                info["_metrics"] &= running
                meter.add(info)
            running &= ~(terminated | truncated)
            if not running.any():
                break
        else:
            return {"eval/unfinished": float(running.sum())}
        found = meter.take()
        per_request = reward / (self.episodes * self.scenario.horizon.requests)
        result = {"eval/reward": per_request}
        return result | {f"eval/{key}": found[key] for key in ("jct_mean_s", "accuracy") if key in found}
