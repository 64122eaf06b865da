"""The fit: from public results to the parameters of the generator, each with the sentence that says where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from aragog_env.synthetic.parameters import GeneratorParameters

from . import data as public
from . import estimates as estimate
from .generated import repair_gains, single_call
from .text import Signal, comparable_pairs, embed, signal

COPY_SHARING: Final = {"voting_mmlu_pro": 1.0, "decomposition_strategyqa": 0.0}
"""Voters get one and the same prompt; solvers get different sub-questions (both follow from the prompts)."""
LIKE: Final = {
    "voting_mmlu_pro": ("MMLU-Pro", "MMLU"),
    "self_refine_humaneval": ("CRUXEval", "CRUXEval"),
    "text_to_sql_bird": ("CRUXEval", "CRUXEval"),
}
"""Workflow -> data sets nearest to it: for the correlation of siblings, and for what texts tell."""
CODE: Final = ("CRUXEval", "EvalPerf", "LiveCodeBench")


@dataclass(frozen=True)
class Size:
    """How much work the fit does; smaller for tests."""

    models: int = 24
    """Models per data set, evenly over their accuracies."""
    pairs: int = 40
    """Pairs of models per data set for 'which one is right'."""
    replicates: int = 2
    """Synthetic data sets per step of the calibration."""
    steps: int = 8
    chain_queries: int = 8192


@dataclass(frozen=True)
class Public:
    """Everything that is read."""

    answers: Mapping[str, public.Answers]
    """By name: GSM8K, MATH-L5, CRUXEval, MMLU-Pro."""
    texts: Mapping[str, public.Answers]
    """Sets with question texts."""
    evalperf: Mapping[str, Mapping[str, float]]
    stages: estimate.Stages
    aider: list[tuple[str, float, float]]


@dataclass(frozen=True)
class TextFit:
    """What texts of one data set tell, and the generator's shares at which its features tell as much."""

    dataset: str
    queries: int
    models: int
    pairs: int
    real: Signal
    text_difficulty: float
    text_strength: float
    generated: Signal


@dataclass(frozen=True)
class Fit:
    """The parameters and what they were made from."""

    parameters: GeneratorParameters
    changes: dict[str, dict[str, float]]
    pairs: list[estimate.Pair]
    siblings: dict[str, float]
    repeats: dict[str, list[float]]
    stage_pairs: list[estimate.StagePair]
    repairs: dict[str, tuple[float, float]]
    repaired: float
    """Mean gain of a second call in the generator, at the accuracies of `repairs`."""
    lengths: dict[str, list[float]]
    length_noise: dict[str, float]
    texts: list[TextFit]


def read(data: Path) -> Public:
    """Read all the public results that the fit uses."""
    zeroeval = {name: public.zeroeval(data, name) for name in public.REPEATS}
    answers = {a.name: a for a in (*zeroeval.values(), public.mmlu_pro(data))}
    texts = {a.name: a for a in (*zeroeval.values(), public.mmlu_two_models(data))}
    stages = public.livecodebench(data)
    return Public(answers, texts, public.evalperf(data), stages, estimate.aider_repairs(data))


def repeats_of(source: Public) -> dict[str, list[float]]:
    """Return the correlations of models with themselves, by data set."""
    names = {"gsm": "GSM8K", "math-l5": "MATH-L5", "crux": "CRUXEval"}
    result = {name: estimate.provider_repeats(source.answers[name], key) for key, name in names.items()}
    shares = [np.array(list(tasks.values())) for tasks in source.evalperf.values()]
    result["EvalPerf"] = estimate.sample_repeats(shares, estimate.EVALPERF_SAMPLES)
    result["LiveCodeBench"] = list(estimate.stage_repeats(source.stages).values())
    return result


