"""PPO (Schulman et al. 2017, arXiv 1707.06347) on the vector environment, from top to bottom.

What differs from the usual implementations: actions are masked; time is semi-Markov, so every step has its own discount
``exp(-beta dt)``, in the advantages too; an episode that is cut goes on, in value, from its final observation; returns are
scaled for the critic, not rewards (`Network.rescale_values`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aragog_env.specs.bounds import Count, NonNegative, NonNegativeInt, Positive, Share
from aragog_env.specs.scenario import Scenario

from .evaluation import EpisodeMeter, Evaluator, observed
from .model_file import BEST_NAME, FILE_NAME, Kind, ModelFile
from .network import Inputs, Network, likeliest
from .sampled_env import training_env
from .snapshots import freeze, thaw
from .training_env import TrainingEnv
from .training_run import Settings, TrainingRun

_LEAST_RATE: Final = 0.05
"""Share of the learning rate that is left at the end."""


@dataclass(frozen=True)
class PPOSettings(Settings):
    """Settings of PPO."""

    kind: ClassVar[Kind] = "ppo"

    horizon: Count = 128
    """Decisions of each environment between updates."""
    epochs: Count = 2
    """Passes over the decisions of an update."""
    minibatch: Count = 2048
    """Decisions per gradient step."""
    learning_rate: Positive = 1e-3
    gae_lambda: Share = 0.9
    """Trace decay per decision: 1 takes returns as they come, 0 trusts the critic."""
    trace_slos: Positive = 2.0
    """Trace decay over time, in latencies of the SLO: decisions at the same instant share what follows, however many."""
    clip: Positive = 0.2
    critic_epochs: Count = 4
    """Passes of the critic, which is small and cheap."""
    critic_rate: Positive = 1e-3
    entropy: NonNegative = 0.001
    """Weight of the bonus for undecidedness; falls with the learning rate."""
    most_gradient: Positive = 0.5
    """Norm that gradients are clipped to."""
    target_kl: NonNegative = 0.03
    """An update ends when the policy has moved so far; 0: never."""
    critic_updates: NonNegativeInt = 10
    """First updates that train nothing but the critic: a bad one would lead the policy astray."""


def advantages(
    rewards: NDArray[np.float64],
    values: NDArray[np.float64],
    discounts: NDArray[np.float64],
    terminated: NDArray[np.bool_],
    ended: NDArray[np.bool_],
    traces: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return generalised advantage estimates (Schulman et al. 2015, arXiv 1506.02438) of T steps in E environments, (T, E).

    ``delta_t = r_t + d_t V(s_{t+1}) - V(s_t)`` and ``A_t = delta_t + d_t l_t A_{t+1}`` with the discount d_t of the step's own
    duration and the trace decay l_t. After a step that ended an episode, s_{t+1} is its final observation: a cut episode keeps
    its value, a terminated one is worth nothing, and no trace goes beyond.

    Args:
        rewards: (T, E).
        values: (T + 1, E) of the observations before each step, and after the last.
        discounts: (T, E) exp(-beta dt).
        terminated: (T, E) all requests are served.
        ended: (T, E) terminated or cut.
        traces: (T, E) trace decay.
    """
    result = np.empty_like(rewards)
    last = np.zeros(rewards.shape[1])
    follow = np.where(terminated, 0.0, discounts)
    carry = np.where(ended, 0.0, discounts * traces)
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + follow[t] * values[t + 1] - values[t]
        last = result[t] = delta + carry[t] * last
    return result


