"""Tracing: which neurons there are, what is claimed of them, and whether it is true."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scalegmn_opt.graph import (
    CONSTANT,
    FIXED,
    NONZERO_SCALE,
    PERMUTATION,
    POSITIVE_SCALE,
    SIGN,
    Activation,
    NeuronGroup,
    Role,
    Symmetry,
    TraceWarning,
    WeightBlock,
    WeightGraph,
    trace,
)
from scalegmn_opt.symmetry import verify

TOLERANCE = 1e-8


class Function(nn.Module):
    """A forward function of a module's parts, in one line."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape))


COMMON = Symmetry(permutes=True, flips=True, rescales=True, common=True)
ONE = Symmetry(permutes=False, flips=True, rescales=True, common=True)  # a neuron alone


def hidden(graph):
    """Size and symmetry of the groups that may be acted on."""
    return {g.name: (g.size, g.symmetry) for g in graph.groups if g.symmetry != FIXED}


def patterns(graph):
    return {block.parameter: block.pattern for block in graph.blocks}


def checked_trace(module, *inputs):
    """The graph, after the two promises that hold for each of them."""
    graph = trace(module, inputs)
    assert list(graph.parameters) == [name for name, _ in module.named_parameters()]
    assert verify(module, graph, inputs, tolerance=TOLERANCE).error <= TOLERANCE
    return graph


def test_linear_layers():
    graph = checked_trace(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(5, 3)
    )
    assert graph == WeightGraph(
        (
            NeuronGroup(CONSTANT, 1, Role.CONSTANT),
            NeuronGroup("0:out", 4, Role.HIDDEN, POSITIVE_SCALE, Activation("relu")),
            NeuronGroup("0:in", 3, Role.INPUT),
            NeuronGroup("2:out", 2, Role.OUTPUT),
        ),
        (
            WeightBlock("0.weight", "0:out", "0:in", "out src", (("out", 4), ("src", 3))),
            WeightBlock("0.bias", "0:out", CONSTANT, "out", (("out", 4),)),
            WeightBlock("2.weight", "2:out", "0:out", "out src", (("out", 2), ("src", 4))),
            WeightBlock("2.bias", "2:out", CONSTANT, "out", (("out", 2),)),
        ),
    )


@pytest.mark.parametrize(
    ("layer", "symmetry", "activation"),
    [
        (nn.ReLU(), POSITIVE_SCALE, Activation("relu")),
        (nn.ReLU(inplace=True), POSITIVE_SCALE, Activation("relu")),
        (nn.LeakyReLU(0.2), POSITIVE_SCALE, Activation("leaky_relu", 0.2)),
        (nn.PReLU(), POSITIVE_SCALE, None),
        (nn.Tanh(), SIGN, Activation("tanh")),
        (nn.Hardtanh(), SIGN, Activation("hardtanh")),
        (nn.ReLU6(), PERMUTATION, None),
        (nn.GELU(), PERMUTATION, Activation("gelu")),
        (nn.SiLU(), PERMUTATION, Activation("silu")),
        (nn.Softplus(), PERMUTATION, Activation("softplus")),
        (nn.ELU(), PERMUTATION, Activation("elu")),
        (nn.Softmax(-1), PERMUTATION, None),
        (nn.Identity(), NONZERO_SCALE, Activation("identity")),
        (nn.Dropout(0.5), NONZERO_SCALE, Activation("identity")),
        (Function(lambda _, z: torch.sin(30 * z)), SIGN, Activation("sine", 30.0)),
        (Function(lambda _, z: torch.sin(z / 2)), SIGN, Activation("sine", 0.5)),
        (Function(lambda _, z: torch.relu(z).abs()), POSITIVE_SCALE, None),
        (Function(lambda _, z: torch.tanh(torch.relu(z))), PERMUTATION, None),
        (Function(lambda _, z: z + 1), PERMUTATION, None),
        (Function(lambda _, z: 3 * z), NONZERO_SCALE, Activation("identity")),
    ],
    ids=str,
)
def test_activations(layer, symmetry, activation):
    module = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2))
    graph = checked_trace(module, torch.ones(5, 3))
    assert hidden(graph) == {"0:out": (4, symmetry)}
    if activation is not None or layer.__class__ in (nn.PReLU, nn.ReLU6):
        assert graph.group["0:out"].activation == activation


def test_convolutions_pooling_and_flatten():
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 3),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5),
    )
    graph = checked_trace(module, torch.randn(2, 2, 12, 12))
    assert hidden(graph) == {"0:out": (4, POSITIVE_SCALE), "3:out": (3, NONZERO_SCALE)}
    assert patterns(graph) == {
        "0.weight": "out src k2 k3",
        "0.bias": "out",
        "3.weight": "out src k2 k3",
        "3.bias": "out",
        "6.weight": "out (src k2 k3)",
        "6.bias": "out",
    }
    assert [b.shape for b in graph.blocks if not b.is_vector] == [(4, 2, 9), (3, 4, 9), (5, 3, 4)]


