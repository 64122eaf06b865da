"""Imitation: behaviour cloning of any policy by name, then DAgger (Ross et al. 2011, arXiv 1011.0686), from top to bottom.

In the first round the expert decides, and the network learns to do the same. In later rounds the network decides and the
expert says what it would have done: so it also learns what to do in the situations that its own mistakes lead to.
A start for PPO (``start=FOLDER``), or a fast copy of a slow policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from aragog_env.backends.sim import SimBackend
from aragog_env.errors import SpecError
from aragog_env.harness.rollout import run_episode
from aragog_env.policy import Dispatch, NeedsOutcomes, Policy, Wait
from aragog_env.registry import make_policy
from aragog_env.specs.bounds import Count, NonNegativeInt, Positive, Share
from aragog_env.specs.scenario import Scenario
from aragog_env.view import DispatchView

from .decider import Decider
from .evaluation import Evaluator
from .learned import SlotEncoder, likeliest_action
from .model_file import BEST_NAME, FILE_NAME, Kind, ModelFile
from .network import Network, likeliest
from .training_env import FIRST_SEED
from .training_run import Settings, TrainingRun

_STRIDE: Final = 1_000_000
"""Seeds of one round lie together, away from those of other learners' traffic."""


@dataclass(frozen=True)
class ImitationSettings(Settings):
    """Settings of imitation."""

    kind: ClassVar[Kind] = "imitation"

    steps: Count = 100_000
    """Decisions of the expert to learn from, in all rounds together."""
    expert: str = "aragog"
    """The policy to imitate, by name."""
    rounds: Count = 4
    """1: the expert alone decides (behaviour cloning); in every further one the network does (DAgger)."""
    epochs: Count = 4
    """Passes over all decisions so far, per round."""
    minibatch: Count = 512
    learning_rate: Positive = 2e-3
    held_out: Share = 0.05
    """Share of the decisions that agreement is measured on."""
    evaluate_every: NonNegativeInt = 1


class Examples:
    """What the expert was shown and what it did, n decisions."""

    NAMES: Final = ("calls", "routes", "pairs", "globals", "can_wait")

    def __init__(self) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._actions: list[int] = []
        self.unseen = 0
        """Decisions about calls beyond the slots, or that the network's mask forbids: nothing to learn from."""

    def __len__(self) -> int:
        return len(self._actions)

    def add(self, inputs: tuple[Any, ...], action: int) -> None:
        """Note a decision."""
        self._rows.append(inputs)
        self._actions.append(action)

    def tensors(self) -> tuple[list[Tensor], Tensor]:
        """Return the inputs of the network's policy, and the actions (n,)."""
        parts = [torch.from_numpy(np.stack(column)) for column in zip(*self._rows, strict=True)]
        return parts, torch.tensor(self._actions)


class Recorder:
    """A policy that asks the expert, notes what it says, and does that or what the network says.

    The expert plans several dispatches ahead, perhaps; once another one was made, it starts afresh.
    """

    def __init__(
        self, expert: Policy, encoder: SlotEncoder, decider: Decider | None, examples: Examples, most: int
    ) -> None:
        self.expert, self.encoder, self.decider = expert, encoder, decider
        self.examples, self.most = examples, most
        if isinstance(expert, NeedsOutcomes) or encoder.sets.sets is not None:
            self.receive_outcomes = self._receive_outcomes

    def _receive_outcomes(self, tables: Any, draws: Any = ()) -> None:
        if isinstance(self.expert, NeedsOutcomes):
            self.expert.receive_outcomes(tables, draws)
        self.encoder.receive_outcomes(tables, draws)

    def reset(self, scenario: Scenario, seed: int) -> None:
        """Begin an episode."""
        self.expert.reset(scenario, seed)
        self.encoder.begin()
        self._again = (scenario, seed)

    @property
    def full(self) -> bool:
        """Whether there are enough examples."""
        return len(self.examples) >= self.most

    def act(self, view: DispatchView) -> Dispatch | Wait:
        """Ask, note, decide."""
        seen = self.encoder.encode(view)
        said = self.expert.act(view)
        label = seen.number(said)
        can_wait = np.bool_(seen.mask[-1] != 0)
        if label < 0 or not seen.mask[label]:
            self.examples.unseen += 1
        elif np.count_nonzero(seen.mask) > 1:  # else there is nothing to learn
            self.examples.add((*seen[:4], can_wait), label)
        if self.decider is None:
            return said
        done = seen.action(likeliest_action(self.decider(*seen[:4], bool(can_wait))))
        if done != said:
            self.expert.reset(*self._again)
        return done


