"""One rule an operator: which axes of its inputs and outputs are the same neurons."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Node

from scalegmn_opt.graph.axes import AxisTable, Dim, Dims
from scalegmn_opt.graph.groups import (
    NONZERO_SCALE,
    PERMUTATION,
    POSITIVE_SCALE,
    Activation,
)

aten = torch.ops.aten


@dataclass(frozen=True)
class Value:
    """A tensor of the traced program: its axes, and the factor it was multiplied by."""

    dims: Dims
    gain: float = 1.0
    parameter: str = ""  # the parameter's name, if the tensor is one


@dataclass
class Program:
    """What the rules read and write while they walk through a program."""

    axes: AxisTable = field(default_factory=AxisTable)
    values: dict[Node, Value] = field(default_factory=dict)
    sources: dict[str, Dim] = field(default_factory=dict)  # weight -> the axes of its input neurons
    targets: dict[str, Dim] = field(default_factory=dict)  # parameter -> its output neurons

    def value(self, argument: Any) -> Value:
        """The value of a node, which must be a tensor."""
        return self.values[argument]

    def weight(self, value: Value, *, source: Dim, target: Dim) -> None:
        """Record a parameter as edges from the neurons ``source`` to ``target``."""
        self.sources.setdefault(value.parameter, source)
        self.targets.setdefault(value.parameter, target)

    def bias(self, argument: Any, target: Dim, *, others: Dims) -> None:
        """Record an optional parameter of one number a neuron, the same along ``others``."""
        if argument is not None:
            value = self.value(argument)
            self.axes.unite(value.dims[0], target)
            self.axes.constrain(others, PERMUTATION)
            self.targets.setdefault(value.parameter, value.dims[0])


class NoRuleError(Exception):
    """An operator, or this use of it, has no rule."""


Rule = Callable[[Program, Node], Value]


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of a node's tensor."""
    return tuple(int(size) for size in node.meta["val"].shape)


