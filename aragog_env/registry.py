"""Policies by name: ``least_loaded``, ``fixed:largest``, ``aragog:beam=8``, or ``package.module:Class`` for your own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import charged
from .errors import AragogError, SpecError, did_you_mean
from .policy import Policy

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds `aragog_env`, `policies`, `baselines` and `workflows`."""


@dataclass(frozen=True)
class PolicyEntry:
    """A registered policy: where its class is, and what it does in one line."""

    entry_point: str
    summary: str
    variants: tuple[str, ...] = ()
    """Spellings worth listing, e.g. ``fixed:largest``; empty when the bare name works."""
    argument: str = ""
    """What must follow the name, e.g. ``PATH``: there is no spelling that works everywhere."""


_POLICIES: dict[str, PolicyEntry] = {
    "random": PolicyEntry("baselines.rules:RandomPolicy", "oldest call, any allowed route"),
    "round_robin": PolicyEntry("baselines.rules:RoundRobinPolicy", "oldest call, the next allowed route in turn"),
    "least_loaded": PolicyEntry("baselines.rules:LeastLoadedPolicy", "oldest call, fewest requests on the route"),
    "power_of_two": PolicyEntry(
        "baselines.rules:PowerOfTwoPolicy", "oldest call, the less loaded of two random routes"
    ),
    "fixed": PolicyEntry(
        "baselines.rules:FixedPolicy",
        "one configuration for all: fixed:largest, fixed:smallest, fixed:MODEL, fixed:WORKFLOW=MODEL/MODEL/...",
        ("fixed:smallest", "fixed:largest"),
    ),
    "earliest_finish": PolicyEntry(
        "baselines.rules:EarliestFinishPolicy", "oldest call, the route predicted to end it first"
    ),
    "aragog": PolicyEntry(
        "policies.aragog.policy:AragogPolicy",
        "viable configurations once per request, joint choice per stage by beam search (arXiv 2511.20975)",
        ("aragog", "aragog:oracle"),
    ),
    "per_workflow": PolicyEntry(
        "baselines.per_workflow:PerWorkflowPolicy",
        "one configuration for all: the cheapest that matches the largest's mean accuracy",
        ("per_workflow", "per_workflow:oracle"),
    ),
    "per_input": PolicyEntry(
        "baselines.per_input:PerInputPolicy",
        "the cheapest viable configuration of each request, chosen at arrival",
        ("per_input", "per_input:oracle"),
    ),
    "per_input_plus": PolicyEntry(
        "baselines.per_input_plus:PerInputPlusPolicy",
        "the viable configuration predicted to answer first, chosen at arrival",
        ("per_input_plus", "per_input_plus:oracle"),
    ),
    "per_input_plus_plus": PolicyEntry(
        "baselines.per_input_plus:PerInputPlusPlusPolicy",
        "the same, chosen again at every stage",
        ("per_input_plus_plus", "per_input_plus_plus:oracle"),
    ),
    "viable_shortest_queue": PolicyEntry(
        "baselines.viable_rules:ViableShortestQueuePolicy",
        "at every call, the least loaded server that keeps the request viable",
        ("viable_shortest_queue", "viable_shortest_queue:oracle"),
    ),
    "viable_power_of_two": PolicyEntry(
        "baselines.viable_rules:ViablePowerOfTwoPolicy",
        "at every call, the less loaded of two random servers that keep the request viable",
        ("viable_power_of_two", "viable_power_of_two:oracle"),
    ),
    "viable_random": PolicyEntry(
        "baselines.viable_rules:ViableRandomPolicy",
        "at every call, any server that keeps the request viable",
        ("viable_random", "viable_random:oracle"),
    ),
    "shortest_work": PolicyEntry(
        "baselines.shortest_work:ShortestWorkPolicy",
        "the call whose request needs the least work until its answer, where all together lose the least",
        ("shortest_work", "shortest_work:oracle"),
    ),
    "ppo": PolicyEntry("baselines.learned:PPOPolicy", "a network trained by `aragog train ppo`", argument="PATH"),
    "dqn": PolicyEntry("baselines.learned:DQNPolicy", "a network trained by `aragog train dqn`", argument="PATH"),
    "imitation": PolicyEntry(
        "baselines.learned:ImitationPolicy", "a network trained by `aragog train imitation`", argument="PATH"
    ),
}


