"""Training of one model: all stages together, curriculum, time limit, checkpoints.

Every update draws its own examples from (seed, number of the update), so a run that was stopped goes on exactly as it would
have, and two runs with as many updates are equal. A run that meets its time limit first is not repeatable to the bit.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from .examples import STAGES, Example, draw_example
from .model import Llama, Shape
from .optimizer import Optimizer
from .scoring import score
from .tokenizer import BOS, EOS, PAD, encode

WARMUP: Final = 100
DECAY_FROM: Final = 0.6
"""Share of training after which the learning rate falls in a line to nearly zero."""
CHECKPOINT_S: Final = 60.0
IGNORED: Final = -100
MICRO_BATCHES: Final = 5


@dataclass(frozen=True)
class Recipe:
    """How one model is trained."""

    name: str
    shape: Shape
    updates: int
    minutes: float
    """Upper bound, whole training."""
    batch: dict[str, int] = field(default_factory=lambda: {"plan": 7, "solve": 26, "combine": 12, "verify": 15})
    """Examples of each stage in an update."""
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    weight_decay: float = 0.02
    seed: int = 0


@dataclass
class Run:
    """A training run that can be saved."""

    model: Llama
    optimizer: Optimizer
    update: int = 0
    elapsed_s: float = 0.0
    tokens: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def train(
    recipe: Recipe, folder: Path, *, score_every: int = 1000, scored: int = 500, log: Callable[[str], None] = print
) -> Run:
    """Train a model, or go on with the checkpoint in `folder`; return the finished run.

    Args:
        recipe: what to train and for how long.
        folder: holds `checkpoint.pt` and `history.json`.
        score_every: updates between scores of 200 examples a stage; 0: only at the end.
        scored: examples of each stage in the last score.
        log: gets a line of text now and then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = start(recipe, folder / "checkpoint.pt")
    begun, saved, window = time.monotonic() - run.elapsed_s, time.monotonic(), _Window()
    while (progress := _progress(recipe, run)) < 1:
        losses = update(recipe, run, progress)
        run.elapsed_s = time.monotonic() - begun
        window.add(losses)
        if run.update % 100 == 0:
            speed = run.tokens / run.elapsed_s
            log(f"{recipe.name} {run.update} {run.elapsed_s:.0f} s {speed:.0f} tokens/s {window.text()}")
        if score_every and run.update % score_every == 0:
            _score(run, log, recipe.name)
        if time.monotonic() - saved > CHECKPOINT_S:
            save(run, folder)
            saved = time.monotonic()
    _score(run, log, recipe.name, count=scored)
    save(run, folder)
    return run


def start(recipe: Recipe, checkpoint: Path) -> Run:
    """Return a new run, or the one that was saved."""
    torch.manual_seed(recipe.seed)
    model = Llama(recipe.shape)
    run = Run(model, Optimizer(model, recipe.muon_lr, recipe.adam_lr, recipe.weight_decay))
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.update, run.elapsed_s, run.tokens = state["update"], state["elapsed_s"], state["tokens"]
        run.history = state["history"]
    return run


def save(run: Run, folder: Path) -> None:
    """Write the checkpoint, whole or not at all, and the history of scores."""
    partial = folder / "checkpoint.part"
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "update": run.update,
        "elapsed_s": run.elapsed_s,
        "tokens": run.tokens,
        "history": run.history,
    }
    torch.save(state, partial)
    partial.replace(folder / "checkpoint.pt")
    (folder / "history.json").write_text(json.dumps(run.history, indent=1) + "\n", encoding="utf-8")


def update(recipe: Recipe, run: Run, progress: float) -> dict[str, float]:
    """Do one update; return the loss per output token of each stage."""
    rng = random.Random(f"{recipe.seed} {run.update}")
    examples = [draw_example(rng, stage, progress) for stage in STAGES for _ in range(recipe.batch.get(stage, 0))]
    examples.sort(key=lambda example: len(example.prompt) + len(example.output))
    total = sum(len(example.output) + 1 for example in examples)
    size = -(-len(examples) // MICRO_BATCHES)
    losses: dict[str, list[float]] = {stage: [0.0, 0.0] for stage in STAGES}
    for k in range(0, len(examples), size):
        _micro_batch(run, examples[k : k + size], total, losses)
    run.optimizer.step(learning_rate(run.update, progress))
    run.update += 1
    return {stage: total / count for stage, (total, count) in losses.items() if count}


def _micro_batch(run: Run, examples: list[Example], total: int, losses: dict[str, list[float]]) -> None:
    tokens, targets = collate(examples)
    run.tokens += tokens.numel()
    rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
    logits = run.model.lm_head(run.model(tokens)[rows, columns])
    loss = F.cross_entropy(logits, targets[rows, columns], reduction="none")
    torch.autograd.backward(loss.sum() / total)
    per_row = torch.zeros(len(examples)).index_add_(0, rows, loss.detach()).tolist()
    for example, value in zip(examples, per_row, strict=True):
        losses[example.stage][0] += value
        losses[example.stage][1] += len(example.output) + 1


def collate(examples: list[Example]) -> tuple[Tensor, Tensor]:
    """Return tokens (B, T) and the token that should follow each (B, T), `IGNORED` where it does not matter."""
    rows = [[BOS, *encode(e.prompt), *encode(e.output), EOS] for e in examples]
    width = max(len(row) for row in rows)
    data = torch.full((len(rows), width), PAD)
    targets = torch.full((len(rows), width), IGNORED)
    for k, (row, example) in enumerate(zip(rows, examples, strict=True)):
        data[k, : len(row)] = torch.tensor(row)
        first = len(example.prompt)  # the last token of the prompt, counting the beginning: it predicts the output
        targets[k, first : len(row) - 1] = data[k, first + 1 : len(row)]
    return data[:, :-1], targets[:, :-1]


def learning_rate(update: int, progress: float) -> float:
    """Return the factor of the learning rates: warm-up, constant, a line down to 2%."""
    warm = min(1.0, (update + 1) / WARMUP)
    return warm * (1.0 if progress < DECAY_FROM else max(0.02, (1 - progress) / (1 - DECAY_FROM)))


def _progress(recipe: Recipe, run: Run) -> float:
    return max(run.update / recipe.updates, run.elapsed_s / (60 * recipe.minutes))


def _score(run: Run, log: Callable[[str], None], name: str, count: int = 200) -> None:
    scores = score(run.model, count)
    entry = {"update": run.update, "elapsed_s": round(run.elapsed_s, 1), "examples": count, **scores}
    run.history.append(entry)
    log(f"{name} {run.update} right: " + " ".join(f"{stage} {share:.1%}" for stage, share in scores.items()))


class _Window:
    """Mean losses since the last line."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def add(self, losses: dict[str, float]) -> None:
        for stage, loss in losses.items():
            entry = self.sums.setdefault(stage, [0.0, 0.0])
            entry[0] += loss
            entry[1] += 1

    def text(self) -> str:
        line = " ".join(f"{stage} {total / count:.3f}" for stage, (total, count) in self.sums.items())
        self.sums.clear()
        return line


def describe(recipe: Recipe, run: Run) -> dict[str, Any]:
    """Return a report entry of a finished run."""
    return {
        "name": recipe.name,
        "parameters": run.model.parameters_count,
        **asdict(recipe.shape),
        "updates": run.update,
        "tokens": run.tokens,
        "seconds": round(run.elapsed_s, 1),
        "seed": recipe.seed,
        "scores": run.history[-1] if run.history else {},
    }
