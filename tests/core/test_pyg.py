"""torch_geometric: exact interchange, and message passing that is the dense model's equal."""

import copy
import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalegmn_opt import DeltaHead, Readout, ScaleGMN, WeightFeatures, trace
from scalegmn_opt.graph import (
    CONSTANT,
    NONZERO_SCALE,
    PERMUTATION,
    POSITIVE_SCALE,
    SIGN,
    NeuronGroup,
    Role,
    Symmetry,
    WeightBlock,
    WeightGraph,
    Window,
    from_pyg,
    to_pyg,
)
from scalegmn_opt.graph.pyg import features_to_pyg
from scalegmn_opt.testing import random_features, random_graph, random_params, random_tied_graph

with warnings.catch_warnings():  # torch_geometric scripts two functions when it is imported
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    from torch_geometric.data import Batch

    from scalegmn_opt.sparse import SparseScaleGMN, deltas

COMMON = Symmetry(permutes=True, flips=True, rescales=True, common=True)
MIXED = [PERMUTATION, SIGN, POSITIVE_SCALE, COMMON, NONZERO_SCALE]
ALL = {"edge_features": (2, 1), "node_features": (1, 2), "invariant_features": 2}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def hand_made():
    """Parts of one parameter, kernels, a grouped and a depthwise block, and a recurrent one."""
    groups = (
        NeuronGroup(CONSTANT, 1, Role.CONSTANT),
        NeuronGroup("in", 4, Role.INPUT),
        NeuronGroup("a", 6, Role.HIDDEN, SIGN),
        NeuronGroup("b", 6, Role.HIDDEN, POSITIVE_SCALE),
        NeuronGroup("c", 6, Role.HIDDEN, COMMON),
        NeuronGroup("out", 2, Role.OUTPUT),
    )
    part, sizes = (12, 4), (("out", 6), ("src", 4))
    grouped = (("blk0", 2), ("out", 3), ("src", 3), ("k0", 3))
    ends = ("blk0 out", "blk0 src")
    depthwise = (("blk0", 6), ("k0", 2), ("k1", 2))
    last = (("out", 2), ("src", 6), ("k0", 4))
    blocks = (
        WeightBlock(
            "both", "a", "in", "out src", sizes, window=Window(part, part, ((0, 6), (0, 4)))
        ),
        WeightBlock("grouped", "b", "a", "(blk0 out) src k0", grouped, ends),
        WeightBlock(
            "both", "b", "in", "out src", sizes, window=Window(part, part, ((6, 12), (0, 4)))
        ),
        WeightBlock("depthwise", "c", "b", "blk0 k0 k1", depthwise, ("blk0", "blk0")),
        WeightBlock("bias", "c", CONSTANT, "out", (("out", 6),)),
        WeightBlock("recurrent", "c", "c", "src out", (("src", 6), ("out", 6))),
        WeightBlock("last", "out", "c", "out (src k0)", last),
    )
    return WeightGraph(groups, blocks)


def graphs():
    """Three architectures with all symmetries side by side."""
    mixed = random_graph(seeded(5), symmetries=MIXED)
    return [hand_made(), mixed, random_graph(seeded(1)), random_tied_graph(seeded(2))]


def parameters(graph, seed=0, dtype=torch.float32):
    stacked = random_params(graph, seeded(seed), batch=1)
    return {name: (8 * p[0]).to(dtype) for name, p in stacked.items()}


def assert_exact(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert torch.equal(found[name].view(torch.uint8), value.view(torch.uint8)), name


def assert_round_trip(data, graph, params, grads):
    found_graph, found, found_grads = from_pyg(data)
    assert found_graph == graph
    assert_exact({n: p[None] for n, p in found.items()}, {n: p[None] for n, p in params.items()})
    assert (found_grads is None) == (grads is None)
    if grads is not None:
        assert_exact(
            {n: p[None] for n, p in found_grads.items()}, {n: p[None] for n, p in grads.items()}
        )


# Interchange


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    with_grads=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64]),
    make=st.sampled_from([random_graph, random_tied_graph]),
)
def test_round_trips_are_exact(seed, with_grads, dtype, make):
    graph = make(seeded(seed))
    params = parameters(graph, seed, dtype)
    grads = parameters(graph, seed + 1, dtype) if with_grads else None
    assert_round_trip(to_pyg(graph, params, grads), graph, params, grads)


