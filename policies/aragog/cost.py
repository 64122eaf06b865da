"""How long routing takes, as charged to the clock of a simulation: stated numbers, never a wall clock.

A simulation must give the same result on every machine, so the router's time is modelled: a fixed part for the embedding,
and a part per head asked. `scripts.router_report` measures both and prints them beside these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from aragog_env.errors import SpecError

HEAD_S: Final = 15e-6
"""Asking one head about one query, choosing it included: measured on one core of a 2.5 GHz Xeon (docs/router.md)."""
EMBED_S: Final[dict[str, float]] = {
    # Synthetic features stand for an embedding, so they are charged like the built-in one.
    "features": 0.5e-3,
    "ngrams": 0.5e-3,
    # The paper's router as a whole takes about 40 ms per query on an H100 (a third-party figure).
    "sentence-transformers": 40e-3,
}
"""Seconds per query, by kind of embedder: `ngrams` measured on the same core, texts of about 500 characters."""


@dataclass(frozen=True)
class RoutingCost:
    """Seconds for the embedding of a query and for each head asked."""

    embed_s: float
    head_s: float = HEAD_S

    def __post_init__(self) -> None:
        """Refuse negative times."""
        if not (self.embed_s >= 0 and self.head_s >= 0):
            raise SpecError("the times of a router must not be negative")

    @classmethod
    def of(cls, embedder: str) -> RoutingCost:
        """Return the stated cost of an embedder, by the name in a checkpoint."""
        return cls(EMBED_S[embedder.partition(":")[0]])

    def seconds(self, heads: int) -> float:
        """Return the time that embedding and `heads` heads take."""
        return self.embed_s + heads * self.head_s

    def heads(self, budget_s: float) -> int | None:
        """Return how many heads a budget pays for, after the embedding; None: all.

        Raises:
            SpecError: the budget is not a number.
        """
        if math.isnan(budget_s):
            raise SpecError("a routing budget must be a number of seconds")
        if budget_s == math.inf or self.head_s == 0:
            return None if budget_s >= self.embed_s else 0
        # The tolerance keeps a budget of exactly n heads from paying for n - 1.
        return max(0, math.floor((budget_s - self.embed_s) / self.head_s + 1e-9))
