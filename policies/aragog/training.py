"""Train the router of one workflow: labels from its outcome table, question-wise cross-fitting, thresholds, margin.

Every question is answered at run time by the model that has not seen it (`fold_of`), as a new question would be; so a
simulation on the same table is an honest one. New questions are answered by the first fold's model.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError
from aragog_env.outcomes import OutcomeTable

from .calibration import Calibration
from .checkpoint import Checkpoint, FoldRouter, identity
from .embedders import default_embedder, make_embedder
from .fitting import FitSettings, fit_heads
from .heads import Floats
from .pruning import Pruned, ScorePrior, lattice_order, prune
from .report import held_out_report
from .selection import SetLoss, choose_threshold, with_largest

MARGINS: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Candidates for the half width of the confidence band, in points of expected loss."""
CERTAINTIES: Final = (1.5, 2.0, 2.5, 3.0, 4.0)
"""Candidates for the certainty with which a head is not asked, in standard deviations."""
MOST_CHANGED: Final = 0.004
"""Share of decisions that pruning may change on the training questions: well under the 1% that is allowed on others."""
PRUNED_QUESTIONS: Final = 200
"""Margin and certainty are chosen on so many of the training questions."""
FEWEST_QUESTIONS: Final = 8


@dataclass(frozen=True)
class TrainSettings:
    """How a router is trained; part of the key under which it is cached."""

    embedder: str = ""
    """As `make_embedder` takes it; empty: n-grams where there are texts, else features."""
    folds: int = 0
    """0: 6, or 10 for fewer than 400 questions, where every one counts."""
    seed: int = 0
    most_loss: float = 0.02
    """Accuracy that the viable sets may lose (`SetLoss.upper`), in probability of a right answer: the paper's 2 points."""
    fit: FitSettings = field(default_factory=FitSettings)

    def folds_for(self, questions: int) -> int:
        """Return the number of folds, at most one per two questions."""
        wanted = self.folds or (6 if questions >= 400 else 10)
        return max(2, min(wanted, questions // 2))


def train_router(
    table: OutcomeTable,
    settings: TrainSettings | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """Train the router of one workflow on its outcome table.

    Args:
        table: where labels, accuracies and queries come from.
        settings: see there.
        tell: is told a line per fold.

    Raises:
        SpecError: too few questions, an embedder that needs texts, or torch is not installed.
    """
    settings = settings or TrainSettings()
    if table.queries < FEWEST_QUESTIONS:
        raise SpecError(f"training a router of '{table.workflow}' needs {FEWEST_QUESTIONS} questions or more")
    if settings.folds < 0 or settings.folds == 1:
        raise SpecError(f"cross-fitting needs at least 2 folds, got {settings.folds}")
    embedder = make_embedder(settings.embedder or default_embedder(table.query_set))
    vectors = embedder.embed(table.query_set)
    labels = labelling_run(table, settings.seed)
    lattice = (len(table.models), len(table.llm_nodes))
    order = lattice_order(*lattice)
    count = settings.folds_for(table.queries)
    fold_of = (np.random.default_rng(settings.seed).permutation(table.queries) % count).astype(np.int16)
    logits = np.empty(labels.shape, np.float32)
    stacks = []
    for k in range(count):
        rest = fold_of != k
        heads = fit_heads(vectors[rest], labels[rest], lattice, settings.fit, settings.seed * 1000 + k)
        logits[~rest] = heads.logits(vectors[~rest])
        stacks.append(heads)
        tell(f"{table.workflow}: fold {k + 1} of {count}")
    loss = SetLoss.of(table)
    folds, scores = [], np.empty_like(logits)
    for k, heads in enumerate(stacks):
        own, others = np.flatnonzero(fold_of == k), np.flatnonzero(fold_of != k)
        calibration = Calibration.fit(logits[others], loss.gap[others])
        seen = calibration.of(logits[others])
        threshold, prior = choose_threshold(seen, loss.rows(others), settings.most_loss), ScorePrior.of(seen)
        above = np.asarray(seen - np.float32(threshold), np.float32)
        margin, certain = _choose_pruning(order, prior.shifted(threshold), above)
        # Rounded to what a checkpoint holds.
        folds.append(FoldRouter(calibration.into(heads).half(), threshold, margin, certain, prior))
        scores[own] = folds[-1].heads.logits(vectors[own])
    pruned = prune_folds(order, folds, fold_of, scores)
    report = held_out_report(table, labels, scores_of(folds, fold_of, scores), pruned, fold_of)
    manifest: dict[str, Any] = {
        **identity(table),
        "source": table.source,
        "embedder": embedder.name,
        "settings": asdict(settings),
        "report": asdict(report),
    }
    return Checkpoint(
        manifest,
        fold_of,
        probe_configurations=np.asarray(table.p_correct.mean(axis=0), np.float32),
        probe_queries=np.asarray(table.p_correct.mean(axis=1), np.float32),
        probe_vectors=np.asarray(vectors.mean(axis=0), np.float32),
        folds=tuple(folds),
    )


def labelling_run(table: OutcomeTable, seed: int) -> NDArray[np.bool_]:
    """Return the labels that one run of every configuration on every query gives, (Q, C): right, or as wrong as the largest.

    That is the offline cost of the paper's router (section 3.1): M^N runs per query. It is one sample of the probabilities in
    the table, and no episode's draws are in it.
    """
    rng = np.random.default_rng([seed, zlib.crc32(table.workflow.encode())])
    return table.match_largest(rng.random(table.p_correct.shape))


def _choose_pruning(order: NDArray[np.bool_], prior: ScorePrior, score: Floats) -> tuple[float, float]:
    """Return the margin and certainty that ask the fewest heads and change at most `MOST_CHANGED` of the decisions.

    The widest margin with full certainty, which changes fewest, where none does.
    """
    score = score[:PRUNED_QUESTIONS]
    wanted = with_largest(score >= 0)
    fewest, chosen = math.inf, (MARGINS[-1], math.inf)
    for certain in CERTAINTIES:
        for margin in MARGINS:  # a wider margin asks more
            pruned = prune(order, prior, score, margin, certain)
            asked = float(pruned.asked.mean())
            if asked >= fewest:
                break
            if (pruned.sets() != wanted)[:, :-1].mean() <= MOST_CHANGED:
                fewest, chosen = asked, (margin, certain)
                break
    return chosen


def scores_of(folds: list[FoldRouter] | tuple[FoldRouter, ...], fold_of: NDArray[np.int16], logits: Floats) -> Floats:
    """Return what heads say minus the threshold of each question's fold, (Q, C)."""
    thresholds = np.array([fold.threshold for fold in folds], np.float32)
    return np.asarray(logits - thresholds[fold_of][:, None], np.float32)


def prune_folds(
    order: NDArray[np.bool_],
    folds: list[FoldRouter] | tuple[FoldRouter, ...],
    fold_of: NDArray[np.int16],
    logits: Floats,
) -> Pruned:
    """Prune every question with the margin and the prior of the fold that has not seen it."""
    score = scores_of(folds, fold_of, logits)
    verdict, step = np.zeros(score.shape, np.int8), np.zeros(score.shape, np.int32)
    asked = np.zeros(len(score), np.int32)
    for k, fold in enumerate(folds):
        rows = np.flatnonzero(fold_of == k)
        part = prune(order, fold.prior.shifted(fold.threshold), score[rows], fold.margin, fold.certain)
        verdict[rows], step[rows], asked[rows] = part.verdict, part.step, part.asked
    return Pruned(verdict, step, asked)
