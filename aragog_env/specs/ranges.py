"""Ranges of the numbers in specs that were made in Python rather than read from a file."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, get_args, get_origin

from ..errors import SpecError
from .bounds import Bound
from .strict import location, schema


def check_ranges(spec: Any) -> None:
    """Refuse numbers outside the range that the type hints of a top-level spec state.

    Raises:
        SpecError: naming the key, and the line when the spec came from a file.
    """
    _check_dataclass(spec, spec, "")


def _check_dataclass(value: Any, root: Any, key: str) -> None:
    if hasattr(value, "locations"):  # a document of its own: a cluster within a scenario
        root, key = value, ""
    for name, (hint, _) in schema(value.__class__).items():
        _check(hint, getattr(value, name), root, f"{key}.{name}" if key else name)


def _check(hint: Any, value: Any, root: Any, key: str) -> None:
    if value is None:
        return
    if type(None) in get_args(hint):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if dataclasses.is_dataclass(value):
        _check_dataclass(value, root, key)
    elif get_origin(hint) is Annotated:
        for bound in get_args(hint)[1:]:
            if isinstance(bound, Bound) and (problem := bound.problem(value)):
                raise SpecError(problem, where=location(root, key))
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            _check(get_args(hint)[0], item, root, f"{key}[{i}]")
    elif isinstance(value, dict):
        key_hint, value_hint = get_args(hint)
        for name, item in value.items():
            _check(key_hint, name, root, key)
            _check(value_hint, item, root, f"{key}[{name:g}]")
