"""Small outcome tables whose viable sets can be told from a feature of the query."""

from __future__ import annotations

import numpy as np

from aragog_env.outcomes import OutcomeTable, configuration_digits
from policies.aragog.fitting import FitSettings
from policies.aragog.training import TrainSettings

QUICK = TrainSettings(folds=2, fit=FitSettings(together_epochs=4, apart_epochs=1))
"""Enough for what does not depend on quality."""


def told_table(
    queries: int = 300, models: int = 2, stages: int = 2, *, seed: int = 0, texts: bool = False
) -> OutcomeTable:
    """Return a table in which ease, feature 0 with little noise, decides how small a configuration may be.

    A configuration is right when ease plus the sum of its model indices exceeds a threshold; the largest is right unless the
    query is hopeless. Feature 1 is noise.
    """
    rng = np.random.default_rng(seed)
    ease = rng.uniform(-1.5, stages * (models - 1) + 0.5, queries)
    strength = configuration_digits(models, stages).sum(axis=1)
    right = ease[:, None] + strength[None, :] >= stages * (models - 1)
    features = np.stack([ease + 0.1 * rng.standard_normal(queries), rng.standard_normal(queries)], axis=1)
    nodes = tuple(f"stage{k}" for k in range(stages))
    words = [f"ease {'very ' * round(4 + e)}much, question {q}" for q, e in enumerate(ease)] if texts else []
    return OutcomeTable(
        workflow="told",
        kind="synthetic",
        models=tuple(f"model{m}" for m in range(models)),
        nodes=nodes,
        llm_nodes=tuple(range(stages)),
        p_correct=np.where(right, 0.99, 0.01).astype(np.float32),
        output_tokens=np.full((queries, stages, models), 10, np.int32),
        own_prompt_tokens=np.full((queries, stages), 10, np.int32),
        skipped=np.zeros((queries, stages, models), np.bool_),
        tool_s=np.zeros((queries, stages), np.float32),
        query_tokens=rng.integers(5, 50, queries).astype(np.int32),
        query_features=np.zeros((queries, 0), np.float32) if texts else features.astype(np.float32),
        expected_output_tokens=np.full((stages, models), 10, np.float32),
        query_texts=tuple(words),
    )
