"""An outcome table of the voting workflow from real MMLU-Pro answers: `python -m scripts.build_mmlu_pro_table --out FILE`.

What is real: for each sampled question, whether each model answered it right (5-shot chain of thought, one run), its output
tokens, the question's length and its subject. What is modelled: how four votes and the aggregator's own answer become one,
and the aggregator's tokens (the generator's). All voters with one model give the answer of its one run, as labels from one run
would have it; with --repeat-noise each is right with the chance that another run would be, which only depends on whether the
one run was. So the table is of the kind 'synthetic', and its source says which part is real.

Default models: Meta's Llama base models, under the names of the shipped Llama clusters. The data has no 3B model: Llama-2-7B
stands in for it. Name others with --model NAME=COLUMN, smallest first; NAME is what the cluster calls the model.
Needs ../shared/data/mmlu_pro (TIGER-AI-Lab/MMLU-Pro, results Apache-2.0, questions MIT; texts are not among the data).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import AragogError, SpecError
from aragog_env.outcomes import OutcomeTable, configuration_digits
from aragog_env.specs.catalogue import model as catalogue_model
from aragog_env.specs.graph import WorkflowGraph, unroll
from aragog_env.specs.hardware import ModelSpec
from aragog_env.specs.load import load_workflow
from aragog_env.synthetic import draw_table, load_parameters

from .outcome_fit.data import DATA, rows
from .outcome_fit.normal import both_right

Floats = NDArray[np.float64]
WORKFLOW: Final = "voting_mmlu_pro"
MODELS: Final = ("llama-3.2-3b=Llama-2-7b-hf", "llama-3-8b=Meta-Llama-3_1-8B", "llama-3-70b=Meta-Llama-3_1-70B")
SAME_DISTRACTOR: Final = 0.5
"""Chance that two wrong votes agree. Assumption: of nine wrong options, models fall for the same few."""
LENGTH_NOISE: Final = 0.28
"""Standard deviation of log length between runs of one model: ZeroEval 0.24 to 0.34 (docs/outcome_fit.md)."""


@dataclass(frozen=True, eq=False)
class _Facts:
    """What the data says of the sampled questions."""

    ids: tuple[str, ...]
    characters: Floats  # (Q,)
    features: NDArray[np.float32]  # (Q, D)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="write the table (npz) here")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the public results (default: %(default)s)")
    parser.add_argument("--model", action="append", metavar="NAME=COLUMN", help="a model, smallest first (repeat)")
    parser.add_argument("--queries", type=int, default=1500, help="sampled questions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    parser.add_argument("--repeat-noise", action="store_true", help="voters vary as repeated runs of a model do")
    options = parser.parse_args(arguments)
    if not (options.data / "mmlu_pro").is_dir():
        print(
            f"The MMLU-Pro results are not in '{options.data / 'mmlu_pro'}'; --data names another folder.",
            file=sys.stderr,
        )
        return 2
    try:
        table = build(options.data, tuple(options.model or MODELS), options.queries, options.seed, options.repeat_noise)
    except AragogError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    table.save(options.out)
    accuracy = ", ".join(
        f"{name} {table.accuracy[table.uniform_configuration(m)]:.3f}" for m, name in enumerate(table.models)
    )
    print(
        f"wrote {options.out}: {table.queries} questions, {table.configurations} configurations; one model: {accuracy}"
    )
    print(f"use it: aragog evaluate --workflow {WORKFLOW} --cluster llama-8xh100 --outcomes {options.out}")
    return 0


def build(
    data: Path, models: Sequence[str], queries: int = 1500, seed: int = 0, repeat_noise: bool = False
) -> OutcomeTable:
    """Return the table.

    Args:
        data: folder that holds `mmlu_pro`.
        models: `name=column of the data`, smallest first.
        queries: how many questions to sample of those that all these models were run on.
        seed: of the sample.
        repeat_noise: whether voters vary as repeated runs of a model do.

    Raises:
        SpecError: a column is unknown, or there are not as many questions.
    """
    names, columns = [m.partition("=")[0] for m in models], [m.partition("=")[2] for m in models]
    right, tokens, facts = _read(data, columns, queries, seed)
    graph = unroll(replace(load_workflow(WORKFLOW), queries=queries))
    drawn = draw_table(graph.workflow, graph, _specs(names))  # the aggregator's tokens come from here
    correlation = load_parameters(WORKFLOW).repeat_correlation if repeat_noise else 1.0
    chance = np.stack([again_right(column, correlation) for column in right.T], axis=1)
    prompt = [stage.prompt.template_tokens if stage.prompt else 0 for stage in graph.stage_of]
    limit = graph.workflow.query_tokens
    length = np.clip(np.ceil(facts.characters / 4), limit.minimum, limit.maximum).astype(np.int32)
    output = np.array(drawn.output_tokens)
    for k, node in enumerate(graph.nodes[:-1]):
        output[:, k] = _voter_tokens(tokens, graph, k, np.random.default_rng([seed, node.copy]))
    return replace(
        drawn,
        kind="synthetic",
        p_correct=voting(chance, graph).astype(np.float32),
        output_tokens=output,
        own_prompt_tokens=(np.array(prompt, np.int32)[None, :] + length[:, None]).astype(np.int32),
        query_tokens=length,
        query_features=facts.features,
        expected_output_tokens=output.mean(axis=0).astype(np.float32),
        query_ids=facts.ids,
        source=(
            f"TIGER-AI-Lab/MMLU-Pro results of {', '.join(columns)} (Apache-2.0): real are each model's answer and output "
            "tokens per question as a voter, and question length and subject; modelled are the vote, the "
            "aggregator and its tokens (scripts/build_mmlu_pro_table.py)"
        ),
        notes={
            "columns": dict(zip(names, columns, strict=True)),
            "seed": seed,
            "repeat_correlation": correlation,
            "same_distractor": SAME_DISTRACTOR,
            "aggregator_share": _aggregator_share(graph),
            "length_noise": LENGTH_NOISE,
            "features": "log characters, then one column per subject",
        },
    )


def again_right(right: Floats, correlation: float) -> Floats:
    """Return the chance that another run is right, given one run that was right (1) or wrong (0), (Q,)."""
    if correlation >= 1:
        return right
    accuracy = float(np.clip(right.mean(), 1e-3, 1 - 1e-3))
    both = both_right(accuracy, accuracy, correlation)
    return np.where(right > 0.5, both / accuracy, (accuracy - both) / (1 - accuracy))


def voting(chance: Floats, graph: WorkflowGraph) -> Floats:
    """Return the chance of a right final answer, (Q, C), from each model's chance as a voter, (Q, M).

    With a share that follows from the quality weights, the aggregator goes by its own judgement, which is right as often as
    the model is as a voter; else it takes the answer with the most votes, and guesses between ties.
    """
    m = chance.shape[1]
    voters = graph.n_llm - 1
    votes = configuration_digits(m, voters)  # (m ** voters, voters)
    count = np.zeros((len(chance), len(votes), voters + 1))
    count[..., 0] = 1
    for k in range(voters):
        p = chance[:, votes[:, k]][..., None]
        moved = np.concatenate([np.zeros_like(p), count[..., :-1]], axis=-1)
        count = count * (1 - p) + moved * p
    majority = count @ vote_wins(voters)
    share = _aggregator_share(graph)
    final = share * chance[:, None, :] + (1 - share) * majority[:, :, None]  # (Q, votes, aggregator)
    return np.clip(final.reshape(len(chance), -1), 0, 1)


def vote_wins(voters: int, agree: float = SAME_DISTRACTOR) -> Floats:
    """Return the chance that the right answer has the most votes when 0, 1, ... of the votes are right, (voters + 1,).

    Wrong votes either all agree or all differ: the first with chance `agree` ** (wrong votes - 1), one tie in the vote is
    broken at random.
    """
    wins = np.zeros(voters + 1)
    for right in range(1, voters + 1):
        wrong = voters - right
        together = agree ** max(wrong - 1, 0) if wrong else 0.0
        blocks = ((together, wrong), (1 - together, 1 if wrong else 0))  # (chance, size of the largest wrong block)
        for chance, block in blocks:
            rivals = 1 if block == wrong else wrong
            wins[right] += chance * (1.0 if right > block else 1 / (1 + rivals) if right == block else 0.0)
    return wins


def _aggregator_share(graph: WorkflowGraph) -> float:
    weights = [stage.quality_weight for stage in graph.stage_of]
    return float(weights[-1] / sum(weights))


def _voter_tokens(tokens: Floats, graph: WorkflowGraph, k: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Return the output of one copy, (Q, M): the first as in the data, the others as other runs of the model."""
    spec = graph.stage_of[k].output
    assert spec is not None
    factor = np.exp(LENGTH_NOISE * rng.standard_normal(tokens.shape)) if graph.nodes[k].copy else 1.0
    return np.rint(np.clip(tokens * factor, 1, spec.max_tokens)).astype(np.int32)