def test_conv1d_without_bias_and_global_pooling():
    module = nn.Sequential(
        nn.Conv1d(2, 4, 5, bias=False), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    )
    module.append(nn.Linear(4, 3))
    graph = checked_trace(module, torch.randn(2, 2, 9))
    assert hidden(graph) == {"0:out": (4, SIGN)}


def test_pooling_that_keeps_the_size_still_mixes_positions():
    module = Function(
        lambda m, x: m.out(F.max_pool1d(m.layer(x)[:, None], 3, 1, 1).squeeze(1)),
        layer=nn.Linear(3, 6),
        out=nn.Linear(6, 2),
    )
    fixed = Symmetry(permutes=False, flips=False, rescales=True, common=True)
    assert hidden(checked_trace(module, torch.randn(4, 3)))["layer:out"] == (6, fixed)
    module = Function(
        lambda m, x: m.out(F.max_pool1d(m.layer(x).unsqueeze(1), 3, 1, 1).flatten(1)),
        layer=nn.Linear(3, 6),
        out=nn.Linear(6, 2),
    )
    assert hidden(checked_trace(module, torch.randn(4, 3)))["layer:out"] == (6, fixed)


def test_decoder():
    module = nn.Sequential(
        nn.Linear(3, 12), nn.Unflatten(1, (3, 2, 2)), nn.ReLU(), nn.Conv2d(3, 2, 1)
    )
    graph = checked_trace(module, torch.randn(2, 3))
    assert hidden(graph) == {"0:out": (3, POSITIVE_SCALE)}
    assert patterns(graph)["0.weight"] == "(out k1 k2) src"
    assert patterns(graph)["0.bias"] == "(out k1 k2)"


def test_nested_modules_and_functional_activations():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x):
            return x + self.second(F.leaky_relu(self.first(x), 0.1))

    module = nn.Sequential(nn.Linear(3, 4), Block(), Block(), nn.Tanh(), nn.Linear(4, 2))
    graph = checked_trace(module, torch.randn(2, 3))
    assert hidden(graph) == {
        "0:out": (4, SIGN),  # the residual stream
        "1.first:out": (6, POSITIVE_SCALE),
        "2.first:out": (6, POSITIVE_SCALE),
    }
    targets = {b.target for b in graph.blocks if b.parameter.endswith("second.weight")}
    assert targets == {"0:out"}


@pytest.mark.parametrize("join", [torch.add, torch.sub, lambda x, y: x.add_(y)])
def test_sums_and_differences_tie_two_groups(join):
    module = Function(
        lambda m, x: m.out(torch.relu(join(m.a(x), m.b(x)))),
        a=nn.Linear(3, 4),
        b=nn.Linear(3, 4),
        out=nn.Linear(4, 2),
    )
    assert hidden(checked_trace(module, torch.randn(2, 3))) == {"a:out": (4, POSITIVE_SCALE)}


def test_residual_with_a_different_activation_meets():
    module = Function(
        lambda m, x: m.out(torch.relu(m.a(x)) + torch.tanh(m.b(x))),
        a=nn.Linear(3, 4),
        b=nn.Linear(3, 4),
        out=nn.Linear(4, 2),
    )
    assert hidden(checked_trace(module, torch.randn(2, 3))) == {"a:out": (4, PERMUTATION)}


def test_shared_layer_has_one_block():
    shared = nn.Linear(4, 4)
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU())
    module.append(nn.Linear(4, 2))
    assert hidden(checked_trace(module, torch.randn(2, 3))) == {"0:out": (4, POSITIVE_SCALE)}


def test_tied_weights_have_one_block():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    module[4].weight = module[2].weight
    checked_trace(module, torch.randn(2, 3))


def test_several_weights_in_one_module():
    parts = {"first": parameter(4, 3), "second": parameter(5, 4), "third": parameter(2, 5)}
    inner = Function(
        lambda m, x: F.linear(torch.relu(F.linear(F.linear(x, m.first), m.second)), m.third),
        **parts,
    )
    graph = checked_trace(nn.Sequential(inner), torch.randn(2, 3))
    assert sorted(hidden(graph).values(), key=str) == sorted(
        [(4, NONZERO_SCALE), (5, POSITIVE_SCALE)], key=str
    )


def test_broadcast_of_one_neuron_leaves_one_scale_for_all():
    module = Function(
        lambda m, x: m.out(m.layer(x) + m.gate(x)),
        layer=nn.Linear(3, 4),
        gate=nn.Linear(3, 1),
        out=nn.Linear(4, 2),
    )
    graph = checked_trace(module, torch.randn(2, 3))
    assert hidden(graph) == {"layer:out": (4, COMMON), "gate:out": (1, ONE)}
    assert len({g.scales for g in graph.groups if g.scales}) == 1


