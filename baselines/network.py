"""The network of the learned schedulers: scores every (ready call, route) and waiting, for any number of calls and routes.

Calls, routes and call-route pairs are encoded with weights that all slots share. One round of messages along the pairs tells
calls of their routes and routes of the calls that may come; a summary of everything tells both of the rest. So the scores
follow calls and routes when these change places, and the same weights work on clusters and queues of any size.
Attention is additive (Bahdanau et al. 2015, arXiv 1409.0473): what a pair scores comes from the sum of three vectors, which is
far cheaper on a CPU than a product of matrices per pair.

The critic is a small network of its own, which only training needs: it sees what will come (`foresight`).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aragog_env.errors import SpecError
from aragog_env.observation import CallFeature, GlobalFeature, PairFeature, RouteFeature

from .features import PAIR_WIDTH, PairExtra
from .foresight import REQUESTS_WIDTH, ServerForesight
from .model_file import ModelFile

OPEN: Final = len(PairFeature) + PairExtra.OPEN
"""Column of `pairs` that holds the action mask."""
MASKED: Final = -1e9
"""Logit of an action that is not possible: its probability and its gradient are exactly zero, and no sum becomes nan."""


class Inputs(NamedTuple):
    """A batch of B observations: K slots, R routes."""

    calls: Tensor  # (B, K, F) float32
    routes: Tensor  # (B, R, G) float32
    pairs: Tensor  # (B, K, R, P) float32, P = features.PAIR_WIDTH
    globals: Tensor  # (B, L) float32
    can_wait: Tensor  # (B,) bool
    requests: Tensor  # (B, S) float32, and
    servers: Tensor  # (B, R, V) float32: for the critic alone, see `foresight.Foreseer`

    @property
    def policy(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What a policy may see: everything but what is foreseen."""
        return self.calls, self.routes, self.pairs, self.globals, self.can_wait

    def rows(self, index: Tensor, slots: int | None = None) -> Inputs:
        """Return some rows of the batch, and of their slots the first `slots`."""
        return Inputs(*(array[index] for array in self.first(slots)))

    def first(self, slots: int | None) -> Inputs:
        """Return the batch with its first slots alone."""
        return self._replace(calls=self.calls[:, :slots], pairs=self.pairs[:, :slots])

    def only_critic(self, index: Tensor) -> Inputs:
        """Return what `Network.values` needs of some rows; the rest, which is large, stays as it is."""
        return self._replace(routes=self.routes[index], requests=self.requests[index], servers=self.servers[index])

    @property
    def shown(self) -> Tensor:
        """How many slots hold a call, (B,)."""
        return self.calls[:, :, CallFeature.VALID].sum(1)

    def to(self, device: torch.device) -> Inputs:
        """Return it on a device."""
        return Inputs(*(array.to(device, non_blocking=True) for array in self))


