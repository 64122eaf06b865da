"""Report the routers of a scenario: held-out quality, heads asked, milliseconds; writes the tables of docs/router.md.

python -m scripts.router_report [SCENARIO] [--write]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aragog_env.compiled_scenario import compile_scenario
from aragog_env.outcomes import OutcomeTable
from aragog_env.queries import QuerySet
from aragog_env.specs.load import load_scenario
from policies.aragog.cost import RoutingCost
from policies.aragog.embedders import NgramEmbedder
from policies.aragog.heads import Floats
from policies.aragog.report import held_out_report, markdown
from policies.aragog.router import Router
from policies.aragog.selection import with_largest
from policies.aragog.store import find_or_train
from policies.aragog.training import labelling_run

from .pages import write_part

PAGE = Path(__file__).resolve().parent.parent / "docs" / "router.md"
COMMAND = "python -m scripts.router_report --write"
SAMPLE = 200
BATCH = 64


@dataclass(frozen=True)
class Times:
    """Milliseconds per query on one core, means over a sample."""

    workflow: str
    pruned_ms: float
    """One query at a time."""
    batch_ms: float
    """64 queries at a time."""
    every_ms: float
    """One query at a time, all heads in one grouped product per layer."""
    every_batch_ms: float
    heads: float
    head_us: float
    """Of `pruned_ms`, per head."""


def main() -> None:
    """Print the report; with --write, put it into docs/router.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="?", default="default")
    parser.add_argument("--write", action="store_true", help=f"replace the tables of {PAGE.name}")
    options = parser.parse_args()
    reports, times = [], []
    for table in compile_scenario(load_scenario(options.scenario)).outcomes:
        router = Router(find_or_train(table))
        vectors = router.embedder.embed(table.query_set)
        labels = labelling_run(table, router.checkpoint.manifest["settings"]["seed"])
        pruned = router.route_table(vectors)
        scores = held_out_scores(router, vectors)
        reports.append(held_out_report(table, labels, scores, pruned, router.checkpoint.fold_of))
        times.append(measure(table, router, vectors))
    text = markdown(reports) + "\n" + times_table(times) + "\n" + embedding_line()
    print(text)
    if options.write:
        write_part(PAGE, COMMAND, text)


def held_out_scores(router: Router, vectors: Floats) -> Floats:
    """Return every head's logit above its threshold, each question by the fold that has not seen it, (Q, C)."""
    checkpoint = router.checkpoint
    score = np.empty((len(vectors), router.order.shape[0]), np.float32)
    for k, fold in enumerate(checkpoint.folds):
        rows = checkpoint.fold_of == k
        score[rows] = fold.heads.logits(vectors[rows]) - np.float32(fold.threshold)
    return score


def measure(table: OutcomeTable, router: Router, vectors: Floats) -> Times:
    """Time pruned and full routing on the first questions."""
    few = vectors[:SAMPLE]
    fold = router.checkpoint.folds[0]
    router.predict_vectors(few[:2])  # compile
    singles = [few[i : i + 1] for i in range(len(few))]
    batches = [few[i : i + BATCH] for i in range(0, len(few), BATCH)]
    pruned = _ms(lambda: [router.predict_vectors(x) for x in singles], len(few))
    asked = float(np.mean([router.predict_vectors(x).heads[0] for x in singles]))
    return Times(
        workflow=table.workflow,
        pruned_ms=pruned,
        batch_ms=_ms(lambda: [router.predict_vectors(x) for x in batches], len(few)),
        every_ms=_ms(lambda: [with_largest(fold.heads.logits(x) >= fold.threshold) for x in singles], len(few)),
        every_batch_ms=_ms(lambda: [with_largest(fold.heads.logits(x) >= fold.threshold) for x in batches], len(few)),
        heads=asked,
        head_us=pruned * 1000 / max(1.0, asked),
    )


def times_table(times: list[Times]) -> str:
    """Return the times as a Markdown table."""
    lines = [
        "| workflow | heads | pruned, ms | per head, us | pruned, by 64, ms | every head, ms | by 64, ms |",
        "|" + " --- |" * 7,
    ]
    lines += [
        f"| {t.workflow} | {t.heads:.1f} | {t.pruned_ms:.2f} | {t.head_us:.0f} | {t.batch_ms:.3f} | {t.every_ms:.2f} "
        f"| {t.every_batch_ms:.3f} |"
        for t in times
    ]
    return "\n".join(lines) + "\n"


def embedding_line() -> str:
    """Return what the built-in embedder takes for a text of about 500 characters."""
    text = "How many of the 42 apples that Ann picked on Monday are left after she gave a third to her brother? " * 5
    queries = QuerySet((), (text,) * 100, np.zeros((100, 0), np.float32), np.full(100, len(text) // 4, np.int32))
    embedder = NgramEmbedder()
    took = _ms(lambda: embedder.embed(queries), 100)
    stated = RoutingCost.of(embedder.name)
    return (
        f"Embedding a text of {len(text)} characters by `{embedder.name}`: {took:.2f} ms. Charged to the clock of a "
        f"simulation: {stated.embed_s * 1e3:.2f} ms and {stated.head_s * 1e6:.0f} us per head.\n"
    )


def _ms(work: Callable[[], object], count: int) -> float:
    """Return milliseconds per item, the best of three runs."""
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best * 1e3 / count


if __name__ == "__main__":
    main()
