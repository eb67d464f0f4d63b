"""Rules of operators that sum over neurons: linear maps, convolutions, attention, recurrence."""

from dataclasses import replace
from typing import Any

from torch.fx import Node

from scalegmn_opt.graph.axes import POSITIONS
from scalegmn_opt.graph.program import NoRuleError, Place, Program, Rule, Value, argument, shape_of

_BATCH = tuple(f"b{i}" for i in range(12))


def _add_bias(program: Program, node: Node, result: Value, bias: Any) -> Value:
    """Plus a parameter along the last dimensions, or nothing."""
    if bias is None:
        return result
    return program.sum([result, program.value(bias)], shape_of(node))


def linear(program: Program, node: Node) -> Value:
    """``y[..., o] = Σ_i W[o, i] x[..., i] + b[o]``"""
    x, weight = program.value(node.args[0]), program.value(node.args[1])
    batch = _BATCH[: len(x.dims) - 1]
    out = ("o",) if len(weight.dims) == 2 else ()
    result = program.contract([x, weight], [(*batch, "i"), (*out, "i")], (*batch, *out))
    return _add_bias(program, node, result, argument(node, "bias"))


def matmul(program: Program, node: Node) -> Value:
    """``y[..., r, c] = Σ_i a[..., r, i] b[..., i, c]``; a vector has no ``r`` or no ``c``."""
    return _matmul(program, program.value(node.args[0]), program.value(node.args[1]))


def _matmul(program: Program, a: Value, b: Value) -> Value:
    left, right = _matrix_labels(a, "r"), _matrix_labels(b, "c", transposed=True)
    batch = max(left[:-2], right[:-2], key=len)
    output = (*batch, *(name for name in ("r", "c") if name in (*left, *right)))
    return program.contract([a, b], [left, right], output)


def _matrix_labels(value: Value, own: str, *, transposed: bool = False) -> tuple[str, ...]:
    if len(value.dims) == 1:
        return ("i",)
    batch = _BATCH[: len(value.dims) - 2][::-1]  # aligned at the end
    return (*batch, "i", own) if transposed else (*batch, own, "i")


def addmm(program: Program, node: Node) -> Value:
    """``bias + a @ b``, with a batch or without."""
    result = _matmul(program, program.value(node.args[1]), program.value(node.args[2]))
    return _add_bias(program, node, result, node.args[0])


def einsum(program: Program, node: Node) -> Value:
    """Any sum of products; an ellipsis stands for the dimensions that no letter names."""
    equation, operands = node.args[0].replace(" ", ""), node.args[1]
    values = [program.value(operand) for operand in operands]
    terms, arrow, output = equation.partition("->")
    letters = [term.replace(".", "") for term in terms.split(",")]
    if not arrow or any(len(set(term)) < len(term) for term in letters):
        raise NoRuleError("its equation has no output or a letter twice in a term")
    labels = [_letters(t, len(v.dims)) for t, v in zip(terms.split(","), values, strict=True)]
    return program.contract(values, labels, _letters(output, len(shape_of(node))))


def _letters(term: str, rank: int) -> tuple[str, ...]:
    before, dots, after = term.partition("...")
    missing = rank - len(before) - len(after) if dots else 0
    names = (*before, *_BATCH[:missing][::-1], *after)
    return tuple(f"_{name}" if name in "kp" else name for name in names)


def bilinear(program: Program, node: Node) -> Value:
    """``y[..., o] = Σ_ij x[..., i] W[o, i, j] z[..., j] + b[o]``: edges from pairs of neurons."""
    x, z, weight = (program.value(a) for a in node.args[:3])
    batch = _BATCH[: len(x.dims) - 1]
    labels = [(*batch, "i"), (*batch, "j"), ("o", "i", "j")]
    result = program.contract([x, z, weight], labels, (*batch, "o"))
    return _add_bias(program, node, result, argument(node, "bias"))


