"""The three models: shapes and training. Names are those of the catalogue (aragog_env/specs/presets/models.yaml)."""

from __future__ import annotations

from typing import Final

from .model import Shape
from .training import Recipe

RECIPES: Final = (
    Recipe("arithmetic-s", Shape(2, 48, 144, 4, 2), updates=1200, minutes=5),
    Recipe("arithmetic-m", Shape(4, 64, 192, 4, 2), updates=1400, minutes=15),
    Recipe("arithmetic-l", Shape(8, 64, 192, 4, 2), updates=7000, minutes=55),
)
"""Smallest first. The minutes are limits for a quiet machine with two cores; they add up to less than 90."""


def recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        KeyError: there is none of this name.
    """
    return {entry.name: entry for entry in RECIPES}[name]