class Network(nn.Module):
    """Actor and critic over one observation.

    Args:
        width: units of every layer.
    """

    value_scale: Tensor

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.call_in = nn.Linear(len(CallFeature), width)
        self.route_in = nn.Linear(len(RouteFeature), width)
        self.pair_in = nn.Linear(PAIR_WIDTH, 2 * width)
        self.call_mix = nn.Linear(2 * width, width)
        self.route_mix = nn.Linear(2 * width, width)
        self.summary = nn.Linear(2 * width + len(GlobalFeature), width)
        self.call_out = nn.Linear(width, width)
        self.route_out = nn.Linear(width, width, bias=False)
        self.summary_out = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1)
        self.wait = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        self.value_routes = nn.Linear(len(RouteFeature) + len(ServerForesight), width)
        self.value = nn.Sequential(
            nn.Linear(width + REQUESTS_WIDTH, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )
        self.register_buffer("value_scale", torch.tensor([0.0, 1.0]))  # mean and deviation of returns
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, 2**0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Nearly equal scores at first: every action that is possible is tried.
        for last, gain in ((self.score, 0.01), (self.wait[2], 0.01), (self.value[4], 1.0)):
            assert isinstance(last, nn.Linear)
            nn.init.orthogonal_(last.weight, gain)

    def forward(self, calls: Tensor, routes: Tensor, pairs: Tensor, globals: Tensor, can_wait: Tensor) -> Tensor:
        """Return logits (B, K * R + 1); impossible actions have the logit `MASKED`. See `Inputs` for the arguments."""
        valid = calls[:, :, CallFeature.VALID : CallFeature.VALID + 1]  # (B, K, 1)
        count = valid.sum(1).clamp(min=1.0)  # (B, 1)
        call, route = self.call_in(calls), self.route_in(routes)
        message, bias = self.pair_in(pairs).chunk(2, -1)  # (B, K, R, H) twice
        message = torch.relu(message + call.unsqueeze(2) + route.unsqueeze(1))
        to_route = (message * valid.unsqueeze(2)).sum(1) / count.unsqueeze(1)
        call = torch.relu(self.call_mix(torch.cat((call, message.mean(2)), -1)))
        route = torch.relu(self.route_mix(torch.cat((route, to_route), -1)))
        mean_call = (call * valid).sum(1) / count
        summary = torch.relu(self.summary(torch.cat((mean_call, route.mean(1), globals), -1)))
        call = self.call_out(call) + self.summary_out(summary).unsqueeze(1)
        scores = self.score(torch.relu(bias + call.unsqueeze(2) + self.route_out(route).unsqueeze(1)))
        logits = torch.cat((scores.flatten(1), self.wait(summary)), 1).float()
        possible = torch.cat((pairs[..., OPEN].flatten(1) > 0.5, can_wait.unsqueeze(1)), 1)
        return logits.masked_fill(~possible, MASKED)

    def of_slots(self, inputs: Inputs, slots: int) -> Tensor:
        """Return `forward` for K = `slots`, of which `inputs` holds the first ones and the others are empty."""
        logits: Tensor = self(*inputs.policy)
        empty = (slots - inputs.calls.shape[1]) * inputs.routes.shape[1]
        if empty == 0:
            return logits
        return torch.cat((nn.functional.pad(logits[:, :-1], (0, empty), value=MASKED), logits[:, -1:]), 1)

    def values(self, inputs: Inputs) -> Tensor:
        """Return the critic's values, one per observation.

        They depend on the servers' loads and on what is known of the requests, not on which calls happen to be shown: what one
        decision changes is small, and would drown in differences between one set of calls and the next.
        """
        servers = torch.relu(self.value_routes(torch.cat((inputs.routes, inputs.servers), -1))).sum(-2)
        value: Tensor = self.value(torch.cat((servers, inputs.requests), -1)).squeeze(-1).float()
        return value * self.value_scale[1] + self.value_scale[0]

    @property
    def critic(self) -> list[nn.Parameter]:
        """The weights that values depend on; the others are the actor's."""
        return [*self.value_routes.parameters(), *self.value.parameters()]

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the weights as `ModelFile` keeps them."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.state_dict().items()}

    def load(self, model: ModelFile) -> None:
        """Take the weights of a model.

        Raises:
            SpecError: it has another width.
        """
        if model.width != self.width:
            raise SpecError(
                f"the model to start from has width {model.width}, not {self.width}; set width={model.width}"
            )
        self.load_state_dict({name: torch.from_numpy(value) for name, value in model.weights.items()})

    @torch.no_grad()
    def rescale_values(self, mean: float, deviation: float) -> None:
        """Let the value head work in units of the returns' mean and deviation, without changing what it says.

        Van Hasselt et al. 2016 (arXiv 1602.07714): returns in seconds of waiting have any scale, gradients should not.
        """
        old_mean, old_deviation = self.value_scale.tolist()
        last = self.value[4]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(old_deviation / deviation)
        last.bias.mul_(old_deviation).add_(old_mean - mean).div_(deviation)
        self.value_scale.copy_(torch.tensor([mean, deviation]))


def likeliest(logits: Tensor) -> Tensor:
    """Return the greedy action of each row of (B, A) logits: to wait where that is likelier than all dispatches together.

    Else the likeliest dispatch. Many calls that are equally good share their probability; none of them alone may be as likely
    as waiting, though to dispatch one of them is.
    """
    dispatch = logits[:, :-1]
    waits = logits[:, -1] > dispatch.logsumexp(1)
    return torch.where(waits, dispatch.shape[1], dispatch.argmax(1))


def export(network: Network, path: Path) -> None:
    """Write the network for use without this project: `.pt2` (torch.export) or `.onnx`, for any B, K and R.

    Both take the five arrays of `Inputs.policy` and return logits. A `.pt2` file needs torch alone:
    ``torch.export.load(path).module()``. TorchScript is deprecated in torch 2.13 and not offered.

    Raises:
        SpecError: another suffix, or a package that ONNX needs is not installed.
    """
    if path.suffix not in (".pt2", ".onnx"):
        raise SpecError(f"networks are exported as .pt2 or .onnx, not as '{path.suffix}'", where=str(path))
    # Sizes of 2 and more: torch.export takes a size of 1 for a constant.
    example = (
        torch.rand(2, 3, len(CallFeature)),
        torch.rand(2, 4, len(RouteFeature)),
        torch.rand(2, 3, 4, PAIR_WIDTH),
        torch.rand(2, len(GlobalFeature)),
        torch.ones(2, dtype=torch.bool),
    )
    batch, slots, routes = (torch.export.Dim(name, min=1) for name in ("batch", "slots", "routes"))
    shapes = ({0: batch, 1: slots}, {0: batch, 1: routes}, {0: batch, 1: slots, 2: routes}, {0: batch}, {0: batch})
    network = network.cpu().eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt2":
        torch.export.save(torch.export.export(network, example, dynamic_shapes=shapes), path)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter calls what torch itself is about to replace
            torch.onnx.export(
                network,
                example,
                path,
                input_names=list(Inputs._fields[: len(example)]),
                output_names=["logits"],
                dynamic_shapes=shapes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except ModuleNotFoundError as error:
        raise SpecError(f"exporting to ONNX needs '{error.name}': pip install -e '.[onnx]'") from error
