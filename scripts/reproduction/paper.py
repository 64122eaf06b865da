"""What the Aragog paper reports (arXiv 2511.20975 v2), with the place of every number. Nothing is fitted to these.

Gains and cuts are fractions: 0.5 is +50%. "vs" names the baseline: `per_input` or `per_workflow`. Figure values are readings.
"""

from __future__ import annotations

from typing import Final

WORKFLOWS: Final = {
    "self_refine_humaneval": "self-refine, HumanEval",
    "self_refine_squad": "self-refine, SQuAD v2",
    "text_to_sql_bird": "text-to-SQL, BIRD",
    "voting_mmlu_pro": "voting, MMLU-Pro",
    "decomposition_strategyqa": "decomposition, StrategyQA",
}
"""Section 5.1: the five workflow-data pairs."""

FAMILIES: Final = {"qwen": "Qwen2.5 7/14/32B", "llama": "Llama 3 3/8/70B", "mixed": "Llama 8B, Phi-4 14B, Qwen 32B"}
"""Section 5.1; the mixed family is an ablation of section 5.3."""

Range = tuple[float, float]

GAIN_RANGE: Final[dict[str, Range]] = {"per_input": (0.428, 0.763), "per_workflow": (0.781, 2.170)}
"""Section 5.2, Fig. 12: highest throughput over the sweep, all pairs of both families."""

GAIN_RANGE_BY_KIND: Final[dict[str, dict[str, Range]]] = {
    "simple": {"per_input": (0.428, 0.501), "per_workflow": (1.002, 2.170)},
    "complex": {"per_input": (0.540, 0.763), "per_workflow": (0.781, 1.424)},
}
"""Section 5.2: self-refine pairs ("simple workflows") and the other three."""

GAIN: Final[dict[tuple[str, str], dict[str, float]]] = {
    ("self_refine_humaneval", "qwen"): {"per_input": 0.500, "per_workflow": 2.170},
    ("voting_mmlu_pro", "qwen"): {"per_input": 0.600, "per_workflow": 1.286},
}
"""Section 5.3: the only two pairs with printed numbers."""

MIXED_GAIN_RANGE: Final[dict[str, Range]] = {"per_input": (0.337, 0.685), "per_workflow": (1.095, 1.114)}
"""Section 5.3, mixed families."""

CUT_RANGE: Final[dict[str, dict[str, Range]]] = {
    "jct_mean_s": {"per_input": (0.254, 0.694), "per_workflow": (0.600, 0.853)},
    "jct_p25_s": {"per_input": (0.236, 0.601), "per_workflow": (0.584, 0.828)},
    "jct_p50_s": {"per_input": (0.325, 0.711), "per_workflow": (0.600, 0.861)},
    "jct_p95_s": {"per_input": (0.462, 0.762), "per_workflow": (0.632, 0.890)},
}
"""Section 5.2, Fig. 13: latency cut at the highest rate, over all pairs of both families."""

MIXED_CUT_RANGE: Final[dict[str, Range]] = {"per_input": (0.379, 0.454), "per_workflow": (0.631, 0.636)}
"""Section 5.3, mixed families: mean latency."""

ACCURACY: Final[dict[str, tuple[tuple[float, float], ...]]] = {
    "qwen": ((0.90, 0.89), (0.83, 0.83), (0.74, 0.74), (0.63, 0.62), (0.36, 0.35)),
    "llama": ((0.87, 0.87), (0.82, 0.81), (0.77, 0.76), (0.53, 0.51), (0.51, 0.50)),
}
"""Fig. 14: (most expensive configuration, Aragog), by height; the figure does not say which pair is which."""
LARGEST_ACCURACY_LOSS: Final = 0.02
"""Section 5.2."""

ROUTING_SHARE: Final = {"low rate": 0.035, "high rate": 0.01}
"""Fig. 15: upper bounds of routing time / end-to-end latency."""

SEARCH: Final = {
    "greedy": {"seconds": 0.001, "utilisation": 0.784, "flexibility": 0.755},
    "beam, B = 4": {"seconds": 0.0041, "utilisation": 0.981, "flexibility": 0.922},
    "brute force": {"seconds": 2.72, "utilisation": 1.0, "flexibility": 1.0},
}
"""Fig. 10: one round on live snapshots, relative to the optimum."""

ABLATIONS: Final[dict[str, dict[str, dict[str, float]]]] = {
    "default": {
        "self_refine_humaneval": {"per_input": 0.500, "per_workflow": 2.170},
        "voting_mmlu_pro": {"per_input": 0.600, "per_workflow": 1.286},
    },
    "beam_1": {
        "self_refine_humaneval": {"per_input": 0.163, "per_workflow": 0.822},
        "voting_mmlu_pro": {"per_input": 0.192, "per_workflow": 0.734},
    },
    "beam_2": {
        "self_refine_humaneval": {"per_input": 0.347, "per_workflow": 1.895},
        "voting_mmlu_pro": {"per_input": 0.275, "per_workflow": 0.872},
    },
    "beam_8": {
        "self_refine_humaneval": {"per_input": 0.512, "per_workflow": 2.171},
        "voting_mmlu_pro": {"per_input": 0.617, "per_workflow": 1.304},
    },
    "embedder": {
        "self_refine_humaneval": {"per_input": 0.503, "per_workflow": 2.168},
        "voting_mmlu_pro": {"per_input": 0.583, "per_workflow": 1.267},
    },
    "4_gpus": {
        "self_refine_humaneval": {"per_input": 0.283, "per_workflow": 2.052},
        "voting_mmlu_pro": {"per_input": 0.321, "per_workflow": 1.174},
    },
    "constrained": {
        "self_refine_humaneval": {"per_input": 0.342, "per_workflow": 1.646},
        "voting_mmlu_pro": {"per_input": 0.521, "per_workflow": 1.065},
    },
}
"""Section 5.3, Fig. 16 and tables. The B = 2 cells could not be attributed with certainty."""

BINDING: Final[dict[str, dict[str, float]]] = {
    "per_workflow": {"self_refine_humaneval": 0.30, "another": 0.45, "the third": 0.40},
    "per_input": {"self_refine_humaneval": 0.63, "another": 0.54, "the third": 0.59},
    "per_input_plus": {"self_refine_humaneval": 0.75, "another": 0.70, "the third": 0.72},
    "per_input_plus_plus": {"self_refine_humaneval": 1.0, "another": 1.0, "the third": 1.0},
}
"""Fig. 4: capacity as a share of the best strategy, oracle accuracy for all, Qwen. The figure has three workflows; which of
the other two is which cannot be read."""
