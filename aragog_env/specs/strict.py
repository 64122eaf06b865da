"""Strict YAML: text in, frozen dataclasses out; every error names the file, the line, the key and a remedy.

The type hints of the dataclasses are the schema. Files are read as YAML 1.2 (`yes` and `on` are words, `1e-3`
is a number) and composed into nodes rather than plain data, because nodes know their lines.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from ..errors import SpecError, did_you_mean
from .bounds import Bound
from .plain import spec_hash, to_dict

__all__ = ["Source", "dump_yaml", "load_file", "loads", "location", "schema", "spec_hash", "to_dict"]

T = TypeVar("T")
Reference = Callable[[str, str], object]
"""Turns the name found where a dataclass is expected into the thing it names: (name, location) -> value."""

_INT: Final = re.compile(r"^[-+]?[0-9]+$")
_FLOAT: Final = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$")
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """YAML 1.2 scalars, at the speed of libyaml where it is there."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what `_Loader` would not read as text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in (
        ("null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
        ("bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
        ("int", _INT, list("-+0123456789")),
        ("float", _FLOAT, list("-+0123456789.")),
    ):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


@dataclass(frozen=True)
class Source:
    """Where text came from: the name to print, and the folder that relative paths in it start from."""

    label: str
    folder: Path | None = None
    references: Mapping[type, Reference] = field(default_factory=dict)

    def at(self, node: yaml.Node, key: str) -> str:
        """Return the location of `node` as a person would look for it."""
        place = f"{self.label}:{node.start_mark.line + 1}"
        return f"{place}, key '{key}'" if key else place


def load_file(cls: type[T], path: str | Path, references: Mapping[type, Reference] | None = None) -> T:
    """Read one YAML file into the dataclass `cls`.

    Raises:
        SpecError: the file is missing, is no YAML, or does not fit `cls`.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"cannot read this file ({reason})", where=str(path)) from error
    return loads(cls, text, Source(str(path), path.parent, references or {}))


def loads(cls: type[T], text: str, source: Source | str = "<text>") -> T:
    """Read YAML text into `cls` (a dataclass, or any type a field may have)."""
    source = Source(source) if isinstance(source, str) else source
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        begun = f" (line {error.context_mark.line + 1})" if error.context_mark else ""
        what = f"{error.context}{begun}, {error.problem}" if error.context else error.problem
        raise SpecError(f"this is not valid YAML: {what}", where=f"{source.label}{line}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"this is not valid YAML: {error}", where=source.label) from error
    if node is None:
        raise SpecError("the file is empty", where=source.label)
    value: T = _build(cls, node, "", source)
    return value


def _build(hint: Any, node: yaml.Node, key: str, source: Source) -> Any:
    """Return `node` as a value of the type `hint`."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *extras = get_args(hint)
        value = _build(base, node, key, source)
        for bound in extras:
            if isinstance(bound, Bound) and (problem := bound.problem(value)):
                raise SpecError(problem, where=source.at(node, key))
        return value
    if origin in (Union, types.UnionType):
        return _build_optional(hint, node, key, source)
    if origin is Literal:
        return _build_literal(get_args(hint), node, key, source)
    if origin is tuple:
        return _build_tuple(get_args(hint)[0], node, key, source)
    if origin is dict:
        return _build_dict(get_args(hint), node, key, source)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build_dataclass(hint, node, key, source)
    return _build_scalar(hint, node, key, source)


def _build_optional(hint: Any, node: yaml.Node, key: str, source: Source) -> Any:
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    assert len(kinds) == 1, f"a spec field may only be unioned with None: {hint}"
    return None if node.tag.endswith(":null") else _build(kinds[0], node, key, source)


def _build_literal(choices: tuple[Any, ...], node: yaml.Node, key: str, source: Source) -> Any:
    if isinstance(node, yaml.ScalarNode) and node.value in choices:
        return node.value
    if not isinstance(node, yaml.ScalarNode):
        raise SpecError(f"expected one of {', '.join(choices)}, got {_describe(node)}", where=source.at(node, key))
    hint = did_you_mean(node.value, choices)
    raise SpecError(f"unknown value '{node.value}'.{hint}", where=source.at(node, key))


def _build_tuple(item: Any, node: yaml.Node, key: str, source: Source) -> tuple[Any, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise SpecError(f"expected a list, got {_describe(node)}", where=source.at(node, key))
    return tuple(_build(item, child, f"{key}[{i}]", source) for i, child in enumerate(node.value))


def _build_dict(hints: tuple[Any, ...], node: yaml.Node, key: str, source: Source) -> dict[Any, Any]:
    key_hint, value_hint = hints
    if not isinstance(node, yaml.MappingNode):
        raise SpecError(f"expected a mapping, got {_describe(node)}", where=source.at(node, key))
    result = {}
    for key_node, child in node.value:
        name = _build(key_hint, key_node, key, source)
        if name in result:
            raise SpecError(f"key {key_node.value} is given twice", where=source.at(key_node, key))
        result[name] = _build(value_hint, child, f"{key}[{key_node.value}]", source)
    return result


@cache
def schema(cls: type) -> dict[str, tuple[Any, bool]]:
    """Return (type hint, is required) of each field of a dataclass that a file may set."""
    hints = get_type_hints(cls, include_extras=True)
    return {
        f.name: (
            hints[f.name],
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(cls)
        if f.init and f.name != "locations"
    }


def _build_dataclass(cls: type, node: yaml.Node, key: str, source: Source) -> Any:
    where = source.at(node, key)
    if isinstance(node, yaml.ScalarNode) and cls in source.references and not node.tag.endswith(":null"):
        return source.references[cls](node.value, where)
    if not isinstance(node, yaml.MappingNode):
        raise SpecError(f"expected a mapping with keys, got {_describe(node)}", where=where)
    known = schema(cls)
    values: dict[str, Any] = {}
    locations = {"": where} if any(f.name == "locations" for f in dataclasses.fields(cls)) else None
    for key_node, child in node.value:
        name = str(key_node.value)
        path = f"{key}.{name}" if key else name
        if name not in known:
            raise SpecError(f"unknown key.{did_you_mean(name, known)}", where=source.at(key_node, path))
        if name in values:
            raise SpecError("this key is given twice", where=source.at(key_node, path))
        values[name] = _build(known[name][0], child, path, source)
        if locations is not None:
            _locate(child, path, name, source, locations)
    missing = [name for name, (_, required) in known.items() if required and name not in values]
    if missing:
        raise SpecError(f"missing key '{missing[0]}'", where=where)
    if locations is not None:
        values["locations"] = locations
    return cls(**values)


def _locate(node: yaml.Node, full: str, relative: str, source: Source, into: dict[str, str]) -> None:
    """Note where every key below `node` stands, for errors that only show once the specs are put together."""
    into[relative] = source.at(node, full)
    if isinstance(node, yaml.MappingNode):
        for key_node, child in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                _locate(child, f"{full}.{key_node.value}", f"{relative}.{key_node.value}", source, into)
    elif isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            _locate(child, f"{full}[{i}]", f"{relative}[{i}]", source, into)


def _build_scalar(hint: Any, node: yaml.Node, key: str, source: Source) -> Any:
    tag = node.tag.rsplit(":", 1)[-1]
    if hint is str and tag == "str":
        return node.value
    if hint is bool and tag == "bool":
        return node.value.lower() == "true"
    if hint is int and tag == "int":
        return int(node.value)
    if hint is float and tag in ("int", "float"):
        return float(node.value.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf"))
    names = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
    quotes = f" (write '{node.value}' in quotes for text)" if hint is str and tag in ("int", "float", "bool") else ""
    raise SpecError(f"expected {names[hint]}, got {_describe(node)}{quotes}", where=source.at(node, key))


def _describe(node: yaml.Node) -> str:
    """Return what a node is, in words."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    tag = node.tag.rsplit(":", 1)[-1]
    kinds = {"str": "the text", "int": "the number", "float": "the number", "bool": "the truth value"}
    return "nothing" if tag == "null" else f"{kinds.get(tag, 'the value')} '{node.value}'"


def dump_yaml(spec: object) -> str:
    """Return YAML text that loads back equal; keys at their default are left out."""
    return yaml.dump(to_dict(spec, defaults=False), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def location(spec: Any, key: str) -> str:
    """Return where `key` of a top-level spec stands: its line in the file it came from, or its name in words.

    A key that the file leaves out is sought where its parent stands.
    """
    locations: Mapping[str, str] = spec.locations
    parent = key
    while parent and parent not in locations:
        parent = re.sub(r"(\.?[^.\[\]]+|\[[^\]]*\])$", "", parent)
    if parent in locations:
        return locations[parent]
    kind = type(spec).__name__.removesuffix("Spec").lower()
    return f"{kind} '{spec.name}', key '{key}'" if key else f"{kind} '{spec.name}'"
