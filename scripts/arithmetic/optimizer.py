"""Muon for the matrices of the layers, Adam for everything else.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by the nearest orthogonal
one, found with a few Newton-Schulz iterations. Matrices of one shape are stacked, so that a thin model costs a handful of
operations per update instead of hundreds.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import torch
from torch import Tensor, nn

MUON_MOMENTUM: Final = 0.95
ADAM_BETAS: Final = (0.9, 0.98)
_NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)
_ITERATIONS: Final = 5


class Muon:
    """Muon over matrices of any shapes (not a `torch.optim.Optimizer`: it has one learning rate and no groups)."""

    def __init__(self, matrices: list[nn.Parameter]) -> None:
        groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            groups[matrix.shape].append(matrix)
        self.groups = list(groups.values())
        self.momentum = [torch.zeros((len(group), *group[0].shape)) for group in self.groups]

    @torch.no_grad()
    def step(self, lr: float, weight_decay: float) -> None:
        """Update every matrix from its gradient."""
        for group, momentum in zip(self.groups, self.momentum, strict=True):
            gradient = torch.stack([_gradient(matrix) for matrix in group])
            momentum.lerp_(gradient, 1 - MUON_MOMENTUM)
            update = orthogonal(gradient.lerp(momentum, MUON_MOMENTUM))
            rows, columns = group[0].shape
            scale = lr * max(1.0, rows / columns) ** 0.5
            for matrix, change in zip(group, update, strict=True):
                matrix.mul_(1 - lr * weight_decay).add_(change, alpha=-scale)

    def state_dict(self) -> list[Tensor]:
        """Return the momentum of each group."""
        return self.momentum

    def load_state_dict(self, state: list[Tensor]) -> None:
        """Take the momentum back."""
        for own, saved in zip(self.momentum, state, strict=True):
            own.copy_(saved)


def _gradient(matrix: nn.Parameter) -> Tensor:
    return torch.zeros_like(matrix) if matrix.grad is None else matrix.grad


def orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices (N, R, C) with their singular values moved close to 1."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.transpose(1, 2) if tall else x
    return result


class Optimizer:
    """Both together, for a model whose layers are under `model.layers`."""

    def __init__(self, model: nn.Module, muon_lr: float, adam_lr: float, weight_decay: float) -> None:
        inside = {name for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name}
        self.muon = Muon([p for name, p in model.named_parameters() if name in inside])
        others = [p for name, p in model.named_parameters() if name not in inside]
        self.adam = torch.optim.Adam(others, lr=adam_lr, betas=ADAM_BETAS, eps=1e-9)
        self.model, self.muon_lr, self.adam_lr, self.weight_decay = model, muon_lr, adam_lr, weight_decay

    def step(self, factor: float) -> None:
        """Update all weights with the learning rates times `factor`, and forget the gradients."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.muon.step(self.muon_lr * factor, self.weight_decay)
        for group in self.adam.param_groups:
            group["lr"] = self.adam_lr * factor
        self.adam.step()
        self.model.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
