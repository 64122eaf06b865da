"""One binary head per configuration: small perceptrons whose weights are stacked, so that many are one product per layer.

The paper puts an MLP with 6 hidden layers on the frozen embedding and fuses the classifiers layer by layer (section 4).
Here the weights of C heads are arrays (C, in, out): asking k heads about b queries gathers k slices and takes one batched
product per layer (`HeadStack.logits`). Pruning asks one head at a time; for that there is a compiled walk through one head
(`head_logit`). Inference needs neither torch nor a GPU.

The first hidden layer is linear, the other five add to their input (h + relu(W h + b)). With a few hundred questions, plain
stacks of six layers this narrow did not get past what a linear model finds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, cast

import numba
import numpy as np
from numpy.typing import NDArray

HIDDEN_LAYERS: Final = 6
"""Section 4 of the paper."""
_CHUNK_CELLS: Final = 1 << 22
"""Heads x queries x width held at once by `logits`: 16 MiB per activation."""

Floats = NDArray[np.float32]
_kernel = cast(Callable[[Callable[..., Any]], Any], numba.njit(cache=True))


@dataclass(frozen=True, eq=False)
class HeadStack:
    """C heads with inputs of D numbers and hidden layers of W units; standardisation of inputs is part of it."""

    mean: Floats  # (D,) of the training queries
    scale: Floats  # (D,) 1 / standard deviation, 0 for a constant input
    weights: tuple[Floats, ...]
    """HIDDEN_LAYERS + 1 arrays (C, in, out): (C, D, W), then (C, W, W), the last (C, W, 1)."""
    biases: tuple[Floats, ...]
    """HIDDEN_LAYERS + 1 arrays (C, out)."""

    @property
    def count(self) -> int:
        """Number of heads, C."""
        return int(self.weights[0].shape[0])

    def standardise(self, vectors: Floats) -> Floats:
        """Return embeddings as the heads see them, (Q, D); outliers are clipped to 5 standard deviations."""
        return np.asarray(np.clip((vectors - self.mean) * self.scale, -5, 5), np.float32)

    def logits(self, vectors: Floats, heads: NDArray[np.int64] | None = None) -> Floats:
        """Return what `heads` (k,) (None: all) say about queries (b, D), (b, k): log odds or calibrated scores."""
        x = self.standardise(vectors)
        chosen = np.arange(self.count) if heads is None else np.asarray(heads, np.int64)
        result = np.empty((len(x), len(chosen)), np.float32)
        width = self.weights[0].shape[2]
        step = max(1, _CHUNK_CELLS // max(1, len(x) * width))
        for begin in range(0, len(chosen), step):
            part = chosen[begin : begin + step]
            result[:, begin : begin + step] = self._run(x[None], part)[:, :, 0].T
        return result

    def _run(self, state: Floats, heads: NDArray[np.int64]) -> Floats:
        """Return the output (k, b, 1) of heads (k,) for inputs (k or 1, b, D): one grouped product per layer."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            out = np.matmul(state, weight[heads])
            out += bias[heads][:, None, :]
            if 0 < layer < HIDDEN_LAYERS:
                np.maximum(out, 0, out=out)
                out += state
            state = out
        return state

    @cached_property
    def compiled(self) -> tuple[tuple[Floats, ...], tuple[Floats, ...]]:
        """Weights and biases as `head_logit` takes them."""
        return tuple(map(np.ascontiguousarray, self.weights)), tuple(map(np.ascontiguousarray, self.biases))

    def half(self) -> HeadStack:
        """Return the heads with weights rounded to float16: what a checkpoint holds."""
        return HeadStack(
            self.mean,
            self.scale,
            tuple(_rounded(w) for w in self.weights),
            tuple(_rounded(b) for b in self.biases),
        )


def _rounded(array: Floats) -> Floats:
    return array.astype(np.float16).astype(np.float32)


@_kernel
def head_logit(weights, biases, head, x, state, out):  # type: ignore[no-untyped-def]
    """Return the logit of one head for one standardised query (D,); `state` and `out` (W,) are scratch."""
    width = state.shape[0]
    for layer in range(HIDDEN_LAYERS):
        weight, bias = weights[layer], biases[layer]
        inputs = x if layer == 0 else state
        for j in range(width):
            out[j] = bias[head, j]
        for i in range(inputs.shape[0]):
            for j in range(width):
                out[j] += inputs[i] * weight[head, i, j]
        for j in range(width):
            if layer == 0:
                state[j] = out[j]
            elif out[j] > 0:
                state[j] += out[j]
    logit = biases[HIDDEN_LAYERS][head, 0]
    for i in range(width):
        logit += state[i] * weights[HIDDEN_LAYERS][head, i, 0]
    return logit
