from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from policies.aragog.heads import HIDDEN_LAYERS, HeadStack, head_logit

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def random_heads(count: int = 5, inputs: int = 3, width: int = 4) -> HeadStack:
    rng = np.random.default_rng(0)
    sizes = [inputs, *([width] * HIDDEN_LAYERS), 1]

    def draw(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    return HeadStack(
        draw(inputs),
        np.abs(draw(inputs)),
        tuple(draw(count, a, b) for a, b in pairwise(sizes)),
        tuple(draw(count, b) for b in sizes[1:]),
    )


def plain(heads: HeadStack, head: int, vector: Array) -> float:
    """One head, one query, by the definition."""
    x = np.clip((vector - heads.mean) * heads.scale, -5, 5)
    state = x @ heads.weights[0][head] + heads.biases[0][head]
    for layer in range(1, HIDDEN_LAYERS):
        state = state + np.maximum(state @ heads.weights[layer][head] + heads.biases[layer][head], 0)
    return float((state @ heads.weights[-1][head] + heads.biases[-1][head])[0])


def test_grouped_products_equal_one_head_at_a_time() -> None:
    heads = random_heads()
    x = np.random.default_rng(1).standard_normal((7, 3)).astype(np.float32)
    expected = [[plain(heads, c, q) for c in range(5)] for q in x]
    np.testing.assert_allclose(heads.logits(x), expected, rtol=2e-4, atol=2e-4)
    chosen = np.array([4, 1])
    np.testing.assert_allclose(heads.logits(x, chosen), heads.logits(x)[:, chosen], rtol=1e-5, atol=1e-5)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = random_heads()
    x = np.random.default_rng(1).standard_normal((7, 3)).astype(np.float32)
    whole = heads.logits(x)
    monkeypatch.setattr("policies.aragog.heads._CHUNK_CELLS", 60)  # two heads at a time
    np.testing.assert_allclose(heads.logits(x), whole, rtol=1e-6)


def test_the_compiled_walk_equals_the_product() -> None:
    heads = random_heads()
    x = np.random.default_rng(1).standard_normal((7, 3)).astype(np.float32)
    weights, biases = heads.compiled
    state, out = np.empty(4, np.float32), np.empty(4, np.float32)
    seen = heads.standardise(x)
    walked = [[head_logit(weights, biases, c, seen[q], state, out) for c in range(5)] for q in range(7)]
    np.testing.assert_allclose(walked, heads.logits(x), rtol=2e-4, atol=2e-4)


def test_outliers_and_constant_inputs() -> None:
    heads = HeadStack(np.zeros(2, np.float32), np.array([1.0, 0.0], np.float32), (), ())
    np.testing.assert_array_equal(heads.standardise(np.array([[100.0, 7.0]], np.float32)), [[5.0, 0.0]])


def test_half_precision_is_what_a_checkpoint_holds() -> None:
    half = random_heads().half()
    for array in (*half.weights, *half.biases):
        np.testing.assert_array_equal(array, array.astype(np.float16))