@pytest.mark.parametrize("with_grads", [False, True])
def test_windows_folds_and_kernels_survive_a_batch_and_a_file(with_grads, tmp_path):
    cases = []
    for seed, graph in enumerate(graphs()):
        grads = parameters(graph, seed + 10) if with_grads else None
        cases.append((graph, parameters(graph, seed), grads))
    data = [to_pyg(*case) for case in cases]
    torch.save(data, tmp_path / "networks.pt")
    loaded = torch.load(tmp_path / "networks.pt", weights_only=False)
    for networks in (data, Batch.from_data_list(data).to_data_list(), loaded):
        for network, case in zip(networks, cases, strict=True):
            assert network.validate()
            assert_round_trip(network, *case)


def test_bits_are_kept():
    graph = hand_made()
    params = parameters(graph)
    params["bias"] = torch.tensor([torch.nan, -torch.inf, -0.0, 1e-45, 3.4e38, 0.1])
    assert_round_trip(to_pyg(graph, params), graph, params, None)


def test_nothing_is_shared():
    graph = WeightGraph.from_parameters({"vector": (3,)})
    params = {"vector": torch.ones(3)}
    data = to_pyg(graph, params)
    params["vector"].zero_()
    _, found, _ = from_pyg(data)
    assert found["vector"].tolist() == [1, 1, 1]
    found["vector"].zero_()
    assert from_pyg(data)[1]["vector"].tolist() == [1, 1, 1]


def test_node_features_may_be_replaced():
    graph = hand_made()
    params = parameters(graph)
    data = to_pyg(graph, params)
    data.x, data.invariants = torch.randn(data.num_nodes, 7), None
    assert_round_trip(data, graph, params, None)


def test_nodes_and_edges_are_where_they_should_be():
    groups = (
        NeuronGroup(CONSTANT, 1, Role.CONSTANT),
        NeuronGroup("in", 2, Role.INPUT),
        NeuronGroup("out", 3, Role.OUTPUT),
    )
    weight = WeightBlock("w", "out", "in", "out src k0", (("out", 3), ("src", 2), ("k0", 2)))
    graph = WeightGraph(groups, (weight, WeightBlock("b", "out", CONSTANT, "out", (("out", 3),))))
    params = {"w": torch.arange(12.0).view(3, 2, 2), "b": torch.arange(12.0, 15)}
    data = to_pyg(graph, params, {n: -p for n, p in params.items()})
    assert (data.num_nodes, data.num_edges) == (6, 15)
    assert data.group.tolist() == [0, 1, 1, 2, 2, 2]
    assert data.neuron.tolist() == [0, 0, 1, 0, 1, 2]
    assert [list(Role)[i].value for i in data.role[[0, 1, 3]]] == ["constant", "input", "output"]
    assert data.fan_in.tolist() == [1, 1, 1, 4, 4, 4]
    assert data.edge_attr.tolist() == [[i, -i] for i in range(15)]
    assert data.edge_index[:, 0].tolist() == [1, 3]
    assert data.edge_index[:, 7].tolist() == [2, 4]  # w[1, 1, 1]: from input 1 to output 1
    assert data.kernel[7] == 1
    assert data.edge_index[:, 13].tolist() == [0, 4]
    assert data.block.tolist() == [0] * 12 + [1] * 3


def test_folds_connect_their_own_neurons():
    graph = hand_made()
    data = to_pyg(graph, parameters(graph))
    source, target = data.edge_index[:, data.block == 1]
    folds = data.neuron[source] // 3, data.neuron[target] // 3
    assert torch.equal(*folds)
    assert len(set(zip(source.tolist(), target.tolist(), strict=True))) == 2 * 3 * 3
    source, target = data.edge_index[:, data.block == 3]
    assert torch.equal(data.neuron[source], data.neuron[target])


def test_parameters_that_do_not_fit():
    graph = hand_made()
    params = parameters(graph)
    with pytest.raises(ValueError, match=r"missing \['bias'\]"):
        to_pyg(graph, {name: p for name, p in params.items() if name != "bias"})
    with pytest.raises(ValueError, match=r"missing \['bias', 'both'"):
        to_pyg(graph, params, {})
    with pytest.raises(ValueError, match=r"params\['bias'\]: expected shape"):
        to_pyg(graph, params | {"bias": torch.zeros(5)})
    with pytest.raises(ValueError, match="expected one dtype and device, got"):
        to_pyg(graph, params, parameters(graph, dtype=torch.float64))


