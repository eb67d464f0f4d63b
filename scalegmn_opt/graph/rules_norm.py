"""Rules of operators that reduce: pooling, means, normalisation, softmax."""

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.fx import Node

from scalegmn_opt.graph.axes import POSITIONS, Dim
from scalegmn_opt.graph.groups import POSITIVE_SCALE
from scalegmn_opt.graph.program import Program, Rule, Value, argument, shape_of


def pooling(rank: int, *, largest: bool = False) -> Rule:
    """Pools or resizes the last ``rank`` dimensions, channel by channel."""

    def rule(program: Program, node: Node) -> Value | list[Value | None]:
        x, out = program.value(node.args[0]), node.meta["val"]
        program.hold(x, x.dims[-rank:])
        if largest:
            program.allow(x, POSITIVE_SCALE)
        pooled = out if isinstance(out, Tensor) else out[0]
        fresh = program.axes.new_dims(pooled.shape[-rank:], fixed=POSITIONS)
        result = Value((*x.dims[:-rank], *fresh), program.scales.resolve(x.scale))
        return result if isinstance(out, Tensor) else [result, Value(result.dims)]

    return rule


def resize(program: Program, node: Node) -> Value:
    """Interpolation of all positions behind a batch and a channel dimension."""
    return pooling(len(shape_of(node)) - 2)(program, node)


def reduction(kind: str = "linear") -> Rule:
    """Sum, mean (``linear``), largest, smallest (``positive``), spread and norm (``absolute``).

    The order along a reduced dimension does not count, but its multipliers must be equal.
    """

    def rule(program: Program, node: Node) -> Any:
        x = program.value(node.args[0])
        reduced = _reduced(argument(node, "dim"), len(x.dims))
        keep = bool(argument(node, "keepdim"))
        program.scales.hold(x.scale, [x.dims[i] for i in reduced])
        if kind != "linear":
            program.allow(x, POSITIVE_SCALE)
        if _place_is_read(node):
            program.axes.fix([x.dims[i] for i in reduced], "its place along them is read")
        program.place_vector(x)
        ones = program.axes.new_dims([1] * len(x.dims))
        pairs = enumerate(zip(x.dims, ones, strict=True))
        dims = [one if i in reduced else dim for i, (dim, one) in pairs if keep or i not in reduced]
        gain = x.gain if kind == "linear" else 1.0
        result = Value(tuple(dims), program.scales.resolve(x.scale), gain)
        return result if isinstance(node.meta["val"], Tensor) else [result, Value(tuple(dims))]

    return rule


def _place_is_read(node: Node) -> bool:
    """Whether the second output, the place of the largest element, is used."""
    items = [user for user in node.users if user.target is operator.getitem]
    return any(item.args[1] == 1 and item.users for item in items)


def variance(program: Program, node: Node) -> Value:
    """The multiplier of a variance is the square of what is measured."""
    result = reduction("absolute")(program, node)
    return Value(result.dims, program.scales.power(result.scale, 2))


def _reduced(over: Any, rank: int) -> set[int]:
    if over is None or over == []:
        return set(range(rank))
    return {d % rank for d in (over if isinstance(over, Sequence) else [over])}


def batch_norm(program: Program, node: Node) -> Value:
    """Erases the scale of each channel; running statistics move along, they are no parameters."""
    x = program.value(node.args[0])
    return _normalised(program, node, x, [x.dims[:1], x.dims[2:]])


def instance_norm(program: Program, node: Node) -> Value:
    """Erases the scale of each channel, by statistics over its positions."""
    x = program.value(node.args[0])
    return _normalised(program, node, x, [x.dims[2:]])


def _normalised(
    program: Program,
    node: Node,
    x: Value,
    over: Sequence[Sequence[Dim]],
) -> Value:
    """Over the given dimensions; weight and bias are one number a channel, dimension 1."""
    dims = [dim for part in over for dim in part]
    _erase(program, x, dims)
    positions = [1] * (len(x.dims) - 2)
    result, shape = Value(x.dims), shape_of(node)
    for kind in ("weight", "bias"):
        given = argument(node, kind)
        if given is not None:
            vector = program.value(given)
            wide = replace(vector, dims=(*vector.dims, *program.axes.new_dims(positions)))
            result = _affine(program, result, wide, kind, shape)
    return result


def _affine(program: Program, x: Value, vector: Value, kind: str, shape: Sequence[int]) -> Value:
    if kind == "weight":
        return program.product(x, vector, shape)
    return program.sum([x, vector], shape)


def _erase(program: Program, x: Value, over: Sequence[Dim]) -> None:
    """A normalisation over some dimensions divides out the multiplier, which must be positive."""
    program.scales.hold(x.scale, over)
    program.scales.forbid(x.scale, rescales=False)
    program.scales.erase(x.scale)
    program.place_vector(x)
    program.axes.keep_apart(over, [dim for dim in x.dims if dim not in over])


def layer_norm(*, mean: bool) -> Rule:
    """Over the last dimensions, with a ``mean`` that is subtracted (LayerNorm) or not (RMSNorm)."""

    def rule(program: Program, node: Node) -> Value:
        x, rank = program.value(node.args[0]), len(node.args[1])
        _erase(program, x, x.dims[-rank:])
        result, shape = Value(x.dims), shape_of(node)
        for kind in ("weight", "bias") if mean else ("weight",):
            given = argument(node, kind)
            if given is not None:
                result = _affine(program, result, program.value(given), kind, shape)
        return result

    return rule


def group_norm(program: Program, node: Node) -> Value:
    """Over the channels of each group and all positions."""
    x, groups = program.value(node.args[0]), node.args[1]
    channels = program.axes.size(x.dims[1])
    outer, inner = program.reshape(x, (x.dims[1],), (groups, channels // groups))
    split = Value((x.dims[0], outer, inner, *x.dims[2:]), x.scale, 1.0, x.parameter)
    whole = Value((x.dims[0], (*outer, *inner), *x.dims[2:]), x.scale, 1.0, x.parameter)
    _erase(program, split, split.dims[2:])
    return _normalised(program, node, whole, [])


def softmax(program: Program, node: Node) -> Value:
    """Commutes with a permutation along its dimension, and with no multiplier."""
    x, dim = program.value(node.args[0]), node.args[1] % len(shape_of(node))
    program.scales.forbid(x.scale)
    program.place_vector(x)
    program.axes.keep_apart([x.dims[dim]], [d for i, d in enumerate(x.dims) if i != dim])
    return Value(x.dims)
