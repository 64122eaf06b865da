"""What may be known of a query before it is answered: its name, its text where the licence allows, its features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class QuerySet:
    """The Q queries of one workflow, without anything about answers.

    Where there are texts, routers embed them; a synthetic query has no text, and its features stand for the embedding.
    """

    ids: tuple[str, ...]
    """Q identifiers in the data set; empty for synthetic queries."""
    texts: tuple[str, ...]
    """Q texts; empty where there are none."""
    features: NDArray[np.float32]  # (Q, D) D may be 0
    tokens: NDArray[np.int32]  # (Q,) length of the text
