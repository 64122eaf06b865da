"""A small generative model of outcome tables, for workflows that nobody has measured with these models.

One standard normal latent per query, configuration and attempt decides: the answer is right when it is positive.
The skill of a call is

    skill(query, stage, model) = level(stage, model) + difficulty(query, stage, size) + strength(query, stage, model)

and the skills of a configuration's calls are combined along the graph (see `quality`). All shares and correlations
are fitted to public per-query results by `python -m scripts.fit_outcomes`; `docs/outcome_fit.md` reports the fit.
"""

from __future__ import annotations

from .numeric import by_size, clipped_lognormal_mean, normal_cdf
from .parameters import GeneratorParameters, load_parameters
from .table import MAX_CELLS, draw_table, expected_output_tokens

__all__ = [
    "MAX_CELLS",
    "GeneratorParameters",
    "by_size",
    "clipped_lognormal_mean",
    "draw_table",
    "expected_output_tokens",
    "load_parameters",
    "normal_cdf",
]
