"""Aragog Gym: schedule agentic LLM workflows on vLLM clusters, as a Gymnasium environment and a benchmark.

Importing this package registers `aragog/StageDispatch-v0` and `aragog/StageDispatchLive-v0`. It loads neither torch nor wandb
nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium as gym

if TYPE_CHECKING:
    from .harness.evaluate import evaluate
    from .policy import WAIT, Dispatch, Policy
    from .registry import make_policy, register_policy
    from .specs.load import load_scenario

__version__ = "0.1.0"

_LAZY = {
    "evaluate": "harness.evaluate",
    "make_policy": "registry",
    "register_policy": "registry",
    "load_scenario": "specs.load",
    "Dispatch": "policy",
    "Policy": "policy",
    "WAIT": "policy",
}

__all__ = ["WAIT", "Dispatch", "Policy", "evaluate", "load_scenario", "make_policy", "register_policy"]

gym.register(
    id="aragog/StageDispatch-v0",
    entry_point="aragog_env.env:StageDispatchEnv",
    vector_entry_point="aragog_env.vector_env:StageDispatchVectorEnv",
)
# Real servers never answer twice in exactly the same time.
gym.register(
    id="aragog/StageDispatchLive-v0", entry_point="aragog_env.live_env:StageDispatchLiveEnv", nondeterministic=True
)


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that importing the package stays quick."""
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List the lazily imported names too."""
    return sorted({*globals(), *_LAZY})
