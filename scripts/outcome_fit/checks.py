"""What the fitted generator gives, beside public numbers that the fit did not use, and for the shipped workflows."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np

from aragog_env.outcomes import OutcomeTable, configuration_digits
from aragog_env.specs.catalogue import model
from aragog_env.specs.graph import unroll
from aragog_env.specs.load import load_workflow
from aragog_env.synthetic import draw_table
from aragog_env.synthetic.latents import REFERENCE_SIZE_B, Latents
from aragog_env.synthetic.numeric import normal_cdf, solve_level
from aragog_env.synthetic.parameters import GeneratorParameters
from aragog_env.synthetic.quality import Quality, solve_scale

from .data import Floats
from .estimates import EVALPERF_SAMPLES, Pair
from .generated import chain_graph, single_call
from .normal import NORMAL, inversion

WORKFLOWS: Final = (
    "self_refine_humaneval", "self_refine_squad", "text_to_sql_bird", "voting_mmlu_pro", "decomposition_strategyqa",
)  # fmt: skip
FAMILIES: Final = {
    "Qwen": ("qwen2.5-7b", "qwen2.5-14b", "qwen2.5-32b"),
    "Llama": ("llama-3.2-3b", "llama-3-8b", "llama-3-70b"),
}
EVALPERF_LADDERS: Final = (
    ("Qwen--Qwen2.5-7B-Instruct_vllm", "Qwen--Qwen2.5-14B-Instruct_vllm", "Qwen--Qwen2.5-32B-Instruct_vllm",
     "Qwen--Qwen2.5-72B-Instruct_vllm"),
    ("meta-llama--Llama-3.1-8B-Instruct_vllm", "meta-llama--Llama-3.1-70B-Instruct_vllm"),
    ("google--gemma-2-9b-it_vllm", "google--gemma-2-27b-it_vllm"),
    ("deepseek-ai--deepseek-coder-6.7b-instruct_vllm", "deepseek-ai--deepseek-coder-33b-instruct_vllm"),
)  # fmt: skip
AIDER_ALONE: Final = {
    "claude-3.5-sonnet": 0.774, "claude-3-5-sonnet": 0.774, "gpt-4o": 0.714, "gpt-4o-mini": 0.556, "o1-preview": 0.797,
    "o1-mini": 0.707, "QwQ + Qwen2.5 Coder 32B-I": 0.421, "openrouter/qwen/qwen-2.5-coder-32b-instruct": 0.714,
}  # fmt: skip
"""Pass rates of single models in the same table (133 tasks, two tries), by their names as first or second stage."""


@dataclass(frozen=True)
class Inversions:
    """Mean share of queries that the small model of a pair solves and the large one does not."""

    dataset: str
    gap: str
    pairs: int
    seen: float
    generated: float
    worst: float
    """Largest difference of one pair."""


def inversions(pairs: Sequence[Pair], angle: float, siblings: Mapping[str, float]) -> list[Inversions]:
    """Compare inversion rates by data set and size gap."""
    groups: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for pair in pairs:
        ratio = pair.large_b / pair.small_b
        correlation = siblings[pair.dataset] * float(np.cos(angle * np.log(ratio)))
        expected = inversion(pair.accuracy_small, pair.accuracy_large, correlation)
        gap = "up to 4 times" if ratio <= 4 else "more than 4 times"
        groups[pair.dataset, gap].append((pair.inversion, expected))
    result = []
    for (dataset, gap), values in sorted(groups.items()):
        seen, generated = np.array(values).T
        worst = float(np.abs(seen - generated).max())
        result.append(Inversions(dataset, gap, len(values), float(seen.mean()), float(generated.mean()), worst))
    return result


@dataclass(frozen=True)
class Certainty:
    """Success probabilities of a pair of models: seen in 100 samples, and generated at the same accuracies."""

    viable: float
    """Share of queries on which the small model is at most 0.02 worse."""
    extreme: float
    """Share of probabilities below 0.05 or above 0.95."""
    spread: float
    """Mean p (1 - p)."""
    better: float
    """Share of queries on which the small model is better by more than 0.1."""


def _certainty(small: Floats, large: Floats) -> Certainty:
    both = np.concatenate([small, large])
    return Certainty(
        float((small >= large - 0.02).mean()),
        float(((both < 0.05) | (both > 0.95)).mean()),
        float((both * (1 - both)).mean()),
        float((small > large + 0.1).mean()),
    )


def certainty(
    evalperf: Mapping[str, Mapping[str, float]], parameters: GeneratorParameters, queries: int = 4000
) -> tuple[Certainty, Certainty]:
    """Return the mean over EvalPerf's pairs of siblings, seen and generated."""
    seen, generated = [], []
    rng = np.random.default_rng(0)
    for a, b in (pair for ladder in EVALPERF_LADDERS for pair in combinations(ladder, 2)):
        tasks = [task for task in evalperf[a] if task in evalperf[b]]
        small, large = (np.array([evalperf[m][task] for task in tasks]) for m in (a, b))
        seen.append(_certainty(small, large))
        ladder = [(a, REFERENCE_SIZE_B, float(small.mean())), (b, REFERENCE_SIZE_B, float(large.mean()))]
        p, _ = single_call("fit/evalperf", queries, ladder, parameters)
        share = rng.binomial(EVALPERF_SAMPLES, p) / EVALPERF_SAMPLES
        generated.append(_certainty(share[:, 0], share[:, 1]))
    return _mean(seen), _mean(generated)


