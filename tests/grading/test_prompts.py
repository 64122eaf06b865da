"""Templates are read strictly and filled without looking at what is filled in."""

from __future__ import annotations

from pathlib import Path

import pytest

from aragog_env.errors import SpecError
from aragog_env.grading.prompts import join_outputs, load_template, parse_template


def test_values_are_put_in_as_they_are() -> None:
    template = parse_template("Q: {query}\n{{literal}} {a}{a}!", "t.txt")
    assert template.names == {"query", "a"}
    filled = template.fill({"query": "{a} {0} {query!r} %s {{", "a": "}{", "unused": "x"})
    assert filled == "Q: {a} {0} {query!r} %s {{\n{literal} }{}{!"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("one\ntwo {quer}", 2, "Did you mean 'query'"),
        ("{}", 1, "plain names"),
        ("{0}", 1, "plain names"),
        ("{query.__class__}", 1, "plain names"),
        ("{query!r}", 1, "plain names"),
        ("{query:>100000}", 1, "plain names"),
        ("a } b", None, "malformed"),
        ("a { b", None, "malformed"),
    ],
)
def test_bad_templates(text: str, line: int | None, message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        parse_template(text, "t.txt", {"query", "answer"})
    assert error.value.where == (f"t.txt:{line}" if line else "t.txt")


def test_missing_values_and_files(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nothing is known for"):
        parse_template("{b}", "t.txt").fill({"a": "x"})
    with pytest.raises(SpecError, match="cannot read this prompt template"):
        load_template(tmp_path / "none.txt")


def test_copies_are_numbered() -> None:
    assert join_outputs(()) == ""
    assert join_outputs(("  one\n",)) == "one"
    assert join_outputs(("one\n", "{two}")) == "[1]\none\n\n[2]\n{two}"
