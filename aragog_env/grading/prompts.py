"""Prompt templates: text with named placeholders, read once, checked, and filled without looking at what is filled in.

A template is parsed into pieces when it is loaded. What a model wrote is only ever joined between them, so that braces in
an output mean nothing.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..datasets.record import Record
from ..errors import SpecError, did_you_mean


@dataclass(frozen=True)
class PromptContext:
    """All that a prompt may be made of."""

    record: Record
    stage: str
    copy: int
    """Number of this copy of a fan-out stage, from 1."""
    outputs: Mapping[str, tuple[str, ...]]
    """Outputs of the stages in the prompt's context; several for a fan-out stage, none where it did not run."""


Fields = Callable[[dict[str, str], PromptContext], Mapping[str, str]]
"""A workflow's own say in what placeholders stand for (`PromptSpec.fields`): gets the usual ones, returns all."""


@dataclass(frozen=True)
class Template:
    """A prompt template."""

    pieces: tuple[tuple[str, str | None], ...]
    """Text, then the name of the placeholder that follows it (None at the end)."""
    where: str

    @property
    def names(self) -> frozenset[str]:
        """Names of the placeholders."""
        return frozenset(name for _, name in self.pieces if name is not None)

    def fill(self, fields: Mapping[str, str]) -> str:
        """Return the prompt; values are put in as they are, braces and all.

        Raises:
            SpecError: a placeholder has no value.
        """
        parts: list[str] = []
        for text, name in self.pieces:
            parts.append(text)
            if name is not None:
                if name not in fields:
                    raise SpecError(f"nothing is known for {{{name}}}.{did_you_mean(name, fields)}", where=self.where)
                parts.append(fields[name])
        return "".join(parts)


def parse_template(text: str, where: str, known: Collection[str] | None = None) -> Template:
    """Return a template from its text.

    Args:
        text: as for `str.format`, with plain names only; literal braces are written twice.
        where: location, for errors.
        known: the placeholders that may occur; None: any.

    Raises:
        SpecError: a lone brace, or a placeholder that is not one of `known`, with the line.
    """
    pieces: list[tuple[str, str | None]] = []
    line = 1
    try:
        for literal, name, form, conversion in string.Formatter().parse(text):
            line += literal.count("\n")
            if name is not None:
                if not name.isidentifier() or form or conversion:
                    message = f"placeholders are plain names in braces, got '{{{name}}}'; write literal braces twice"
                    raise SpecError(message, where=f"{where}:{line}")
                if known is not None and name not in known:
                    hint = did_you_mean(name, known)
                    raise SpecError(f"unknown placeholder '{{{name}}}'.{hint}", where=f"{where}:{line}")
            pieces.append((literal, name))
    except ValueError as error:
        raise SpecError(f"this template is malformed ({error}); write literal braces twice", where=where) from error
    return Template(tuple(pieces), where)


def load_template(path: Path, known: Collection[str] | None = None) -> Template:
    """Read a template from a file.

    Raises:
        SpecError: as for `parse_template`, or the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"cannot read this prompt template ({reason})", where=str(path)) from error
    return parse_template(text, str(path), known)


def join_outputs(texts: Sequence[str]) -> str:
    """Return the outputs of a stage as one text; copies of a fan-out stage are numbered from [1]."""
    if len(texts) <= 1:
        return "".join(texts).strip()
    return "\n\n".join(f"[{k}]\n{text.strip()}" for k, text in enumerate(texts, start=1))