class RolloutBuffer:
    """What T decisions in each of E environments saw, did and brought. Observations T + 1: one after the last decision.

    Tensors live on the network's device; what advantages are computed from are arrays.
    """

    def __init__(self, horizon: int, env: TrainingEnv, device: torch.device) -> None:
        self._env, shape = env, (horizon, env.num_envs)
        self.slots = env.slots
        now = observed(env)
        stored = [torch.zeros((horizon + 1, *part.shape), dtype=part.dtype, device=device) for part in now]
        self.all = Inputs(*stored)  # (T + 1, E, ...)
        self.inputs = Inputs(*(part[:-1].flatten(0, 1) for part in stored))  # (T * E, ...), the same memory
        self.actions = torch.zeros(shape, dtype=torch.int64, device=device)
        self.old_log = torch.zeros(shape, device=device)
        self.shown = torch.zeros(shape, device=device)
        self.values = np.zeros((horizon + 1, env.num_envs))
        self.rewards, self.discounts, self.dt_s = (np.zeros(shape) for _ in range(3))
        self.terminated, self.ended, self.begins, self.choices = (np.zeros(shape, np.bool_) for _ in range(4))

    def observe(self, t: int) -> Inputs:
        """Copy the present observations to place t and return them."""
        place = Inputs(*(part[t] for part in self.all))
        for target, source in zip(place, observed(self._env), strict=True):
            target.copy_(source, non_blocking=True)
        return place

    def group(self) -> None:
        """Note how many slots the decisions need: 1, 2, 4, ... or all, so that there are few groups of about equal size."""
        doubled = 2 ** torch.ceil(torch.log2(self.inputs.shown.clamp(min=1)))
        self.shown = doubled.clamp(max=self.slots).reshape(self.actions.shape)

    def store(
        self,
        t: int,
        reward: NDArray[np.float64],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        info: Any,
    ) -> None:
        """Note what step t brought."""
        self.rewards[t], self.discounts[t], self.dt_s[t] = reward, info["discount"], info["dt"]
        self.terminated[t], self.ended[t] = terminated, terminated | truncated


def sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return one action per row of (B, A) logits; actions of probability zero are never drawn."""
    probabilities = torch.softmax(logits, 1)
    race = torch.empty_like(probabilities).exponential_(generator=generator).clamp_(min=1e-30)
    return (probabilities / race).argmax(1)


def policy_loss(
    logits: Tensor, actions: Tensor, old_log: Tensor, advantage: Tensor, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (clipped surrogate loss, mean entropy, log of the probability ratio (B,))."""
    log_all = torch.log_softmax(logits, 1)
    change = log_all.gather(1, actions.unsqueeze(1)).squeeze(1) - old_log
    ratio = change.exp()
    loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean()
    entropy = -(log_all.exp() * log_all).sum(1).mean()
    return loss, entropy, change


