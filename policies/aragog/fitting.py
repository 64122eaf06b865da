"""Fit the heads of one fold: all of them at once, with torch (on a GPU where there is one)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError

from .heads import HIDDEN_LAYERS, Floats, HeadStack
from .pruning import cover_pairs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FitSettings:
    """How heads are fitted. The paper gives none of these numbers."""

    width: int = 12
    """Units of each hidden layer: small, since a data set has 164 to 1500 questions."""
    together_epochs: int = 60
    """First all heads share their hidden layers and differ in the last one, so that rare labels borrow from common ones."""
    apart_epochs: int = 30
    """Then every head goes on with its own copy of all layers. Of both parts the best epoch in validation is kept."""
    together_rate: float = 4e-3
    apart_rate: float = 1e-3
    patience: int = 8
    """Epochs without improvement after which a part stops."""
    batch: int = 128
    weight_decay: float = 1.0
    input_noise: tuple[float, ...] = (1.0, 0.25)
    """Standard deviations of noise added to the standardised inputs while training; for the linear path, ridge penalties.

    The shared part is fitted with each: how much an embedding tells differs widely. A later one is taken only where it is
    clearly better in validation, by the share `clearly`."""
    clearly: float = 0.02
    monotone: float = 1.0
    """Weight of the penalty on a head that is surer than the head one model size above it in one stage.

    Labels are near-monotone in model size; separate heads are less so, by chance. The penalty removes that noise, and with it
    most contradictions that pruning would have to decide one way or the other."""
    validation: float = 0.1
    """Share of the training questions that only decides when to stop."""


def fit_heads(
    vectors: Floats,
    labels: NDArray[np.bool_],
    lattice: tuple[int, int],
    settings: FitSettings,
    seed: int,
    device: str | None = None,
) -> HeadStack:
    """Fit one head per configuration by binary cross-entropy with class weights.

    Args:
        vectors: (Q, D) embeddings of the training questions.
        labels: (Q, C) whether a configuration is viable.
        lattice: models and LLM stages: which configuration lies above which.
        settings: see there.
        seed: of weights, order and the validation share; the same seed gives the same heads.
        device: a torch device; None takes a GPU where there is one.

    Raises:
        SpecError: torch is not installed.
    """
    torch = _torch()
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with _one_thread():
        return _fit(vectors, labels, lattice, settings, seed, where)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: products are small, and threads that wait for each other are slow on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(
    vectors: Floats, labels: NDArray[np.bool_], lattice: tuple[int, int], settings: FitSettings, seed: int, where: Any
) -> HeadStack:
    import torch

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(vectors))
    held = max(1, round(settings.validation * len(vectors)))
    train, validation = order[held:], order[:held]
    deviation = vectors[train].std(axis=0)
    mean, scale = vectors[train].mean(axis=0), np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0)
    empty = HeadStack(mean.astype(np.float32), scale.astype(np.float32), (), ())
    x = torch.as_tensor(empty.standardise(vectors), device=where)
    y = torch.as_tensor(labels.astype(np.float32), device=where)
    problem = _Problem(x, y, train, validation, lattice, settings, rng)
    initial = _initial(vectors.shape[1], problem.marginal_logits(), settings.width, rng, where)
    lowest, noise, shared = math.inf, 0.0, initial
    for candidate in settings.input_noise:
        reached, found = problem.descend(initial, candidate, settings.together_rate, settings.together_epochs)
        if reached < lowest * (1 - settings.clearly):
            lowest, noise, shared = reached, candidate, found
    apart = [p.expand(labels.shape[1], *p.shape[1:]) for p in shared]
    _, best = problem.descend(apart, noise, settings.apart_rate, settings.apart_epochs)
    arrays = [p.detach().cpu().numpy().astype(np.float32) for p in best]
    return HeadStack(empty.mean, empty.scale, tuple(arrays[0::2]), tuple(a[:, 0, :] for a in arrays[1::2]))


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise SpecError(
            "no trained router fits these outcome tables, and training one needs torch: pip install 'aragog-gym[train]' "
            "(or use viable=oracle)"
        ) from error
    return torch


def _initial(inputs: int, bias: Floats, width: int, rng: np.random.Generator, where: Any) -> list[torch.Tensor]:
    """Return weight (., in, out) and bias (., 1, out) of every layer: shared hidden layers, one last layer per head.

    The last layer starts with the given biases (C,) and weights near zero: before any step, the heads are the prior that
    ignores the query, and early stopping keeps them there if the embedding tells nothing. All heads start with equal weights,
    so that they end different by what their labels say, not by luck.
    """
    import torch

    sizes = [inputs, *([width] * HIDDEN_LAYERS), 1]
    parameters: list[torch.Tensor] = []
    for layer, (before, after) in enumerate(pairwise(sizes)):
        last = layer == HIDDEN_LAYERS
        # Layers with a skip path start small: five of them add up.
        gain = 0.01 if last else 0.5 if layer > 0 else 1.0
        one = rng.standard_normal((1, before, after)) * (gain * math.sqrt((1 if last else 2) / before))
        weight = np.repeat(one.astype(np.float32), len(bias) if last else 1, axis=0)
        first = bias[:, None, None] if last else np.zeros((1, 1, after), np.float32)
        for array in (weight, first):
            parameters.append(torch.as_tensor(array.astype(np.float32), device=where).requires_grad_())
    return parameters


def _forward(x: torch.Tensor, parameters: list[torch.Tensor]) -> torch.Tensor:
    """Return logits (C, b) of inputs (b, D), as `HeadStack` does."""
    import torch

    state = x[None]
    for layer in range(HIDDEN_LAYERS + 1):
        out = torch.matmul(state, parameters[2 * layer]) + parameters[2 * layer + 1]
        state = state + torch.relu(out) if 0 < layer < HIDDEN_LAYERS else out
    return state[:, :, 0]


@dataclass(eq=False)
class _Problem:
    """Questions, labels and loss of one fold; Q questions, C heads."""

    x: torch.Tensor  # (Q, D)
    y: torch.Tensor  # (Q, C)
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    lattice: tuple[int, int]
    settings: FitSettings
    rng: np.random.Generator

    def __post_init__(self) -> None:
        import torch

        where = self.x.device
        self.smaller, self.larger = (torch.as_tensor(a, device=where) for a in cover_pairs(*self.lattice))
        # One weight for all heads of the workflow: logits of different heads stay comparable, so that one threshold serves.
        share = float(self.y[torch.as_tensor(self.train, device=where)].mean().clamp(0.05, 0.95))
        self.share = share
        self.cross_entropy = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor((1 - share) / share, device=where))

    def marginal_logits(self) -> Floats:
        """Return the logits of heads that ignore the query, (C,), under the class weight."""
        labels = self.y[self.train].cpu().numpy()
        marginal = (labels.sum(axis=0) + 1) / (len(labels) + 2)  # Laplace: heads of the surest labels stay finite
        weighted = marginal * ((1 - self.share) / self.share)
        return np.asarray(np.log(weighted / (1 - marginal)), np.float32)

    def loss(self, parameters: list[torch.Tensor], rows: NDArray[np.int64], noise: float) -> torch.Tensor:
        """Return cross-entropy plus the penalty on contradictions, of questions `rows`."""
        import torch

        chosen = torch.as_tensor(rows, device=self.x.device)
        inputs = self.x[chosen]
        if noise > 0:
            blur = noise * self.rng.standard_normal(tuple(inputs.shape)).astype(np.float32)
            inputs = inputs + torch.as_tensor(blur, device=self.x.device)
        logits = _forward(inputs, parameters)
        value: torch.Tensor = self.cross_entropy(logits, self.y[chosen].T)
        if len(self.smaller):
            value = value + self.settings.monotone * torch.relu(logits[self.smaller] - logits[self.larger]).mean()
        return value

    def descend(
        self, initial: list[torch.Tensor], noise: float, rate: float, epochs: int
    ) -> tuple[float, list[torch.Tensor]]:
        """Run AdamW with early stopping; returns the best validation loss and its parameters (the initial ones at worst)."""
        import torch

        settings, train = self.settings, self.train
        parameters = [p.detach().clone().requires_grad_() for p in initial]
        groups = [
            {"params": parameters[0::2], "weight_decay": settings.weight_decay},
            {"params": parameters[1::2], "weight_decay": 0.0},  # biases hold the prior
        ]
        optimiser = torch.optim.AdamW(groups, lr=rate)
        steps = max(1, epochs * math.ceil(len(train) / settings.batch))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        best, since = [p.detach().clone() for p in parameters], 0
        with torch.no_grad():
            lowest = float(self.loss(parameters, self.validation, 0.0))
        for _ in range(epochs):
            shuffled = self.rng.permutation(train)
            for start in range(0, len(shuffled), settings.batch):
                optimiser.zero_grad(set_to_none=True)
                self.loss(parameters, shuffled[start : start + settings.batch], noise).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
            with torch.no_grad():
                current = float(self.loss(parameters, self.validation, 0.0))
            if current < lowest - 1e-4:
                best, lowest, since = [p.detach().clone() for p in parameters], current, 0
            else:
                since += 1
                if since >= settings.patience:
                    break
        return lowest, best
