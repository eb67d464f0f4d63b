"""Rules of elementwise operators: activations, arithmetic, comparisons, masks."""

from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from scalegmn_opt.graph.groups import PERMUTATION, POSITIVE_SCALE, Activation
from scalegmn_opt.graph.program import Program, Rule, Value, argument, shape_of
from scalegmn_opt.graph.rules_norm import reduction
from scalegmn_opt.graph.rules_shape import take
from scalegmn_opt.graph.scales import Powers

aten = torch.ops.aten
_LARGEST_EPSILON = 1e-3  # a smaller number in front of a root only keeps it from dividing by zero


def activation(name: str, *, slope: str = "") -> Rule:
    """An elementwise activation; ``slope`` is the name of its one parameter, if it has one."""

    def rule(program: Program, node: Node) -> Value:
        x = program.value(node.args[0])
        parameter = x.gain
        if slope:
            parameter = float(argument(node, slope))
            if x.gain != 1.0:  # σ(gain z) is no activation of the table
                program.activations.append((x, Activation("identity", x.gain)))
        return program.activate(x, Activation(name, parameter))

    return rule


def unnamed(symmetry: Any) -> Rule:
    """An elementwise function that is not in the table of activations."""

    def rule(program: Program, node: Node) -> Value:
        x = program.value(node.args[0])
        program.allow(x, symmetry)
        program.place_vector(x)
        return Value(x.dims, program.scales.resolve(x.scale))

    return rule


def absolute(program: Program, node: Node) -> Value:
    """``|x|``; as a part of softsign, ``x / (1 + |x|)``, it leaves that function odd."""
    if _is_in_softsign(node):
        x = program.activate(program.value(node.args[0]), Activation("softsign"))
        return Value(x.dims)
    return activation("abs")(program, node)


def _is_in_softsign(node: Node) -> bool:
    sums = [u for u in node.users if getattr(u.target, "overloadpacket", None) is aten.add]
    quotients = [q for s in sums for q in s.users]
    return (
        len(sums) == len(node.users) == 1
        and 1 in sums[0].args
        and len(quotients) == 1
        and getattr(quotients[0].target, "overloadpacket", None) is aten.div
        and quotients[0].args[0] is node.args[0]
    )


def hardtanh(program: Program, node: Node) -> Value:
    """Odd only if the two bounds are opposite (ReLU6 is a hardtanh, too)."""
    low, high = argument(node, "min_val"), argument(node, "max_val")
    rule = activation("hardtanh") if (low, high) == (-1.0, 1.0) else unnamed(PERMUTATION)
    return rule(program, node)


def prelu(program: Program, node: Node) -> Value:
    """Positively homogeneous, with a slope that no multiplier changes."""
    x, slope = program.value(node.args[0]), program.value(node.args[1])
    program.allow(x, POSITIVE_SCALE)
    program.scales.forbid(slope.scale)
    program.place_vector(slope)
    if len(x.dims) > 1 and program.axes.size(slope.dims[0]) > 1:
        program.axes.unite(x.dims[1], slope.dims[0])
    return Value(x.dims, program.scales.resolve(x.scale))


def clamp(program: Program, node: Node) -> Value:
    """From below at 0 it is a ReLU, from below at a tiny number the guard of a division."""
    x = program.value(node.args[0])
    low, high = argument(node, "min"), argument(node, "max")
    if isinstance(low, Node) or isinstance(high, Node):
        program.give_up(program.inputs(node), "clamped by a tensor")
        return program.constant(shape_of(node), "clamped by a tensor")
    guarded = is_reduced(node.args[0])
    homogeneous = (
        high is None and low is not None and 0 <= low <= (_LARGEST_EPSILON if guarded else 0)
    )
    program.allow(x, POSITIVE_SCALE if homogeneous else PERMUTATION)
    if homogeneous and low:
        program.scales.erase(x.scale)
    program.place_vector(x)
    return Value(x.dims, program.scales.resolve(x.scale))


def glu(program: Program, node: Node) -> Value:
    """``a · sigmoid(b)`` of the two halves of a dimension."""
    x, dim = program.value(node.args[0]), argument(node, "dim")
    half = program.axes.size(x.dims[dim]) // 2
    first, gate = take(program, x, dim, 0, half), take(program, x, dim, half, 2 * half)
    program.scales.forbid(gate.scale)
    return program.product(first, replace(gate, scale={}), shape_of(node))


def add(program: Program, node: Node) -> Value:
    """Ties the neurons and multipliers of two tensors; a number leaves permutations only."""
    tensors = [program.value(a) for a in node.args[:2] if isinstance(a, Node)]
    numbers = [a for a in node.args[:2] if not isinstance(a, Node)]
    result = program.sum(tensors, shape_of(node))
    if any(numbers):
        if _is_epsilon(node, numbers[0]):
            program.scales.erase(result.scale)
        else:
            program.scales.forbid(result.scale)
            return Value(result.dims)
    keeps_gain = len(tensors) == 1 and isinstance(node.args[0], Node)  # not the negative of one
    return replace(result, gain=tensors[0].gain if keeps_gain else 1.0)


