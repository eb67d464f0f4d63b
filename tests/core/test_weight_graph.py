"""Weight graphs: identity, validation, the order of layers, and packing without loss."""

import dataclasses
import itertools
import pickle

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from scalegmn_opt.graph import (
    CONSTANT,
    POSITIVE_SCALE,
    SIGN,
    Axis,
    NeuronGroup,
    Role,
    Scale,
    WeightBlock,
    WeightFeatures,
    WeightGraph,
    Window,
    pack,
    stack_parameters,
    unpack,
)
from scalegmn_opt.testing import random_graph, random_params, random_tied_graph

GROUPS = (
    NeuronGroup(CONSTANT, 1, Role.CONSTANT),
    NeuronGroup("in", 3, Role.INPUT),
    NeuronGroup("a", 4, Role.HIDDEN, POSITIVE_SCALE),
    NeuronGroup("b", 5, Role.HIDDEN, SIGN),
    NeuronGroup("out", 2, Role.OUTPUT),
)


def weight(name, target, source, kernel=1):
    sizes = {group.name: group.size for group in GROUPS}
    axes = (("out", sizes[target]), ("src", sizes[source]), ("k0", kernel))
    return WeightBlock(name, target, source, "out src k0", axes)


def bias(name, target):
    sizes = {group.name: group.size for group in GROUPS}
    return WeightBlock(name, target, CONSTANT, "out", (("out", sizes[target]),))


BLOCKS = (
    weight("last", "out", "b"),
    weight("first", "a", "in", kernel=9),
    weight("middle", "b", "a"),
    weight("recurrent", "a", "a"),
    weight("skip", "out", "a"),
    bias("bias", "b"),
)
GRAPH = WeightGraph(GROUPS, BLOCKS)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_equal_graphs_are_one_key():
    same = WeightGraph(GROUPS, BLOCKS)
    assert same == GRAPH
    assert hash(same) == hash(GRAPH)
    assert {GRAPH: 1}[same] == 1
    assert WeightGraph(GROUPS, BLOCKS[:-1]) != GRAPH


def test_pickle_keeps_equality_and_hash():
    depth = GRAPH.depth  # a cached property must not become part of the identity
    copy = pickle.loads(pickle.dumps(GRAPH))
    assert copy == GRAPH
    assert hash(copy) == hash(GRAPH)
    assert copy.depth == depth


@pytest.mark.parametrize("value", [GRAPH, GROUPS[1], BLOCKS[0]], ids=["graph", "group", "block"])
def test_frozen(value):
    field = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, None)


@pytest.mark.parametrize(
    ("groups", "blocks", "match"),
    [
        ((*GROUPS, GROUPS[1]), (), r"groups: .*\['in'\] more than once"),
        (GROUPS, (BLOCKS[0], BLOCKS[0]), r"blocks: .*\['last'\] more than once"),
        (GROUPS[:-1], BLOCKS, "target of block 'last': no group 'out'"),
        (GROUPS[1:], BLOCKS, "source of block 'bias': no group '1'"),
        (
            (GROUPS[0], NeuronGroup("b", 6, Role.HIDDEN)),
            (bias("bias", "b"),),
            "target of block 'bias': expected 6 neurons of group 'b', got 5",
        ),
        (
            (*GROUPS[2:], NeuronGroup("in", 7, Role.INPUT)),
            (BLOCKS[1],),
            "source of block 'first': expected 7 neurons of group 'in', got 3",
        ),
    ],
)
def test_inconsistent_graphs(groups, blocks, match):
    with pytest.raises(ValueError, match=match):
        WeightGraph(groups, blocks)


@pytest.mark.parametrize(
    ("change", "axes", "scales", "match"),
    [
        ({"axes": ("heads",)}, (), (), "group 'a': no axis 'heads'"),
        ({"scales": (("q", 1),)}, (), (), "group 'a': no scale 'q'"),
        (
            {"axes": ("heads",)},
            (Axis("heads", 3, True),),
            (),
            "axes of group 'a': expected 4 neurons, got 3",
        ),
        ({}, (Axis("x", 3, True), Axis("x", 4, True)), (), r"axes: .*\['x'\] more than once"),
        ({}, (), (Scale("a", (), True, True),), r"scales: .*\['a'\] more than once"),
    ],
)
def test_inconsistent_axes_and_scales(change, axes, scales, match):
    group = dataclasses.replace(GROUPS[2], **change)
    with pytest.raises(ValueError, match=match):
        WeightGraph((group,), (), axes, scales)


