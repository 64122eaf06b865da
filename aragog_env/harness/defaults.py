"""What is run when nothing else is said. Imports nothing, so that `--help` can show it quickly."""

from __future__ import annotations

from typing import Final

DEFAULT_POLICIES: Final = (
    "random",
    "least_loaded",
    "fixed:smallest",
    "fixed:largest",
    "earliest_finish",
    "per_workflow",
    "per_input",
    "aragog",
)
DEFAULT_SEEDS: Final = 5
CAPACITY_SEEDS: Final = 3
