"""The router: which configurations are viable for a query, asked once, at its arrival (Aragog, section 3.1)."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numba
import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError
from aragog_env.outcomes import OutcomeTable
from aragog_env.queries import QuerySet

from .checkpoint import Checkpoint, FoldRouter
from .cost import RoutingCost
from .embedders import make_embedder
from .heads import head_logit
from .pruning import YES, Pruned, answer_head, begin, conclude, lattice_order, next_head
from .store import find_or_train
from .training import TrainSettings, prune_folds

if TYPE_CHECKING:
    from aragog_env.specs.scenario import Scenario
    from aragog_env.view import ClusterInfo


_kernel = cast(Callable[[Callable[..., Any]], Any], numba.njit(cache=True))


@_kernel
def _walk(order, prior, weights, biases, x, threshold, margin, certain, most, state):  # type: ignore[no-untyped-def]
    """Ask the heads that pruning wants, query by query, at most `most` of each; x (b, D) is standardised."""
    width = weights[0].shape[2]
    scratch, out = np.empty(width, np.float32), np.empty(width, np.float32)
    for q in range(x.shape[0]):
        conclude(order, prior, certain, state, q)
        for _ in range(most):
            c = next_head(prior, state, q)
            if c < 0:
                break
            score = head_logit(weights, biases, c, x[q], scratch, out) - threshold
            answer_head(order, prior, c, score, margin, certain, state, q)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the router says about b queries."""

    viable: NDArray[np.bool_]  # (b, C) the largest configuration is always viable
    heads: NDArray[np.int32]  # (b,) heads asked
    seconds: NDArray[np.float64]  # (b,) what routing takes by the router's `cost`


