"""Greedy decoding, and how often a model is right at each stage."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import torch

from .examples import STAGES, Example, draw_example
from .model import MAX_LENGTH, Llama
from .tokenizer import BOS, EOS, decode, encode

MAX_NEW: Final = 96


@torch.no_grad()
def generate(model: Llama, prompts: Sequence[str], max_new: int = MAX_NEW) -> list[list[int]]:
    """Return the tokens that a model writes after each prompt, with the end token where it wrote one.

    Prompts of equal length are decoded together, so nothing is padded.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for k, prompt in enumerate(prompts):
        groups[len(prompt)].append(k)
    written: list[list[int]] = [[] for _ in prompts]
    for length, members in groups.items():
        tokens = torch.tensor([[BOS, *encode(prompts[k])] for k in members])
        caches: list[list[torch.Tensor]] = [[] for _ in range(model.shape.layers)]
        start, open_rows = 0, set(range(len(members)))
        for _ in range(min(max_new, MAX_LENGTH - length - 1)):
            hidden = model(tokens, start, caches)[:, -1]
            start += tokens.shape[1]
            tokens = model.lm_head(hidden).argmax(-1, keepdim=True)
            for row in list(open_rows):
                token = int(tokens[row, 0])
                written[members[row]].append(token)
                if token == EOS:
                    open_rows.discard(row)
            if not open_rows:
                break
    return written


def complete(model: Llama, prompts: Sequence[str]) -> list[str]:
    """Return the text that a model writes after each prompt."""
    return [decode(tokens) for tokens in generate(model, prompts)]


def exact(model: Llama, examples: Sequence[Example]) -> float:
    """Return the share of examples whose output is written exactly."""
    texts = complete(model, [example.prompt for example in examples])
    return sum(text == example.output for text, example in zip(texts, examples, strict=True)) / len(examples)


def held_out_examples(count: int, seed: int = 0) -> dict[str, list[Example]]:
    """Return examples of every stage from the test side of the split."""
    rng = random.Random(f"arithmetic score {seed}")
    return {stage: [draw_example(rng, stage, 1.0, test=True) for _ in range(count)] for stage in STAGES}


def score(model: Llama, count: int = 200, seed: int = 0) -> dict[str, float]:
    """Return the exact accuracy of every stage on right inputs (and, for the verifier, on wrong ones too)."""
    was_training = model.training
    model.eval()
    result = {stage: exact(model, examples) for stage, examples in held_out_examples(count, seed).items()}
    model.train(was_training)
    return result