def test_sweep_is_the_forward_order():
    order = [(name, [block.parameter for block in blocks]) for name, blocks in GRAPH.sweep]
    assert order == [
        (CONSTANT, []),
        ("in", []),
        ("a", ["first"]),  # not yet itself
        ("b", ["middle", "bias"]),
        ("out", ["last", "skip"]),
    ]


def sweep_by_search(graph):
    """``sweep`` by a search through all groups for each next one, the reference."""
    steps = {}

    def missing(name):
        if name in graph.derived:
            known = [owner in steps for owner, _ in graph.derived[name]]
            return not all(known), known.count(False)
        blocks = [b for b in graph.blocks if b.target == name != b.source]
        known = [b.source in steps for b in blocks if not b.is_vector]
        starts = any(b.is_vector for b in blocks) or any(known) or not blocks
        return not starts, known.count(False)

    while len(steps) < len(graph.groups):
        name = min((name for name in graph.group if name not in steps), key=missing)
        steps[name] = tuple(b for b in graph.incoming[name] if b.source in steps)
    return tuple(steps.items())


def shuffled(graph, generator):
    order = torch.randperm(len(graph.groups), generator=generator).tolist()
    return dataclasses.replace(graph, groups=tuple(graph.groups[i] for i in order))


def random_edges(generator):
    """Groups with weights and biases between any of them: cycles, loops, several at once."""
    names = [CONSTANT, *"abcdef"]
    groups = tuple(NeuronGroup(name, 1, Role.HIDDEN) for name in names)
    ends = torch.randint(len(names), (9, 2), generator=generator).tolist()
    blocks = (
        WeightBlock(f"p{i}", names[target], names[source], "out", (("out", 1),))
        for i, (target, source) in enumerate(ends)
    )
    return WeightGraph(groups, tuple(blocks))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("make", [random_graph, random_tied_graph, random_edges])
def test_sweep_is_that_of_a_search(seed, make):
    graph = shuffled(make(seeded(seed)), seeded(seed))
    assert graph.sweep == sweep_by_search(graph)
    for name, blocks in graph.incoming.items():
        assert blocks == tuple(b for b in graph.blocks if b.target == name)


def test_sweep_of_isolated_blocks_is_that_of_a_search():
    graph = WeightGraph.from_parameters({f"p{i}": (3, 2)[: i % 3] for i in range(12)})
    assert graph.sweep == sweep_by_search(graph)


class CountedName(str):
    """Counts how often a name is hashed or compared."""

    uses = 0

    def __hash__(self):
        CountedName.uses += 1
        return super().__hash__()

    def __eq__(self, other):
        CountedName.uses += 1
        return super().__eq__(other)


def uses_of_names(count):
    """Of ``count`` unconnected weights, until the order of their groups is known."""
    ends = [(CountedName(f"{i}:out"), CountedName(f"{i}:in")) for i in range(count)]
    groups = tuple(NeuronGroup(name, 1, Role.FIXED) for pair in ends for name in pair)
    axes = (("out", 1), ("src", 1))
    blocks = (WeightBlock(f"{i}", *pair, "out src", axes) for i, pair in enumerate(ends))
    CountedName.uses = 0
    graph = WeightGraph(groups, tuple(blocks))
    assert len(graph.sweep) == len(graph.depth) == len(graph.fan_in) == 2 * count
    return CountedName.uses


def test_work_on_a_graph_grows_as_it_does():
    assert uses_of_names(400) < 2.2 * uses_of_names(200)


def test_depth_fans_and_neighbours():
    assert GRAPH.depth == {CONSTANT: 0, "in": 0, "a": 1, "b": 2, "out": 3}
    assert GRAPH.fan_in == {CONSTANT: 1, "in": 1, "a": 3 * 9 + 4, "b": 4, "out": 5 + 4}
    assert GRAPH.fan_out == {CONSTANT: 5, "in": 4 * 9, "a": 5 + 4 + 2, "b": 2, "out": 1}
    assert [b.parameter for b in GRAPH.incoming["a"]] == ["first", "recurrent"]
    assert [b.parameter for b in GRAPH.node_vectors] == ["bias"]