class Router:
    """The router of one workflow: embeds queries, asks heads in the order of pruning, stops when the budget is over.

    Args:
        checkpoint: from `train_router` or `Checkpoint.load`.
        cost: seconds per embedding and head; by default what is stated for the checkpoint's embedder.
    """

    def __init__(self, checkpoint: Checkpoint, cost: RoutingCost | None = None) -> None:
        self.checkpoint = checkpoint
        self.embedder = make_embedder(checkpoint.manifest["embedder"])
        self.cost = cost or RoutingCost.of(self.embedder.name)
        self.order = lattice_order(len(checkpoint.manifest["models"]), len(checkpoint.manifest["llm_nodes"]))

    def predict(self, queries: QuerySet, rows: Sequence[int], budget_s: float = math.inf) -> Prediction:
        """Route new queries, by the model of the first fold.

        Args:
            queries: where they are found.
            rows: which of them.
            budget_s: time per query; undecided configurations are not viable.

        Raises:
            SpecError: the embedder needs texts and there are none.
        """
        return self.predict_vectors(self.embedder.embed(queries)[np.asarray(rows, np.int64)], budget_s)

    def predict_vectors(
        self, vectors: NDArray[np.float32], budget_s: float = math.inf, fold: FoldRouter | None = None
    ) -> Prediction:
        """`predict` for embeddings (b, D), by the model of `fold` (None: the first)."""
        fold = fold or self.checkpoint.folds[0]
        most = self.cost.heads(budget_s)
        prior = fold.prior.shifted(fold.threshold)
        state = begin(self.order, len(vectors), prior.factors.shape[1])
        weights, biases = fold.heads.compiled
        _walk(
            self.order,
            prior,
            weights,
            biases,
            fold.heads.standardise(vectors),
            fold.threshold,
            fold.margin,
            fold.certain,
            self.order.shape[0] if most is None else most,
            state,
        )
        seconds = np.array([self.cost.seconds(int(n)) for n in state.asked])
        return Prediction(state.verdict == YES, state.asked, seconds)

    def score_table(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Ask every head about every query of the table it was trained on, (Q, D), by the fold that has not seen the query.

        Returns:
            Scores (Q, C): minus the expected accuracy loss in points (`calibration`).
        """
        checkpoint = self.checkpoint
        scores = np.empty((len(vectors), self.order.shape[0]), np.float32)
        for k, fold in enumerate(checkpoint.folds):
            rows = checkpoint.fold_of == k
            scores[rows] = fold.heads.logits(vectors[rows])
        return scores

    def prune_table(self, scores: NDArray[np.float32]) -> Pruned:
        """Decide by such scores, asking for them in the order of pruning."""
        return prune_folds(self.order, self.checkpoint.folds, self.checkpoint.fold_of, scores)

    def route_table(self, vectors: NDArray[np.float32]) -> Pruned:
        """Route all queries of the table it was trained on, (Q, D), each by the fold that has not seen it.

        All heads are computed at once, which is faster for a whole table; what pruning asks for is the same.
        """
        return self.prune_table(self.score_table(vectors))


@dataclass(frozen=True, eq=False)
class _Routed:
    """A router and what it says about the table of a scenario's workflow."""

    router: Router
    pruned: Pruned
    sets: NDArray[np.bool_]  # (Q, C) without a budget
    losses: NDArray[np.float32]  # (Q, C) expected, in points


_KNOWN: Final[weakref.WeakKeyDictionary[OutcomeTable, dict[tuple[object, ...], _Routed]]] = weakref.WeakKeyDictionary()
"""Per table and settings: policies of one process share what they have in common."""


class RouterViableSets:
    """Viable sets predicted by a learned router; see `policies.viability.ViableSets`.

    Queries of the table are answered by the fold that has not seen them, so no set is known by heart. A budget cuts the
    (fixed) order in which pruning asks; without one, everything is decided.

    Args:
        checkpoints: a checkpoint file, or a folder of them; None: shipped ones, else cached ones, else trained on first use.
        settings: how to train where none is shipped; None: the default.
        cost: seconds per embedding and head; None: what is stated for the embedder.
    """

    name = "router"

    def __init__(
        self,
        checkpoints: Path | None = None,
        settings: TrainSettings | None = None,
        cost: RoutingCost | None = None,
    ) -> None:
        self.checkpoints, self.settings, self.cost = checkpoints, settings, cost
        self._tables: tuple[OutcomeTable, ...] = ()
        self._routed: list[_Routed] = []
        self._heads: dict[tuple[int, int], int] = {}  # asked by the last `viable` of a query

    def receive_outcomes(self, tables: tuple[OutcomeTable, ...], draws: tuple[NDArray[np.float64], ...] = ()) -> None:
        """Find or train the router of each workflow; nothing to do when the tables are the ones it has.

        Raises:
            SpecError: no checkpoint fits and none can be trained.
        """
        if len(tables) == len(self._tables) and all(a is b for a, b in zip(tables, self._tables, strict=True)):
            return
        self._routed = [self._route(table) for table in tables]
        self._tables = tuple(tables)

    def _route(self, table: OutcomeTable) -> _Routed:
        key = (self.checkpoints, self.settings, self.cost)
        known = _KNOWN.setdefault(table, {})
        if key not in known:
            checkpoint = self._checkpoint(table)
            router = Router(checkpoint, self.cost)
            vectors = router.embedder.embed(table.query_set)
            if not checkpoint.matches(table, vectors):
                raise SpecError(f"the {checkpoint.where} in {self.checkpoints} was trained on another outcome table")
            scores = router.score_table(vectors)
            pruned = router.prune_table(scores)
            sets, losses = pruned.sets(), -scores
            for array in (sets, losses):
                array.setflags(write=False)
            known[key] = _Routed(router, pruned, sets, losses)
        return known[key]

    def _checkpoint(self, table: OutcomeTable) -> Checkpoint:
        if self.checkpoints is None:
            return find_or_train(table, self.settings)
        path = self.checkpoints
        for file in sorted(path.glob("*.npz")) if path.is_dir() else [path]:
            checkpoint = Checkpoint.load(file)
            names = (checkpoint.manifest["workflow"], tuple(checkpoint.manifest["models"]))
            if names == (table.workflow, table.models):
                return checkpoint
        raise SpecError(f"no router of '{table.workflow}' for the models {', '.join(table.models)}", where=str(path))

    def reset(self, scenario: Scenario) -> None:
        """Forget what queries of the last episode took.

        Raises:
            SpecError: no tables were handed over.
        """
        if not self._routed:
            raise SpecError("the router has no outcome tables; call receive_outcomes before reset")
        self._heads.clear()

    def viable(self, info: ClusterInfo, workflow: int, query: int, budget_s: float = math.inf) -> NDArray[np.bool_]:
        """Return the predicted set, (C,), read-only; see `ViableSets`."""
        routed = self._routed[workflow]
        most = routed.router.cost.heads(budget_s)
        all_heads = int(routed.pruned.asked[query])
        if most is None or most >= all_heads:
            self._heads[workflow, query] = all_heads
            whole: NDArray[np.bool_] = routed.sets[query]
            return whole
        self._heads[workflow, query] = most
        cut: NDArray[np.bool_] = routed.sets[query] & (routed.pruned.step[query] <= most)
        cut.setflags(write=False)
        return cut

    def losses(self, workflow: int, queries: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return what every head expects, (n, C); see `ViableSets`."""
        losses: NDArray[np.float32] = self._routed[workflow].losses[queries]
        return losses

    def routing_s(self, workflow: int, query: int) -> float:
        """Return the seconds that the last `viable` of this query took; before any, what it takes without a budget."""
        routed = self._routed[workflow]
        heads = self._heads.get((workflow, query), int(routed.pruned.asked[query]))
        return routed.router.cost.seconds(heads)
