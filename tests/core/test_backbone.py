"""ScaleGMN: equivariant on every graph, independent of sizes, with no idle parameter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalegmn_opt import ScaleGMN, WeightFeatures
from scalegmn_opt.graph import (
    NONZERO_SCALE,
    PERMUTATION,
    POSITIVE_SCALE,
    SIGN,
    NeuronGroup,
    Role,
    WeightBlock,
    WeightGraph,
)
from scalegmn_opt.testing import (
    assert_equivariant,
    random_features,
    random_graph,
    random_tied_graph,
)

SMALL = {"node_channels": 4, "edge_channels": 3, "hidden_channels": 6, "num_layers": 2}
MIXED = [PERMUTATION, SIGN, POSITIVE_SCALE, NONZERO_SCALE]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(seed=0, **options):
    """A small model in float64 with weights that are not those of its initialisation."""
    torch.manual_seed(seed)
    model = ScaleGMN(**SMALL | options).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=seeded(seed), dtype=p.dtype))
    return model


FEATURES = {
    "weights": {"edge_features": (1, 0)},
    "weights and gradients": {"edge_features": (1, 2)},
    "all": {"edge_features": (2, 1), "node_features": (1, 2), "invariant_features": 2},
}


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("neuron_encoding", [True, False])
@pytest.mark.parametrize("fan_exponent", [0.0, 0.5])
@pytest.mark.parametrize("symmetries", [MIXED, *([s, s] for s in MIXED)], ids=str)
def test_equivariant(features, bidirectional, neuron_encoding, fan_exponent, symmetries):
    model = build(
        bidirectional=bidirectional,
        neuron_encoding=neuron_encoding,
        fan_exponent=fan_exponent,
        **features,
    )
    graph = random_graph(seeded(5), symmetries=symmetries)
    assert_equivariant(model, graph, trials=1, **features)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    features=st.sampled_from(sorted(FEATURES)),
    make=st.sampled_from([random_graph, random_tied_graph]),
)
def test_one_model_serves_every_graph(seed, features, make):
    model = build(**FEATURES[features])
    graph = make(seeded(seed))
    assert_equivariant(model, graph, generator=seeded(seed), **FEATURES[features])


def test_output_channels_and_graph():
    graph = random_graph(seeded())
    out = build()(random_features(graph, seeded(), batch=3))
    assert out.graph is graph
    assert out.batch_size == 3
    for group in graph.groups:
        assert [x.shape for x in out.nodes[group.name]] == [(3, group.size, 4)] * 2
    for block in graph.blocks:
        assert [e.shape for e in out.edges[block.parameter]] == [(3, 3, *block.shape)] * 2


def test_batch_is_one_by_one():
    graph, model = random_graph(seeded(2), symmetries=MIXED), build(edge_features=(1, 1))
    features = random_features(graph, seeded(), edge_features=(1, 1), batch=3)
    together = model(features)
    for i in range(3):
        part = [
            {n: tuple(x[i : i + 1] for x in pair) for n, pair in pairs.items()}
            for pairs in (features.nodes, features.edges)
        ]
        invariants = {n: x[i : i + 1] for n, x in features.invariants.items()}
        alone = model(WeightFeatures(graph, *part, invariants))
        for found, expected in zip(alone.tensors(), together.tensors(), strict=True):
            torch.testing.assert_close(found[0], expected[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"bidirectional": False}, {"neuron_encoding": False}])
def test_every_parameter_is_used(options):
    model = build(edge_features=(1, 1), node_features=(1, 1), **options)
    graph = random_graph(seeded(1), symmetries=MIXED)
    out = model(random_features(graph, seeded(), edge_features=(1, 1), node_features=(1, 1)))
    sum(x.square().sum() for x in out.tensors()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_inputs_are_not_modified():
    graph = random_graph(seeded())
    features = random_features(graph, seeded())
    before = [x.clone() for x in features.tensors()]
    build()(features)
    assert all(torch.equal(x, y) for x, y in zip(features.tensors(), before, strict=True))


def test_input_neurons_are_told_apart_only_with_their_index():
    graph = random_graph(seeded(3), symmetries=[SIGN])
    ones = {b.parameter: torch.ones(1, *b.parameter_shape).double() for b in graph.blocks}
    features = WeightFeatures.from_parameters(graph, ones)
    assert graph.group["output"].size > 1
    spread = {
        index: build(neuron_encoding=index)(features).nodes["output"][0].std(1).max().item()
        for index in (True, False)
    }
    assert spread[False] < 1e-9
    assert spread[True] > 1e-3


def test_sums_are_normalised_by_the_number_of_edges():
    groups = (NeuronGroup("in", 2, Role.INPUT), NeuronGroup("out", 3, Role.OUTPUT))
    sizes = (("out", 3), ("src", 2))
    graph = WeightGraph(groups, (WeightBlock("w", "out", "in", "out src", sizes),))
    plain, divided = build(fan_exponent=0.0), build(fan_exponent=0.5)
    with torch.no_grad():  # undo the division by hand: 2 edges into an output, 3 out of an input
        for layer in divided.layers:
            for message, fan in zip(layer.messages, (2, 3), strict=True):
                message.value.weight.mul_(fan**0.5)
    features = random_features(graph, seeded())
    found, expected = divided(features).tensors(), plain(features).tensors()
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


# Negative controls


@pytest.mark.parametrize("symmetry", [POSITIVE_SCALE, NONZERO_SCALE])
def test_gradients_fed_as_weights_are_not_equivariant(symmetry):
    model = build(edge_features=(2, 0))

    def function(x):
        edges = {n: (torch.cat(pair, 1), pair[1][:, :0]) for n, pair in x.edges.items()}
        return model(WeightFeatures(x.graph, x.nodes, edges, x.invariants))

    graph = random_graph(seeded(5), symmetries=[symmetry, symmetry])
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(function, graph, edge_features=(1, 1), tolerance=1e-3)


@pytest.mark.parametrize("symmetry", [SIGN, POSITIVE_SCALE])
def test_bias_on_hidden_neurons_is_not_equivariant(symmetry):
    model = build()

    def function(x):
        nodes = {n: (plus + 0.1, minus) for n, (plus, minus) in x.nodes.items()}
        return WeightFeatures(x.graph, nodes, x.edges, x.invariants)

    graph = random_graph(seeded(5), symmetries=[symmetry, symmetry])
    with pytest.raises(AssertionError, match="stream of group 'hidden"):
        assert_equivariant(lambda x: function(model(x)), graph, edge_features=(1, 0))


def test_position_of_a_hidden_neuron_is_not_equivariant():
    model = build(invariant_features=1)

    def function(x):
        index = {
            g.name: torch.arange(g.size).double().expand(x.batch_size, -1).unsqueeze(-1)
            for g in x.graph.groups
        }
        return model(WeightFeatures(x.graph, x.nodes, x.edges, index))

    graph = random_graph(seeded(5), symmetries=[PERMUTATION, PERMUTATION])
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(function, graph, edge_features=(1, 0), tolerance=1e-6)


def test_sign_model_is_not_scale_equivariant():
    """A graph that says sign where the group is positive scale is found out."""
    relu, tanh = (random_graph(seeded(5), symmetries=[s, s]) for s in (POSITIVE_SCALE, SIGN))
    model = build()

    def function(x):
        out = model(WeightFeatures(tanh, x.nodes, x.edges, x.invariants))
        return WeightFeatures(relu, out.nodes, out.edges, x.invariants)

    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(function, relu, edge_features=(1, 0), tolerance=1e-3)


@pytest.mark.parametrize(
    ("given_channels", "match"),
    [
        ({"edge_features": (1, 1)}, r"edge_features: expected \(1, 0\) channels, got"),
        ({"node_features": (0, 2)}, r"node_features: expected \(0, 0\) channels, got"),
        ({"invariant_features": 3}, "invariant_features: expected 0 channels, got"),
    ],
)
def test_wrong_channels(given_channels, match):
    graph = random_graph(seeded())
    with pytest.raises(ValueError, match=match):
        build()(random_features(graph, seeded(), **given_channels))
