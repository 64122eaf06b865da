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
from aragog_env.specs.scenario import Scenario
from baselines.evaluation import observed
from baselines.features import Rules
from baselines.model_file import ModelFile
from baselines.network import Network, likeliest
from baselines.training_env import TrainingEnv

from .plan import REFERENCE, RULE, Case, Ceilings, Size, at_load, cases
from .train import model_name

LOAD: Final = 0.9
CHARGED: Final = (REFERENCE, "ppo", "ppo, batched")
BATCH: Final = 64
_REPEATS: Final = 30
_SEED: Final = 600

Times = dict[str, float]
"""Milliseconds per dispatch by policy, and of the network alone per decision of a batch."""


def measure(case: Case, size: Size, ceilings: Ceilings, models: Path) -> Times:
    """Return what a dispatch takes on this machine: all time in `act`, waiting decisions included, over the dispatches."""
    scenario = at_load(case, size, LOAD, ceilings)
    backend, result = SimBackend(scenario), {}
    for name in (REFERENCE, RULE, "ppo"):
        policy = case.policy(name, models)
        log = run_episode(make_policy(policy), policy, backend, _SEED)
        result[name] = 1e3 * float(log.decision_s.sum()) / len(log.calls)
    return result | {"ppo, batched": batched_ms(case, scenario, models)}


def batched_ms(case: Case, scenario: Scenario, models: Path) -> float:
    """Return the milliseconds per decision of the network, on one thread, when it decides for many environments at once."""
    model = ModelFile.load(models / model_name("ppo", case.pair), "ppo")
    network = Network(model.width)
    network.load(model)
    rules = Rules(**model.rules | {"viable": case.sets})
    env = TrainingEnv(BATCH, override(scenario, ready_slots=model.ready_slots), rules)
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


def charged(case: Case, measured: str, models: Path, times: dict[str, Times]) -> str:
    """Return the name of a policy whose every dispatch takes what was `measured` (a key of `Times`)."""
    return f"charged@{times[str(case)][measured]:.3f}:{case.policy(measured.partition(',')[0], models)}"


def charged_jobs(size: Size, ceilings: Ceilings, folder: Path, models: Path, times: dict[str, Times]) -> list[Job]:
    """Return episodes in which each policy's decisions take the time that they took here."""
    jobs = []
    for case in cases(size):
        scenario = at_load(case, size, LOAD, ceilings)
        for measured in CHARGED:
            name = charged(case, measured, models, times)
            jobs += [Job(name, scenario, seed, str(folder)) for seed in range(size.other_seeds)]
    return jobs
