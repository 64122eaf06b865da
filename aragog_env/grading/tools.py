"""What a tool stage is given and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..datasets.record import Record


@dataclass(frozen=True)
class ToolCall:
    """One run of a tool stage."""

    record: Record
    stage: str
    inputs: Mapping[str, tuple[str, ...]]
    """Outputs of the parents, by stage; several for a fan-out stage."""
    limit_s: float
    """Seconds it may take (`tool_s.maximum_s`)."""


@dataclass(frozen=True)
class ToolResult:
    """What a tool has to say; a failure is text for the next stage, not an exception."""

    text: str
    ok: bool
    wall_s: float
