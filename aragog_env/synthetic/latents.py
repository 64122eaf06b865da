"""The random variables behind a synthetic table: what makes a query hard, and for which model and stage.

Every variable belongs to a name (of the workflow, a stage, a model), so that a model has the same strengths in every
cluster. Each has a part that the text of the query tells and a part that it does not; the features of a query are a
linear view of the first parts among nuisance dimensions, as a frozen embedding would be.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .numeric import Floats
from .parameters import GeneratorParameters

FEATURES: Final = 32
"""D, the width of `query_features`."""
TASTES: Final = 6
"""Directions of the text in which models can differ (assumption: a handful of subjects or skills)."""
REFERENCE_SIZE_B: Final = 10.0
"""Where `size_angle` starts; it cancels out of every correlation."""


class Latents:
    """Random variables of the Q queries of one workflow; all have mean 0 and variance 1."""

    def __init__(self, workflow: str, queries: int, seed: int, parameters: GeneratorParameters) -> None:
        self.workflow, self.queries, self.seed, self.parameters = workflow, queries, seed, parameters
        self.told: dict[tuple[str, ...], Floats] = {}  # what the text tells, by name; each (Q,)

    def generator(self, *name: str) -> np.random.Generator:
        """Return the random generator of a name."""
        keys = [zlib.crc32(part.encode()) for part in (self.workflow, *name)]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, *keys])))

    def normal(self, *name: str) -> Floats:
        """Return the standard normal variable of a name, (Q,)."""
        return self.generator(*name).standard_normal(self.queries)

    def tell(self, *name: str) -> Floats:
        """Return a variable of which the text tells everything, (Q,)."""
        if name not in self.told:
            self.told[name] = self.normal("told", *name)
        return self.told[name]

    def ease(self, *name: str) -> Floats:
        """Return a variable of which the text tells the share `text_difficulty`, (Q,); high is easy."""
        share = self.parameters.text_difficulty
        return np.asarray(np.sqrt(share) * self.tell(*name) + np.sqrt(1 - share) * self.normal("untold", *name))

    def difficulty(self, stage: str, size_b: float) -> Floats:
        """Return how easy the queries are for models of a size at a stage, (Q,).

        Two variables turned by an angle that grows with log(size): models of like size find the same queries hard.
        """
        angle = self.parameters.size_angle * np.log(size_b / REFERENCE_SIZE_B)
        share = self.parameters.difficulty_sharing
        axes = [
            np.sqrt(share) * self.ease("difficulty", axis) + np.sqrt(1 - share) * self.ease("difficulty", axis, stage)
            for axis in ("level", "size")
        ]
        return np.asarray(np.cos(angle) * axes[0] + np.sin(angle) * axes[1])

    def strength(self, model: str, stage: str, copy: int) -> Floats:
        """Return how well a query suits a model at one copy of a stage, beyond its difficulty, (Q,)."""
        share, copies = self.parameters.strength_sharing, self.parameters.copy_sharing
        own = np.sqrt(copies) * self.taste(model, stage) + np.sqrt(1 - copies) * self.taste(model, stage, str(copy))
        return np.asarray(np.sqrt(share) * self.taste(model) + np.sqrt(1 - share) * own)

    def taste(self, *name: str) -> Floats:
        """Return a variable of which the text tells the share `text_strength`, (Q,)."""
        share = self.parameters.text_strength
        direction = self.generator("direction", *name).standard_normal(TASTES)
        direction /= np.linalg.norm(direction)
        told = np.stack([self.tell("taste", str(k)) for k in range(TASTES)], axis=1) @ direction
        return np.asarray(np.sqrt(share) * told + np.sqrt(1 - share) * self.normal("taste", *name))

    def features(self, stages: tuple[str, ...]) -> NDArray[np.float32]:
        """Return the features of the queries, (Q, 32): everything told, and nuisance, turned by a random rotation."""
        names: list[tuple[str, ...]] = [("taste", str(k)) for k in range(TASTES)]
        for axis in ("level", "size"):
            names += [("difficulty", axis), *(("difficulty", axis, stage) for stage in stages)]
        columns = [self.tell(*name) for name in names]
        columns += [self.normal("nuisance", str(k)) for k in range(FEATURES - len(columns))]
        square = self.generator("rotation").standard_normal((len(columns), len(columns)))
        rotation = np.linalg.qr(square)[0][:, :FEATURES]
        return np.ascontiguousarray(np.stack(columns, axis=1) @ rotation, dtype=np.float32)