def is_reduced(node: Node) -> bool:
    """Whether a tensor is a mean, a norm or the like: 0 only if all it was computed from is."""
    reduced = (aten.mean, aten.sum, aten.var, aten.std, aten.linalg_vector_norm)
    return getattr(node.target, "overloadpacket", None) in reduced


def _is_epsilon(node: Node, number: Any) -> bool:
    """Whether the sum's root is what is used: of a mean square, plus a little."""
    roots = (aten.rsqrt, aten.sqrt, aten.pow)
    targets = [getattr(user.target, "overloadpacket", None) for user in node.users]
    users = [t for t in targets if t is not aten._assert_tensor_metadata]
    return (
        isinstance(number, float)
        and 0 < number <= _LARGEST_EPSILON
        and all(is_reduced(argument) for argument in node.all_input_nodes)
        and all(target in roots for target in users)
    )


def multiply(program: Program, node: Node) -> Value:
    """By a number, or elementwise by a tensor: multipliers multiply."""
    first, second = node.args[:2]
    if isinstance(first, Node) and isinstance(second, Node):
        return program.product(program.value(first), program.value(second), shape_of(node))
    tensor, number = (first, second) if isinstance(first, Node) else (second, first)
    x = program.value(tensor)
    return replace(x, gain=x.gain * number)


def divide(program: Program, node: Node) -> Value:
    """By a number, or elementwise by a tensor: multipliers are divided."""
    first, second = node.args[:2]
    if argument(node, "rounding_mode") is not None:
        return elementwise_fixed(program, node)
    if not isinstance(second, Node):
        x = program.value(first)
        return replace(x, gain=x.gain / second) if second else x
    below = program.value(second)
    inverse = Value(below.dims, program.scales.power(below.scale, -1))
    program.place_vector(below)
    if not isinstance(first, Node):
        return inverse
    return program.product(program.value(first), inverse, shape_of(node))


def power(exponent: float | None = None) -> Rule:
    """``x ** n``: multipliers to the same power; a root needs an even one."""

    def rule(program: Program, node: Node) -> Value:
        n = argument(node, "exponent") if exponent is None else exponent
        if not isinstance(node.args[0], Node) or isinstance(n, Node):
            return elementwise_fixed(program, node)
        x = program.value(node.args[0])
        program.place_vector(x)
        return Value(x.dims, _to_the(program, x, n))

    return rule


def _to_the(program: Program, x: Value, n: float) -> Powers:
    found = program.scales.resolve(x.scale)
    if float(n).is_integer():
        return program.scales.power(found, int(n))
    if float(2 * n).is_integer() and all(p % 2 == 0 for p in found.values()):
        # the root of q² is |q|, so q has to be positive from here on
        program.scales.forbid(program.scales.times(*({i: 1} for i in found)), rescales=False)
        return {i: int(p * n) for i, p in program.scales.resolve(x.scale).items()}
    program.scales.forbid(found)
    return {}


def elementwise_fixed(program: Program, node: Node) -> Value:
    """An elementwise function of one or more tensors that allows permutations only."""
    values = program.inputs(node)
    dims = program.broadcast(values, shape_of(node))
    for value in values:
        program.scales.forbid(value.scale)
        program.place_vector(value)
    return Value(dims)


def compare(program: Program, node: Node) -> Value:
    """With 0 the sign counts; with another number or tensor all of it."""
    if not isinstance(node.args[1], Node) and not node.args[1]:
        x = program.value(node.args[0])
        program.scales.forbid(x.scale, rescales=False)
        return Value(x.dims)
    return elementwise_fixed(program, node)


def extremum(program: Program, node: Node) -> Value | list[Value | None]:
    """The larger or smaller of two tensors, which are on one positive scale, or of a dimension."""
    if len(node.args) < 2 or not isinstance(node.args[1], Node):
        return reduction("positive")(program, node)
    result = program.sum([program.value(a) for a in node.args[:2]], shape_of(node))
    program.allow(result, POSITIVE_SCALE)
    return result


def where(program: Program, node: Node) -> Value:
    """Elementwise one of two, by a condition; a number other than 0 leaves permutations only."""
    return _choose(program, node, program.value(node.args[0]), list(node.args[1:3]))


def masked_fill(program: Program, node: Node) -> Value:
    """A number in place of some elements."""
    return _choose(program, node, program.value(node.args[1]), [node.args[0], node.args[2]])


def _choose(program: Program, node: Node, condition: Value, options: list[Any]) -> Value:
    values = [program.value(option) for option in options if isinstance(option, Node)]
    numbers = [option for option in options if not isinstance(option, Node)]
    program.scales.forbid(condition.scale)
    shape = shape_of(node)
    dims = program.broadcast([*values, condition], shape)
    for value in values:
        program.scales.equate(values[0].scale, value.scale)
        program.place_vector(value)
        if any(numbers):
            program.scales.forbid(value.scale)
    return Value(dims, program.scales.resolve(values[0].scale) if values else {})
