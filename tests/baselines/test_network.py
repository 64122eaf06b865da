"""The network: masks, symmetry, sizes, its numpy twin, and what is exported of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from aragog_env.errors import SpecError  # noqa: E402
from aragog_env.observation import CallFeature, GlobalFeature, RouteFeature  # noqa: E402
from baselines.decider import Decider  # noqa: E402
from baselines.features import PAIR_WIDTH  # noqa: E402
from baselines.foresight import REQUESTS_WIDTH, ServerForesight  # noqa: E402
from baselines.learned import likeliest_action  # noqa: E402
from baselines.network import MASKED, OPEN, Inputs, Network, export, likeliest  # noqa: E402
from baselines.ppo import policy_loss, sample  # noqa: E402


def observations(batch: int, slots: int, routes: int, seed: int = 0) -> Inputs:
    """Random observations; row b shows b % (slots + 1) calls, and about half of the pairs are open."""
    rng = np.random.default_rng(seed)

    def unit(*shape: int) -> np.ndarray:
        return rng.random((batch, *shape), np.float32)

    calls, pairs = unit(slots, len(CallFeature)), unit(slots, routes, PAIR_WIDTH)
    shown = np.arange(slots) < (np.arange(batch) % (slots + 1))[:, None]
    calls[..., CallFeature.VALID] = 1.0
    pairs[..., OPEN] = rng.random((batch, slots, routes)) < 0.5
    calls[~shown], pairs[~shown] = 0.0, 0.0
    can_wait = rng.random(batch) < 0.7
    can_wait |= ~pairs[..., OPEN].any(axis=(1, 2)).astype(bool)
    servers = unit(routes, len(ServerForesight))
    arrays = (
        calls,
        unit(routes, len(RouteFeature)),
        pairs,
        unit(len(GlobalFeature)),
        can_wait,
        unit(REQUESTS_WIDTH),
        servers,
    )
    return Inputs(*(torch.from_numpy(array) for array in arrays))


def trained(width: int = 16) -> Network:
    """A network whose scores differ, as after training."""
    torch.manual_seed(1)
    network = Network(width)
    with torch.no_grad():
        for last in (network.score, network.wait[2]):
            last.weight.mul_(100.0)
    return network


def possible(inputs: Inputs) -> torch.Tensor:
    return torch.cat((inputs.pairs[..., OPEN].flatten(1) > 0.5, inputs.can_wait.unsqueeze(1)), 1)


def test_masked_actions_have_probability_zero_and_no_gradient() -> None:
    inputs, network = observations(40, 4, 3), trained()
    logits = network(*inputs.policy)
    mask = possible(inputs)
    probabilities = torch.softmax(logits, 1)
    assert (probabilities[~mask] == 0).all() and (probabilities[mask] > 0).all()
    assert probabilities.sum(1).tolist() == pytest.approx([1.0] * 40)
    # Of a loss that asks for masked actions: nothing reaches what they are scored from.
    pairs = inputs.pairs.clone().requires_grad_()
    actions = torch.stack([torch.multinomial((~row).float(), 1)[0] for row in mask[:, :-1]])
    log = torch.log_softmax(network(inputs.calls, inputs.routes, pairs, inputs.globals, inputs.can_wait), 1)
    log.gather(1, actions.unsqueeze(1)).sum().backward()
    score_only = torch.autograd.functional.jacobian(lambda x: x.masked_fill(~mask, MASKED).sum(0), log.detach())
    assert torch.isfinite(log).all() and torch.isfinite(pairs.grad).all()
    by_action = torch.einsum("aba->ba", score_only)
    assert (by_action[~mask] == 0).all() and (by_action[mask] == 1).all()


def test_no_gradient_flows_through_a_masked_logit() -> None:
    logits = torch.tensor([[0.3, MASKED, -0.2]], requires_grad=True)
    loss, entropy, _ = policy_loss(logits, torch.tensor([2]), torch.tensor([-0.9]), torch.tensor([1.5]), 0.2)
    (loss - 0.1 * entropy).backward()
    assert logits.grad is not None and logits.grad[0, 1] == 0 and (logits.grad[0, [0, 2]] != 0).all()


def test_masked_actions_are_never_drawn_and_others_as_often_as_they_should_be() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([[0.0, MASKED, 1.0, MASKED, 0.5]]).repeat(20_000, 1)
    counts = torch.bincount(sample(logits, generator), minlength=5)
    expected = torch.softmax(logits[0], 0)
    assert counts[[1, 3]].tolist() == [0, 0]
    assert (counts / 20_000).tolist() == pytest.approx(expected.tolist(), abs=0.015)


def test_waiting_is_compared_with_all_dispatches_together() -> None:
    """Probabilities .2 .2 .2 and .4 for waiting: to dispatch is likelier. With .1 .1 .1 and .7 it is not."""
    some, none = torch.log(torch.tensor([[0.2, 0.2, 0.2, 0.4], [0.1, 0.12, 0.08, 0.7]])), torch.full((2, 4), MASKED)
    none[0, 3], none[1, 1] = -3.0, -3.0
    rows = torch.cat((some, none))
    assert likeliest(rows).tolist() == [0, 3, 3, 1]
    assert [likeliest_action(row) for row in rows.numpy()] == [0, 3, 3, 1]


def test_scores_follow_calls_and_routes_when_they_change_places() -> None:
    inputs, network = observations(12, 5, 4), trained()
    logits, values = network(*inputs.policy), network.values(inputs)
    call, route = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 3, 1])
    moved = inputs._replace(
        calls=inputs.calls[:, call], routes=inputs.routes[:, route], pairs=inputs.pairs[:, call][:, :, route],
        servers=inputs.servers[:, route],
    )  # fmt: skip
    moved_logits, moved_values = network(*moved.policy), network.values(moved)
    expected = logits[:, :-1].unflatten(1, (5, 4))[:, call][:, :, route].flatten(1)
    assert torch.allclose(moved_logits[:, :-1], expected, atol=1e-5)
    assert torch.allclose(moved_logits[:, -1], logits[:, -1], atol=1e-5)
    assert torch.allclose(moved_values, values, atol=1e-5)
    assert logits[4, :-1][possible(inputs)[4, :-1]].std() > 0.01  # and they do differ


def test_empty_slots_change_nothing() -> None:
    inputs, network = observations(9, 4, 3), trained()
    padding = torch.nn.functional.pad
    wider = inputs._replace(calls=padding(inputs.calls, (0, 0, 0, 3)), pairs=padding(inputs.pairs, (0, 0, 0, 0, 0, 3)))
    logits, values = network(*inputs.policy), network.values(inputs)
    wide_logits, wide_values = network(*wider.policy), network.values(wider)
    assert torch.allclose(wide_logits[:, :12], logits[:, :12], atol=1e-6) and torch.allclose(
        wide_values, values, atol=1e-6
    )
    assert torch.allclose(wide_logits[:, -1], logits[:, -1], atol=1e-6) and (wide_logits[:, 12:-1] == MASKED).all()


def test_empty_slots_need_not_be_computed() -> None:
    inputs, network = observations(30, 6, 3), trained()
    expected = network(*inputs.policy)
    for slots in (1, 2, 6):
        rows = (inputs.shown <= slots).nonzero().squeeze(1)
        assert len(rows) >= 5
        assert torch.allclose(network.of_slots(inputs.rows(rows, slots), 6), expected[rows], atol=1e-6)
        assert torch.allclose(network.of_slots(inputs.rows(rows).first(slots), 6), expected[rows], atol=1e-6)


@pytest.mark.parametrize(("slots", "routes"), [(1, 1), (2, 7), (40, 3), (64, 16)])
def test_one_network_runs_on_queues_and_clusters_of_any_size(slots: int, routes: int) -> None:
    inputs = observations(5, slots, routes)
    logits, values = trained()(*inputs.policy), trained().values(inputs)
    assert logits.shape == (5, slots * routes + 1) and values.shape == (5,)
    assert torch.isfinite(logits).all() and torch.isfinite(values).all()


def test_another_scale_of_values_changes_no_value() -> None:
    inputs, network = observations(7, 3, 2), trained()
    before = network.values(inputs)
    network.rescale_values(-35.0, 12.5)
    assert torch.allclose(network.values(inputs), before, atol=1e-4)
    network.rescale_values(4.0, 0.5)
    assert torch.allclose(network.values(inputs), before, atol=1e-4)
    assert network.value_scale.tolist() == [4.0, 0.5]


@pytest.mark.parametrize(("slots", "routes"), [(1, 1), (8, 3), (20, 14)])
def test_the_numpy_twin_scores_the_same(slots: int, routes: int) -> None:
    network = trained(32)
    decide = Decider(network.arrays())
    inputs = observations(30, slots, routes)
    with torch.inference_mode():
        expected = network(*inputs.policy).numpy()
    for row in range(30):
        calls, routes_, pairs, summary, can_wait = (part[row].numpy() for part in inputs.policy)
        found = decide(calls, routes_, pairs, summary, bool(can_wait))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[row], atol=1e-5)


def test_weights_of_something_else_are_refused() -> None:
    arrays = trained().arrays()
    with pytest.raises(SpecError, match=r"not the weights of a scheduler's network \('score.weight'\)"):
        Decider({name: value for name, value in arrays.items() if not name.startswith("score")})
    with pytest.raises(SpecError, match="'pair_in' has the shape"):
        Decider(arrays | {"pair_in.weight": arrays["call_in.weight"]})


def test_mixed_precision_gives_nearly_the_same_scores() -> None:
    inputs, network = observations(20, 4, 3), trained()
    with torch.autocast("cpu", torch.bfloat16):
        logits, values = network(*inputs.policy), network.values(inputs)
    expected, expected_values = network(*inputs.policy), network.values(inputs)
    assert logits.dtype == values.dtype == torch.float32
    mask = possible(inputs)
    assert torch.allclose(logits[mask], expected[mask], atol=0.05) and torch.allclose(
        values, expected_values, atol=0.05
    )
    assert (logits[~mask] == MASKED).all()


def test_the_exported_network_gives_the_same_logits_for_any_sizes(tmp_path: Path) -> None:
    network, path = trained(), tmp_path / "models" / "scheduler.pt2"
    export(network, path)
    exported = torch.export.load(path).module()
    for batch, slots, routes in ((1, 1, 1), (6, 8, 3), (3, 20, 9)):
        inputs = observations(batch, slots, routes)
        with torch.inference_mode():
            assert torch.equal(exported(*inputs.policy), network(*inputs.policy))


def test_the_network_is_exported_to_onnx(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, path = trained(), tmp_path / "scheduler.onnx"
    export(network, path)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch, slots, routes in ((1, 1, 1), (6, 8, 3)):
        inputs = observations(batch, slots, routes)
        feed = {name: getattr(inputs, name).numpy() for name in Inputs._fields[:5]}
        with torch.inference_mode():
            np.testing.assert_allclose(session.run(None, feed)[0], network(*inputs.policy).numpy(), atol=1e-5)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"exported as \.pt2 or \.onnx, not as '\.ts'"):
        export(trained(), tmp_path / "scheduler.ts")