def reordered(data):
    order = torch.arange(data.num_edges).flip(0)
    for name in data.edge_attrs():
        data[name] = data[name][:, order] if name == "edge_index" else data[name][order]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.__delattr__("graph"), "data.graph: expected the WeightGraph .* got NoneType"),
        (lambda d: setattr(d, "graph", graphs()[1]), r"data.group: expected shape \(\d+,\), got"),
        (
            lambda d: setattr(d, "edge_attr", d.edge_attr[:, :0]),
            r"data.edge_attr: .* got \(216, 0\)",
        ),
        (lambda d: setattr(d, "edge_attr", d.edge_attr[1:]), r"edge_attr: .* got \(215, 1\)"),
        (lambda d: d.__delattr__("kernel"), r"data.kernel: expected shape \(216,\), got \(0,\)"),
        (lambda d: setattr(d, "edge_index", d.edge_index.flip(0)), "data.edge_index: .* order"),
        (reordered, "data.edge_index: expected the order of data.graph, got .* other entries"),
    ],
)
def test_data_that_is_not_its_graph(change, match):
    graph = hand_made()
    data = to_pyg(graph, parameters(graph))
    change(data)
    with pytest.raises(ValueError, match=match):
        from_pyg(data)


def test_a_batch_has_to_be_split_first():
    graph = hand_made()
    with pytest.raises(ValueError, match=r"got list; split a Batch with to_data_list\(\)"):
        from_pyg(Batch.from_data_list([to_pyg(graph, parameters(graph))]))


# The same model


def build(seed=0, *, perturbed=True, **options):
    """A small model in float64, by default with other weights than those of its initialisation."""
    torch.manual_seed(seed)
    widths = {"node_channels": 4, "edge_channels": 3, "hidden_channels": 6, "num_layers": 2}
    model = ScaleGMN(**widths | options).double()
    if perturbed:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=seeded(seed), dtype=p.dtype))
    return model


def rows(features):
    """Features of the dense model as the sparse one has them."""
    batch = Batch.from_data_list(features_to_pyg(features))
    return {name: batch[name] for name in ("x", "edge_attr", "invariants")}


def assert_same(found, expected, tolerance):
    for name, value in expected.items():
        error = (found[name] - value).abs().max() / value.abs().max().clamp_min(1e-12)
        assert error <= tolerance, f"{name} is off by {error:.1e}"


def compare(model, features, tolerance):
    batch = Batch.from_data_list(features_to_pyg(features))
    with torch.no_grad():
        assert_same(SparseScaleGMN(model)(batch), rows(model(features)), tolerance)


OPTIONS = {
    "default": {},
    "one direction": {"bidirectional": False},
    "no index": {"neuron_encoding": False},
    "plain sums": {"fan_exponent": 0.0},
    "gradients": {"edge_features": (1, 1)},
    "all features": ALL,
    "neurons only covariant": {"node_features": (1, 0)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("architecture", range(3))
def test_sparse_is_dense(options, architecture):
    model, graph = build(**options), graphs()[architecture]
    channels = {name: value for name, value in options.items() if "features" in name}
    compare(model, random_features(graph, seeded(), **channels), 1e-12)


@pytest.mark.parametrize("symmetry", MIXED, ids=str)
def test_sparse_is_dense_for_each_symmetry(symmetry):
    graph = random_graph(seeded(7), symmetries=[symmetry, symmetry])
    compare(build(**ALL), random_features(graph, seeded(), **ALL), 1e-12)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_sparse_is_dense_on_every_graph(seed):
    features = random_features(random_graph(seeded(seed)), seeded(seed), **ALL)
    compare(build(**ALL), features, 1e-11)


@pytest.mark.parametrize("architecture", range(3))
def test_sparse_is_dense_in_single_precision(architecture):
    torch.manual_seed(0)
    model, graph = ScaleGMN(), graphs()[architecture]
    params = {n: p.float() for n, p in random_params(graph, seeded()).items()}
    compare(model, WeightFeatures.from_parameters(graph, params), 1e-6)


def test_weights_of_zero():
    graph = hand_made()
    zero = {name: 0 * p[None] for name, p in parameters(graph, dtype=torch.float64).items()}
    compare(build(), WeightFeatures.from_parameters(graph, zero), 1e-12)


def architectures():
    torch.manual_seed(0)
    return [
        torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)),
        torch.nn.Sequential(
            torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
        ),
        torch.nn.Sequential(
            torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 3)
        ),
    ]