def fit_all(source: Public, size: Size) -> Fit:
    """Fit every parameter."""
    pairs = [pair for answers in source.answers.values() for pair in estimate.sibling_pairs(answers)]
    angle, siblings = estimate.fit_siblings(pairs)
    repeats = repeats_of(source)
    typical = {name: float(np.median(values)) for name, values in repeats.items()}
    stage_pairs = estimate.stage_pairs(source.stages)
    lengths = {a.name: list(estimate.length_correlation(a).values()) for a in source.answers.values()}
    sibling, repeat = float(np.mean(list(siblings.values()))), float(np.mean(list(typical.values())))
    parameters = GeneratorParameters(
        sibling_correlation=round(sibling, 3),
        size_angle=round(angle, 3),
        repeat_correlation=round(repeat, 3),
        difficulty_sharing=round(float(np.mean([p.difficulty_sharing for p in stage_pairs])), 3),
        strength_sharing=round(float(np.mean([p.strength_sharing for p in stage_pairs])), 3),
        copy_sharing=0.5,
        stage_skill_sigma=round(estimate.stage_skill_sigma(source.stages), 3),
        repair=0.0,
        length_difficulty=round(length_drift(lengths, sibling, repeat), 3),
        length_sharing=0.5,
        skip_difficulty=0.5,
        text_difficulty=0.0,
        text_strength=0.0,
    )
    repairs = estimate.self_repair(source.stages)
    parameters, repaired = fit_repair(parameters, repairs, size)
    code = round(float(np.mean([typical[name] for name in CODE])), 3)
    texts = [
        fit_text(source.texts[name], embed(source.texts[name].texts), of_dataset(parameters, name, siblings), size)
        for name in source.texts
    ]
    told = {text.dataset: text for text in texts}
    parameters = replace(
        parameters,
        text_difficulty=round(float(np.mean([text.text_difficulty for text in texts])), 3),
        text_strength=round(float(np.mean([text.text_strength for text in texts])), 3),
    )
    changes: dict[str, dict[str, float]] = {}
    for workflow, (skill, text) in LIKE.items():
        changes[workflow] = {
            "sibling_correlation": round(siblings[skill], 3),
            **({"repeat_correlation": code} if skill in CODE else {}),
            "text_difficulty": told[text].text_difficulty,
            "text_strength": told[text].text_strength,
        }
    for workflow, share in COPY_SHARING.items():
        changes.setdefault(workflow, {})["copy_sharing"] = share
    noise = {name: estimate.repeat_length_sigma(source.answers[name], key) for key, name in
             {"gsm": "GSM8K", "math-l5": "MATH-L5", "crux": "CRUXEval"}.items()}  # fmt: skip
    return Fit(parameters, changes, pairs, siblings, repeats, stage_pairs, repairs, repaired, lengths, noise, texts)


def of_dataset(parameters: GeneratorParameters, name: str, siblings: Mapping[str, float]) -> GeneratorParameters:
    """Return the parameters with the correlation of siblings of one data set."""
    return replace(parameters, sibling_correlation=siblings.get(name, parameters.sibling_correlation))


def length_drift(lengths: Mapping[str, list[float]], sibling: float, repeat: float) -> float:
    """Return `length_difficulty`: minus the mean correlation of length and being right, over what carries it.

    Of log length, the share `query_correlation` (0.6 unless a workflow says otherwise) follows difficulty and the rest the
    model's own strength; of the latent behind the answer, the shares `sibling` and `repeat - sibling` do.
    """
    carried = np.sqrt(0.6 * sibling) + np.sqrt(0.4 * (repeat - sibling))
    return float(-np.mean([np.mean(values) for values in lengths.values()]) / carried)


def fit_repair(
    parameters: GeneratorParameters, repairs: Mapping[str, tuple[float, float]], size: Size
) -> tuple[GeneratorParameters, float]:
    """Return the parameters with `repair` such that a second call gains as much as self-repair does on average."""
    before = [first for first, _ in repairs.values()]
    target = float(np.mean([last - first for first, last in repairs.values()]))

    def gain(repair: float) -> float:
        return float(repair_gains(before, replace(parameters, repair=repair), size.chain_queries).mean())

    best = round(estimate.bisect(gain, target, 0.0, 1.0), 3)
    return replace(parameters, repair=best), gain(best)


def fit_text(answers: public.Answers, features: public.Floats, parameters: GeneratorParameters, size: Size) -> TextFit:
    """Return the shares at which the same predictor does as well on synthetic features as on real texts."""
    models = [m for m, right in answers.right.items() if not np.isnan(right).any() and 0.05 < right.mean() < 0.95]
    models.sort(key=lambda m: (float(answers.right[m].mean()), m))
    chosen = np.unique(np.linspace(0, len(models) - 1, size.models).round().astype(int))
    models = [models[i] for i in chosen]
    right = np.stack([answers.right[m] for m in models], axis=1)
    pairs = comparable_pairs(right, size.pairs)
    real = signal(features, right, pairs)
    sizes = {name: size_b for ladder in public.LADDERS.values() for name, size_b in ladder}
    ladder = [(m, sizes.get(m, 10.0), float(right[:, k].mean())) for k, m in enumerate(models)]

    def generated(difficulty: float, strength: float) -> Signal:
        changed = replace(parameters, text_difficulty=difficulty, text_strength=strength)
        found = []
        for seed in range(size.replicates):
            p, x = single_call(f"fit/{answers.name}", len(right), ladder, changed, seed)
            drawn = (np.random.default_rng(seed).random(p.shape) < p).astype(float)
            found.append(signal(x.astype(float), drawn, comparable_pairs(drawn, size.pairs)))
        return Signal(float(np.mean([f.right_auc for f in found])), float(np.mean([f.which_auc for f in found])))

    strength = 0.2  # the two hardly touch each other: difficulty first, then strength, then difficulty again
    difficulty = estimate.bisect(lambda x: generated(x, strength).right_auc, real.right_auc, 0.0, 1.0, size.steps)
    strength = estimate.bisect(lambda x: generated(difficulty, x).which_auc, real.which_auc, 0.0, 1.0, size.steps)
    difficulty = estimate.bisect(lambda x: generated(x, strength).right_auc, real.right_auc, 0.0, 1.0, size.steps)
    difficulty, strength = round(difficulty, 3), round(strength, 3)
    return TextFit(
        answers.name, len(right), len(models), len(pairs), real, difficulty, strength, generated(difficulty, strength)
    )
