"""PPO with action masks and discounts of semi-Markov time in one file, in the manner of CleanRL, over `gym.make_vec`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from aragog_env.observation import Observation
from aragog_env.observation_policy import ObservationPolicy
from aragog_env.specs.scenario import Scenario
from scripts.interop.compare import compare, options


class Agent(nn.Module):
    """Actor and critic over flat observations."""

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.actor, self.critic = nn.Linear(64, actions), nn.Linear(64, 1)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities (B, A), with which masked actions are never drawn, and values (B,)."""
        hidden = self.body(x)
        return self.actor(hidden).masked_fill(~mask, -1e9).log_softmax(1), self.critic(hidden).squeeze(1)


def tensors(observation: Any) -> tuple[Tensor, Tensor]:
    """Return a batch of observations as rows (B, width), and its masks (B, A)."""
    parts = [observation[name] for name in ("calls", "routes", "pairs", "globals")]
    flat = np.concatenate([part.reshape(len(part), -1) for part in parts], 1)
    return torch.from_numpy(flat), torch.from_numpy(observation["action_mask"] > 0)


class Trained(ObservationPolicy):
    """A saved agent by name: ``scripts.interop.cleanrl_ppo:Trained:PATH``."""

    def __init__(self, path: str) -> None:
        weights = torch.load(path, weights_only=True)
        self.agent = Agent(weights["body.0.weight"].shape[1], len(weights["actor.bias"]))
        self.agent.load_state_dict(weights)

    def choose(self, observation: Observation) -> int:
        """Return the likeliest action."""
        batch = {name: np.asarray(array)[None] for name, array in observation.items()}
        with torch.inference_mode():
            return int(self.agent(*tensors(batch))[0].argmax())


def collect(env: Any, agent: Agent, seen: Any, horizon: int) -> tuple[list[Tensor], Any]:
    """Return (T * E, ...) of inputs, masks, actions, log-probabilities, advantages and returns, and the last observation."""
    rows: list[tuple[Tensor, ...]] = []
    for _ in range(horizon):
        x, mask = tensors(seen)
        log, value = agent(x, mask)
        action = torch.multinomial(log.exp(), 1)
        seen, reward, terminated, truncated, info = env.step(action.squeeze(1).numpy())
        assert not info["invalid_action"].any(), "a masked action was taken"
        for e in np.flatnonzero(truncated & ~terminated):  # cut, not over: what would come counts
            cut = {name: array[None] for name, array in info["final_obs"][e].items()}
            reward[e] += info["discount"][e] * agent(*tensors(cut))[1].item()
        discount = info["discount"] * ~(terminated | truncated)  # exp(-beta dt): a step takes dt seconds, often none
        now = (torch.as_tensor(array, dtype=torch.float32) for array in (reward, discount))
        rows.append((x, mask, action, log.gather(1, action), value, *now))
    x, mask, action, log, value, rewards, discounts = (torch.stack(part) for part in zip(*rows, strict=True))
    following, gae, advantages = agent(*tensors(seen))[1], torch.zeros(len(value[0])), torch.zeros_like(value)
    for t in reversed(range(horizon)):
        gae = rewards[t] + discounts[t] * (following + 0.95 * gae) - value[t]
        advantages[t], following = gae, value[t]
    return [part.flatten(0, 1) for part in (x, mask, action, log, advantages, advantages + value)], seen


def update(agent: Agent, optimizer: torch.optim.Optimizer, batch: list[Tensor]) -> float:
    """Take four passes of the clipped objective over a batch; returns the last loss."""
    for _ in range(4):
        for index in torch.split(torch.randperm(len(batch[0])), 1024):
            x, mask, action, old, advantage, target = (part[index] for part in batch)
            log, value = agent(x, mask)
            ratio = (log.gather(1, action) - old).exp().squeeze(1)
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            entropy = -(log.exp() * log).sum(1).mean()
            loss = 0.5 * (value - target).square().mean() - gain - 0.01 * entropy
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()
    return float(loss.item())


def train(scenario: Scenario, steps: int, path: Path, envs: int = 64) -> None:
    """Train an agent and save its weights."""
    torch.manual_seed(0)
    env = gym.make_vec(
        "aragog_env:aragog/StageDispatch-v0", num_envs=envs, scenario=scenario, autoreset_mode=AutoresetMode.SAME_STEP
    )
    seen, _ = env.reset(seed=1_000_000)
    x, mask = tensors(seen)
    agent = Agent(x.shape[1], mask.shape[1])
    optimizer = torch.optim.Adam(agent.parameters(), 1e-3, eps=1e-5)
    horizon = max(1, min(64, steps // envs))
    for number in range(1, max(1, steps // (envs * horizon)) + 1):
        with torch.no_grad():
            batch, seen = collect(env, agent, seen, horizon)
        print(f"update {number}: loss {update(agent, optimizer, batch):.4f}, return {batch[-1].mean():.3f}", flush=True)
    torch.save(agent.state_dict(), path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, then compare."""
    given = options("cleanrl_ppo", 40_000, arguments)
    path = given.out / "model.pt"
    train(given.scenario, given.steps, path)
    compare(f"scripts.interop.cleanrl_ppo:Trained:{path}", given.scenario, given.seeds, given.out)


if __name__ == "__main__":
    main()