def _argument(node: Node, index: int, name: str, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _require_parameter(value: Value) -> None:
    if not value.parameter:
        raise NoRuleError("its weight is not a parameter")


def linear(program: Program, node: Node) -> Value:
    """``y[..., out] = Σ_in W[out, in] x[..., in] + b[out]``"""
    x, weight = program.value(node.args[0]), program.value(node.args[1])
    _require_parameter(weight)
    out, source = weight.dims
    program.axes.unite(source, x.dims[-1])
    program.axes.produce(out)
    program.weight(weight, source=source, target=out)
    program.bias(_argument(node, 2, "bias", None), out, others=x.dims[:-1])
    return Value((*x.dims[:-1], out))


def convolution(program: Program, node: Node) -> Value:
    """Channels are neurons; the kernel's elements are parallel edges; positions are not neurons."""
    x, weight = program.value(node.args[0]), program.value(node.args[1])
    _require_parameter(weight)
    if _argument(node, 6, "groups", 1) != 1:
        raise NoRuleError("it has more than one group of channels")
    out, source, *_ = weight.dims
    channel = len(x.dims) - len(weight.dims) + 1  # an unbatched input has no batch axis
    program.axes.unite(source, x.dims[channel])
    program.axes.fix(x.dims[channel + 1 :], "positions of a convolution")
    program.axes.produce(out)
    program.weight(weight, source=source, target=out)
    program.bias(_argument(node, 2, "bias", None), out, others=x.dims[:channel])
    positions = shape_of(node)[channel + 1 :]
    return Value((*x.dims[:channel], out, *program.axes.new_dims(positions, fixed="positions")))


def activation(name: str, *, slope: float | None = None) -> Rule:
    """An elementwise activation; ``slope`` is the default of its one parameter, if it has one."""

    def rule(program: Program, node: Node) -> Value:
        x = program.value(node.args[0])
        parameter = x.gain if slope is None else float(_argument(node, 1, "negative_slope", slope))
        function = Activation(name, parameter)
        program.axes.activate(x.dims, function)
        if slope is not None and x.gain != 1.0:  # σ(gain z) is no activation of the table
            program.axes.activate(x.dims, Activation("identity", x.gain))
        return Value(x.dims)

    return rule


def hardtanh(program: Program, node: Node) -> Value:
    """Odd only if the two bounds are opposite (ReLU6 is a hardtanh, too)."""
    x = program.value(node.args[0])
    low, high = _argument(node, 1, "min_val", -1.0), _argument(node, 2, "max_val", 1.0)
    if (low, high) == (-1.0, 1.0):
        return activation("hardtanh")(program, node)
    program.axes.constrain(x.dims, PERMUTATION)
    return Value(x.dims)


def prelu(program: Program, node: Node) -> Value:
    """Positively homogeneous with one slope for all neurons."""
    x, slope = program.value(node.args[0]), program.value(node.args[1])
    if program.axes.size(slope.dims[0]) != 1:
        raise NoRuleError("it has a slope for each channel")
    program.axes.constrain(x.dims, POSITIVE_SCALE)
    return Value(x.dims)


def transparent(program: Program, node: Node) -> Value:
    """Keeps the axes and commutes with any multiplier (dropout, contiguous, to, detach)."""
    return program.value(node.args[0])


def scale(program: Program, node: Node) -> Value:
    """Multiplication or division by a number; of two tensors: elementwise."""
    first, second = node.args[:2]
    if isinstance(first, Node) and isinstance(second, Node):
        return _elementwise(program, node, PERMUTATION)
    if not isinstance(first, Node):
        raise NoRuleError("a number is divided by a tensor")
    x = program.value(first)
    divides = node.target.overloadpacket is aten.div
    return replace(x, gain=x.gain / second if divides else x.gain * second, parameter="")


def add(program: Program, node: Node) -> Value:
    """Ties the neurons of two tensors; adding a number leaves permutations only."""
    if isinstance(node.args[1], Node):
        return _elementwise(program, node, NONZERO_SCALE)
    x = program.value(node.args[0])
    program.axes.constrain(x.dims, PERMUTATION)
    return Value(x.dims)


def _elementwise(program: Program, node: Node, symmetry: Any) -> Value:
    values = [program.value(argument) for argument in node.args[:2]]
    shape = shape_of(node)
    dims: list[Dim] = []
    for position in range(-len(shape), 0):
        found = [v.dims[position] for v in values if len(v.dims) >= -position]
        wide = [dim for dim in found if program.axes.size(dim) == shape[position]]
        program.axes.unite(wide[0], wide[-1])
        if len(wide) < len(values):  # broadcast along the neurons: one number for all of them
            program.axes.constrain(found, PERMUTATION)
        dims.append(wide[0])
    program.axes.constrain(dims, symmetry)
    if any(value.parameter for value in values):
        raise NoRuleError("one of its inputs is a parameter")
    return Value(tuple(dims))


def pooling(symmetry: Any, positions: int) -> Rule:
    """Pools the last ``positions`` dimensions, channel by channel."""

    def rule(program: Program, node: Node) -> Value:
        x, shape = program.value(node.args[0]), shape_of(node)
        channels, pooled = x.dims[:-positions], x.dims[-positions:]
        program.axes.fix(pooled, "pooled positions")
        program.axes.constrain(channels, symmetry)
        fresh = program.axes.new_dims(shape[-positions:], fixed="positions")
        return Value((*channels, *fresh))

    return rule


def mean(program: Program, node: Node) -> Value:
    """Mean or sum over whole dimensions."""
    x = program.value(node.args[0])
    over = _argument(node, 1, "dim", None)
    keep = bool(_argument(node, 2, "keepdim", False))
    rank = len(x.dims)
    reduced = {d % rank for d in over} if over else set(range(rank))
    program.axes.fix([x.dims[i] for i in reduced], "reduced by a mean or sum")
    kept = [
        program.axes.new_dims([1], fixed="reduced")[0] if i in reduced else dim
        for i, dim in enumerate(x.dims)
        if keep or i not in reduced
    ]
    return Value(tuple(kept), x.gain)


def view(program: Program, node: Node) -> Value:
    """Flatten, unflatten, view, reshape, squeeze and unsqueeze: factors are regrouped."""
    x = program.value(node.args[0])
    single = [d for d in x.dims if program.axes.size(d) == 1 and _is_produced(program, d)]
    program.axes.fix(single, "a single channel was reshaped")
    return replace(x, dims=program.axes.reshape(x.dims, shape_of(node)), parameter="")


def _is_produced(program: Program, dim: Dim) -> bool:
    return any(program.axes.facts(axis).produced for axis in program.axes.resolve(dim))


def permute(program: Program, node: Node) -> Value:
    """Reorders dimensions."""
    x = program.value(node.args[0])
    order: Sequence[int] = node.args[1]
    return replace(x, dims=tuple(x.dims[i] for i in order), parameter="")


def transpose(program: Program, node: Node) -> Value:
    """Exchanges two dimensions."""
    x = program.value(node.args[0])
    dims = list(x.dims)
    first, second = node.args[1:3]
    dims[first], dims[second] = dims[second], dims[first]
    return replace(x, dims=tuple(dims), parameter="")


def softmax(program: Program, node: Node) -> Value:
    """Permutation-equivariant along its dimension; couples the scales of all others."""
    x = program.value(node.args[0])
    program.axes.constrain(x.dims, PERMUTATION)
    return Value(x.dims)


_ACTIVATIONS = {
    **{name: name for name in ("relu", "abs", "tanh", "erf", "gelu", "silu", "sigmoid")},
    **{name: name for name in ("softplus", "elu", "selu", "mish", "cos", "exp")},
    "sin": "sine",
    "atan": "arctan",
}
_TRANSPARENT = ("dropout", "feature_dropout", "contiguous", "clone", "detach", "alias")
_VIEWS = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view")

# operator -> rule; an operator that is not here fixes the axes it touches
RULES: dict[Any, Rule] = {
    aten.linear: linear,
    aten.conv1d: convolution,
    aten.conv2d: convolution,
    aten.leaky_relu: activation("leaky_relu", slope=0.01),
    aten.hardtanh: hardtanh,
    aten.prelu: prelu,
    aten.mul: scale,
    aten.div: scale,
    aten.add: add,
    aten.add_: add,
    aten.sub: add,
    aten.mean: mean,
    aten.sum: mean,
    aten.permute: permute,
    aten.transpose: transpose,
    aten.softmax: softmax,
    aten.log_softmax: softmax,
    **{getattr(aten, operator): activation(name) for operator, name in _ACTIVATIONS.items()},
    **{getattr(aten, f"{operator}_"): activation(operator) for operator in ("relu", "tanh")},
    **{getattr(aten, f"max_pool{n}d"): pooling(POSITIVE_SCALE, n) for n in (1, 2)},
    **{getattr(aten, f"avg_pool{n}d"): pooling(NONZERO_SCALE, n) for n in (1, 2)},
    **{getattr(aten, f"adaptive_avg_pool{n}d"): pooling(NONZERO_SCALE, n) for n in (1, 2)},
    **{getattr(aten, operator): transparent for operator in _TRANSPARENT},
    **{getattr(aten, operator): view for operator in _VIEWS},
}
