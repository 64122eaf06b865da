"""The committed measured table: what real servers answered leaves something to schedule."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aragog_env.outcomes import OutcomeTable, configuration_digits

TABLE = Path(__file__).resolve().parents[2] / "workflows" / "arithmetic" / "outcomes" / "measured.npz"


def test_every_configuration_on_at_least_300_expressions() -> None:
    table = OutcomeTable.load(TABLE)
    assert table.kind == "measured" and table.queries >= 300 and table.configurations == 3**6
    assert set(np.unique(table.p_correct)) == {0.0, 1.0}, "one graded answer each"


def test_larger_models_are_right_more_often() -> None:
    """Of the same model at every stage; the intervals of the table are far apart."""
    table = OutcomeTable.load(TABLE)
    digits, right = configuration_digits(3, 6), table.p_correct.mean(axis=0)
    small, medium, large = (right[(digits == model).all(axis=1)][0] for model in range(3))
    assert small + 0.3 < medium and medium + 0.1 < large
    intervals = [table.notes["one_model_95"][name] for name in table.models]
    assert intervals[0][2] < intervals[1][1] and intervals[1][2] < intervals[2][1]


def test_cheaper_configurations_are_often_as_good_as_the_largest() -> None:
    table = OutcomeTable.load(TABLE)
    viable = table.p_correct >= table.p_correct[:, -1:]
    assert viable[:, :-1].any(axis=1).mean() >= 0.25
    # Not only by a hair: with no large model at all, on at least a quarter of the queries.
    no_large = (configuration_digits(3, 6) < 2).all(axis=1)
    assert viable[:, no_large].any(axis=1).mean() >= 0.25
