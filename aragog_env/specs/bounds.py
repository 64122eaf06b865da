"""Number types that carry their range, so that a spec's type hints say what a valid file may hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Bound:
    """A closed or half-open range; attached to a number type with `Annotated`."""

    minimum: float = -math.inf
    maximum: float = math.inf
    exclusive: bool = False
    """Whether `minimum` itself is excluded."""

    def problem(self, value: float) -> str | None:
        """Return what is wrong with `value`, or None."""
        if not math.isfinite(value):
            return f"must be finite, got {value}"
        if self.exclusive and value <= self.minimum:
            return f"must be greater than {self.minimum:g}, got {value:g}"
        if value < self.minimum:
            return f"must be at least {self.minimum:g}, got {value:g}"
        if value > self.maximum:
            return f"must be at most {self.maximum:g}, got {value:g}"
        return None


Positive = Annotated[float, Bound(0.0, exclusive=True)]
NonNegative = Annotated[float, Bound(0.0)]
Share = Annotated[float, Bound(0.0, 1.0)]
Count = Annotated[int, Bound(1)]
NonNegativeInt = Annotated[int, Bound(0)]
