"""Masked double DQN with n-step returns, from top to bottom.

Van Hasselt et al. 2016 (arXiv 1509.06461) and Wang et al. 2016 (arXiv 1511.06581): the online network chooses among the
possible actions, the target network says what that is worth; a value is that of the state plus the advantage of the action.
Every step has its own discount ``exp(-beta dt)``. A policy needs the advantages alone: they are the network's logits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aragog_env.specs.bounds import Count, NonNegativeInt, Positive, Share
from aragog_env.specs.scenario import Scenario

from .evaluation import EpisodeMeter, Evaluator, observed
from .model_file import BEST_NAME, FILE_NAME, Kind, ModelFile
from .network import MASKED, Inputs, Network
from .sampled_env import training_env
from .snapshots import freeze, thaw
from .training_env import TrainingEnv
from .training_run import Settings, TrainingRun


@dataclass(frozen=True)
class DQNSettings(Settings):
    """Settings of DQN."""

    kind: ClassVar[Kind] = "dqn"

    replay: Count = 100_000
    """Decisions remembered, about 1 kB each."""
    learn_after: Count = 20_000
    """Random decisions before learning begins."""
    horizon: Count = 16
    """Decisions of each environment between updates."""
    gradient_steps: Count = 4
    """Gradient steps of an update."""
    minibatch: Count = 512
    n_step: Count = 16
    """Decisions until the target network is asked: many, since calls sent at the same instant are decisions of no duration."""
    learning_rate: Positive = 5e-4
    target_rate: Share = 0.01
    """Share by which the target network follows at every gradient step."""
    explore_first: Share = 1.0
    """Share of random actions at first,"""
    explore_last: Share = 0.03
    """at last,"""
    explore_until: Share = 0.3
    """and the share of all steps after which the last is reached."""
    most_gradient: Positive = 10.0
    """Norm that gradients are clipped to."""
    evaluate_every: NonNegativeInt = 400


def n_step_returns(
    rewards: NDArray[np.float64],
    discounts: NDArray[np.float64],
    terminated: NDArray[np.bool_],
    ended: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return what n steps bring, and what the value after them is multiplied by, for B sequences.

    Args:
        rewards: (n, B).
        discounts: (n, B) exp(-beta dt) of each step.
        terminated: (n, B) all requests are served: nothing comes after.
        ended: (n, B) terminated or cut: later steps belong to another episode.

    Returns:
        Discounted rewards (B,), the factor of the value of the observation after the last step (B,), and how many steps were
        taken (B,): fewer than n where the episode ended, at whose final observation a cut episode is continued in value.
    """
    total = np.zeros(rewards.shape[1])
    factor = np.ones(rewards.shape[1])
    taken = np.zeros(rewards.shape[1], np.int64)
    running = np.ones(rewards.shape[1], np.bool_)
    for k in range(len(rewards)):
        total += np.where(running, factor * rewards[k], 0.0)
        factor = np.where(running, factor * np.where(terminated[k], 0.0, discounts[k]), factor)
        taken += running
        running = running & ~ended[k]
    return total, factor, taken


def action_values(network: Network, inputs: Inputs) -> Tensor:
    """Return Q of every action, (B, A), `MASKED` where impossible."""
    logits, value = network(*inputs.policy), network.values(inputs)
    possible = logits > MASKED / 2
    mean = torch.where(possible, logits, 0.0).sum(1) / possible.sum(1)
    values = value.unsqueeze(1) + network.value_scale[1] * (logits - mean.unsqueeze(1))
    return torch.where(possible, values, MASKED)