def register_policy(name: str, entry_point: str, summary: str = "") -> None:
    """Make the class at ``"module:Class"`` available as policy `name`."""
    _POLICIES[name] = PolicyEntry(entry_point, summary)


def policy_entries() -> dict[str, PolicyEntry]:
    """Return all registered policies."""
    return dict(_POLICIES)


def policy_names() -> tuple[str, ...]:
    """Return the names that can be used as they are."""
    return tuple(name for key, entry in _POLICIES.items() if not entry.argument for name in (entry.variants or (key,)))


def load_policy_class(name: str) -> type:
    """Return the class of a registered policy, e.g. of ``fixed`` or ``fixed:largest``.

    Raises:
        SpecError: no such policy, or its class cannot be imported.
    """
    key = name.partition(":")[0]
    if key not in _POLICIES:
        raise SpecError(f"unknown policy '{name}'.{did_you_mean(key, _POLICIES)}")
    cls: type = load_entry_point(_POLICIES[key].entry_point, name)
    return cls


def make_policy(name: str) -> Policy:
    """Make a policy from ``NAME[:ARGUMENTS]`` or ``module:Class[:ARGUMENTS]``.

    Arguments are separated by commas: ``key=value`` or plain values, passed to the class; numbers and true/false are
    converted. Before any name, ``charged:`` lets the clock pay for decisions (`aragog_env.charged`).

    Raises:
        SpecError: no such policy, or the class does not take these arguments.
    """
    head, _, rest = name.partition(":")
    if head.partition("@")[0] == charged.NAME:
        return charged.charged(name, make_policy)
    if head in _POLICIES:
        entry_point, arguments = _POLICIES[head].entry_point, rest
    elif rest and _is_module(head):
        cls, _, arguments = rest.partition(":")
        entry_point = f"{head}:{cls}"
    else:
        hint = did_you_mean(name, {*policy_names(), *_POLICIES})
        raise SpecError(f"unknown policy '{name}'.{hint}")
    cls_object = load_entry_point(entry_point, name)
    positional, keywords = _parse(arguments)
    try:
        policy = cls_object(*positional, **keywords)
    except TypeError as error:
        raise SpecError(f"policy '{name}': {error}") from error
    if not isinstance(policy, Policy):
        raise SpecError(f"policy '{name}': {entry_point} has no reset(scenario, seed) and act(view)")
    return policy


def _is_module(name: str) -> bool:
    """Return whether `name` can be a module of the user's, who may keep it in the folder the command was started in."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    return "." in name or importlib.util.find_spec(name) is not None


def _parse(arguments: str) -> tuple[list[object], dict[str, object]]:
    positional: list[object] = []
    keywords: dict[str, object] = {}
    for item in filter(None, arguments.split(",")):
        key, equals, value = item.partition("=")
        if equals:
            keywords[key.strip()] = _value(value)
        else:
            positional.append(_value(item))
    return positional, keywords


def _value(text: str) -> object:
    """Convert ``3``, ``0.5``, ``true``; leave the rest as text."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def load_entry_point(entry_point: str, name: str) -> Any:
    """Return what ``"module:attribute"`` names; `name` is who asks, for error messages.

    This is the only way from this package to `policies`, `baselines` and `workflows`.

    Raises:
        SpecError: no such module or attribute.
    """
    module_name, _, attribute = entry_point.partition(":")
    package = module_name.partition(".")[0]
    if package in ("policies", "baselines", "workflows"):
        _check_ours(package)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise SpecError(f"policy '{name}': no module named '{error.name}'") from error
    except AttributeError as error:
        raise SpecError(f"policy '{name}': module '{module_name}' has no '{attribute}'") from error


def _check_ours(package: str) -> None:
    """Refuse another distribution's `policies` or `baselines`: these are common names."""
    found = importlib.util.find_spec(package)
    if found is None:
        # The command was started elsewhere: an editable install makes only `aragog_env` importable.
        sys.path.append(str(ROOT))
        importlib.invalidate_caches()
        found = importlib.util.find_spec(package)
    if found is None:
        raise AragogError(f"there is no folder '{package}' in {ROOT}; install this project editable: pip install -e .")
    places = [Path(p).resolve() for p in found.submodule_search_locations or ()]
    if places and (ROOT / package) not in places:
        raise AragogError(
            f"'{package}' resolves to {places[0]}, which belongs to another package, not to {ROOT / package}; "
            "uninstall it or run from a clean environment"
        )