def test_gradients_transform_like_weights_only_without_positive_scale():
    assert [GRAPH.self_inverse(b) for b in BLOCKS] == [True, False, False, False, False, True]


@pytest.mark.parametrize(
    ("pattern", "sizes", "shape", "edges"),
    [
        ("out src", {"out": 4, "src": 3}, (4, 3), (4, 3, 1)),
        ("src out", {"src": 3, "out": 4}, (3, 4), (4, 3, 1)),
        ("out", {"out": 4}, (4,), (4, 1, 1)),
        ("", {}, (), (1, 1, 1)),
        ("out (src k1)", {"out": 4, "src": 3, "k1": 2}, (4, 6), (4, 3, 2)),
        ("(out k0) src", {"out": 4, "k0": 2, "src": 3}, (8, 3), (4, 3, 2)),
        ("out src k2 k3", {"out": 4, "src": 3, "k2": 2, "k3": 5}, (4, 3, 2, 5), (4, 3, 10)),
        ("(k0 out) k1", {"k0": 2, "out": 4, "k1": 3}, (8, 3), (4, 1, 6)),
    ],
)
def test_patterns(pattern, sizes, shape, edges):
    block = WeightBlock("p", "t", "s", pattern, tuple(sizes.items()))
    values = torch.randn(2, *shape, generator=seeded(0))
    assert block.parameter_shape == shape
    assert block.shape == edges
    assert block.pack(values).shape == (2, *edges)
    assert torch.equal(block.unpack(block.pack(values)), values)


def test_pack_puts_each_number_on_its_edge():
    sizes = (("out", 2), ("src", 3), ("k1", 2))
    block = WeightBlock("p", "t", "s", "out (src k1)", sizes)
    values = torch.arange(12.0).view(1, 2, 6)
    assert block.pack(values)[0, 1, 2, 0] == values[0, 1, 2 * 2]


def rearranged(block, values):
    """``pack`` by einops, the reference."""
    sizes = dict(block.sizes)
    shared = [name for name in block.ends[0].split() if name.startswith("blk")]
    ends = ([n for n in end.split() if n in sizes and n not in shared] for end in block.ends)
    axes = (["b", *shared], *ends, [name for name in sizes if name.startswith("k")])
    pattern = " ".join(f"({' '.join(names)})" for names in axes)
    part = block.window.view(values) if block.window else values
    return rearrange(part, f"b {block.pattern} -> {pattern}", **sizes)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("make", [random_graph, random_tied_graph])
def test_pack_is_a_rearrangement_of_axes(seed, make):
    graph = make(seeded(seed))
    params = random_params(graph, seeded(seed), batch=2)
    for block in graph.blocks:
        values = params[block.parameter]
        assert torch.equal(block.pack(values), rearranged(block, values))


def test_pack_of_groups_and_parts_is_a_rearrangement_of_axes():
    sizes = (("blk0", 2), ("out0", 3), ("blk1", 4), ("src", 5), ("k0", 2))
    block = WeightBlock(
        "p", "t", "s", "(k0 blk0 out0 blk1) src", sizes, ("blk0 blk1 out0", "blk0 src blk1"),
        Window((48, 7), (48, 7), ((0, 48), (1, 6))),
    )  # fmt: skip
    values = torch.randn(3, 48, 7, generator=seeded(0))
    assert block.pack(values).shape == (3 * 8, 3, 5, 2)
    assert torch.equal(block.pack(values), rearranged(block, values))
    assert torch.equal(block.unpack(block.pack(values)), values[:, :, 1:6])


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 3),
    with_grads=st.booleans(),
    make=st.sampled_from([random_graph, random_tied_graph]),
)
def test_round_trips_are_exact(seed, batch, with_grads, make):
    graph = make(seeded(seed))
    params = random_params(graph, seeded(seed), batch=batch)
    grads = random_params(graph, seeded(seed + 1), batch=batch) if with_grads else None
    assert_equal(unpack(graph, pack(graph, params)), params)
    features = WeightFeatures.from_parameters(graph, params, grads)
    assert features.batch_size == batch
    found, found_grads = features.to_parameters()
    assert_equal(found, params)
    assert (found_grads is None) == (grads is None)
    if grads is not None:
        assert_equal(found_grads, grads)