class Replay:
    """The last `length` decisions of E environments, in a ring; sequences can be read from any of them."""

    def __init__(self, length: int, env: TrainingEnv) -> None:
        now, shape = observed(env), (length, env.num_envs)
        self.inputs = Inputs(*(torch.zeros((length, *part.shape), dtype=part.dtype) for part in now))
        self.actions = torch.zeros(shape, dtype=torch.int64)
        self.rewards, self.discounts = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        self.terminated, self.ended, self.begins = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
        self.written = 0

    @property
    def length(self) -> int:
        """How many steps of each environment fit."""
        return len(self.actions)

    def observe(self, env: TrainingEnv) -> Inputs:
        """Copy the present observations to the place of the next decision and return them."""
        place = Inputs(*(part[self.written % self.length] for part in self.inputs))
        for target, source in zip(place, observed(env), strict=True):
            target.copy_(source)
        return place

    def store(self, actions: Tensor, begins: NDArray[np.bool_], step: tuple[Any, ...]) -> None:
        """Note a decision and what `TrainingEnv.step` returned for it."""
        at = self.written % self.length
        _, reward, terminated, truncated, info = step
        self.actions[at] = actions
        self.begins[at] = torch.from_numpy(begins)
        self.rewards[at] = torch.from_numpy(reward)
        self.discounts[at] = torch.from_numpy(info["discount"])
        self.terminated[at] = torch.from_numpy(terminated)
        self.ended[at] = torch.from_numpy(terminated | truncated)
        self.written += 1

    def sample(self, count: int, n: int, generator: torch.Generator) -> tuple[Inputs, Tensor, Tensor, Tensor, Inputs]:
        """Return `count` observations and actions, n-step returns and factors, and the observations after them."""
        # The observation after the newest decision is not there yet, nor is the whole of the n steps before it.
        newest, oldest = self.written - n - 1, max(0, self.written - self.length)
        environments = self.actions.shape[1]
        at = torch.randint(oldest, newest + 1, (2 * count,), generator=generator)
        e = torch.randint(0, environments, (2 * count,), generator=generator)
        real = (~self.begins[at % self.length, e]).nonzero().squeeze(1)[:count]
        at, e = at[real], e[real]
        steps = (at + torch.arange(n).unsqueeze(1)) % self.length  # (n, B)
        rewards, discounts = self.rewards[steps, e].numpy(), self.discounts[steps, e].numpy()
        total, factor, taken = n_step_returns(
            rewards, discounts, self.terminated[steps, e].numpy(), self.ended[steps, e].numpy()
        )
        now, later = at % self.length, (at + torch.from_numpy(taken)) % self.length
        before, after = (Inputs(*(part[place, e] for part in self.inputs)) for place in (now, later))
        brought, factors = (torch.from_numpy(array.astype(np.float32)) for array in (total, factor))
        return before, self.actions[now, e], brought, factors, after

    def state(self) -> dict[str, Any]:
        """Return what the constructor does not know, as tensors and numbers."""
        return {**self.inputs._asdict(), **{name: getattr(self, name) for name in self._names}, "written": self.written}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a `state`."""
        self.inputs = Inputs(*(state[name] for name in Inputs._fields))
        for name in (*self._names, "written"):
            setattr(self, name, state[name])

    _names = ("actions", "rewards", "discounts", "terminated", "ended", "begins")


class DQN:
    """The learner: `collect` decisions, `update` the network, and again.

    Args:
        run: folder, scenario and settings; its state is taken up if it has one.
    """

    def __init__(self, run: TrainingRun) -> None:
        assert isinstance(run.settings, DQNSettings)
        self.run, self.settings = run, run.settings
        s = self.settings
        self.device = s.torch_device()
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=s.use_bf16(self.device))
        torch.manual_seed(s.seed)
        self.network = Network(s.width)
        if s.start:
            self.network.load(ModelFile.load(s.start))
        self.network.to(self.device)
        self.target = copy.deepcopy(self.network)
        self.optimiser = torch.optim.Adam(self.network.parameters(), s.learning_rate)
        self.generator = torch.Generator().manual_seed(s.seed)
        self.scenario = s.objective(run.scenario)
        self.updates, self.steps, self.best = 0, 0, -math.inf
        state = run.load_state()
        if state is None:
            self.env = training_env(s, self.scenario, run.sampler)
            self.env.begin(s.seed)
        else:
            self.env = thaw(state["env"])
        self.replay = Replay(max(2 * s.n_step + 2, s.horizon, s.replay // s.envs), self.env)
        if state is not None:
            self._restore(state)
        self.evaluate = Evaluator(self.scenario, s.rules, s.evaluate_episodes, lambda logits: logits.argmax(1))
        self.meter = EpisodeMeter()

    @property
    def exploration(self) -> float:
        """The present share of random actions."""
        s = self.settings
        if self.steps < s.learn_after:
            return 1.0
        done = min(1.0, self.steps / max(1.0, s.explore_until * s.steps))
        return s.explore_first + done * (s.explore_last - s.explore_first)

    def collect(self) -> None:
        """Decide `horizon` times in every environment, now and then at random."""
        env, watch, replay = self.env, self.run.watch, self.replay
        explore = self.exploration
        for _ in range(self.settings.horizon):
            with watch("network"), torch.inference_mode():
                now = replay.observe(env)
                with self.autocast:
                    logits = self.network(*now.to(self.device).policy).cpu()
                race = torch.rand(logits.shape, generator=self.generator).masked_fill(logits <= MASKED / 2, -1.0)
                random = torch.rand(len(logits), generator=self.generator) < explore
                actions = torch.where(random, race.argmax(1), logits.argmax(1))
            with watch("environment"):
                begins = env.begins.copy()
                step = env.step(actions.numpy())
                replay.store(actions, begins, step)
                self.meter.add(step[-1])
                self.steps += int((~begins).sum())

    def update(self) -> dict[str, float]:
        """Take some gradient steps; returns a point of the learning curve."""
        s = self.settings
        if self.updates == 0:
            self._scale_values()
        left = max(0.05, 1.0 - self.steps / s.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = s.learning_rate * left
        losses, means = [], []
        for _ in range(s.gradient_steps):
            before, actions, total, factor, after = self.replay.sample(s.minibatch, s.n_step, self.generator)
            before, after = before.to(self.device), after.to(self.device)
            actions, total, factor = (part.to(self.device) for part in (actions, total, factor))
            with torch.no_grad(), self.autocast:
                chosen = action_values(self.network, after).argmax(1, keepdim=True)
                target = total + factor * action_values(self.target, after).gather(1, chosen).squeeze(1)
            with self.autocast:
                value = action_values(self.network, before).gather(1, actions.unsqueeze(1)).squeeze(1)
            deviation = self.network.value_scale[1]
            loss = torch.nn.functional.smooth_l1_loss(value / deviation, target / deviation)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), s.most_gradient)
            self.optimiser.step()
            with torch.no_grad():
                for slow, fast in zip(self.target.parameters(), self.network.parameters(), strict=True):
                    slow.lerp_(fast, s.target_rate)
            losses.append(loss.item())
            means.append(value.mean().item())
        self.updates += 1
        return {"loss": float(np.mean(losses)), "value_mean": float(np.mean(means)), "exploration": self.exploration}

    def _scale_values(self) -> None:
        """Let the critic work in units of what the random decisions brought."""
        replay = self.replay
        total = torch.zeros(replay.rewards.shape[1], dtype=torch.float64)
        returns = []
        for t in range(min(replay.written, replay.length) - 1, -1, -1):
            total = replay.rewards[t] + torch.where(replay.ended[t], 0.0, replay.discounts[t] * total)
            returns.append(total)
        found = torch.stack(returns)
        for network in (self.network, self.target):
            network.rescale_values(float(found.mean()), max(1e-3, float(found.std())))

    def model(self, **notes: Any) -> ModelFile:
        """Return the network as a file's content."""
        s = self.settings
        notes = {"settings": asdict(s), "steps": self.steps, "updates": self.updates, **notes}
        slots, name = self.scenario.observation.ready_slots, self.scenario.name
        return ModelFile(s.kind, self.network.arrays(), s.width, asdict(s.rules), slots, name, notes)

    def save(self) -> None:
        """Write model and checkpoint."""
        self.model().save(self.run.folder / FILE_NAME)
        names = ("updates", "steps", "best")
        self.run.save_state(
            {
                "network": self.network.state_dict(),
                "target": self.target.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "generator": self.generator.get_state(),
                "replay": self.replay.state(),
                "env": freeze(self.env),
                **{name: getattr(self, name) for name in names},
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.target.load_state_dict(state["target"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.replay.restore(state["replay"])
        self.updates, self.steps, self.best = state["updates"], state["steps"], state["best"]
        self.run.rewind_curve(self.updates)

    def train(self) -> None:
        """Collect and update until all steps are done, time is up or the user interrupts."""
        run, s = self.run, self.settings
        with run.running(self.steps):
            while self.steps < s.steps and not run.stop:
                self.collect()
                if self.steps < s.learn_after or self.replay.written <= s.n_step + 1:
                    continue
                with run.watch("update"):
                    row = {"steps": self.steps, **self.update()}
                last = self.steps >= s.steps
                if s.evaluate_every and (self.updates % s.evaluate_every == 0 or last):
                    with run.watch("evaluation"):
                        row |= (found := self.evaluate(self.network, self.device))
                    if found.get("eval/reward", -math.inf) > self.best:
                        self.best = found["eval/reward"]
                        self.model(**found).save(run.folder / BEST_NAME)
                if self.updates % 10 == 0 or "eval/reward" in row:
                    run.log({"update": self.updates, **row, **self.meter.take()})
                if run.save_due and not last:
                    self.save()
            self.save()
        run.finish(self.steps)


def train(
    scenario: Scenario | None, settings: DQNSettings, out: Path, tell: Callable[[str], None] = print, **options: Any
) -> None:
    """Train with DQN; see `TrainingRun` for the options."""
    DQN(TrainingRun(out, scenario, settings, tell=tell, **options)).train()