def _mean(values: Sequence[Certainty]) -> Certainty:
    table = np.array([(v.viable, v.extreme, v.spread, v.better) for v in values]).mean(axis=0)
    return Certainty(*table.tolist())


def second_stage_weight_seen(data: Path) -> tuple[float, int]:
    """Return the weight of the second stage's model in Aider's architect-editor table, and the number of rows.

    Least squares of probit pass rates on those of the two models alone, with an intercept; weight = second / (both).
    """
    x, y = [], []
    with (data / "stage_combo_tables" / "stage_model_combinations.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            first, second = row["stage1_model"], row["stage2_model"]
            if "133" in row["benchmark"] and first in AIDER_ALONE and second in AIDER_ALONE:
                x.append([1.0, NORMAL.inv_cdf(AIDER_ALONE[first]), NORMAL.inv_cdf(AIDER_ALONE[second])])
                y.append(NORMAL.inv_cdf(float(row["pass_rate_2_pct"]) / 100))
    solution = np.linalg.lstsq(np.array(x), np.array(y), rcond=None)[0]
    return float(solution[2] / (solution[1] + solution[2])), len(y)


def second_stage_weight_generated(parameters: GeneratorParameters, queries: int = 8192) -> float:
    """Return the same weight for a draft and its revision by models that alone reach 0.5 to 0.8."""
    graph = chain_graph()
    scale = solve_scale(graph, parameters)
    alone = (0.5, 0.6, 0.7, 0.8)
    latents = Latents("fit/chain", queries, 2, parameters)
    quality = Quality(graph, latents, tuple((f"model {k}", REFERENCE_SIZE_B) for k in range(len(alone))))
    m = len(alone)
    own = np.stack([np.full(2, k) for k in range(m)])
    base = quality.state(own, scale, np.zeros((2, m))) / scale.noise
    level = np.array([solve_level(base[:, k], accuracy) for k, accuracy in enumerate(alone)]) * scale.noise
    digits = configuration_digits(m, 2)
    p = normal_cdf(quality.state(digits, scale, np.tile(level, (2, 1))) / scale.noise).mean(axis=0)
    z = np.array([NORMAL.inv_cdf(a) for a in alone])
    x = np.column_stack([np.ones(len(digits)), z[digits[:, 0]], z[digits[:, 1]]])
    solution = np.linalg.lstsq(x, np.array([NORMAL.inv_cdf(float(v)) for v in p]), rcond=None)[0]
    return float(solution[2] / (solution[1] + solution[2]))


@dataclass(frozen=True)
class TableCheck:
    """What one generated table is like; shares of queries unless stated otherwise."""

    workflow: str
    family: str
    uniform: tuple[float, ...]
    """Accuracy with one model everywhere, smallest first."""
    large_first: float
    """Accuracy with the largest model in the first LLM stage, the smallest in the others."""
    large_last: float
    best: float
    """Accuracy of the best configuration."""
    inversions: tuple[float, ...]
    """Expected 'small right, large wrong' of uniform configurations: 1>2, 1>3, 2>3."""
    worse: float
    """Share of (query, configuration, call) in which the next larger model in one call lowers p by over 0.02."""
    much_worse: float
    """The same, by over 0.1."""
    cheaper_viable: float
    smallest_viable: float
    viable: float
    """Mean share of configurations that are viable."""


def check_table(table: OutcomeTable, family: str) -> TableCheck:
    """Return what a table is like."""
    m, n = len(table.models), len(table.llm_nodes)
    p = table.p_correct.astype(np.float64)
    digits = configuration_digits(m, n)
    uniform = [table.uniform_configuration(k) for k in range(m)]
    steps = []
    for k in range(n):
        lower = np.flatnonzero(digits[:, k] < m - 1)
        steps.append((p[:, lower + m ** (n - 1 - k)] - p[:, lower]).ravel())
    gain = np.concatenate(steps)
    viable = table.almost_as_likely()
    accuracy = table.accuracy
    u = p[:, uniform]
    # the first LLM stage may be several copies (the voters): all of them count as first
    stage = [name.partition("[")[0] for name in (table.nodes[k] for k in table.llm_nodes)]
    first = np.array([name == stage[0] for name in stage])
    last = np.array([name == stage[-1] for name in stage])
    place = m ** np.arange(n - 1, -1, -1)
    return TableCheck(
        table.workflow,
        family,
        tuple(accuracy[uniform].tolist()),
        float(accuracy[int(((m - 1) * first * place).sum())]),
        float(accuracy[int(((m - 1) * last * place).sum())]),
        float(accuracy.max()),
        tuple(float((u[:, a] * (1 - u[:, b])).mean()) for a, b in ((0, 1), (0, m - 1), (1, m - 1))),
        float((gain < -0.02).mean()),
        float((gain < -0.1).mean()),
        float(viable[:, :-1].any(axis=1).mean()),
        float(viable[:, 0].mean()),
        float(viable.mean()),
    )


def check_tables(parameters: Mapping[str, GeneratorParameters]) -> list[TableCheck]:
    """Return the checks of the shipped workflows on two families; parameters by workflow name."""
    result = []
    for family, names in FAMILIES.items():
        for name in WORKFLOWS:
            workflow = load_workflow(name)
            table = draw_table(workflow, unroll(workflow), [model(m) for m in names], parameters=parameters[name])
            result.append(check_table(table, family))
    return result