def test_bias_along_other_neurons_leaves_one_scale_for_all():
    module = Function(
        lambda m, x: m.out(m.tokens(m.layer(x).transpose(1, 2)).transpose(1, 2)),
        layer=nn.Linear(3, 4),
        tokens=nn.Linear(5, 6),
        out=nn.Linear(4, 2),
    )
    assert hidden(checked_trace(module, torch.randn(2, 5, 3)))["layer:out"] == (4, COMMON)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_one_channel_that_is_reshaped_keeps_its_scale(batch, bias):
    module = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(4, 3, bias=bias))
    graph = checked_trace(module, torch.randn(batch, 1, 4, 4))
    assert hidden(graph) == {"0:out": (1, ONE), "2:in": (4, ONE)}
    module = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1), nn.Flatten(), nn.Linear(4, 3))
    assert hidden(checked_trace(module, torch.randn(batch, 1, 2, 2)))["0:out"] == (
        4,
        NONZERO_SCALE,
    )


def test_unused_parameter_is_isolated():
    module = Function(lambda m, x: m.used(x), used=nn.Linear(3, 2), unused=nn.Linear(4, 5))
    graph = checked_trace(module, torch.randn(2, 3))
    assert hidden(graph) == {}
    assert graph.group["unused.weight:out"].role is Role.FIXED


@pytest.mark.parametrize(
    ("module", "operator", "free"),
    [
        (
            nn.Sequential(nn.Linear(3, 4), Function(lambda _, z: torch.cumprod(z, 1))),
            "cumprod.default .unknown operator",
            {},
        ),
        (
            nn.Sequential(
                nn.Linear(3, 4),
                Function(lambda _, z: torch.logcumsumexp(z, 1)),
                nn.Linear(4, 5),
                nn.ReLU(),
                nn.Linear(5, 2),
            ),
            "logcumsumexp",
            {"2:out": (5, POSITIVE_SCALE)},
        ),
        (
            Function(
                lambda m, x: F.linear(x, torch.linalg.matrix_exp(m.weight)),
                weight=parameter(3, 3),
            ),
            "linalg_matrix_exp",
            {},
        ),
    ],
)
def test_unknown_operator_is_named_once_and_fixes_its_neurons(module, operator, free):
    with pytest.warns(TraceWarning, match=operator) as caught:
        graph = checked_trace(module, torch.randn(5, 3))
    assert len(caught) == 1
    assert hidden(graph) == free
    assert "read by aten." in next(g.reason for g in graph.groups if g.reason)


def depends_on_data(first, second):
    def forward(m, x):
        return m.first(x) if x.sum() > 0 else m.second(x)

    return Function(forward, first=first, second=second)


def test_untraceable_module_has_isolated_blocks():
    module = depends_on_data(nn.Linear(3, 4), nn.Linear(3, 4))
    with pytest.warns(TraceWarning, match="Function cannot be traced") as caught:
        graph = checked_trace(module, torch.randn(2, 3))
    assert len(caught) == 1
    assert hidden(graph) == {}
    assert {g.role for g in graph.groups} == {Role.CONSTANT, Role.FIXED}


def test_untraceable_part_alone_is_left_out():
    part = depends_on_data(nn.Linear(4, 4), nn.Linear(4, 4))
    module = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), part, nn.Linear(4, 5))
    module += nn.Sequential(nn.ReLU(), nn.Linear(5, 2))
    with pytest.warns(TraceWarning) as caught:
        graph = checked_trace(module, torch.randn(2, 3))
    assert [str(w.message)[:22] for w in caught] == [
        "3 cannot be traced; it",
        "no rule for operator s",
    ]
    assert hidden(graph) == {"0:out": (6, POSITIVE_SCALE), "4:out": (5, POSITIVE_SCALE)}
    assert "forward" not in vars(part)


