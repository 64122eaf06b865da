"""Which of the default policies can run: those with a router need a trained one, or torch to train it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Final

from ..registry import load_entry_point
from ..specs.scenario import Scenario
from .defaults import DEFAULT_POLICIES

WITH_ROUTER: Final = frozenset({"aragog", "per_input"})


def default_policies(scenarios: Iterable[Scenario]) -> tuple[list[str], str]:
    """Return the policies to run when none are named, and one sentence about those left out (empty when none are)."""
    if importlib.util.find_spec("torch") is not None or all(map(_has_routers, scenarios)):
        return list(DEFAULT_POLICIES), ""
    left_out: Sequence[str] = [name for name in DEFAULT_POLICIES if name in WITH_ROUTER]
    note = (
        f"left out {' and '.join(left_out)}: no shipped router fits this scenario, and training one needs torch "
        "(pip install -e '.[train]')"
    )
    return [name for name in DEFAULT_POLICIES if name not in left_out], note


def _has_routers(scenario: Scenario) -> bool:
    from ..compiled_scenario import compile_scenario

    shipped = load_entry_point("policies.aragog.store:shipped_checkpoint", "aragog")
    return all(shipped(table) is not None for table in compile_scenario(scenario).outcomes)