INPUTS = (torch.zeros(1, 3), torch.zeros(1, 2), torch.zeros(1, 2, 4, 4))


def test_deltas_are_the_same_in_single_precision():
    torch.manual_seed(0)
    model, head, networks = ScaleGMN(), DeltaHead(16, scale=1.0), []
    for module, inputs in zip(architectures(), INPUTS, strict=True):
        params = {n: p.detach() for n, p in module.named_parameters()}
        networks.append((trace(module, (inputs,)), params))
    batch = Batch.from_data_list([to_pyg(*network) for network in networks])
    found = deltas(SparseScaleGMN(model), head, batch)
    for (graph, params), delta in zip(networks, found, strict=True):
        stacked = {n: p[None] for n, p in params.items()}
        expected = head(model(WeightFeatures.from_parameters(graph, stacked)))
        for name, value in expected.items():
            torch.testing.assert_close(delta[name], value[0], rtol=0, atol=1e-6)


def test_networks_of_different_architectures_in_one_forward():
    networks = [(graph, parameters(graph, i, torch.float64)) for i, graph in enumerate(graphs())]
    for module, inputs in zip(architectures(), INPUTS, strict=True):
        params = {n: p.detach().double() for n, p in module.named_parameters()}
        networks.append((trace(module, (inputs,)), params))
    model, head = build(), DeltaHead(3, outputs=2).double()
    readout = Readout(4, 3, 5, extra_channels=model.extra_channels).double()
    batch = Batch.from_data_list([to_pyg(*network) for network in networks])
    sparse = SparseScaleGMN(model)
    found, together = deltas(sparse, head, batch), sparse.features(batch)
    for (graph, params), delta, features in zip(networks, found, together, strict=True):
        alone = model(
            WeightFeatures.from_parameters(graph, {n: p[None] for n, p in params.items()})
        )
        assert_same(rows(features), rows(alone), 1e-12)
        torch.testing.assert_close(readout(features), readout(alone), rtol=1e-11, atol=1e-11)
        expected = {name: value[0] for name, value in head(alone).items()}
        assert {n: d.shape for n, d in delta.items()} == {
            n: (2, *p.shape) for n, p in params.items()
        }
        assert_same(delta, expected, 1e-12)


def test_one_network_needs_no_batch():
    graph, model = hand_made(), build()
    params = parameters(graph, dtype=torch.float64)
    (found,) = deltas(SparseScaleGMN(model), DeltaHead(3).double(), to_pyg(graph, params))
    assert {n: d.shape[1:] for n, d in found.items()} == {n: p.shape for n, p in params.items()}


def test_derivatives_of_shared_weights_are_the_same():
    model = build(**ALL)
    sparse = SparseScaleGMN(model)
    assert set(map(id, sparse.parameters())) == set(map(id, model.parameters()))
    found, expected = [], []
    for graph in graphs():
        features = random_features(graph, seeded(), **ALL)
        expected.append(loss(rows(model(features))))
        found += features_to_pyg(features)
    names, shared = zip(*model.named_parameters(), strict=True)
    wanted = torch.autograd.grad(sum(expected), shared)
    given = torch.autograd.grad(loss(sparse(Batch.from_data_list(found))), shared)
    assert_same(dict(zip(names, given, strict=True)), dict(zip(names, wanted, strict=True)), 1e-9)
    assert all(g.abs().max() > 0 for g in given)


def loss(features):
    return features["x"].square().sum() + features["edge_attr"].square().sum()


def test_inputs_are_not_modified():
    graph = hand_made()
    data = to_pyg(graph, parameters(graph, dtype=torch.float64))
    before = copy.deepcopy(data)
    SparseScaleGMN(build())(data)
    assert all(
        torch.equal(data[name], before[name]) for name in (*data.node_attrs(), *data.edge_attrs())
    )


