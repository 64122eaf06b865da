"""Strict YAML: what loads, what is refused, and with which words."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from aragog_env.errors import SpecError
from aragog_env.specs.bounds import Count, NonNegative, Positive
from aragog_env.specs.strict import Source, dump_yaml, load_file, loads, location, spec_hash, to_dict


@dataclass(frozen=True)
class Engine:
    power_kw: Positive
    kind: Literal["petrol", "electric"] = "petrol"


@dataclass(frozen=True)
class Car:
    name: str
    engine: Engine
    doors: Count = 4
    weight_kg: NonNegative = 1000.0
    sporty: bool = False
    owner: str | None = None
    spares: tuple[Engine, ...] = ()
    tags: tuple[str, ...] | None = None
    price_by_year: dict[float, float] = field(default_factory=dict)
    description: str = ""
    locations: dict[str, str] = field(default_factory=dict, compare=False, repr=False)


GOOD = """\
name: beetle
engine: {power_kw: 25}
doors: 2
weight_kg: 7.4e2
sporty: true
spares:
  - power_kw: 30
    kind: electric
tags: [on, 'yes', "12"]
price_by_year: {1970: 4000, 1980.5: 1e3}
"""


def test_loads_every_kind_of_field() -> None:
    car = loads(Car, GOOD)
    assert car == Car(
        name="beetle",
        engine=Engine(25.0),
        doors=2,
        weight_kg=740.0,
        sporty=True,
        spares=(Engine(30.0, "electric"),),
        tags=("on", "yes", "12"),
        price_by_year={1970.0: 4000.0, 1980.5: 1000.0},
    )
    assert isinstance(car.engine.power_kw, float)
    assert all(isinstance(year, float) for year in car.price_by_year)


def bad(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bad("doors: 2", "dors: 2"), "t.yaml:3, key 'dors': unknown key. Did you mean 'doors'?"),
        (
            bad("    kind: electric", "    kin: electric"),
            "t.yaml:8, key 'spares[0].kin': unknown key. Did you mean 'kind'?",
        ),
        (
            bad("    kind: electric", "    zzz: electric"),
            "t.yaml:8, key 'spares[0].zzz': unknown key. Known: kind, power_kw.",
        ),
        (
            bad("kind: electric", "kind: electrik"),
            "t.yaml:8, key 'spares[0].kind': unknown value 'electrik'. Did you mean 'electric'?",
        ),
        (
            bad("kind: electric", "kind: [electric]"),
            "t.yaml:8, key 'spares[0].kind': expected one of petrol, electric, got a list",
        ),
        (bad("name: beetle\n", ""), "t.yaml:1: missing key 'name'"),
        (bad("{power_kw: 25}", "{kind: petrol}"), "t.yaml:2, key 'engine': missing key 'power_kw'"),
        (
            bad("power_kw: 25", "power_kw: -25"),
            "t.yaml:2, key 'engine.power_kw': must be greater than 0, got -25",
        ),
        (bad("power_kw: 25", "power_kw: .inf"), "t.yaml:2, key 'engine.power_kw': must be finite, got inf"),
        (bad("weight_kg: 7.4e2", "weight_kg: -1"), "t.yaml:4, key 'weight_kg': must be at least 0, got -1"),
        (bad("doors: 2", "doors: 0"), "t.yaml:3, key 'doors': must be at least 1, got 0"),
        (
            bad("doors: 2", "doors: 2.0"),
            "t.yaml:3, key 'doors': expected a whole number, got the number '2.0'",
        ),
        (bad("doors: 2", "doors: '2'"), "t.yaml:3, key 'doors': expected a whole number, got the text '2'"),
        (
            bad("doors: 2", "doors: true"),
            "t.yaml:3, key 'doors': expected a whole number, got the truth value 'true'",
        ),
        (bad("doors: 2", "doors:"), "t.yaml:3, key 'doors': expected a whole number, got nothing"),
        (
            bad("weight_kg: 7.4e2", "weight_kg: 'a'"),
            "t.yaml:4, key 'weight_kg': expected a number, got the text 'a'",
        ),
        (
            bad("weight_kg: 7.4e2", "weight_kg: no"),
            "t.yaml:4, key 'weight_kg': expected a number, got the text 'no'",
        ),
        (
            bad("sporty: true", "sporty: yes"),
            "t.yaml:5, key 'sporty': expected true or false, got the text 'yes'",
        ),
        (
            bad("name: beetle", "name: 911"),
            "t.yaml:1, key 'name': expected text, got the number '911' (write '911' in quotes for text)",
        ),
        (bad("name: beetle", "name: [a]"), "t.yaml:1, key 'name': expected text, got a list"),
        (
            bad("tags: [on, 'yes', \"12\"]", "tags: on"),
            "t.yaml:9, key 'tags': expected a list, got the text 'on'",
        ),
        (bad("[on, 'yes'", "[on, 5"), "t.yaml:9, key 'tags[1]': expected text, got the number '5'"),
        (
            bad("engine: {power_kw: 25}", "engine: v8"),
            "t.yaml:2, key 'engine': expected a mapping with keys, got the text",
        ),
        (
            bad("{1970: 4000", "{old: 4000"),
            "t.yaml:10, key 'price_by_year': expected a number, got the text 'old'",
        ),
        (
            bad("{1970: 4000", "{1970: old"),
            "t.yaml:10, key 'price_by_year[1970]': expected a number, got the text",
        ),
        (bad("1980.5: 1e3", "1970: 1"), "t.yaml:10, key 'price_by_year': key 1970 is given twice"),
        (
            bad("{1970: 4000, 1980.5: 1e3}", "[1]"),
            "t.yaml:10, key 'price_by_year': expected a mapping, got a list",
        ),
        (bad("sporty: true", "doors: 3"), "t.yaml:5, key 'doors': this key is given twice"),
        (bad("sporty: true", "locations: {}"), "t.yaml:5, key 'locations': unknown key."),
        (
            "name: [a\n",
            "t.yaml:2: this is not valid YAML: while parsing a flow sequence (line 1), did not find",
        ),
        ("a: b: c", "t.yaml:1: this is not valid YAML: mapping values are not allowed"),
        ("", "t.yaml: the file is empty"),
        ("- a", "t.yaml:1: expected a mapping with keys, got a list"),
    ],
)
def test_refuses_with_file_line_key_and_remedy(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        loads(Car, text, "t.yaml")
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 2


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: cannot read this file \(No such file or directory\)"):
        load_file(Car, tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SpecError, match=r"binary\.yaml: cannot read this file"):
        load_file(Car, tmp_path / "binary.yaml")


def test_a_name_may_stand_for_a_dataclass() -> None:
    source = Source("t.yaml", references={Engine: lambda name, where: Engine(len(name)) if name else where})
    assert loads(Car, "name: a\nengine: v8\n", source).engine == Engine(2)


def test_a_top_level_list_loads() -> None:
    assert loads(tuple[Engine, ...], "- power_kw: 1\n- power_kw: 2\n") == (Engine(1.0), Engine(2.0))
    with pytest.raises(SpecError, match=r"t\.yaml:2, key '\[1\]\.power': unknown key\. Did you mean 'power_kw'"):
        loads(tuple[Engine, ...], "- power_kw: 1\n- power: 2\n", "t.yaml")


def test_locations_name_lines_and_fall_back_to_the_parent() -> None:
    car = loads(Car, GOOD, "t.yaml")
    assert location(car, "spares[0].kind") == "t.yaml:8, key 'spares[0].kind'"
    assert location(car, "engine.kind") == "t.yaml:2, key 'engine'"
    assert location(car, "owner") == "t.yaml:1"
    assert location(Car("x", Engine(1)), "spares[0].kind") == "car 'x', key 'spares[0].kind'"


@pytest.mark.parametrize("tag", ["yes", "on", "12", "1e-3", "1.0", "null", "~", "true", "", " a", "a: b", "#x", "é"])
def test_dump_loads_back_equal_whatever_the_text(tag: str) -> None:
    car = Car(name=tag, engine=Engine(1e-7), tags=(tag,), price_by_year={2.0: 1e22, 1.0: 0.1})
    assert loads(Car, dump_yaml(car)) == car


def test_dump_leaves_out_defaults() -> None:
    assert dump_yaml(Car("a", Engine(1.0))) == "name: a\nengine:\n  power_kw: 1.0\n"


def test_plain_form_is_complete_and_without_locations() -> None:
    plain = to_dict(loads(Car, GOOD))
    assert plain["owner"] is None
    assert plain["spares"] == [{"power_kw": 30.0, "kind": "electric"}]
    assert "locations" not in plain


def test_hash_follows_content_not_text_order_or_notes() -> None:
    car = loads(Car, "name: a\nengine: {power_kw: 1}\nprice_by_year: {1: 2, 3: 4}\n")
    same = loads(Car, "engine: {kind: petrol, power_kw: 1.0}\nprice_by_year: {3: 4, 1: 2}\nname: a\ndescription: new\n")
    other = loads(Car, "name: a\nengine: {power_kw: 2}\nprice_by_year: {1: 2, 3: 4}\n")
    assert spec_hash(car) == spec_hash(same)
    assert spec_hash(car) != spec_hash(other)
    assert len(spec_hash(car)) == 64