@torch.library.custom_op("scalegmn_opt_tests::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    """An operator that says nothing of its output's shape, so that it cannot be exported."""
    return 2 * x


def test_operator_without_a_shape_rule_is_traced_by_fx():
    module = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
    module += nn.Sequential(Function(lambda _, z: double(z)), nn.Linear(4, 2))
    with pytest.warns(TraceWarning, match="scalegmn_opt_tests.double") as caught:
        graph = checked_trace(module, torch.randn(2, 3))
    assert len(caught) == 1
    assert hidden(graph) == {"0:out": (6, POSITIVE_SCALE)}


@pytest.mark.parametrize("shapes", [[], [(2, 4)], [(2, 3), (2, 3)]])
def test_inputs_that_the_module_refuses(shapes):
    inputs = [torch.randn(shape) for shape in shapes]
    with pytest.raises(
        ValueError, match=f"arguments of a forward call of Linear, got {len(shapes)}"
    ):
        trace(nn.Linear(3, 2), inputs)


def test_module_on_the_meta_device():
    with torch.device("meta"):
        module, inputs = (
            nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
            torch.ones(5, 3),
        )
    graph = trace(module, (inputs,))
    assert hidden(graph) == {"0:out": (4, POSITIVE_SCALE)}
    with pytest.raises(ValueError, match=r"module: expected parameters with data, got .* on meta"):
        verify(module, graph, (inputs,))


def test_frozen_parameters_are_traced_too():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    assert hidden(checked_trace(module, torch.ones(5, 3))) == {"0:out": (4, POSITIVE_SCALE)}


def test_complex_parameters():
    module = Function(
        lambda m, x: (torch.complex(x, x) @ m.first @ m.second).abs(),
        first=nn.Parameter(torch.randn(3, 4, dtype=torch.complex64)),
        second=nn.Parameter(torch.randn(4, 2, dtype=torch.complex64)),
    )
    assert hidden(checked_trace(module, torch.randn(5, 3))) == {"first:out": (4, NONZERO_SCALE)}


@pytest.mark.parametrize("inputs", [torch.ones(2, 3), {"x": torch.ones(2, 3)}, None])
def test_example_inputs_must_be_positional_arguments(inputs):
    with pytest.raises(TypeError, match="example_inputs: expected a tuple or list"):
        trace(nn.Linear(3, 2), inputs)


def test_several_inputs_and_outputs():
    module = Function(
        lambda m, x, y: (m.out(torch.tanh(m.a(x) + m.b(y))), m.a(x)),
        a=nn.Linear(3, 4),
        b=nn.Linear(2, 4),
        out=nn.Linear(4, 2),
    )
    graph = checked_trace(module, torch.randn(5, 3), torch.randn(5, 2))
    assert hidden(graph) == {}  # the hidden neurons are an output, too


def test_module_is_left_alone():
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    graph = trace(module, (torch.randn(2, 3),))
    verify(module, graph, (torch.randn(2, 3),))
    assert module.training
    assert all(p.dtype == torch.float32 and p.grad is None for p in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("claim", [SIGN, POSITIVE_SCALE, NONZERO_SCALE])
def test_verify_finds_a_graph_that_claims_too_much(claim):
    module, inputs = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), (torch.ones(5, 3),)
    graph = trace(module, inputs)
    groups = tuple(
        NeuronGroup(g.name, g.size, g.role, claim) if g.role is Role.HIDDEN else g
        for g in graph.groups
    )
    found = verify(module, WeightGraph(groups, graph.blocks), inputs)
    assert not found.ok
    assert not found
    assert found.error > 1e-3


def test_verify_refuses_another_module():
    module, inputs = nn.Linear(3, 4), (torch.ones(5, 3),)
    with pytest.raises(ValueError, match="missing"):
        verify(nn.Sequential(module), trace(module, inputs), inputs)


ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sine": lambda: Function(lambda _, z: torch.sin(5 * z)),
    "none": nn.Identity,
}


@st.composite
def architectures(draw):
    """A chain of convolutions, then a flatten, then a chain of linear layers."""
    activation = st.sampled_from(sorted(ACTIVATIONS))
    layers, channels, size = [], draw(st.integers(1, 3)), 6
    shape = (2, channels, size, size)
    for _ in range(draw(st.integers(0, 2))):
        width, kernel = draw(st.integers(1, 4)), draw(st.integers(1, 2))
        layers += [nn.Conv2d(channels, width, kernel, bias=draw(st.booleans()))]
        layers += [ACTIVATIONS[draw(activation)]()]
        channels, size = width, size - kernel + 1
        if draw(st.booleans()) and size >= 2:
            layers.append(draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))(2))
            size //= 2
    layers.append(nn.Flatten())
    features = channels * size**2
    for _ in range(draw(st.integers(1, 3))):
        width = draw(st.integers(1, 5))
        layers += [nn.Linear(features, width, bias=draw(st.booleans()))]
        layers += [ACTIVATIONS[draw(activation)](), nn.Dropout()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, 2)), torch.randn(shape)


@settings(deadline=None, max_examples=20)
@given(architectures())
def test_every_claim_on_random_architectures_is_true(case):
    module, inputs = case
    graph = checked_trace(module, inputs)
    linear = [layer for layer in module if isinstance(layer, nn.Linear)][:-1]
    targets = {block.parameter: graph.group[block.target] for block in graph.blocks}
    for layer in linear:
        name = next(n for n, p in module.named_parameters() if p is layer.weight)
        assert targets[name].symmetry.permutes or layer.out_features == 1
