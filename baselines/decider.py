"""The network of `baselines.network` in numpy, for one decision at a time.

A decision takes some fifty operations on a few hundred numbers; torch spends most of its time around them. Only ready calls
are computed, not the empty slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aragog_env.errors import SpecError
from aragog_env.observation import CallFeature, GlobalFeature, PairFeature, RouteFeature

from .features import PAIR_WIDTH, PairExtra

Floats = NDArray[np.float32]
_OPEN: Final = len(PairFeature) + PairExtra.OPEN
MASKED: Final = np.float32(-1e9)
_LATER: Final = ("call_out", "route_out", "summary_out", "score", "wait.0", "wait.2")


class Decider:
    """Computes the logits of one observation.

    Args:
        weights: by the names of `Network.state_dict`.

    Raises:
        SpecError: they are not those of a network.
    """

    def __init__(self, weights: Mapping[str, Floats]) -> None:
        try:
            self._prepare(weights)
        except (KeyError, ValueError, IndexError) as error:
            raise SpecError(f"these are not the weights of a scheduler's network ({error})") from error

    def _prepare(self, weights: Mapping[str, Floats]) -> None:
        self.width = width = weights["call_in.bias"].shape[0]
        inputs = {
            "call_in": len(CallFeature), "route_in": len(RouteFeature), "pair_in": PAIR_WIDTH, "call_mix": 2 * width,
            "route_mix": 2 * width, "summary": 2 * width + len(GlobalFeature),
        }  # fmt: skip
        for name in ("call_in", "route_in", "pair_in", "call_mix", "route_mix", "summary", *_LATER):
            outputs = {"pair_in": 2 * width, "score": 1, "wait.2": 1}.get(name, width)
            shape = (outputs, inputs.get(name, width))
            if weights[f"{name}.weight"].shape != shape:
                raise ValueError(f"'{name}' has the shape {weights[f'{name}.weight'].shape}, wanted {shape}")
        self._w = {
            k.removesuffix(".weight"): np.ascontiguousarray(v.T)
            for k, v in weights.items()
            if k.endswith(".weight") and not k.startswith("value")
        }
        self._b = {k.removesuffix(".bias"): v for k, v in weights.items() if k.endswith(".bias")}

    def _linear(self, name: str, x: Floats) -> Floats:
        result: Floats = x @ self._w[name]
        bias = self._b.get(name)
        if bias is not None:
            result += bias
        return result

    def __call__(self, calls: Floats, routes: Floats, pairs: Floats, globals: Floats, can_wait: bool) -> Floats:
        """Return logits, (K * R + 1,); impossible actions have the logit `MASKED`.

        Args:
            calls: (K, F).
            routes: (R, G).
            pairs: (K, R, P).
            globals: (L,).
            can_wait: whether waiting is possible.
        """
        shown = int(calls[:, CallFeature.VALID].sum())
        n = max(1, shown)
        width, linear = self.width, self._linear
        call, route = linear("call_in", calls[:n]), linear("route_in", routes)
        both = linear("pair_in", pairs[:n])  # (n, R, 2H)
        message = both[:, :, :width] + call[:, None] + route
        np.maximum(message, 0, out=message)
        to_route = message.mean(0) if shown else np.zeros_like(route)
        call = _relu(linear("call_mix", np.concatenate((call, message.mean(1)), 1)))
        route = _relu(linear("route_mix", np.concatenate((route, to_route), 1)))
        mean_call = call.mean(0) if shown else np.zeros(width, np.float32)
        summary = _relu(linear("summary", np.concatenate((mean_call, route.mean(0), globals))))
        call = linear("call_out", call) + linear("summary_out", summary)
        scores = linear("score", _relu(both[:, :, width:] + call[:, None] + linear("route_out", route)))
        logits = np.full(len(calls) * len(routes) + 1, MASKED)
        logits[: n * len(routes)] = np.where(pairs[:n, :, _OPEN] > 0.5, scores[:, :, 0], MASKED).ravel()
        if can_wait:
            logits[-1] = linear("wait.2", _relu(linear("wait.0", summary)))[0]
        return logits


def _relu(x: Floats) -> Floats:
    return np.maximum(x, np.float32(0))
