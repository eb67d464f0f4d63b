"""The backbone with hand-set weights IS the forward and backward pass of the network it reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalegmn_opt.backbone import ScaleGMN
from scalegmn_opt.graph import Activation, Pair, Role, WeightFeatures, WeightGraph, unpack
from scalegmn_opt.nn import ScaleInv

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}

# Activations are stored 2^-40 times smaller than the messages they meet, so that the canonical
# direction of a neuron's features is the sign of its pre-activation.
_SMALL = 2.0**-40
_STEEP = 8.0  # 1[c > 0] = relu(8 c) - relu(8 c - 1) for c near -1 and 1
_FAR = 1e9  # added to the argument of a relu to switch it off
_SPACING = 5e-4  # of the knots, in units of the activation's own argument
_CHUNK = 2**24  # hidden units at once


@dataclass(frozen=True)
class Simulation:
    """What one forward and backward pass computes.

    Shapes: activations by neuron group (samples, nodes), inputs and outputs among them; loss ();
    gradients by parameter name, in the parameter's shape.
    """

    activations: dict[str, Tensor]
    loss: Tensor
    gradients: dict[str, Tensor]


def simulate(
    graph: WeightGraph, params: Mapping[str, Tensor], x: Tensor, target: Tensor, loss: str | Loss
) -> Simulation:
    """Forward and backward pass of one network, by :class:`ScaleGMN` alone.

    Each layer of the backbone is one round, in which all neurons act at once:
    ``a_i = σ(Σ_j w_ij a_j)`` and ``δ_j = σ'(z_j) Σ_i w_ij δ_i``; a network of L weight matrices
    takes 2L - 1 rounds, and the last one writes ``∂Loss/∂w_ij = δ_i a_j`` on the edges. ReLU and
    LeakyReLU are exact. Tanh and sine are ``z · f(|z|)`` with ``f(t) = σ(t) / t``, and ``f`` and
    ``σ'`` are piecewise linear in ``|z|`` with knots ``5e-4`` apart: an error of about ``3e-8``.
    The derivative of the loss by the outputs comes from ``loss`` itself, between two passes.

    Args:
        graph: of a multilayer perceptron whose hidden groups have one activation in common.
        params: its parameters, without a batch axis.
        x: inputs (samples, in).
        target: as ``loss`` expects it.
        loss: ``"mse"``, ``"cross_entropy"`` or a function of outputs and target.

    Raises:
        ValueError: for a graph or activation that is not covered, or an unknown loss.

    References:
        Kalogeropoulos et al., arXiv 2406.10685, theorem on simulating forward and backward.
    """
    function = _resolve_loss(loss)
    activation = _check(graph)
    params = {name: p.detach() for name, p in params.items()}
    backbone = _hand_set(graph, activation, _largest(graph, params, x)).to(x)
    with torch.no_grad():
        nodes, _ = _run(backbone, graph, params, x, None)
        outputs = nodes[_only(graph, Role.OUTPUT)]
    adjoint, value = torch.func.grad_and_value(function)(outputs, target)
    with torch.no_grad():
        nodes, gradients = _run(backbone, graph, params, x, adjoint)
    return Simulation(nodes, value, gradients)


def _resolve_loss(loss: str | Loss) -> Loss:
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; choose from {sorted(LOSSES)} or give a function")
    return LOSSES[loss]


def _check(graph: WeightGraph) -> Activation:
    hidden = [group for group in graph.groups if group.role is Role.HIDDEN]
    kinds = {group.activation for group in hidden}
    names = ("relu", "leaky_relu", "tanh", "sine", "identity")
    if len(kinds) > 1 or any(kind is None or kind.name not in names for kind in kinds):
        raise ValueError(f"graph: expected one hidden activation out of {names}, got {kinds}")
    roles = {group.role for group in graph.groups}
    if Role.FIXED in roles or any(block.shape[2] != 1 for block in graph.blocks):
        raise ValueError("graph: expected a multilayer perceptron, got fixed groups or kernels")
    for group in graph.groups:  # what comes before the activation is not known from the graph
        weights = [b.parameter for b in graph.incoming[group.name] if not b.is_vector]
        if len(weights) > 1:
            raise ValueError(f"graph: expected a multilayer perceptron, got a sum of {weights}")
        if group.activation and group.symmetry != group.activation.symmetry:
            raise ValueError(
                f"graph: expected nothing but {group.activation.name!r} between the layers, got "
                f"{group.symmetry} in group {group.name!r}"
            )
    return kinds.pop() if kinds else Activation("identity")


def _only(graph: WeightGraph, role: Role) -> str:
    names = [group.name for group in graph.groups if group.role is role]
    if len(names) != 1:
        raise ValueError(f"graph: expected one {role.value} group, got {names}")
    return names[0]


def _largest(graph: WeightGraph, params: Mapping[str, Tensor], x: Tensor) -> float:
    """A bound on the pre-activations of a network whose hidden activations are at most 1."""
    bounds = []
    for name, blocks in graph.incoming.items():
        total = torch.zeros((), dtype=x.dtype)
        for block in blocks:
            of_input = graph.group[block.source].role is Role.INPUT
            most = x.abs().max().clamp_min(1.0) if of_input else 1.0
            weights = params[block.parameter].abs()
            total = total + (weights if block.is_vector else weights.sum(1)) * most
        if graph.group[name].role is Role.HIDDEN:
            bounds.append(float(total.max()))
    return max(bounds, default=1.0)


def _run(
    backbone: ScaleGMN,
    graph: WeightGraph,
    params: Mapping[str, Tensor],
    x: Tensor,
    adjoint: Tensor | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Activations by group, and gradients summed over samples, in chunks of samples."""
    units = backbone.layers[0].nodes.update.gate.out.in_features
    widest = max(group.size for group in graph.groups)
    nodes: dict[str, list[Tensor]] = {group.name: [] for group in graph.groups}
    edges = {block.parameter: 0.0 for block in graph.blocks}
    samples = max(1, _CHUNK // (units * widest))
    deltas = [None] * len(x) if adjoint is None else adjoint.split(samples)
    for part, delta in zip(x.split(samples), deltas, strict=False):
        out = backbone(_features(graph, params, part, delta))
        for name, (plus, _) in out.nodes.items():
            nodes[name].append(plus[..., 0] + plus[..., 1] / _SMALL)
        for name, (_, minus) in out.edges.items():
            edges[name] = edges[name] + minus[:, 0].sum(0, keepdim=True)
    gradients = unpack(graph, edges)
    return (
        {name: torch.cat(parts) for name, parts in nodes.items()},
        {name: gradient[0] for name, gradient in gradients.items()},
    )


def _features(
    graph: WeightGraph, params: Mapping[str, Tensor], x: Tensor, adjoint: Tensor | None
) -> WeightFeatures:
    """The same network once a sample, with the sample on its inputs and its adjoint on outputs."""
    stacked = {name: p.expand(len(x), *p.shape) for name, p in params.items()}
    features = WeightFeatures.from_parameters(graph, stacked)
    nodes: dict[str, Pair] = {}
    for group in graph.groups:
        empty = x.new_zeros(len(x), group.size, 1)
        plus, minus = empty, empty
        if group.role is Role.INPUT:
            plus = x.unsqueeze(-1)
        elif group.role is Role.CONSTANT:
            plus = torch.ones_like(empty)
        elif group.role is Role.OUTPUT and adjoint is not None:
            minus = adjoint.unsqueeze(-1)
        nodes[group.name] = (plus, minus)
    return WeightFeatures(graph, nodes, features.edges, features.invariants)


def _hand_set(graph: WeightGraph, activation: Activation, largest: float) -> ScaleGMN:
    """Node channels: a kept input (+) or output adjoint (-), and the activation (+) or adjoint (-).

    Columns of a node's update: kept, own, message along, message against; first covariant.
    """
    rounds = 2 * max(graph.depth.values()) - 1
    gate = _gate(activation, largest)
    backbone = ScaleGMN(
        edge_features=(1, 0),
        node_features=(1, 1),
        node_channels=2,
        edge_channels=1,
        hidden_channels=len(gate.offset),
        num_layers=2,
        neuron_encoding=False,
        fan_exponent=0.0,
    ).double()
    backbone.requires_grad_(False)
    for p in backbone.parameters():
        p.zero_()
    assert backbone.embed_nodes is not None
    backbone.embed_nodes.weight[[0, 2], [0, 1]] = 1.0
    backbone.embed_edges.weight[0, 0] = 1.0
    for layer in backbone.layers:
        for message in layer.messages:
            message.value.weight.copy_(torch.tensor([[1, 1 / _SMALL, 0, 0], [0, 0, 1, 1]]))
        update = layer.nodes.update
        update.linear.weight[[0, 1, 2, 3], [0, 2, 4, 7]] = torch.tensor(
            [1.0, _SMALL, 1.0, 1.0], dtype=torch.float64
        )
        gate.write(update.gate)
        layer.edges.gate_bias.fill_(1.0)
        layer.edges.linear.weight[0, 0] = 1.0
    product = backbone.layers[-1].edges.rank_one
    product.target.weight[1, 2:] = 1.0
    product.source.weight[0, :2] = torch.tensor([1.0, 1 / _SMALL], dtype=torch.float64)
    first, last = backbone.layers
    backbone.layers = nn.ModuleList([first] * (rounds - 1) + [last])
    return backbone


@dataclass(frozen=True)
class _Gate:
    """Hidden units ``relu(slope · z + offset)`` and what they add to ``σ(z)/z`` and ``σ'(z)``."""

    slope: Tensor
    offset: Tensor
    value: Tensor
    derivative: Tensor

    def write(self, module: ScaleInv) -> None:
        """Into the invariant MLP of a node update; other groups than hidden ones get gates of 1."""
        role = module.product_plus.shape[0] + list(Role).index(Role.HIDDEN)
        module.canonical[:, 2] = self.slope
        module.invariant.weight[:, role] = _FAR
        module.invariant.bias.copy_(-_FAR)
        constant = (self.slope == 0) & (self.offset == 1)  # relu(1) on hidden neurons
        module.invariant.weight[constant, role] = 1.0
        module.invariant.bias[constant] = 0.0
        module.invariant.bias[~constant] += self.offset[~constant]
        module.out.weight[1], module.out.weight[3] = self.value, self.derivative
        module.out.bias[:4] = 1.0


def _gate(activation: Activation, largest: float) -> _Gate:
    if activation.name in ("tanh", "sine"):
        return _spline(activation, largest)
    slope = {"relu": 0.0, "leaky_relu": activation.parameter}.get(activation.name, 1.0)
    gain = 1.0 if activation.name == "leaky_relu" else activation.parameter
    rise = gain * (1 - slope)
    weights = torch.tensor([rise, -rise, gain * slope - 1.0], dtype=torch.float64)
    units = torch.tensor([[_STEEP, 0.0], [_STEEP, -1.0], [0.0, 1.0]], dtype=torch.float64)
    slopes, offsets = units.T
    return _Gate(slopes, offsets, weights, weights)


def _spline(activation: Activation, largest: float) -> _Gate:
    """Even functions of ``z``: the mean over ``z`` and ``-z`` of a relu counts each knot half."""
    rate = activation.parameter
    knots = torch.arange(0, largest + _SPACING / rate, _SPACING / rate, dtype=torch.float64)
    ends = torch.cat([knots, knots[-1:] + _SPACING / rate])
    derivative = torch.func.vmap(torch.func.grad(activation))(ends)
    value = torch.where(ends > 0, activation(ends) / ends.clamp_min(1e-300), derivative[0])
    slopes = [f.diff() / ends.diff() for f in (value, derivative)]
    bends = [2 * torch.diff(slope, prepend=slope.new_zeros(1)) for slope in slopes]
    start = [f[:1] - 1.0 for f in (value, derivative)]  # the gate's bias is 1
    return _Gate(
        torch.cat([torch.ones_like(knots), knots.new_zeros(1)]),
        torch.cat([-knots, knots.new_ones(1)]),
        torch.cat([bends[0], start[0]]),
        torch.cat([bends[1], start[1]]),
    )
