"""Heads: covariant changes of parameters, and an invariant vector."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalegmn_opt import DeltaHead, Readout, ScaleGMN, WeightFeatures
from scalegmn_opt.graph import NONZERO_SCALE, PERMUTATION, POSITIVE_SCALE, SIGN
from scalegmn_opt.testing import (
    assert_equivariant,
    random_features,
    random_graph,
    random_tied_graph,
)

MIXED = [PERMUTATION, SIGN, POSITIVE_SCALE, NONZERO_SCALE]
NODES, EDGES = 4, 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def backbone():
    torch.manual_seed(0)
    return ScaleGMN(
        edge_features=(1, 1),
        node_channels=NODES,
        edge_channels=EDGES,
        hidden_channels=6,
        num_layers=2,
    ).double()


def delta_model(outputs):
    body, head = backbone(), DeltaHead(EDGES, outputs=outputs, scale=1.0).double()
    return lambda x: head(body(x))


def readout_model():
    body = backbone()
    head = Readout(NODES, EDGES, 5, extra_channels=body.extra_channels).double()
    return lambda x: head(body(x))


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**32),
    outputs=st.sampled_from([1, 3]),
    make=st.sampled_from([random_graph, random_tied_graph]),
)
def test_delta_head_is_equivariant(seed, outputs, make):
    graph = make(seeded(seed))
    assert_equivariant(delta_model(outputs), graph, edge_features=(1, 1), generator=seeded(seed))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32), make=st.sampled_from([random_graph, random_tied_graph]))
def test_readout_is_invariant(seed, make):
    graph = make(seeded(seed))
    assert_equivariant(readout_model(), graph, edge_features=(1, 1), generator=seeded(seed))


def test_delta_of_parameters_is_a_map_of_parameters():
    graph, model = random_graph(seeded(4), symmetries=MIXED), delta_model(1)

    def edit(params):
        weights = {n: (p, p[:, :0]) for n, p in as_edges(graph, params).items()}
        empty = {n: (p, p[:, :1] * 0) for n, (p, _) in weights.items()}
        x = WeightFeatures.from_parameters(graph, params)
        deltas = model(WeightFeatures(graph, x.nodes, empty, x.invariants))
        return {name: p + deltas[name][:, 0] for name, p in params.items()}

    assert_equivariant(edit, graph)
    with pytest.raises(AssertionError, match="not equivariant: parameter '"):
        assert_equivariant(lambda params: {n: p + 0.01 for n, p in edit(params).items()}, graph)


def as_edges(graph, params):
    return {n: pair[0] for n, pair in WeightFeatures.from_parameters(graph, params).edges.items()}


def test_delta_shapes_and_scale():
    graph = random_graph(seeded(1))
    features = random_features(graph, seeded(), edge_features=(EDGES, EDGES), batch=2)
    head = DeltaHead(EDGES, outputs=3).double()
    deltas = head(features)
    assert {n: d.shape for n, d in deltas.items()} == {
        b.parameter: (2, 3, *b.parameter_shape) for b in graph.blocks
    }
    with torch.no_grad():
        head.scale.mul_(2)
    for name, delta in head(features).items():
        torch.testing.assert_close(delta, 2 * deltas[name])


def test_outputs_of_a_delta_head_differ():
    graph = random_graph(seeded(1))
    deltas = DeltaHead(EDGES, outputs=2).double()(
        random_features(graph, seeded(), edge_features=(EDGES, EDGES))
    )
    assert all(not torch.allclose(d[:, 0], d[:, 1]) for d in deltas.values())


def test_readout_sees_weights():
    graph, model = random_graph(seeded(1), symmetries=MIXED), readout_model()
    first, second = (random_features(graph, seeded(i), edge_features=(1, 1)) for i in (0, 1))
    assert model(first).shape == (2, 5)
    assert (model(first) - model(second)).abs().max() > 1e-4


@pytest.mark.parametrize("head", [DeltaHead(EDGES), Readout(NODES, EDGES, 2, extra_channels=1)])
def test_every_parameter_of_a_head_is_used(head):
    graph = random_graph(seeded(2), symmetries=MIXED)
    channels = {"node_features": (NODES, NODES), "edge_features": (EDGES, EDGES)}
    out = head.double()(random_features(graph, seeded(), invariant_features=1, **channels))
    values = out.values() if isinstance(out, dict) else [out]
    sum(v.square().sum() for v in values).backward()
    assert [n for n, p in head.named_parameters() if not p.grad.any()] == []


def test_readout_that_sums_in_order_is_not_invariant():
    body = backbone()

    def function(x):
        nodes = body(x).nodes
        return torch.cat([plus.flatten(1) for plus, _ in nodes.values()], 1)

    graph = random_graph(seeded(4), symmetries=[PERMUTATION])
    with pytest.raises(AssertionError, match="the output"):
        assert_equivariant(function, graph, edge_features=(1, 1), tolerance=1e-4)