class PPO:
    """The learner: `collect` decisions, `update` the network, and again.

    Args:
        run: folder, scenario and settings; its state is taken up if it has one.
    """

    def __init__(self, run: TrainingRun) -> None:
        assert isinstance(run.settings, PPOSettings)
        self.run, self.settings = run, run.settings
        s = self.settings
        self.device = s.torch_device()
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=s.use_bf16(self.device))
        torch.manual_seed(s.seed)
        self.network = Network(s.width)
        if s.start:
            self.network.load(ModelFile.load(s.start))
        self.network.to(self.device)
        fused = self.device.type in ("cpu", "cuda")
        critic = self.network.critic
        actor = [p for p in self.network.parameters() if not any(p is q for q in critic)]
        self.optimiser = torch.optim.Adam([{"params": actor}, {"params": critic}], eps=1e-5, fused=fused)
        self.generator = torch.Generator(self.device).manual_seed(s.seed)
        self.scenario = s.objective(run.scenario)
        self.updates, self.steps, self.best = 0, 0, -math.inf
        state = run.load_state()
        if state is None:
            self.env = training_env(s, self.scenario, run.sampler)
            self.env.begin(s.seed)
        else:
            self._restore(state)
        self.evaluate = Evaluator(self.scenario, s.rules, s.evaluate_episodes, likeliest)
        self.buffer = RolloutBuffer(s.horizon, self.env, self.device)
        self.meter = EpisodeMeter()

    def collect(self) -> None:
        """Let the policy decide `horizon` times in every environment."""
        buffer, env, watch = self.buffer, self.env, self.run.watch
        for t in range(self.settings.horizon):
            with watch("network"), torch.inference_mode():
                seen = buffer.observe(t)
                logits = self._logits(seen.first(max(1, int(seen.shown.max()))))
                action = sample(logits, self.generator)
                buffer.actions[t] = action
                buffer.old_log[t] = torch.log_softmax(logits, 1).gather(1, action.unsqueeze(1)).squeeze(1)
                chosen = action.cpu().numpy()
            with watch("environment"):
                buffer.begins[t], buffer.choices[t] = env.begins, env.choices
                _, reward, terminated, truncated, info = env.step(chosen)
                buffer.store(t, reward, terminated, truncated, info)
                self.meter.add(info)
        with watch("network"), torch.inference_mode():
            buffer.observe(self.settings.horizon)
            buffer.values = self._values(buffer.all).cpu().numpy().astype(np.float64)
            buffer.group()

    def _logits(self, inputs: Inputs) -> Tensor:
        with self.autocast:
            return self.network.of_slots(inputs, self.buffer.slots)

    def _values(self, inputs: Inputs) -> Tensor:
        with self.autocast:
            return self.network.values(inputs)

    def update(self) -> dict[str, float]:
        """Learn from what was collected; returns a point of the learning curve."""
        s, buffer, values = self.settings, self.buffer, self.buffer.values
        traces = s.gae_lambda * np.exp(-buffer.dt_s / (s.trace_slos * self.env.reward.reference_s))
        estimates = advantages(buffer.rewards, values, buffer.discounts, buffer.terminated, buffer.ended, traces)
        returns, real = estimates + values[:-1], ~buffer.begins  # steps that begin an episode are no decisions
        self._rescale(returns[real])
        rows = self._rows(real)
        left = max(0.0, 1.0 - self.steps / s.steps)
        share = _LEAST_RATE + (1 - _LEAST_RATE) * left
        for group, rate in zip(self.optimiser.param_groups, (s.learning_rate, s.critic_rate), strict=True):
            group["lr"] = rate * share
        row = {"learning_rate": s.learning_rate * share}
        free = real & buffer.choices  # where one thing alone is possible there is nothing to learn
        if self.updates >= s.critic_updates and free.any():
            advantage = self._flat((estimates - estimates[free].mean()) / (estimates[free].std() + 1e-8))
            row |= {"choices": float(free.sum() / real.sum())}
            row |= self._improve_policy(self._rows(free), advantage, s.entropy * left)
        row["value_loss"] = self._improve_critic(rows, self._flat(returns))
        self.steps += len(rows)
        self.updates += 1
        unexplained = np.var(estimates[real]) / (np.var(returns[real]) + 1e-12)
        reward_per_s = buffer.rewards.sum() / max(1e-9, buffer.dt_s.sum())
        return row | {"explained_variance": float(1 - unexplained), "reward_per_s": float(reward_per_s)}

    def _improve_policy(self, rows: Tensor, advantage: Tensor, entropy_weight: float) -> dict[str, float]:
        """Go through the decisions `rows` a few times, until the policy has moved far enough."""
        s, buffer, found = self.settings, self.buffer, []
        for part in self._parts(rows, s.epochs, s.minibatch):
            # Those that show few calls are computed with few slots; the order within a minibatch does not matter.
            sizes = buffer.shown.reshape(-1)[part]
            groups = {size: part[sizes == size] for size in torch.unique(sizes).int().tolist()}
            part = torch.cat(list(groups.values()))
            logits = torch.cat([self._logits(buffer.inputs.rows(group, size)) for size, group in groups.items()])
            actions, old_log = buffer.actions.reshape(-1)[part], buffer.old_log.reshape(-1)[part]
            loss, entropy, change = policy_loss(logits, actions, old_log, advantage[part], s.clip)
            self._descend(loss - entropy_weight * entropy)
            with torch.no_grad():
                moved = change.exp() - 1
                kl = (moved - change).mean()  # Schulman, http://joschu.net/blog/kl-approx.html
                clipped = (moved.abs() > s.clip).float().mean()
                found.append(torch.stack([kl, loss, entropy, clipped]).tolist())
            if 0 < s.target_kl < found[-1][0]:
                break
        names = ("kl", "policy_loss", "entropy", "clip_fraction")
        return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True)) | {"gradient_steps": float(len(found))}

    def _improve_critic(self, rows: Tensor, target: Tensor) -> float:
        """Fit the critic to the returns; returns the squared error of the last pass, in units of their deviation."""
        inputs, losses = self.buffer.inputs, []
        for part in self._parts(rows, self.settings.critic_epochs, 2 * self.settings.minibatch):
            value = self._values(inputs.only_critic(part))
            loss = ((value - target[part]) / self.network.value_scale[1]).square().mean()
            self._descend(loss)
            losses.append(loss.item())
        return float(np.mean(losses[-len(losses) // self.settings.critic_epochs :]))

    def _parts(self, rows: Tensor, epochs: int, size: int) -> Iterator[Tensor]:
        """Yield minibatches of about `size` rows, in another order in each epoch."""
        for _ in range(epochs):
            order = rows[torch.randperm(len(rows), generator=self.generator, device=self.device)]
            yield from order.tensor_split(max(1, len(rows) // size))

    def _descend(self, loss: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.most_gradient)
        self.optimiser.step()

    def _rows(self, mask: NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(np.flatnonzero(mask.reshape(-1))).to(self.device)

    def _flat(self, array: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(array.astype(np.float32).reshape(-1)).to(self.device)

    def _rescale(self, returns: NDArray[np.float64]) -> None:
        """Follow mean and deviation of the returns: at once at first, then slowly."""
        weight = 1.0 if self.updates == 0 else 0.05
        mean, deviation = self.network.value_scale.tolist()
        second = (1 - weight) * (deviation**2 + mean**2) + weight * float(np.mean(returns**2))
        mean = (1 - weight) * mean + weight * float(returns.mean())
        self.network.rescale_values(mean, max(1e-3, second - mean**2) ** 0.5)

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
                "updates": self.updates,
                "steps": self.steps,
                "best": self.best,
                "env": freeze(self.env),
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"].cpu())
        self.updates, self.steps, self.best = state["updates"], state["steps"], state["best"]
        self.env = thaw(state["env"])
        self.run.rewind_curve(self.updates)

    def train(self) -> None:
        """Collect and update until all steps are done, time is up or the user interrupts."""
        run, s = self.run, self.settings
        with run.running(self.steps):
            if s.start and s.evaluate_every and self.updates == 0:
                # What it starts from is to be beaten: else the best of a short run could be worse.
                run.log({"update": 0, "steps": 0, **self._evaluate()})
            while self.steps < s.steps and not run.stop:
                self.collect()
                with run.watch("update"):
                    row = self.update()
                row = {"update": self.updates, "steps": self.steps, **row, **self.meter.take()}
                last = self.steps >= s.steps
                if s.evaluate_every and (self.updates % s.evaluate_every == 0 or last):
                    row |= self._evaluate()
                run.log(row)
                if run.save_due and not last:
                    self.save()
            self.save()
        run.finish(self.steps)

    def _evaluate(self) -> dict[str, float]:
        """Run greedy episodes; keep the model if it is the best so far."""
        with self.run.watch("evaluation"):
            found = self.evaluate(self.network, self.device)
        if found.get("eval/reward", -math.inf) > self.best:
            self.best = found["eval/reward"]
            self.model(**found).save(self.run.folder / BEST_NAME)
        return found


def train(
    scenario: Scenario | None, settings: PPOSettings, out: Path, tell: Callable[[str], None] = print, **options: Any
) -> None:
    """Train with PPO; see `TrainingRun` for the options."""
    PPO(TrainingRun(out, scenario, settings, tell=tell, **options)).train()
