"""Rules of operators that move elements: views, slices, concatenation, broadcasting."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from scalegmn_opt.graph.axes import POSITIONS, Dim
from scalegmn_opt.graph.program import NoRuleError, Program, Value, argument, shape_of


def transparent(program: Program, node: Node) -> Value:
    """Keeps the axes and commutes with any multiplier (dropout, contiguous, to, detach)."""
    return program.value(node.args[0])


def cast(program: Program, node: Node) -> Value:
    """To another type or device; what is rounded to integers must not be multiplied."""
    x = program.value(node.args[0])
    before, after = (n.meta["val"].dtype for n in (node.args[0], node))
    if _is_floating(after) or not _is_floating(before):
        return x
    program.scales.forbid(x.scale)
    program.place_vector(x)
    return Value(x.dims)


def _is_floating(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def constant(program: Program, node: Node) -> Value:
    """A new tensor, random or of numbers that count, with at most the shape of another one."""
    return program.constant(shape_of(node), "constant")


def uniform(program: Program, node: Node) -> Value:
    """A new tensor of one number, which has no order."""
    return program.constant(shape_of(node), "")


def view(program: Program, node: Node) -> Value:
    """Flatten, unflatten, view, reshape, squeeze and unsqueeze: factors are regrouped."""
    x = program.value(node.args[0])
    if isinstance(argument(node, "dtype"), torch.dtype):
        raise NoRuleError("its bits are read as another type")
    return replace(x, dims=program.reshape(x, x.dims, shape_of(node)))


def permute(program: Program, node: Node) -> Value:
    """Reorders dimensions."""
    x = program.value(node.args[0])
    return replace(x, dims=tuple(x.dims[i] for i in node.args[1]))


def transpose(program: Program, node: Node) -> Value:
    """Exchanges two dimensions."""
    x = program.value(node.args[0])
    dims = list(x.dims)
    first, second = argument(node, "dim0", -2), argument(node, "dim1", -1)
    dims[first], dims[second] = dims[second], dims[first]
    return replace(x, dims=tuple(dims))


def reverse(program: Program, node: Node) -> Value:
    """The transpose of a matrix, or all dimensions in reverse order."""
    x = program.value(node.args[0])
    return replace(x, dims=x.dims[::-1])


def expand(program: Program, node: Node) -> Value:
    """Repeats along dimensions of one element, which become axes of their own."""
    x, shape = program.value(node.args[0]), shape_of(node)
    dims = list(x.dims)
    dims[:0] = program.axes.new_dims([1] * (len(shape) - len(dims)))
    for i, size in enumerate(shape):
        if program.axes.size(dims[i]) != size:
            dims[i] = (program.axes.new(size),)
    return replace(x, dims=tuple(dims))


def repeat(program: Program, node: Node) -> Value:
    """Tiles whole dimensions: the copies are a new major axis."""
    x, copies = program.value(node.args[0]), node.args[1]
    dims = list(x.dims)
    dims[:0] = program.axes.new_dims([1] * (len(copies) - len(dims)))
    tiled = (
        (program.axes.new(count), *dim) if count > 1 else dim
        for count, dim in zip(copies, dims, strict=True)
    )
    return replace(x, dims=tuple(tiled), parameter="")


def repeat_interleave(program: Program, node: Node) -> Value:
    """Repeats every element of a dimension: the copies are a new minor axis."""
    x, dim = program.value(node.args[0]), argument(node, "dim")
    if dim is None or isinstance(node.args[1], Node):
        raise NoRuleError("it has no dimension, or a count for each element")
    dims = list(x.dims)
    dims[dim] = (*dims[dim], program.axes.new(int(node.args[1])))
    return replace(x, dims=tuple(dims), parameter="")


def take(program: Program, value: Value, dim: int, start: int, stop: int) -> Value:
    """The range of a dimension: neurons are cut there, positions are just fewer."""
    dim %= len(value.dims)
    whole = value.dims[dim]
    size = program.axes.size(whole)
    if (start, stop) == (0, size):
        return value
    if start == stop:
        sizes = [program.axes.size(d) for d in value.dims]
        return program.constant([*sizes[:dim], 0, *sizes[dim + 1 :]], "empty")
    if not _is_neurons(program, whole) and not value.parameter:
        program.hold(value, [whole])
        part: Dim = (program.axes.new(stop - start, fixed=POSITIONS),)
        scale = program.scales.resolve(value.scale)
    else:
        found = program.axes.take(whole, start, stop)
        if found is None:
            program.give_up([value], "cut across neurons")
            found = (program.axes.new(stop - start, fixed="cut across neurons"),)
        part, scale = found, _part_of_scale(program, value, whole, start, stop)
    return replace(value, dims=(*value.dims[:dim], part, *value.dims[dim + 1 :]), scale=scale)


def _is_neurons(program: Program, dim: Dim) -> bool:
    return any(program.axes.facts(axis).produced for axis in program.axes.resolve(dim))


def _part_of_scale(program: Program, value: Value, dim: Dim, start: int, stop: int) -> Any:
    factors = [a for a in program.axes.resolve(dim) if program.axes.facts(a).size > 1]
    if not factors:
        return value.scale
    inner = program.axes.size(tuple(factors[1:]))
    return program.scales.part(value.scale, factors[0], start // inner, stop // inner)


def slice_(program: Program, node: Node) -> Value:
    """``x[..., start:stop:step]``"""
    x, dim = program.value(node.args[0]), argument(node, "dim")
    size = program.axes.size(x.dims[dim])
    bounds = (argument(node, "start"), argument(node, "end"), argument(node, "step"))
    start, stop, step = slice(*bounds).indices(size)
    if step == 1:
        return take(program, x, dim, start, max(start, stop))
    dim, count = dim % len(x.dims), shape_of(node)[dim]
    if size == count * step and start < step:  # channels that are rotated in pairs
        parts = program.reshape(x, (x.dims[dim],), (count, step))
        pairs = replace(x, dims=(*x.dims[:dim], *parts, *x.dims[dim + 1 :]))
        return _element(program, pairs, dim + 1, start)
    program.hold(x, [x.dims[dim]], f"every {step}. element is taken")
    fresh = (program.axes.new(count, fixed=POSITIONS),)
    return Value((*x.dims[:dim], fresh, *x.dims[dim + 1 :]), program.scales.resolve(x.scale))


def select(program: Program, node: Node) -> Value:
    """``x[..., i]``: a range of one element, whose dimension is gone."""
    x, dim, index = program.value(node.args[0]), node.args[1], node.args[2]
    return _element(program, x, dim, index)


def _element(program: Program, value: Value, dim: int, index: int) -> Value:
    dim %= len(value.dims)
    size = program.axes.size(value.dims[dim])
    index %= size
    part = take(program, value, dim, index, index + 1)
    return replace(part, dims=(*part.dims[:dim], *part.dims[dim + 1 :]))


def unbind(program: Program, node: Node) -> list[Value]:
    """All elements of a dimension."""
    x, dim = program.value(node.args[0]), argument(node, "dim")
    return [_element(program, x, dim, i) for i in range(program.axes.size(x.dims[dim]))]


def split(program: Program, node: Node) -> list[Value]:
    """Consecutive ranges of a dimension (split, split_with_sizes, chunk)."""
    x, dim = program.value(node.args[0]), argument(node, "dim")
    out, start = [], 0
    for part in node.meta["val"]:
        size = int(part.shape[dim])
        out.append(take(program, x, dim, start, start + size))
        start += size
    return out


def getitem(program: Program, node: Node) -> Value:
    """One of several outputs."""
    found = program.values.get(node.args[0])
    item = found[node.args[1]] if isinstance(found, list) else None
    return item or program.constant(shape_of(node), "part of an unknown operator's output")


def cat(program: Program, node: Node) -> Value:
    """Neurons that follow one another, or more positions."""
    shape = shape_of(node)
    dim = argument(node, "dim") % len(shape)
    every = [program.value(argument) for argument in node.args[0]]
    values = [v for v in every if all(map(program.axes.size, v.dims))]  # none that are empty
    if len(values) <= 1:
        return values[0] if values else every[0]
    others = [replace(v, dims=(*v.dims[:dim], *v.dims[dim + 1 :])) for v in values]
    rest = program.broadcast(others, (*shape[:dim], *shape[dim + 1 :]))
    joined = [v.dims[dim] for v in values]
    if any(_is_neurons(program, part) for part in joined):
        whole = program.axes.concatenate(joined)
        parts = [(program.axes.size(v.dims[dim]), v.scale) for v in values]
        scale = program.scales.concatenated(whole[0], parts)
    else:
        for value in values:
            program.hold(value, [value.dims[dim]])
            program.scales.equate(values[0].scale, value.scale)
        whole = (program.axes.new(shape[dim], fixed=POSITIONS),)
        scale = program.scales.resolve(values[0].scale)
    for value in values:
        program.place_vector(value)
    return Value((*rest[:dim], whole, *rest[dim:]), scale)


def stack(program: Program, node: Node) -> Value:
    """Tensors on the same neurons, along a new dimension."""
    values = [program.value(argument) for argument in node.args[0]]
    shape = shape_of(node)
    dim = argument(node, "dim") % len(shape)
    whole = program.sum(values, (*shape[:dim], *shape[dim + 1 :]))
    fresh = (program.axes.new(shape[dim], fixed="stacked"),)
    return replace(whole, dims=(*whole.dims[:dim], fresh, *whole.dims[dim:]))


def index(program: Program, node: Node) -> Value:
    """``x[:, i, :, j]``: what is looked up by index keeps its place."""
    x, indices, shape = program.value(node.args[0]), node.args[1], shape_of(node)
    places = [i for i, item in enumerate(indices) if item is not None]
    program.hold(x, [x.dims[i] for i in places], "looked up by index")
    kept = [dim for i, dim in enumerate(x.dims) if i not in places]
    start = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    count = len(shape) - len(kept)
    if count < 0:
        raise NoRuleError("its indices are of an unknown kind")
    by = [program.value(indices[i]) for i in places]
    for value in by:
        program.scales.forbid(value.scale)
    fresh = program.broadcast(by, shape[start : start + count])
    scale = program.scales.resolve(x.scale)
    return replace(x, dims=(*kept[:start], *fresh, *kept[start:]), scale=scale)


def pad(program: Program, node: Node) -> Value:
    """More positions; neurons that are padded are not understood."""
    x, widths, shape = program.value(node.args[0]), node.args[1], shape_of(node)
    dims = list(x.dims)
    for i in range(len(widths) // 2):
        place = len(dims) - 1 - i
        if any(widths[2 * i : 2 * i + 2]):
            program.hold(x, [dims[place]], "padded")
            dims[place] = (program.axes.new(shape[place], fixed=POSITIONS),)
    mode, value = argument(node, "mode", "constant"), argument(node, "value", 0.0)
    if mode == "constant" and value:
        program.scales.forbid(x.scale)
    return Value(tuple(dims), program.scales.resolve(x.scale))


def moved(program: Program, node: Node) -> Value:
    """Roll, flip and cumulative sums: positions whose order counts."""
    x, shape = program.value(node.args[0]), shape_of(node)
    if len(node.all_input_nodes) > 1:
        raise NoRuleError("it reads more than one tensor")
    places = argument(node, "dims", argument(node, "dim"))
    places = places if isinstance(places, list | tuple) else [places]
    program.hold(x, [x.dims[i] for i in places] or x.dims)
    pairs = zip(x.dims, shape, strict=True)
    dims = (
        d if program.axes.size(d) == n else program.axes.new_dims([n], fixed=POSITIONS)[0]
        for d, n in pairs
    )
    return Value(tuple(dims), program.scales.resolve(x.scale))


def pixel_shuffle(program: Program, node: Node) -> Value:
    """Channels that become positions are no neurons."""
    x, factor, shape = program.value(node.args[0]), int(node.args[1]), shape_of(node)
    *batch, channels, _, _ = x.dims
    own, *inner = program.reshape(x, (channels,), (shape[-3], factor, factor))
    program.hold(x, [*inner, *x.dims[-2:]])
    fresh = program.axes.new_dims(shape[-2:], fixed=POSITIONS)
    return Value((*batch, own, *fresh), program.scales.resolve(x.scale))


def opaque(program: Program, node: Node) -> Value | list[Value | None]:
    """Known to have no symmetry (sorting, scattering, Fourier transforms): no warning."""
    program.give_up(program.inputs(node), f"read by {node.target}")
    for value in program.inputs(node):
        program.place_vector(value)
    out, reason = node.meta["val"], f"{node.target}"
    if isinstance(out, Tensor):
        return program.constant(shape_of(node), reason)
    tensors = (part if isinstance(part, Tensor) else None for part in out)
    return [None if part is None else program.constant(part.shape, reason) for part in tensors]
