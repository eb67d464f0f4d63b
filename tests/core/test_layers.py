"""Each layer is equivariant in float64, and the checks can tell."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from scalegmn_opt.graph import (
    CONSTANT,
    FIXED,
    NONZERO_SCALE,
    PERMUTATION,
    POSITIVE_SCALE,
    SIGN,
    NeuronGroup,
    Role,
    WeightBlock,
    WeightFeatures,
    WeightGraph,
)
from scalegmn_opt.nn import (
    EdgeProducts,
    EdgeUpdate,
    Message,
    NodeUpdate,
    ReScaleEq,
    ScaleEq,
    ScaleInv,
    StreamLinear,
    StreamNorm,
    kernel_positions,
)
from scalegmn_opt.nn.encoding import POSITION_CHANNELS
from scalegmn_opt.nn.scale import exchange
from scalegmn_opt.testing import assert_equivariant, random_graph

NODES, EDGES, HIDDEN, EXTRA = 4, 3, 6, 2
SYMMETRIES = (FIXED, PERMUTATION, SIGN, POSITIVE_SCALE, NONZERO_SCALE)
PAIRS = list(itertools.product(SYMMETRIES, SYMMETRIES))
CHANNELS = {
    "edge_features": (EDGES, EDGES),
    "node_features": (NODES, NODES),
    "invariant_features": EXTRA,
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pair_graph(target, source, kernel=1):
    """One block of edges between two groups."""
    groups = (
        NeuronGroup(CONSTANT, 1, Role.CONSTANT),
        NeuronGroup("source", 3, Role.HIDDEN, source),
        NeuronGroup("target", 5, Role.HIDDEN, target),
    )
    sizes = (("out", 5), ("src", 3), ("k0", kernel))
    return WeightGraph(groups, (WeightBlock("w", "target", "source", "out src k0", sizes),))


def randomised(module, seed=0):
    """With weights of order one, none at the values they are initialised with."""
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=seeded(seed), dtype=p.dtype))
    return module


def node_map(function):
    """A map of features from a map of the nodes (batch, nodes, 2 channels) of each group."""

    def apply(features):
        nodes = {}
        for group in features.graph.groups:
            x = torch.cat(features.nodes[group.name], -1)
            nodes[group.name] = function(x, features.invariants[group.name], group.symmetry)
        pairs = {name: x.chunk(2, -1) for name, x in nodes.items()}
        return WeightFeatures(features.graph, pairs, {}, {})

    def without_edges(features):
        out = apply(features)
        empty = {b: (e[:, :0], e[:, :0]) for b, (e, _) in features.edges.items()}
        return WeightFeatures(out.graph, out.nodes, empty, out.invariants)

    return without_edges


def every_symmetry_graph(seed=0):
    return random_graph(seeded(seed), symmetries=list(SYMMETRIES[1:]))


def only(features, *, nodes=None, edges=None):
    """Features of which only the given ones are filled."""
    none = {n: (p[..., :0], m[..., :0]) for n, (p, m) in features.nodes.items()}
    empty = {n: (p[:, :0], m[:, :0]) for n, (p, m) in features.edges.items()}
    return WeightFeatures(features.graph, none | (nodes or {}), empty | (edges or {}), {})


def check_nodes(function, **options):
    assert_equivariant(node_map(function), every_symmetry_graph(), **CHANNELS | options)


def test_stream_linear_on_nodes():
    layer = randomised(StreamLinear((NODES, NODES), (5, 5)))
    check_nodes(lambda x, extra, symmetry: layer(x, self_inverse=symmetry.self_inverse))


@pytest.mark.parametrize(("target", "source"), PAIRS)
@pytest.mark.parametrize("kernel", [1, 4])
def test_stream_linear_on_edges(target, source, kernel):
    layer = randomised(StreamLinear((EDGES, EDGES), (5, 5)))

    def function(x):
        edges = torch.cat(x.edges["w"], 1)
        out = layer.edges(edges, self_inverse=x.graph.self_inverse(x.graph.blocks[0]))
        return only(x, edges={"w": out.chunk(2, 1)})

    assert_equivariant(function, pair_graph(target, source, kernel), **CHANNELS)


def test_stream_linear_mixes_streams_only_where_they_are_the_same():
    layer = randomised(StreamLinear((2, 3), (4, 1)))
    apart = layer.matrix(self_inverse=False)
    assert torch.equal(apart[:4, :2], layer.weight[:4, :2])
    assert torch.equal(apart[4:, 2:], layer.weight[4:, 2:])
    assert not apart[:4, 2:].any()
    assert not apart[4:, :2].any()
    assert torch.equal(layer.matrix(self_inverse=True), layer.weight)


def test_scale_inv_is_invariant():
    layer = randomised(ScaleInv(NODES, 5, extra_channels=EXTRA, hidden_channels=HIDDEN))

    def function(x):
        found = {
            g.name: layer(torch.cat(x.nodes[g.name], -1), x.invariants[g.name], g.symmetry)
            for g in x.graph.groups
        }
        return WeightFeatures(x.graph, only(x).nodes, only(x).edges, found)

    assert_equivariant(function, every_symmetry_graph(), **CHANNELS)


def test_scale_eq_is_equivariant():
    check_nodes(randomised(ScaleEq(NODES, 5, extra_channels=EXTRA, hidden_channels=HIDDEN)))


def test_stream_norm_is_equivariant_and_bounds_products():
    layer = randomised(StreamNorm())
    check_nodes(lambda x, extra, symmetry: layer(x, symmetry))
    x = 1e6 * torch.randn(2, 3, 8, dtype=torch.float64, generator=seeded())
    for symmetry in SYMMETRIES:
        plus, minus = layer(x, symmetry).chunk(2, -1)
        assert (plus * minus).mean().abs().item() < 10 / layer.strength.item() ** 2


def test_node_update_is_equivariant():
    layer = randomised(NodeUpdate(2, NODES - 2, extra_channels=EXTRA, hidden_channels=HIDDEN))

    def function(x, extra, symmetry):
        plus, minus = x.chunk(2, -1)
        state = torch.cat([plus[..., :2], minus[..., :2]], -1)
        message = torch.cat([plus[..., 2:], minus[..., 2:]], -1)
        return layer(state, [message], extra, symmetry)

    check_nodes(function)


@pytest.mark.parametrize(("target", "source"), PAIRS)
@pytest.mark.parametrize("kernel", [1, 4])
def test_rescale_eq_and_edge_layers(target, source, kernel):
    products = randomised(EdgeProducts(EDGES))
    update = randomised(
        EdgeUpdate(
            NODES,
            EDGES,
            extra_channels=EXTRA,
            position_channels=POSITION_CHANNELS,
            hidden_channels=HIDDEN,
        )
    )
    rank_one = randomised(ReScaleEq(NODES, EDGES))
    position = kernel_positions(kernel).double()

    def inputs(x):
        nodes = [torch.cat(x.nodes[name], -1) for name in ("target", "source")]
        extra = [x.invariants[name] for name in ("target", "source")]
        return torch.cat(x.edges["w"], 1), nodes, extra

    def multiply(x):
        _, nodes, _ = inputs(x)
        first, second = rank_one(*nodes, (target, source))
        edges = (first * second).expand(*x.edges["w"][0].shape[:1], 2 * EDGES, 5, 3, kernel)
        return only(x, edges={"w": edges.chunk(2, 1)})

    def change(x):
        edges, nodes, extra = inputs(x)
        both = target.self_inverse and source.self_inverse
        terms = [
            update.node_terms(n, e, s)
            for n, e, s in zip(nodes, extra, (target, source), strict=True)
        ]
        out = update(
            edges,
            products(edges, self_inverse=both),
            position,
            ends=tuple(nodes),
            terms=(terms[0][0], terms[1][1]),
            symmetries=(target, source),
        )
        return only(x, edges={"w": out.chunk(2, 1)})

    graph = pair_graph(target, source, kernel)
    assert_equivariant(multiply, graph, **CHANNELS)
    assert_equivariant(change, graph, **CHANNELS)


def messages(layer, edges, senders, symmetry, *, reverse):
    """The same sums, one edge at a time."""
    batch, channels, rows, columns, kernel = edges.shape
    values = F.linear(senders, layer.value.matrix(self_inverse=symmetry.self_inverse))
    half = channels // 2
    out = edges.new_zeros(batch, columns if reverse else rows, channels)
    for b, i, j, k in itertools.product(*map(range, (batch, rows, columns, kernel))):
        plus, minus = edges[b, :half, i, j, k], edges[b, half:, i, j, k]
        if reverse:  # an adjoint moves against a weight, an activation against a gradient
            out[b, j, half:] += plus * values[b, i, half:]
            out[b, j, :half] += minus * values[b, i, :half]
        else:
            out[b, i, :half] += plus * values[b, j, :half]
            out[b, i, half:] += minus * values[b, j, half:]
    return out


@settings(deadline=None, max_examples=25)
@given(
    pair=st.sampled_from(PAIRS),
    kernel=st.integers(1, 3),
    reverse=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_message_is_a_sum_over_edges_and_equivariant(pair, kernel, reverse, seed):
    layer = randomised(Message(NODES, EDGES), seed)
    graph = pair_graph(*pair, kernel)
    sender, receiver = ("target", "source") if reverse else ("source", "target")
    symmetry = graph.group[sender].symmetry

    def function(x):
        edges, nodes = torch.cat(x.edges["w"], 1), torch.cat(x.nodes[sender], -1)
        found = layer(edges, nodes, symmetry, reverse=reverse)
        expected = messages(layer, edges, nodes, symmetry, reverse=reverse)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        empty = x.nodes["1"][0].new_zeros(*x.nodes["1"][0].shape[:2], EDGES)
        others = {g.name: empty.expand(-1, g.size, -1) for g in graph.groups}
        pairs = {n: (e, e) for n, e in others.items()} | {receiver: found.chunk(2, -1)}
        return only(x, nodes=pairs)

    assert_equivariant(function, graph, generator=seeded(seed), **CHANNELS)


def test_exchange():
    assert exchange(torch.tensor([[1, 2, 3, 4]]), 1).tolist() == [[3, 4, 1, 2]]


# Negative controls: each of these is wrong, and the same check says so.


def wrong_bias(x, extra, symmetry):
    return x + 0.1


def wrong_streams(x, extra, symmetry):
    return exchange(x, -1)


def wrong_nonlinearity(x, extra, symmetry):
    return x.tanh()


def wrong_encoding(x, extra, symmetry):
    return x + torch.linspace(0, 1, x.shape[1], dtype=x.dtype)[:, None]


def wrong_order(x, extra, symmetry):
    return x.cumsum(1)


def wrong_canon(x, extra, symmetry):
    plus, minus = x.chunk(2, -1)
    return x * F.relu(plus + minus).sum(-1, keepdim=True)


@pytest.mark.parametrize(
    "function",
    [wrong_bias, wrong_streams, wrong_nonlinearity, wrong_encoding, wrong_order, wrong_canon],
)
def test_wrong_layers_fail(function):
    with pytest.raises(AssertionError, match=r"not equivariant: .* stream of group 'hidden"):
        check_nodes(function)


def test_wrong_layers_fail_by_much():
    with pytest.raises(AssertionError):
        check_nodes(wrong_bias, tolerance=1e-2)


def test_a_gradient_is_no_weight():
    layer = randomised(StreamLinear((EDGES, EDGES), (EDGES, EDGES)))

    def function(x):
        edges = layer.edges(torch.cat(x.edges["w"], 1), self_inverse=True)
        return only(x, edges={"w": edges.chunk(2, 1)})

    with pytest.raises(AssertionError, match="stream of block 'w'"):
        assert_equivariant(function, pair_graph(POSITIVE_SCALE, SIGN), **CHANNELS)


def test_the_kit_transforms_inputs():
    graph, seen = every_symmetry_graph(), []

    def function(x):
        seen.append(x)
        return x

    assert_equivariant(function, graph, trials=1, **CHANNELS)
    acted, x = seen
    for group in graph.groups:
        moved = not torch.equal(acted.nodes[group.name][0], x.nodes[group.name][0])
        assert moved == (group.symmetry != FIXED)


def test_layers_start_near_the_identity():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 2 * NODES)
    layer = ScaleEq(NODES, NODES, extra_channels=EXTRA, hidden_channels=64)
    out = layer(x, torch.zeros(2, 5, EXTRA), SIGN).detach()
    assert float(F.cosine_similarity(out.flatten(), x.flatten(), dim=0)) > 0.5
