"""Activations and their symmetries, group elements, and the gauge."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scalegmn_opt.graph import (
    ACTIVATIONS,
    CONSTANT,
    NONZERO_SCALE,
    PERMUTATION,
    POSITIVE_SCALE,
    SIGN,
    Activation,
    NeuronGroup,
    Role,
    Symmetry,
    WeightBlock,
    WeightGraph,
    pack,
    trace,
)
from scalegmn_opt.symmetry import (
    Transform,
    activity_sweep,
    forward_sweep,
    gauged,
    random_transform,
)
from scalegmn_opt.testing import random_graph, random_params, random_tied_graph

EVERY = [Symmetry(*flags) for flags in itertools.product((False, True), repeat=3)]
COMMON = [Symmetry(*flags, True) for flags in itertools.product((False, True), repeat=3)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def assert_close(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def random_element(symmetry, size, *, generator):
    """An order and multipliers of a group of neurons."""
    graph = WeightGraph((NeuronGroup("group", size, Role.HIDDEN, symmetry),), ())
    transform = random_transform(graph, generator)
    return transform.orders["group"], transform.scales["group"]


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("parameter", [0.3, 2.0])
def test_each_activation_commutes_with_its_symmetry(name, parameter):
    activation = Activation(name, parameter)
    z = normal(50, 7)
    order, q = random_element(activation.symmetry, 7, generator=seeded(1))
    assert_close(activation((q * z)[:, order]), (q * activation(z))[:, order])


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_no_activation_has_more_symmetry_than_it_claims(name):
    activation, z = Activation(name, 0.5), normal(200)
    commutes = {q: torch.allclose(activation(q * z), q * activation(z)) for q in (-1.0, 2.0)}
    claims = activation.symmetry
    assert commutes == {-1.0: claims.flips, 2.0: claims.rescales}


def test_unknown_activation_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown activation 'swoosh'; choose from \['abs'"):
        Activation("swoosh")


@pytest.mark.parametrize("symmetry", [*EVERY, *COMMON], ids=str)
def test_random_elements_are_of_the_group_and_use_all_of_it(symmetry):
    elements = [random_element(symmetry, 100, generator=seeded(seed)) for seed in range(8)]
    order, q = elements[0]
    assert sorted(order.tolist()) == list(range(100))
    assert (order.tolist() != list(range(100))) == symmetry.permutes
    assert any((q < 0).any() for _, q in elements) == symmetry.flips
    assert bool((q.abs() != 1).any()) == symmetry.rescales
    assert (len(q.unique()) == 1) == (symmetry.common or symmetry.scalar_free)
    assert symmetry.self_inverse == bool((q == 1 / q).all())
    assert symmetry.scalar_free == all((q == 1).all() for _, q in elements)


@pytest.mark.parametrize("symmetry", [*EVERY, *COMMON], ids=str)
def test_canon_and_even_leave_an_invariant(symmetry):
    x = normal(7, 3)
    x[0] = 0
    _, q = random_element(symmetry, 7, generator=seeded(1))
    mixing = normal(3, 3, seed=2)

    def invariant(features):
        return symmetry.even(lambda c: F.relu(c @ mixing), symmetry.canon(features))

    assert_close(invariant(q[:, None] * x), invariant(x))


def test_canon_has_unit_length_and_a_finite_derivative_at_zero():
    x = normal(4, 3)
    x[1] = 0
    x.requires_grad_()
    length = POSITIVE_SCALE.canon(x).norm(dim=1)
    assert_close(length.detach(), torch.tensor([1.0, 0, 1, 1], dtype=torch.float64))
    POSITIVE_SCALE.canon(x).sum().backward()
    assert torch.isfinite(x.grad).all()


NETWORKS = {
    "relu": nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)),
    "tanh": nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)),
    "gelu": nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 2)),
    "linear": nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2)),
    "mixed": nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Linear(6, 2)
    ),
    "cnn": nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
    ),
}


def problem(name, seed=0):
    """A network, its graph, stacked parameters with gradients of a loss, and the two functions."""
    module = NETWORKS[name].double()
    x, y = normal(8, 3, seed=seed), normal(8, 2, seed=seed + 1)
    graph = trace(module, (x,))
    params = random_params(graph, seeded(seed), batch=1)

    def outputs(values):
        return torch.func.functional_call(module, {n: v[0] for n, v in values.items()}, (x,))

    gradient = torch.func.grad(lambda values: F.mse_loss(outputs(values), y))
    return graph, params, outputs, gradient


@settings(deadline=None, max_examples=30)
@given(name=st.sampled_from(sorted(NETWORKS)), seed=st.integers(0, 1000))
def test_transform_keeps_the_function_and_moves_gradients(name, seed):
    graph, params, outputs, gradient = problem(name, seed)
    transform = random_transform(graph, seeded(seed))
    acted = transform.apply(params)
    assert_close(outputs(acted), outputs(params), 1e-9)
    expected, found = gradient(acted), transform.apply_to_gradients(gradient(params))
    for parameter, value in expected.items():
        scale = value.abs().max().clamp_min(1e-12)
        assert float((found[parameter] - value).abs().max() / scale) < 1e-9, parameter


def test_transform_is_not_the_identity_and_modifies_nothing():
    graph, params, _, _ = problem("mixed")
    before = {name: p.clone() for name, p in params.items()}
    acted = random_transform(graph, seeded()).apply(params)
    assert all(torch.equal(p, before[name]) for name, p in params.items())
    assert all(not torch.equal(p, acted[n]) for n, p in params.items() if n != "5.bias")
    assert torch.equal(acted["5.bias"], params["5.bias"])


def test_weights_times_gradients_are_invariant():
    graph, params, _, gradient = problem("relu")
    transform = random_transform(graph, seeded(4))
    before = {n: (params[n] * g).sum() for n, g in gradient(params).items()}
    acted = transform.apply(params)
    after = {n: (acted[n] * g).sum() for n, g in gradient(acted).items()}
    for name, value in before.items():
        assert_close(after[name], value, 1e-9)


def test_apply_is_the_formula_of_the_paper():
    graph, params, _, _ = problem("relu")
    transform = random_transform(graph, seeded(2))
    rows, columns = (transform.orders[g] for g in ("2:out", "0:out"))
    q_out, q_in = (transform.scales[g].diag() for g in ("2:out", "0:out"))
    p_out, p_in = torch.eye(5).double()[rows], torch.eye(6).double()[columns]
    expected = p_out @ q_out @ params["2.weight"][0] @ q_in.inverse() @ p_in.T
    assert_close(transform.apply(params)["2.weight"][0], expected)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    input_rms=st.floats(0.01, 100),
    make=st.sampled_from([random_graph, random_tied_graph]),
)
def test_gauge_scales_with_q_and_gauged_quantities_are_invariant(seed, input_rms, make):
    graph = make(seeded(seed))
    params, grads = (random_params(graph, seeded(seed + i)) for i in (0, 1))
    transform = random_transform(graph, seeded(seed + 2))
    before = forward_sweep(graph, pack(graph, params), input_rms=input_rms)
    moved = transform.apply(params), transform.apply_to_gradients(grads)
    after = forward_sweep(graph, pack(graph, moved[0]), input_rms=input_rms)
    for name, scales in before.scales.items():
        order, q = transform.orders[name], transform.scales[name]
        torch.testing.assert_close(
            after.scales[name], (q.abs() * scales)[:, order], rtol=1e-9, atol=0
        )
    remaining = Transform(  # permutations and signs
        graph, transform.orders, {name: q.sign() for name, q in transform.scales.items()}
    )
    for block in graph.blocks:
        name = block.parameter
        for values, acted, power in ((params, moved[0], -1), (grads, moved[1], 1)):
            hat = block.pack(values[name]) * before.ratio(block) ** power
            found = block.pack(acted[name]) * after.ratio(block) ** power
            expected = remaining.act_on_edges(block, hat)
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def chain(symmetry):
    groups = (
        NeuronGroup(CONSTANT, 1, Role.CONSTANT),
        NeuronGroup("in", 2, Role.INPUT),
        NeuronGroup("a", 2, Role.HIDDEN, symmetry),
    )
    blocks = (
        WeightBlock("w", "a", "in", "out src", (("out", 2), ("src", 2))),
        WeightBlock("b", "a", CONSTANT, "out", (("out", 2),)),
    )
    return WeightGraph(groups, blocks)


def test_forward_sweep_by_hand():
    edges = pack(
        chain(POSITIVE_SCALE),
        {"w": torch.tensor([[[3.0, 4], [0, 0]]]), "b": torch.tensor([[2.0, 0]])},
    )
    scales = forward_sweep(chain(POSITIVE_SCALE), edges, input_rms=0.5).scales
    assert scales["in"].tolist() == [[0.5, 0.5]]
    assert scales["a"][0].tolist() == pytest.approx([(2.5**2 + 2**2) ** 0.5, 1.0])  # zero row: 1
    shared = forward_sweep(chain(SIGN), edges, input_rms=0.5).scales["a"][0].tolist()
    assert shared == pytest.approx([((2.5**2 + 2**2) / 2) ** 0.5] * 2)


class Sine(nn.Module):
    def __init__(self, frequency):
        super().__init__()
        self.frequency = frequency

    def forward(self, x):
        return torch.sin(self.frequency * x)


def layers(activation):
    module = nn.Sequential(nn.Linear(2, 3), activation, nn.Linear(3, 1)).double()
    graph = trace(module, (torch.ones(1, 2, dtype=torch.float64),))
    return graph, pack(graph, {n: p.detach()[None] for n, p in module.named_parameters()})


def test_activities_of_bounded_neurons():
    torch.manual_seed(0)
    graph, edges = layers(Sine(30.0))
    hidden = graph.block["0.weight"].target
    plain = forward_sweep(graph, edges).scales
    sensitive, active = activity_sweep(graph, edges)
    size = plain[hidden][0, 0].item()
    assert size > 1 / 30  # which is where a sine of frequency 30 saturates
    assert sensitive[hidden].tolist() == [[pytest.approx(1 / 30)] * 3]
    assert active[hidden].tolist() == [[1.0] * 3]
    out, last = graph.block["2.weight"].target, (edges["2.weight"], edges["2.bias"])
    expected = (last[0].square().sum() + last[1].square().sum()).sqrt()
    assert sensitive[out].item() == pytest.approx(expected.item())
    graph, edges = layers(nn.Tanh())
    tenth = {name: e / 10 for name, e in edges.items()}
    assert forward_sweep(graph, tenth).scales[hidden].max() < 1
    for sizes in activity_sweep(graph, tenth):  # nothing saturates
        assert all(torch.equal(sizes[n], s) for n, s in forward_sweep(graph, tenth).scales.items())


def test_activities_without_bounds_are_the_scales():
    graph, edges = layers(nn.ReLU())
    scales = forward_sweep(graph, edges, input_rms=50.0).scales
    for sizes in activity_sweep(graph, edges, input_rms=50.0):
        assert all(torch.equal(sizes[name], s) for name, s in scales.items())


def test_input_rms_of_each_network():
    edges = pack(chain(SIGN), {"w": torch.ones(2, 2, 2), "b": torch.zeros(2, 2)})
    scales = forward_sweep(chain(SIGN), edges, input_rms=torch.tensor([1.0, 3.0])).scales["a"]
    assert (scales[1] / scales[0]).tolist() == pytest.approx([3.0, 3.0])


def test_gauged_graph_keeps_permutations_and_signs():
    graph = random_graph(seeded(), symmetries=[PERMUTATION, SIGN, POSITIVE_SCALE, NONZERO_SCALE])
    hidden = [g.symmetry for g in gauged(graph).groups if g.role is Role.HIDDEN]
    assert hidden == [PERMUTATION, SIGN, PERMUTATION, SIGN]
    assert gauged(graph).blocks == graph.blocks