def test_a_window_is_a_part_of_a_view():
    window = Window((6, 4), (2, 3, 4), ((0, 2), (1, 2), (0, 4)))  # rows 1 and 4
    block = WeightBlock("p", "t", "s", "out k1 src", (("out", 2), ("k1", 1), ("src", 4)))
    block = dataclasses.replace(block, window=window)
    values = torch.arange(24.0).view(1, 6, 4)
    assert block.name == "p[:, 1:2, :]"
    assert block.parameter_shape == (6, 4)
    assert torch.equal(block.pack(values)[0, ..., 0], values[0, [1, 4]])
    assert torch.equal(block.pack(values.mT.contiguous().mT), block.pack(values))


@pytest.mark.parametrize(
    ("pattern", "ends", "expected"),
    [
        ("(blk out) src", ("blk out", "blk src"), lambda g, o, i: (g * 2 + o, i)),
        ("(out blk) src", ("out blk", "src blk"), lambda g, o, i: (o * 3 + g, i)),
    ],
)
def test_folds_connect_the_neurons_of_one_group(pattern, ends, expected):
    sizes = (("blk", 3), ("out", 2), ("src", 4))
    block = WeightBlock("p", "t", "s", pattern, sizes, ends)
    values = torch.randn(2, 6, 4, generator=seeded(0))
    edges = block.pack(values)
    assert (block.folds, block.shape, edges.shape) == (3, (2, 4, 1), (6, 2, 4, 1))
    for b, g, o, i in itertools.product(range(2), range(3), range(2), range(4)):
        assert edges[3 * b + g, o, i, 0] == values[(b, *expected(g, o, i))]
    nodes = torch.arange(12.0).view(2, 6)
    folded = block.fold(nodes, 0)
    assert torch.equal(block.unfold(folded, 0), nodes)
    group_major = torch.tensor([[expected(g, o, 0)[0] for o in range(2)] for g in range(3)])
    assert torch.equal(folded[:3], nodes[0][group_major])
    assert block.fold(torch.zeros(2, 12, 5), 1).shape == (6, 4, 5)


def test_powers_of_shared_multipliers_are_derived():
    graph = random_tied_graph(seeded(0))
    assert graph.derived == {"squared": (("hidden", 2),)}
    names = [name for name, _ in graph.sweep]
    assert names.index("hidden") < names.index("squared") < names.index("output")
    assert graph.depth["squared"] == graph.depth["hidden"]


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_stacked_networks_are_the_batch():
    graph = random_graph(seeded(3))
    networks = [random_params(graph, seeded(seed), batch=1) for seed in (0, 1)]
    stacked = stack_parameters([{n: p[0] for n, p in net.items()} for net in networks])
    for i, network in enumerate(networks):
        assert_equal({name: p[i : i + 1] for name, p in stacked.items()}, network)


@pytest.mark.parametrize("function", [pack, WeightFeatures.from_parameters])
def test_wrong_parameters_are_named(function):
    good = random_params(GRAPH, seeded(0))
    missing = {name: p for name, p in good.items() if name != "skip"}
    with pytest.raises(ValueError, match=r"missing \['skip'\], unknown \[\]"):
        function(GRAPH, missing)
    with pytest.raises(ValueError, match=r"missing \[\], unknown \['other'\]"):
        function(GRAPH, good | {"other": good["skip"]})
    with pytest.raises(ValueError, match=r"params\['bias'\]: expected shape \('batch', 5\)"):
        function(GRAPH, good | {"bias": good["bias"][:, :4]})
    with pytest.raises(ValueError, match="params: expected one batch size"):
        function(GRAPH, good | {"bias": good["bias"][:1]})


def test_graph_of_shapes_alone_is_isolated_blocks():
    shapes = {"matrix": (4, 3), "kernel": (4, 3, 2, 2), "vector": [5], "number": ()}
    graph = WeightGraph.from_parameters(shapes)
    assert {b.parameter: b.parameter_shape for b in graph.blocks} == {
        name: tuple(shape) for name, shape in shapes.items()
    }
    ends = [end for b in graph.blocks for end in (b.target, b.source) if end != CONSTANT]
    assert len(set(ends)) == len(ends)
    assert all(g.role in (Role.FIXED, Role.CONSTANT) for g in graph.groups)
    assert [graph.group[f"matrix:{end}"].size for end in ("out", "in")] == [4, 3]
