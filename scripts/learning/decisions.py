"""How long a decision takes, one at a time and in batches, and what it costs when the clock of the cluster pays for it."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np
import torch

from aragog_env.backends.sim import SimBackend
from aragog_env.harness.jobs import Job
from aragog_env.harness.rollout import run_episode
from aragog_env.registry import make_policy
from aragog_env.specs.override import override
from baselines.evaluation import observed
from baselines.features import Rules
from baselines.model_file import ModelFile
from baselines.network import Network, likeliest
from baselines.training_env import TrainingEnv

from .plan import REFERENCE, RULE, Size, at_load, charged
from .train import model_name

LOAD: Final = 0.9
BATCH: Final = 64
_REPEATS: Final = 30
_SEED: Final = 600

Times = dict[str, float]
"""Milliseconds per dispatch by policy, and of the network alone per decision of a batch."""


def measure(pair: str, size: Size, ceiling: float, models: Path) -> Times:
    """Return what a dispatch takes on this machine: all time in `act`, waiting decisions included, over the dispatches."""
    scenario = at_load(pair, size, LOAD, ceiling)
    backend, result = SimBackend(scenario), {}
    for name, policy in ((REFERENCE, REFERENCE), (RULE, RULE), ("ppo", f"ppo:{models}")):
        log = run_episode(make_policy(policy), policy, backend, _SEED)
        result[name] = 1e3 * float(log.decision_s.sum()) / len(log.calls)
    return result | {"ppo, batched": batched_ms(pair, size, ceiling, models)}


def batched_ms(pair: str, size: Size, ceiling: float, models: Path) -> float:
    """Return the milliseconds per decision of the network, on one thread, when it decides for many environments at once."""
    model = ModelFile.load(models / model_name("ppo", pair), "ppo")
    network = Network(model.width)
    network.load(model)
    scenario = override(at_load(pair, size, LOAD, ceiling), ready_slots=model.ready_slots)
    env = TrainingEnv(BATCH, scenario, Rules(**model.rules))
    env.reset(seed=_SEED)
    took, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(_REPEATS):
        begin = perf_counter()
        with torch.inference_mode():
            actions = likeliest(network(*observed(env).policy)).numpy()
        took.append(perf_counter() - begin)
        env.step(actions)
    torch.set_num_threads(threads)
    return 1e3 * float(np.median(took)) / BATCH


def charged_jobs(size: Size, ceilings: dict[str, float], folder: Path, times: dict[str, Times]) -> list[Job]:
    """Return episodes in which each policy's decisions take the time that they took here."""
    return [
        Job(policy, charged(at_load(pair, size, LOAD, ceilings[pair]), times[pair][policy]), seed, str(folder))
        for pair in size.pairs
        for policy in (REFERENCE, "ppo")
        for seed in range(size.other_seeds)
    ]
