"""How good a router is on questions that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aragog_env.outcomes import OutcomeTable

from .pruning import Pruned
from .selection import SetLoss, blind_sets, with_largest


@dataclass(frozen=True)
class RouterReport:
    """Held-out quality of one workflow's router; means over questions.

    `kept` counts all configurations of the set, `viable_kept` those that really are viable. The blind prior ignores the query:
    the configurations that lose least on the other folds' questions, as many as lose no more accuracy than the router's sets.
    """

    workflow: str
    questions: int
    configurations: int
    precision: float
    """Share of kept configurations that are viable; the largest, which always is, does not count here and below."""
    recall: float
    accuracy_largest: float
    loss: float
    """Accuracy lost by choosing stage by stage among the set, the worse of two ways: `TrainSettings.most_loss` bounds it."""
    loss_any: float
    """Accuracy lost by a member of the set picked at random."""
    loss_cheapest: float
    """Accuracy lost by the cheapest member of the set."""
    loss_every_head: float
    """`loss` without pruning."""
    kept: float
    viable_kept: float
    only_largest: float
    """Share of questions for which nothing but the largest is kept."""
    viable: float
    """Viable configurations there are: what an oracle keeps."""
    blind: float
    """Viable configurations that the blind prior keeps at the same `loss`."""
    heads_every: int
    """Heads without pruning: all but that of the largest."""
    heads_asked: float
    heads_p95: float
    changed: float
    """Share of decisions that pruning changed."""


def held_out_report(
    table: OutcomeTable,
    labels: NDArray[np.bool_],
    score: NDArray[np.float32],
    pruned: Pruned,
    fold_of: NDArray[np.int16],
) -> RouterReport:
    """Return the report of held-out scores (Q, C) and what pruning made of them; `fold_of` (Q,) as in `Checkpoint`."""
    loss = SetLoss.of(table)
    sets, every = pruned.sets(), with_largest(score >= 0)
    blind = blind_sets(loss.gap, fold_of, loss, loss(sets))
    hits = int((sets & labels)[:, :-1].sum())
    return RouterReport(
        workflow=table.workflow,
        questions=table.queries,
        configurations=table.configurations,
        precision=_share(hits, int(sets[:, :-1].sum())),
        recall=_share(hits, int(labels[:, :-1].sum())),
        accuracy_largest=float(table.accuracy[-1]),
        loss=loss(sets),
        loss_any=loss.any_member(sets),
        loss_cheapest=loss.cheapest(sets),
        loss_every_head=loss(every),
        kept=float(sets.sum(axis=1).mean()),
        viable_kept=float((sets & labels).sum(axis=1).mean()),
        only_largest=float((sets.sum(axis=1) == 1).mean()),
        viable=float(labels.sum(axis=1).mean()),
        blind=float((labels & blind).sum(axis=1).mean()),
        heads_every=table.configurations - 1,
        heads_asked=float(pruned.asked.mean()),
        heads_p95=float(np.percentile(pruned.asked, 95)),
        changed=float((sets != every)[:, :-1].mean()),
    )


def _share(part: int, whole: int) -> float:
    """Return part / whole; 1 of nothing, since nothing kept is nothing wrong."""
    return part / whole if whole else 1.0


COLUMNS: dict[str, Callable[[RouterReport], str]] = {
    "workflow": lambda r: r.workflow,
    "questions": lambda r: str(r.questions),
    "precision": lambda r: f"{r.precision:.1%}",
    "recall": lambda r: f"{r.recall:.1%}",
    "loss": lambda r: f"{r.loss:.2%}",
    "loss, any": lambda r: f"{r.loss_any:.2%}",
    "loss, cheapest": lambda r: f"{r.loss_cheapest:.2%}",
    "kept": lambda r: f"{r.kept:.1f} of {r.configurations}",
    "viable kept": lambda r: f"{r.viable_kept:.1f}",
    "blind": lambda r: f"{r.blind:.1f}",
    "viable": lambda r: f"{r.viable:.1f}",
    "heads asked": lambda r: f"{r.heads_asked:.1f} of {r.heads_every} ({r.heads_asked / r.heads_every:.0%})",
    "changed": lambda r: f"{r.changed:.2%}",
}
"""What a table of reports shows; explained in docs/router.md."""


def rows(reports: Sequence[RouterReport]) -> list[tuple[str, ...]]:
    """Return the table's cells, the header first."""
    return [tuple(COLUMNS), *(tuple(cell(report) for cell in COLUMNS.values()) for report in reports)]


def markdown(reports: Sequence[RouterReport]) -> str:
    """Return the reports as a Markdown table, a line per workflow."""
    head, *body = rows(reports)
    lines = [head, ("---",) * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
