"""TorchRL's PPO on the native vector environment: masked actions, discounts of semi-Markov time, a policy of the harness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import Unbounded
from torchrl.envs import EnvBase, GymWrapper, default_info_dict_reader
from torchrl.modules import MLP, MaskedCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import generalized_advantage_estimate

from aragog_env.observation import Observation
from aragog_env.observation_policy import ObservationPolicy
from aragog_env.specs.scenario import Scenario
from scripts.interop.compare import compare, options

PARTS = ("calls", "routes", "pairs", "globals")


class Flat(nn.Module):
    """A perceptron over all arrays of an observation; the actor's output comes with the mask as booleans."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layers = MLP(out_features=outputs, num_cells=[64, 64])

    def forward(
        self, calls: Tensor, routes: Tensor, pairs: Tensor, globals: Tensor, *mask: Tensor
    ) -> tuple[Tensor, ...]:
        """Return (..., outputs), and the mask where one was given."""
        flat = torch.cat((calls.flatten(-2), routes.flatten(-2), pairs.flatten(-2), globals), -1)
        return self.layers(flat), *(part > 0 for part in mask)


def make_actor(network: Flat) -> ProbabilisticActor:
    """Return a policy that draws from what the mask leaves."""
    scores = TensorDictModule(network, in_keys=[*PARTS, "action_mask"], out_keys=["logits", "mask"])
    return ProbabilisticActor(
        scores, in_keys=["logits", "mask"], distribution_class=MaskedCategorical, return_log_prob=True
    )


def make_env(scenario: Scenario, envs: int) -> EnvBase:
    """Return all environments as one; TorchRL begins those anew that ended (`AutoresetMode.DISABLED`)."""
    vector = gym.make_vec(
        "aragog_env:aragog/StageDispatch-v0", num_envs=envs, scenario=scenario, autoreset_mode=AutoresetMode.DISABLED
    )
    env = GymWrapper(vector, categorical_action_encoding=True)
    kinds = [Unbounded((envs,), dtype=torch.float64), Unbounded((envs,), dtype=torch.bool)]
    reader = default_info_dict_reader(["discount", "invalid_action"], spec=kinds)
    return env.set_info_dict_reader(reader)


class Trained(ObservationPolicy):
    """A saved actor by name: ``scripts.interop.torchrl_ppo:Trained:PATH``."""

    def __init__(self, path: str) -> None:
        weights = torch.load(path, weights_only=True)
        self.network = Flat(len(list(weights.values())[-1]))
        self.network.load_state_dict(weights)

    def choose(self, observation: Observation) -> int:
        """Return the likeliest action."""
        arrays: dict[str, Any] = {**observation}
        with torch.inference_mode():
            logits, mask = self.network(*(torch.from_numpy(arrays[name]) for name in (*PARTS, "action_mask")))
        return int(logits.masked_fill(~mask, -torch.inf).argmax())


def train(scenario: Scenario, steps: int, path: Path, envs: int = 64) -> None:
    """Train an actor and save its weights."""
    torch.manual_seed(0)
    env = make_env(scenario, envs)
    env.set_seed(1_000_000)
    network = Flat(env.full_action_spec["action"].space.n)
    actor, critic = make_actor(network), ValueOperator(Flat(1), in_keys=list(PARTS))
    begin = env.reset()
    actor(begin), critic(begin)  # the layers take their sizes from what they see first
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.01, critic_coeff=0.5, normalize_advantage=True)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
    batch = max(envs, min(4096, steps // envs * envs))
    total = max(1, steps // batch) * batch
    collector = Collector(env, actor, frames_per_batch=batch, total_frames=total, auto_register_policy_transforms=False)
    for number, data in enumerate(collector, 1):
        assert not data["next", "invalid_action"].any(), "a masked action was taken"
        with torch.no_grad():
            critic(data), critic(data["next"])
        following = data["next"]
        data["advantage"], data["value_target"] = generalized_advantage_estimate(
            following["discount"].float().unsqueeze(-1), 0.95, data["state_value"], following["state_value"],
            following["reward"], following["done"], following["terminated"],
        )  # fmt: skip
        rows: TensorDict = data.reshape(-1)
        for _ in range(4):
            for index in torch.split(torch.randperm(len(rows)), 1024):
                losses = loss(rows[index])
                objective = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                optimizer.zero_grad()
                objective.backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
        print(f"update {number}: loss {objective.item():.4f}, return {rows['value_target'].mean():.3f}", flush=True)
    torch.save(network.state_dict(), path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, then compare."""
    given = options("torchrl_ppo", 40_000, arguments)
    path = given.out / "model.pt"
    train(given.scenario, given.steps, path)
    compare(f"scripts.interop.torchrl_ppo:Trained:{path}", given.scenario, given.seeds, given.out)


if __name__ == "__main__":
    main()
