"""Specs as plain data, and their hash: what manifests record, so that equal results have equal names."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any


def to_dict(spec: object, *, defaults: bool = True) -> dict[str, Any]:
    """Return a spec as nested plain data (dicts, lists, numbers, text).

    Args:
        spec: any spec dataclass.
        defaults: whether keys whose value is the default are kept (the canonical form keeps them, but for fields whose
            metadata says `later`: they came when results existed, whose hashes must stay).
    """
    result: dict[str, Any] = {}
    for f in dataclasses.fields(spec):  # type: ignore[arg-type]
        if f.name == "locations":
            continue
        value = getattr(spec, f.name)
        if (not defaults or "later" in f.metadata) and _is_default(f, value):
            continue
        result[f.name] = _plain(value, defaults)
    return result


def _is_default(f: dataclasses.Field[Any], value: object) -> bool:
    if f.default is not dataclasses.MISSING:
        return bool(value == f.default)
    return f.default_factory is not dataclasses.MISSING and bool(value == f.default_factory())


def _plain(value: Any, defaults: bool) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value, defaults=defaults)
    if isinstance(value, tuple):
        return [_plain(item, defaults) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, defaults) for key, item in sorted(value.items())}
    return value


def spec_hash(*specs: object) -> str:
    """Return the SHA-256 (hex) of the specs' canonical JSON; descriptions and sources do not count."""
    text = json.dumps(
        [_without_notes(to_dict(spec)) for spec in specs],
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _without_notes(value: Any) -> Any:
    """Drop the text that changes no result, so that a better description leaves old results valid."""
    if isinstance(value, dict):
        return {k: _without_notes(v) for k, v in value.items() if k not in ("description", "source")}
    return [_without_notes(item) for item in value] if isinstance(value, list) else value