def convolution(rank: int, *, transposed: bool = False) -> Rule:
    """Channels are neurons, a kernel's elements parallel edges, and positions no neurons.

    With several groups of channels, one for each channel even, both ends share the groups.
    """

    def rule(program: Program, node: Node) -> Value:
        x, weight = program.value(node.args[0]), program.value(node.args[1])
        groups = argument(node, "groups")
        shape = shape_of(node)
        channel = len(x.dims) - rank - 1  # an unbatched input has no batch axis
        program.hold(x, x.dims[channel + 1 :])
        program.axes.fix(weight.dims[2:], "kernel")
        x = _grouped(program, x, channel, groups)
        weight = _grouped(program, weight, 0, groups)
        batch, positions = _BATCH[:channel], [f"p{i}" for i in range(rank)]
        ends = ("i", "o") if transposed else ("o", "i")
        labels = [
            (*batch, "g", "i", *positions),
            ("g", *ends, *(f"k{i}" for i in range(rank))),
        ]
        result = program.contract([x, weight], labels, (*batch, "g", "o"))
        channels = tuple(a for dim in result.dims[channel:] for a in dim)
        fresh = program.axes.new_dims(shape[channel + 1 :], fixed=POSITIONS)
        result = Value((*result.dims[:channel], channels, *fresh), result.scale)
        bias = argument(node, "bias")
        if bias is None:
            return result
        bias = program.value(bias)
        ones = program.axes.new_dims([1] * rank)
        return program.sum([result, replace(bias, dims=(*bias.dims, *ones))], shape)

    return rule


def _grouped(program: Program, value: Value, place: int, groups: int) -> Value:
    """The dimension at ``place`` as two: groups, and what is in each."""
    dim = value.dims[place]
    size = program.axes.size(dim) // groups
    parts = program.reshape(value, (dim,), (groups, size))
    return replace(value, dims=(*value.dims[:place], *parts, *value.dims[place + 1 :]))


def embedding(program: Program, node: Node) -> Value:
    """Rows of a table, by index: edges from the entries of the vocabulary."""
    table, index = program.value(node.args[0]), program.value(node.args[1])
    program.hold(table, [table.dims[0]], "input")
    program.axes.produce([table.dims[1]])
    program.place(table, Place(table.dims[1], table.dims[0]))
    return Value((*index.dims, table.dims[1]), program.scales.resolve(table.scale))


def attention(program: Program, node: Node) -> Value:
    """``softmax(q kᵀ) v``: queries and keys have inverse scales, values keep theirs."""
    query, key, value = (program.value(a) for a in node.args[:3])
    grouped = argument(node, "enable_gqa") and len(query.dims) >= 3
    if grouped:  # several query heads for each head of keys and values
        heads = program.axes.size(key.dims[-3])
        place = len(query.dims) - 3
        query, key, value = (_grouped(program, v, place, heads) for v in (query, key, value))
    batch = _BATCH[: len(query.dims) - 2]
    scores = program.contract(
        [query, key], [(*batch, "l", "e"), (*batch, "s", "e")], (*batch, "l", "s")
    )
    if argument(node, "is_causal"):
        program.axes.fix(scores.dims[-2:], POSITIONS)
    program.scales.forbid(scores.scale)
    scores = Value(scores.dims)
    program.hidden.append(scores)
    mask = argument(node, "attn_mask")
    if mask is not None:
        flat = _heads_in_one(scores) if grouped else scores
        sizes = [program.axes.size(dim) for dim in flat.dims]
        mask = program.sum([flat, program.value(mask)], sizes)
    result = program.contract(
        [scores, value], [(*batch, "l", "s"), (*batch, "s", "v")], (*batch, "l", "v")
    )
    return _heads_in_one(result) if grouped else result


def _heads_in_one(value: Value) -> Value:
    *batch, heads, shared, rows, columns = value.dims
    return replace(value, dims=(*batch, (*heads, *shared), rows, columns))


def recurrent(program: Program, node: Node) -> list[Value | None]:
    """GRU, LSTM and RNN: the input's neurons are free, the hidden ones stay as they are."""
    x, has_biases, layers = program.value(node.args[0]), node.args[3], node.args[4]
    weights = [program.value(weight) for weight in node.args[2]]
    directions = 2 if node.args[7] else 1
    each = 4 if has_biases else 2
    if len(weights) != each * layers * directions:
        raise NoRuleError("it has projections")
    reason = "hidden neurons of a recurrent layer"
    program.give_up([v for v in program.inputs(node) if v is not x and not v.parameter], reason)
    for i in range(0, len(weights), each):
        from_input, from_hidden, *biases = weights[i : i + each]
        if i < each * directions:
            labels = [(*_BATCH[: len(x.dims) - 1], "i"), ("o", "i")]
            gates = program.contract([x, from_input], labels, (*labels[0][:-1], "o"))
            program.give_up([gates], reason)
        else:
            program.place(from_input, Place(*from_input.dims))
            program.give_up([from_input], reason)
        program.place(from_hidden, Place(*from_hidden.dims))
        program.axes.unite(from_hidden.dims[0], from_input.dims[0])
        for bias in biases:
            program.axes.unite(bias.dims[0], from_input.dims[0])
            program.place_vector(bias)
        program.give_up([from_hidden, *biases], reason)
    return [program.constant(tuple(map(int, out.shape)), reason) for out in node.meta["val"]]
