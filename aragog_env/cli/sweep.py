"""A file for ``wandb sweep``: which settings of a learner to vary, and the command that trains with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from .options import command_line

_RATE: Final = {"distribution": "log_uniform_values", "min": 1e-4, "max": 3e-3}
PARAMETERS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "ppo": {
        "learning_rate": _RATE,
        "critic_rate": _RATE,
        "entropy": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "gae_lambda": {"values": [0.8, 0.9, 0.95]},
        "trace_slos": {"values": [1.0, 2.0, 4.0]},
        "discount_slos": {"values": [0.5, 1.0, 2.0]},
        "epochs": {"values": [1, 2, 4]},
        "hold": {"values": [0.0, 0.8, 0.95]},
    },
    "dqn": {
        "learning_rate": _RATE,
        "n_step": {"values": [4, 16, 64]},
        "gradient_steps": {"values": [1, 2, 4]},
        "discount_slos": {"values": [0.5, 1.0, 2.0]},
        "hold": {"values": [0.0, 0.8, 0.95]},
    },
    "imitation": {
        "learning_rate": _RATE,
        "epochs": {"values": [2, 4, 8]},
        "width": {"values": [16, 32, 64]},
    },
}
_DROPPED: Final = {"--print-sweep": 0, "--wandb": 1, "--out": 1, "-o": 1}
_HEAD: Final = """\
# Vary settings of 'aragog train {learner}', see 'aragog train {learner} --settings':
#   wandb sweep --project {project} this-file.yaml
#   wandb agent ENTITY/{project}/SWEEP-ID     (on as many machines as you like)
# The agent gives the parameters to --set. A run's folder is runs/sweep-SWEEP-ID/RUN-ID.
"""


def sweep_file(learner: str, read: Callable[[list[str]], object]) -> str:
    """Return the file as YAML.

    Args:
        learner: what is trained; the other options of the present command are kept.
        read: makes settings from words like ``width=64``; refuses what the learner does not have.
    """
    import yaml

    from ..harness.tracking import PROJECT

    parameters = PARAMETERS[learner]
    for name, parameter in parameters.items():
        for value in parameter.get("values") or (parameter["min"], parameter["max"]):
            read([f"{name}={value}"])
    command = [*_kept(command_line()), "--wandb", "online", "--set", "${args_no_hyphens}"]
    content = {
        "program": "aragog",
        "command": command,
        "method": "random",
        "metric": {"name": "eval/reward", "goal": "maximize"},
        "parameters": parameters,
    }
    head = _HEAD.format(learner=learner, project=PROJECT)
    return head + yaml.dump(content, sort_keys=False, default_flow_style=None, width=110, Dumper=_no_aliases())


def _kept(words: list[str]) -> list[str]:
    """Return the words of a command without the options that a sweep gives itself."""
    kept, skip = [], 0
    for word in words:
        name, equals, _ = word.partition("=")
        if skip:
            skip -= 1
        elif name in _DROPPED:
            skip = 0 if equals else _DROPPED[name]
        else:
            kept.append(word)
    return kept


def _no_aliases() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return Dumper