class Imitation:
    """The learner: `collect` a round of decisions, `fit` the network to all so far, and again.

    Args:
        run: folder, scenario and settings; its state is taken up if it has one.
    """

    def __init__(self, run: TrainingRun) -> None:
        assert isinstance(run.settings, ImitationSettings)
        self.run, self.settings = run, run.settings
        s = self.settings
        self.device = s.torch_device()
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=s.use_bf16(self.device))
        torch.manual_seed(s.seed)
        self.network = Network(s.width)
        if s.start:
            self.network.load(ModelFile.load(s.start))
        self.network.to(self.device)
        self.optimiser = torch.optim.Adam(self.network.parameters(), s.learning_rate)
        self.generator = torch.Generator().manual_seed(s.seed)
        self.scenario = s.objective(run.scenario)
        self.inputs: list[Tensor] = []
        self.actions = torch.zeros(0, dtype=torch.int64)
        self.updates, self.best, self.unseen = 0, -math.inf, 0
        state = run.load_state()
        if state is not None:
            self._restore(state)
        self.evaluate = Evaluator(self.scenario, s.rules, s.evaluate_episodes, likeliest)

    @property
    def steps(self) -> int:
        """Decisions so far."""
        return len(self.actions)

    def collect(self) -> None:
        """Let the expert, or after the first round the network, decide for whole episodes until there is enough."""
        s, examples = self.settings, Examples()
        encoder = SlotEncoder(self.scenario, s.rules, self.scenario.observation.ready_slots)
        decider = Decider(self.network.arrays()) if self.updates else None
        most = -(-s.steps // s.rounds)
        recorder = Recorder(make_policy(s.expert), encoder, decider, examples, most)
        backend = SimBackend(self.scenario)
        seed = FIRST_SEED + (s.seed * s.rounds + self.updates + 1) * _STRIDE
        while not recorder.full:
            before = len(examples)
            run_episode(recorder, s.expert, backend, seed)
            seed += 1
            if len(examples) == before and examples.unseen:
                raise SpecError(f"the network may do nothing of what '{s.expert}' does; give both the same viable sets")
        self.unseen += examples.unseen
        parts, actions = examples.tensors()
        self.inputs = (
            [torch.cat((old, new)) for old, new in zip(self.inputs, parts, strict=True)] if self.inputs else parts
        )
        self.actions = torch.cat((self.actions, actions))

    def fit(self) -> dict[str, float]:
        """Maximise the likelihood of the expert's decisions; returns a point of the learning curve."""
        s, n = self.settings, len(self.actions)
        self.updates += 1
        for group in self.optimiser.param_groups:
            group["lr"] = s.learning_rate * (1.0 - 0.8 * (self.updates - 1) / s.rounds)
        # Always the same decisions are held out, whatever comes later.
        held = torch.arange(n) % max(2, round(1 / max(s.held_out, 1e-3))) == 0
        rows, losses = (~held).nonzero().squeeze(1), []
        for _ in range(s.epochs):
            order = rows[torch.randperm(len(rows), generator=self.generator)]
            for part in order.tensor_split(max(1, len(rows) // s.minibatch)):
                loss = torch.nn.functional.cross_entropy(self._logits(part), self.actions[part].to(self.device))
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimiser.step()
                losses.append(loss.item())
        with torch.inference_mode():
            parts = torch.split(held.nonzero().squeeze(1), 4096)
            agree = sum(int((likeliest(self._logits(p)).cpu() == self.actions[p]).sum()) for p in parts)
        return {
            "loss": float(np.mean(losses[-len(losses) // s.epochs :])),
            "agreement": agree / max(1, int(held.sum())),
            "unseen": self.unseen / (n + self.unseen),
        }

    def _logits(self, rows: Tensor) -> Tensor:
        with self.autocast:
            result: Tensor = self.network(*(part[rows].to(self.device) for part in self.inputs))
        return result

    def model(self, **notes: Any) -> ModelFile:
        """Return the network as a file's content."""
        s = self.settings
        notes = {"settings": asdict(s), "steps": self.steps, "updates": self.updates, **notes}
        slots, name = self.scenario.observation.ready_slots, self.scenario.name
        return ModelFile(s.kind, self.network.arrays(), s.width, asdict(s.rules), slots, name, notes)

    def save(self) -> None:
        """Write model and checkpoint."""
        self.model().save(self.run.folder / FILE_NAME)
        self.run.save_state(
            {
                "network": self.network.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "generator": self.generator.get_state(),
                "inputs": self.inputs,
                "actions": self.actions,
                **{name: getattr(self, name) for name in ("updates", "best", "unseen")},
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.inputs, self.actions = state["inputs"], state["actions"]
        self.updates, self.best, self.unseen = state["updates"], state["best"], state["unseen"]
        self.run.rewind_curve(self.updates)

    def train(self) -> None:
        """Go through the rounds until all are done, time is up or the user interrupts."""
        run, s = self.run, self.settings
        with run.running(self.steps):
            while self.updates < s.rounds and not run.stop:
                with run.watch("environment"):
                    self.collect()
                with run.watch("update"):
                    row: dict[str, Any] = {"update": self.updates + 1, "steps": self.steps, **self.fit()}
                if s.evaluate_every and (self.updates % s.evaluate_every == 0 or self.updates == s.rounds):
                    with run.watch("evaluation"):
                        row |= (found := self.evaluate(self.network, self.device))
                    if found.get("eval/reward", -math.inf) > self.best:
                        self.best = found["eval/reward"]
                        self.model(**found).save(run.folder / BEST_NAME)
                run.log(row)
                if run.save_due and self.updates < s.rounds:
                    self.save()
            self.save()
        run.finish(self.steps)


def train(
    scenario: Scenario | None,
    settings: ImitationSettings,
    out: Path,
    tell: Callable[[str], None] = print,
    **options: Any,
) -> None:
    """Imitate a policy; see `TrainingRun` for the options."""
    Imitation(TrainingRun(out, scenario, settings, tell=tell, **options)).train()