def _read(data: Path, columns: Sequence[str], queries: int, seed: int) -> tuple[Floats, Floats, _Facts]:
    """Return answers (Q, M), output tokens (Q, M), and ids, characters and features of the sampled questions."""
    found = list(rows(data / "mmlu_pro" / "mmlu_pro_correct.csv.gz"))
    lengths = list(rows(data / "mmlu_pro" / "mmlu_pro_output_tokens_gpt2.csv.gz"))
    for column in columns:
        if column not in found[0]:
            known = ", ".join(
                name for name in found[0] if name not in ("question_id", "category", "src", "question_chars")
            )
            raise SpecError(f"the data has no model '{column}'; it has {known}", where="--model")
    complete = [i for i, row in enumerate(found) if all(row[c] != "" and lengths[i][c] != "" for c in columns)]
    if queries > len(complete):
        raise SpecError(
            f"there are {len(complete)} questions that all these models answered, not {queries}", where="--queries"
        )
    chosen = np.sort(np.random.default_rng(seed).choice(complete, queries, replace=False))
    right = np.array([[float(found[i][c]) for c in columns] for i in chosen])
    tokens = np.array([[float(lengths[i][c]) for c in columns] for i in chosen])
    subjects = sorted({row["category"] for row in found})
    one_hot = np.array([[float(found[i]["category"] == subject) for subject in subjects] for i in chosen])
    characters = np.array([float(found[i]["question_chars"]) for i in chosen])
    features = np.column_stack([np.log(np.maximum(characters, 1)), one_hot])
    ids = tuple(found[i]["question_id"] for i in chosen)
    return right, tokens, _Facts(ids, characters, features.astype(np.float32))


def _specs(names: Sequence[str]) -> list[ModelSpec]:
    """Return the models by name; for one that is not in the catalogue, another's entry under its name."""
    specs = []
    for name in names:
        try:
            specs.append(catalogue_model(name))
        except SpecError:
            specs.append(replace(catalogue_model("llama-3-8b"), name=name))
    return specs


if __name__ == "__main__":
    sys.exit(main())
