"""Static rules that look at load but not at the query: the floor every scheduler should beat.

All serve the oldest request first and, inside a request, the stage farthest from the leaf (the order of `view.calls`), and
never wait.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError, did_you_mean
from aragog_env.policy import Dispatch
from aragog_env.specs.catalogue import cluster_models
from aragog_env.specs.graph import unroll
from aragog_env.specs.load import scenario_workflows
from aragog_env.specs.scenario import Scenario
from aragog_env.view import DispatchView


def loads(view: DispatchView) -> NDArray[np.int32]:
    """Return (R,) requests on each route, running and waiting."""
    result: NDArray[np.int32] = view.routes["running"] + view.routes["waiting"]
    return result


class RandomPolicy:
    """Any allowed route, with equal probability."""

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Seed the choice."""
        self.rng = np.random.default_rng(seed)

    def act(self, view: DispatchView) -> Dispatch:
        """Send the oldest call anywhere it may go."""
        return Dispatch(0, int(self.rng.choice(np.flatnonzero(view.allowed[0]))))


class RoundRobinPolicy:
    """The next allowed route after the last one used."""

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Start at the first route."""
        self.last = -1

    def act(self, view: DispatchView) -> Dispatch:
        """Send the oldest call to the next route in turn."""
        routes = np.flatnonzero(view.allowed[0])
        later = routes[routes > self.last]
        self.last = int(later[0] if later.size else routes[0])
        return Dispatch(0, self.last)


class LeastLoadedPolicy:
    """The allowed route with the fewest requests; ties go to the first route."""

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Nothing to remember."""

    def act(self, view: DispatchView) -> Dispatch:
        """Send the oldest call to the shortest queue."""
        routes = np.flatnonzero(view.allowed[0])
        return Dispatch(0, int(routes[np.argmin(loads(view)[routes])]))


class PowerOfTwoPolicy:
    """The less loaded of two random allowed routes (Mitzenmacher 2001)."""

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Seed the choice."""
        self.rng = np.random.default_rng(seed)

    def act(self, view: DispatchView) -> Dispatch:
        """Send the oldest call to the better of two draws."""
        routes = np.flatnonzero(view.allowed[0])
        two = self.rng.permutation(routes)[:2]
        return Dispatch(0, int(two[np.argmin(loads(view)[two])]))


class EarliestFinishPolicy:
    """The allowed route with the least predicted latency (latency model, present load, expected output length)."""

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Nothing to remember."""

    def act(self, view: DispatchView) -> Dispatch:
        """Send the oldest call where it should end first."""
        return Dispatch(0, int(np.argmin(view.predicted_latency_s()[0])))


class FixedPolicy:
    """One configuration for every request of a workflow, on the least loaded replica of each chosen model.

    Args:
        everywhere: ``largest``, ``smallest`` or a model's name, for every stage of workflows not named in `configurations`.
        configurations: workflow name -> models of its LLM stages in order, joined by ``/``.
    """

    def __init__(self, everywhere: str = "largest", **configurations: str) -> None:
        self.everywhere = everywhere
        self.configurations = configurations

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Work out the model of each node.

        Raises:
            SpecError: unknown model or workflow, or a configuration of the wrong length.
        """
        names = [model.name for model in cluster_models(scenario.cluster)]
        workflows = scenario_workflows(scenario)
        for name in self.configurations:
            if name not in {w.name for w in workflows}:
                known = did_you_mean(name, (w.name for w in workflows))
                raise SpecError(f"policy 'fixed': the scenario has no workflow '{name}'.{known}")
        self.chosen: list[list[int]] = []
        for workflow in workflows:
            nodes = unroll(workflow).nodes
            llm = [k for k, node in enumerate(nodes) if node.kind == "llm"]
            text = self.configurations.get(workflow.name)
            models = text.split("/") if text else [self.everywhere] * len(llm)
            if len(models) != len(llm):
                stages = "/".join(nodes[k].name for k in llm)
                raise SpecError(
                    f"policy 'fixed': '{text}' names {len(models)} models, but '{workflow.name}' has {len(llm)} "
                    f"LLM stages: {stages}"
                )
            chosen = [-1] * len(nodes)
            for k, model in zip(llm, models, strict=True):
                allowed = workflow.stages[nodes[k].stage].candidates or names
                chosen[k] = _choose(model, sorted(names.index(c) for c in allowed), names)
            self.chosen.append(chosen)

    def act(self, view: DispatchView) -> Dispatch:
        """Send the oldest call to its fixed model; while no server of that model can take it, to any other."""
        call = view.calls[0]
        model = self.chosen[call["workflow"]][call["node"]]
        fixed = view.allowed[0] & (view.routes["model"] == model)
        routes = np.flatnonzero(fixed if fixed.any() else view.allowed[0])
        return Dispatch(0, int(routes[np.argmin(loads(view)[routes])]))


def _choose(name: str, allowed: list[int], names: list[str]) -> int:
    """Return the index of the model that `name` means among the `allowed` ones."""
    if name == "largest":
        return allowed[-1]
    if name == "smallest":
        return allowed[0]
    if name not in names:
        hint = did_you_mean(name, [*names, "largest", "smallest"])
        raise SpecError(f"policy 'fixed': the cluster has no model '{name}'.{hint}")
    if names.index(name) not in allowed:
        raise SpecError(
            f"policy 'fixed': '{name}' is no candidate of that stage; candidates are "
            f"{', '.join(names[k] for k in allowed)}"
        )
    return names.index(name)
