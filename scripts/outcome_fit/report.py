"""Writing the fit down: the preset file that the generator reads, and the report in `docs/`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import numpy as np

from aragog_env.synthetic.parameters import GeneratorParameters

from . import checks
from .fit import Fit, Public

ASSUMED: Final = {
    "copy_sharing": "assumption: half; 1 for voters (one prompt), 0 for solvers (different sub-questions), see below",
    "length_sharing": "assumption",
    "skip_difficulty": "assumption",
}


def origins(fit: Fit) -> dict[str, str]:
    """Return for every parameter where its value comes from."""
    siblings = ", ".join(f"{name} {value:.2f}" for name, value in sorted(fit.siblings.items()))
    repeats = ", ".join(f"{name} {np.median(values):.2f}" for name, values in fit.repeats.items())
    pairs = "; ".join(
        f"{p.first} / {p.second} {p.difficulty_sharing:.2f}, {p.strength_sharing:.2f}" for p in fit.stage_pairs
    )
    gain = np.mean([last - first for first, last in fit.repairs.values()])
    lengths = ", ".join(f"{name} {np.mean(values):.2f}" for name, values in fit.lengths.items())
    texts = "; ".join(
        f"{t.dataset} {t.real.right_auc:.3f} -> {t.text_difficulty:.2f}, {t.real.which_auc:.3f} -> {t.text_strength:.2f}"
        for t in fit.texts
    )
    return {
        "sibling_correlation": f"tetrachoric, siblings of equal size, mean of: {siblings}",
        "size_angle": f"least squares over {len(fit.pairs)} pairs of sizes of those four data sets",
        "repeat_correlation": f"tetrachoric, a model with itself, mean of the medians: {repeats}",
        "difficulty_sharing": f"LiveCodeBench, pairs of stages on shared problems (difficulty, strength): {pairs}",
        "strength_sharing": "the same pairs of stages",
        "stage_skill_sigma": "LiveCodeBench, probit accuracies of 20 models in three stages, residual after model and stage",
        "repair": f"one self-repair gains {100 * gain:.1f} points (mean of {len(fit.repairs)} models, LiveCodeBench)",
        "length_difficulty": f"biserial correlation of log length and right: {lengths}",
        "text_difficulty": f"out-of-fold AUC of a ridge on hashed n-grams -> share with the same AUC (right; which): {texts}",
        "text_strength": "the same predictor, which of two models is right",
        **ASSUMED,
    }


def write_preset(fit: Fit, path: Path) -> None:
    """Write the preset file of parameters."""
    sources = origins(fit)
    lines = [
        "# Parameters of the synthetic outcome generator (aragog_env/synthetic). Written by `python -m scripts.fit_outcomes`;",
        "# docs/outcome_fit.md is the report. Fitted to public per-query results, never to throughput or latency.",
        "parameters:",
    ]
    for name, value in asdict(fit.parameters).items():
        lines += _comment(sources[name], "  # ")
        lines.append(f"  {name}: {value:g}")
    lines.append(
        "# Changes for workflows that resemble one of the data sets (which one is an assumption), and for copies."
    )
    lines.append("workflows:")
    for workflow, changes in sorted(fit.changes.items()):
        lines.append(f"  {workflow}: {{{', '.join(f'{k}: {v:g}' for k, v in changes.items())}}}")
    lines.append("source: >-")
    lines += textwrap.wrap(
        "ZeroEval (Apache-2.0), MMLU-Pro results (Apache-2.0), LiveCodeBench (CC-BY-SA-4.0), EvalPerf (Apache-2.0), RouteLLM "
        "(Apache-2.0); statistics only.",
        118,
        initial_indent="  ",
        subsequent_indent="  ",
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _comment(text: str, prefix: str, width: int = 120) -> list[str]:
    lines, line = [], prefix
    for word in text.split():
        if len(line) + len(word) + 1 > width and line != prefix:
            lines.append(line.rstrip())
            line = prefix
        line += word + " "
    return [*lines, line.rstrip()]


def prose(text: str) -> list[str]:
    """Return a paragraph in lines, and an empty line."""
    return [*textwrap.wrap(text, 125, break_long_words=False, break_on_hyphens=False), ""]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows] + [""]


def percent(value: float) -> str:
    """Write a share in percent."""
    return f"{100 * value:.1f}"


def write_report(fit: Fit, source: Public, data: Path, path: Path) -> None:
    """Write the report."""
    by_workflow = {name: workflow_parameters(fit, name) for name in checks.WORKFLOWS}
    lines = [
        "# Outcome generator: fit report",
        "",
        *prose(
            "Written by `python -m scripts.fit_outcomes`; do not edit. Workflows without a measured outcome table "
            "get a synthetic one (`aragog_env/synthetic`, [file format](outcome_tables.md)). Its parameters were "
            "fitted to public per-query results and, through the accuracies in the workflow files, to the "
            "accuracy of the largest configuration that the Aragog paper gives for each workflow and family. "
            "**Nothing else of that paper was used: no throughput, no latency, none of its shares of viable or "
            "repaired configurations.** All percentages are of queries unless stated otherwise."
        ),
        *_parameters(fit),
        *_inversions(fit),
        *_correlations(fit),
        *_stages(fit, source, data),
        *_lengths(fit),
        *_texts(fit),
        *_tables(by_workflow),
    ]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def workflow_parameters(fit: Fit, workflow: str) -> GeneratorParameters:
    """Return the parameters of one workflow."""
    return replace(fit.parameters, **fit.changes.get(workflow, {}))


def _parameters(fit: Fit) -> list[str]:
    sources = origins(fit)
    rows = [(f"`{name}`", f"{value:g}", sources[name]) for name, value in asdict(fit.parameters).items()]
    changes = [
        (f"`{workflow}`", ", ".join(f"{name} {value:g}" for name, value in values.items()))
        for workflow, values in sorted(fit.changes.items())
    ]
    return [
        "## Parameters", "",
        *table(("parameter", "value", "from"), rows),
        "Some workflows take the values of the data set nearest to them (which one that is, is an assumption):", "",
        *table(("workflow", "changes"), changes),
        *prose(
            "Also assumed, not fitted: accuracies of all but the largest configuration and the `quality_weight` "
            "of each stage (the workflow files say from what), normal latents, the same call noise for every "
            "query, and that the correlations of single calls hold for the final answers of workflows (whole "
            "agents on SWE-bench Verified: siblings 0.61 to 0.89)."
        ),
    ]  # fmt: skip


def _inversions(fit: Fit) -> list[str]:
    found = checks.inversions(fit.pairs, fit.parameters.size_angle, fit.siblings)
    rows = [(i.dataset, i.gap, i.pairs, percent(i.seen), percent(i.generated), percent(i.worst)) for i in found]
    return [
        "## Inversions: the smaller model right, the larger wrong", "",
        *prose(
            "Pairs of sizes of one family; generated = at the same accuracies and size ratio, with the correlation of "
            "the data set."
        ),
        *table(("data set", "size ratio", "pairs", "data", "generator", "worst pair off by"), rows),
    ]  # fmt: skip


def _correlations(fit: Fit) -> list[str]:
    rows = []
    for name, sibling in sorted(fit.siblings.items()):
        seen = [p.correlation for p in fit.pairs if p.dataset == name and np.isfinite(p.correlation)]
        rows.append((name, len(seen), f"{np.median(seen):.2f} ({min(seen):.2f}-{max(seen):.2f})", f"{sibling:.2f}"))
    repeats = [
        (name, len(v), f"{np.median(v):.2f} ({min(v):.2f}-{max(v):.2f})", f"{fit.parameters.repeat_correlation:.2f}")
        for name, v in fit.repeats.items()
    ]
    return [
        "## Correlations behind right and wrong (tetrachoric)", "",
        "Siblings; 'equal size' is the fitted value, which falls with the size ratio by `size_angle`:", "",
        *table(("data set", "pairs", "data, median (range)", "equal size"), rows),
        *prose(
            "One model twice: providers of one model (GSM8K, MATH-L5, CRUXEval; greedy), samples at T = 1 "
            "(EvalPerf, by model) and T = 0.2 (LiveCodeBench, medians by stage). Providers differ in precision "
            "and kernels, so this bounds the noise:"
        ),
        *table(("data set", "values", "data, median (range)", "generator"), repeats),
    ]  # fmt: skip


def _stages(fit: Fit, source: Public, data: Path) -> list[str]:
    pairs = [
        (f"{p.first}, {p.second}", p.problems, p.models, f"{p.same_model:.2f}", f"{p.other_model:.2f}",
         f"{p.within[0]:.2f}, {p.within[1]:.2f}", f"{p.difficulty_sharing:.2f}", f"{p.strength_sharing:.2f}")
        for p in fit.stage_pairs
    ]  # fmt: skip
    gains = np.array([last - first for first, last in fit.repairs.values()])
    fixed = np.array([(last - first) / (1 - first) for first, last in fit.repairs.values()])
    aider = np.array([(first, last) for _, first, last in source.aider])
    seen, generated = checks.certainty(source.evalperf, fit.parameters)
    weight, count = checks.second_stage_weight_seen(data)
    return [
        "## Stages and repair", "",
        *prose(
            "Stages of LiveCodeBench on problems they share: correlation of one model in both, of different "
            "models in both, and of different models in each; from these the shares in common. A workflow's "
            "stages lie between different tasks on one problem and a repair of the same answer, so the mean over "
            "the four pairs is used (assumption)."
        ),
        *table(
            ("stages", "problems", "models", "same model", "other models", "within each", "difficulty", "strength"),
            pairs,
        ),
        *table(
            ("", "data", "generator"),
            [
                ("mean gain of one self-repair, points (fitted)", percent(float(gains.mean())), percent(fit.repaired)),
                ("- range over models, points", f"{percent(gains.min())} to {percent(gains.max())}", "-"),
                ("- failures repaired, mean", percent(float(fixed.mean())), "-"),
                ("second try of Aider with test output, mean gain, points (not fitted)",
                 percent(float((aider[:, 1] - aider[:, 0]).mean())), "-"),
                (f"weight of the second stage's model (not fitted; Aider architect -> editor, {count} rows)",
                 f"{weight:.2f}", f"{checks.second_stage_weight_generated(fit.parameters):.2f}"),
                ("EvalPerf (not fitted): small model at most 0.02 worse", percent(seen.viable), percent(generated.viable)),
                ("EvalPerf: probabilities below 5 or above 95", percent(seen.extreme), percent(generated.extreme)),
                ("EvalPerf: small model better by over 0.1", percent(seen.better), percent(generated.better)),
                ("EvalPerf: mean p (1 - p)", percent(seen.spread), percent(generated.spread)),
            ],
        ),
        *prose(
            "Self-repair sees the error message and Aider's second try the failing test; a self-refine workflow "
            "sees neither, so both are upper bounds for it. EvalPerf samples at T = 1 and is noisier than the "
            "mean of all repeats."
        ),
    ]  # fmt: skip


def _lengths(fit: Fit) -> list[str]:
    p = fit.parameters
    carried = np.sqrt(0.6 * p.sibling_correlation) + np.sqrt(0.4 * (p.repeat_correlation - p.sibling_correlation))
    rows = [
        (name, len(values), f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})",
         f"{-p.length_difficulty * carried:.2f}")
        for name, values in fit.lengths.items()
    ]  # fmt: skip
    noise = ", ".join(f"{name} {value:.2f}" for name, value in fit.length_noise.items())
    return [
        "## Wrong answers are longer", "",
        "Biserial correlation of log output length and being right, by model:", "",
        *table(("data set", "models", "data, mean (range)", "generator"), rows),
        *prose(
            f"The same model at two providers, standard deviation of log length: {noise}. The table built from "
            "MMLU-Pro uses their mean for the voters' copies."
        ),
    ]  # fmt: skip


def _texts(fit: Fit) -> list[str]:
    rows = [
        (t.dataset, t.queries, t.models, f"{t.real.right_auc:.3f}", f"{t.generated.right_auc:.3f}", f"{t.text_difficulty:.2f}",
         f"{t.real.which_auc:.3f}", f"{t.generated.which_auc:.3f}", f"{t.text_strength:.2f}")
        for t in fit.texts
    ]  # fmt: skip
    header = ("data set", "queries", "models", "right: data", "generator", "share", "which: data", "generator", "share")
    return [
        "## What the text of a question tells", "",
        *prose(
            "A ridge regression on hashed character 3- to 5-grams (512 dimensions and the log length), 5-fold by "
            "question, predicts which questions a model gets right, and which of two models is right where one "
            "is; mean out-of-fold area under the ROC curve. The share of difficulty and of models' own strengths "
            "that the 32 features of a synthetic query tell is set such that the same predictor does as well on "
            "them."
        ),
        *table(header, rows),
        *prose(
            "A stronger embedding tells more: docs/router.md has what all-MiniLM-L6-v2 tells (`python -m "
            "scripts.measure_embedder`), and docs/reproduction.md what that is worth."
        ),
    ]  # fmt: skip


def _tables(parameters: dict[str, GeneratorParameters]) -> list[str]:
    found = checks.check_tables(parameters)
    accuracy = [
        (c.family, c.workflow, *(f"{a:.3f}" for a in (*c.uniform, c.large_first, c.large_last, c.best))) for c in found
    ]
    shape = [
        (c.family, c.workflow, " ".join(percent(i) for i in c.inversions), percent(c.worse), percent(c.much_worse),
         percent(c.cheaper_viable), percent(c.smallest_viable), percent(c.viable))
        for c in found
    ]  # fmt: skip
    return [
        "## The tables of the shipped workflows", "",
        *prose(
            "Accuracy by class of configuration. The largest is the paper's number for the 32B and 70B model "
            "(five numbers without names, matched by rank), the smaller ones are assumptions of the workflow "
            "files:"
        ),
        *table(
            ("family", "workflow", "all small", "all medium", "all large", "large first", "large last", "best"),
            accuracy,
        ),
        *prose(
            "Inversions of the one-model configurations (small > medium, small > large, medium > large); steps to "
            "the next larger model in one call that lower the chance of a right answer by more than 0.02 and by "
            "more than 0.1; queries with a viable configuration (at most 0.02 below the largest) other than the "
            "largest, and with the smallest viable; mean share of viable configurations. Data for single calls: "
            "inversions 1 to 12, and EvalPerf's steps of one call above; steps of one call among several have no "
            "counterpart in public data."
        ),
        *table(
            ("family", "workflow", "inversions", "step worse", "by > 0.1", "cheaper viable", "smallest viable", "viable"),
            shape,
        ),
    ]  # fmt: skip