# Negative controls


def swapped(data):
    data.edge_index = data.edge_index.flip(0)


def unscaled(data):
    data.rescales = torch.zeros_like(data.rescales)


def uncommon(data):
    data.common = torch.zeros_like(data.common)


def without_kernel(data):
    data.kernel = torch.zeros_like(data.kernel)


@pytest.mark.parametrize("change", [swapped, unscaled, uncommon, without_kernel])
def test_another_structure_is_found_out(change):
    model, features = build(), random_features(hand_made(), seeded(), batch=1)
    (data,) = features_to_pyg(features)
    change(data)
    with pytest.raises(AssertionError, match="is off by"):
        assert_same(SparseScaleGMN(model)(data), rows(model(features)), 1e-3)


def test_every_weight_matters():
    """The comparison sees a change of any one parameter of the dense model."""
    model, features = build(**ALL), random_features(hand_made(), seeded(), batch=1, **ALL)
    expected = rows(model(features))
    for name, _ in model.named_parameters():
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.get_parameter(name).mul_(1.1)
        with pytest.raises(AssertionError, match="is off by"):
            assert_same(SparseScaleGMN(other)(features_to_pyg(features)[0]), expected, 1e-9)


@pytest.mark.parametrize(
    ("channels", "match"),
    [
        ({"edge_features": (1, 1)}, "data.edge_attr: expected 1 channels, got 2"),
        ({"node_features": (0, 2)}, "data.x: expected 0 channels, got 2"),
        ({"invariant_features": 3}, "data.invariants: expected 0 channels, got 3"),
    ],
)
def test_wrong_channels(channels, match):
    (data,) = features_to_pyg(random_features(hand_made(), seeded(), batch=1, **channels))
    with pytest.raises(ValueError, match=match):
        SparseScaleGMN(build())(data)


# Memory of the dense model, as documented


def mlp(*sizes, skips=0):
    groups = [NeuronGroup(CONSTANT, 1, Role.CONSTANT)]
    groups += [NeuronGroup(f"h{i}", size, Role.HIDDEN, SIGN) for i, size in enumerate(sizes)]
    ends = [*pairwise(groups[1:]), *[tuple(groups[1:3])] * skips]
    blocks = (
        WeightBlock(f"w{i}", t.name, s.name, "out src", (("out", t.size), ("src", s.size)))
        for i, (s, t) in enumerate(ends)
    )
    return WeightGraph(tuple(groups), tuple(blocks))


def saved_bytes(graph, batch, **options):
    """Bytes of distinct storages that a forward pass keeps for backward, but for parameters."""
    model, kept = ScaleGMN(**options), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    params = {n: p.float() for n, p in random_params(graph, seeded(), batch=batch).items()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(WeightFeatures.from_parameters(graph, params))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert out.batch_size == batch
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


def layer_bytes(graph, batch, **options):
    """The same of one layer, for one network."""
    two, three = (saved_bytes(graph, batch, num_layers=n, **options) for n in (2, 3))
    return (three - two) / batch


@pytest.mark.parametrize("channels", [8, 16])
@pytest.mark.parametrize("batch", [1, 4])
def test_documented_memory_of_an_edge(channels, batch):
    plain, more = (mlp(64, 64, skips=n) for n in (0, 1))
    sizes = {"edge_channels": channels, "node_channels": 2 * channels}
    extra = layer_bytes(more, batch, **sizes) - layer_bytes(plain, batch, **sizes)
    assert extra / 64**2 == pytest.approx(10 * channels * 4, rel=0.15)


def test_documented_memory_of_a_neuron():
    """At the default widths: 640 bytes an edge and about 6.5 kB a neuron."""
    found = layer_bytes(mlp(2, 32, 32, 1), 4)
    assert found == pytest.approx(640 * (64 + 1024 + 32) + 6500 * 68, rel=0.1)


@pytest.mark.parametrize("with_grads", [False, True])
def test_documented_memory_of_features(with_grads):
    graph = mlp(8, 8)
    params = {n: p.float() for n, p in random_params(graph, seeded(), batch=3).items()}
    features = WeightFeatures.from_parameters(graph, params, params if with_grads else None)
    assert sum(x.nbytes for x in features.tensors()) == 3 * 64 * (8 if with_grads else 4)
