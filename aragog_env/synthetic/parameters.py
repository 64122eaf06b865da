"""What the generator assumes about every workflow: numbers fitted to public data, read from one preset file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Final

from ..errors import SpecError, did_you_mean
from ..specs.bounds import NonNegative, Share
from ..specs.catalogue import PRESETS
from ..specs.strict import load_file

PRESET: Final = PRESETS / "outcome_generator.yaml"


@dataclass(frozen=True)
class GeneratorParameters:
    """Shares and correlations of the generative model; the workflow file adds accuracies and lengths.

    Correlations are those of the normal latent behind right and wrong (tetrachoric), for the final answer of a workflow
    in which one model serves every stage. The preset file says where each value comes from.
    """

    sibling_correlation: Share
    """Between two models of equal size on one query."""
    size_angle: NonNegative
    """How fast models of different size disagree on what is hard: the sibling correlation of sizes a and b is
    sibling_correlation * cos(size_angle * ln(b / a))."""
    repeat_correlation: Share
    """One model, the same query twice; 1 minus this is call noise."""
    difficulty_sharing: Share
    """Share of a query's difficulty that its stages have in common."""
    strength_sharing: Share
    """Share of a model's own strength on a query that its stages have in common."""
    copy_sharing: Share
    """Share of a model's stage-specific strength that the copies of a fan-out stage have in common."""
    stage_skill_sigma: NonNegative
    """Standard deviation of a model's level from stage to stage, in units of the latent's standard deviation."""
    repair: Share
    """How much more a better later stage pulls up than a worse one pulls down (0: as much; 1: the most)."""
    length_difficulty: Share
    """Minus the correlation of log length with the difficulty and strength behind the answer."""
    length_sharing: Share
    """Share of the common log-length variance that the stages of a query have in common."""
    skip_difficulty: Share
    """Share of a skip decision's variance that follows the query's difficulty."""
    text_difficulty: Share
    """Share of the variance of difficulty that a text embedding of the query tells."""
    text_strength: Share
    """Share of the variance of models' own strengths that a text embedding of the query tells."""

    def __post_init__(self) -> None:
        """Refuse correlations that no latent has."""
        if not self.sibling_correlation < self.repeat_correlation < 1:
            raise SpecError(
                "a model must agree with itself more than with others: 'sibling_correlation' < 'repeat_correlation' < 1, got "
                f"{self.sibling_correlation:g} and {self.repeat_correlation:g}",
                where="generator parameters",
            )


@dataclass(frozen=True)
class GeneratorPreset:
    """The file of fitted parameters: one set for all workflows, and changes to it for some."""

    parameters: GeneratorParameters
    workflows: dict[str, dict[str, Share]] = field(default_factory=dict)
    """Changed parameters by workflow name."""
    source: str = ""


def load_parameters(workflow: str | None = None) -> GeneratorParameters:
    """Return the fitted parameters, with the changes for `workflow` where the preset file has some.

    Raises:
        SpecError: the preset file is damaged or names an unknown parameter.
    """
    preset = _preset()
    changes = preset.workflows.get(workflow or "", {})
    known = [f.name for f in fields(GeneratorParameters)]
    for name in changes:
        if name not in known:
            raise SpecError(f"unknown generator parameter '{name}'.{did_you_mean(name, known)}", where=str(PRESET))
    return replace(preset.parameters, **changes)


@lru_cache(maxsize=1)
def _preset() -> GeneratorPreset:
    return load_file(GeneratorPreset, PRESET)
