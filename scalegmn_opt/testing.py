"""Check your own layers: random graphs, random parameters, and ``assert_equivariant``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from scalegmn_opt.graph import (
    CONSTANT,
    NONZERO_SCALE,
    PERMUTATION,
    POSITIVE_SCALE,
    SIGN,
    Axis,
    NeuronGroup,
    Pair,
    Role,
    Scale,
    Symmetry,
    WeightBlock,
    WeightFeatures,
    WeightGraph,
    Window,
)
from scalegmn_opt.symmetry import Transform, random_transform

SYMMETRIES = (PERMUTATION, SIGN, POSITIVE_SCALE, NONZERO_SCALE)
_WIDEST, _DEEPEST = 5, 3
_FUSED = ("queries", "keys", "values")
_GROUPED_ENDS = ("blk out", "blk src")
_NEGLIGIBLE = 1e-12  # a block below this counts as zero


def random_graph(
    generator: torch.Generator, *, symmetries: Sequence[Symmetry] | None = None
) -> WeightGraph:
    """A chain of layers with random widths, kernels and biases, and one residual or skip block.

    Args:
        symmetries: of the hidden groups, in order; by default one to three random ones.
    """
    if symmetries is None:
        count = _integer(generator, 1, _DEEPEST)
        symmetries = [SYMMETRIES[_integer(generator, 0, 3)] for _ in range(count)]
    groups = [NeuronGroup(CONSTANT, 1, Role.CONSTANT)]
    groups += [NeuronGroup("input", _integer(generator, 1, _WIDEST), Role.INPUT)]
    for i, symmetry in enumerate(symmetries):
        size = _integer(generator, 2, _WIDEST)
        groups.append(NeuronGroup(f"hidden{i}", size, Role.HIDDEN, symmetry))
    groups.append(NeuronGroup("output", _integer(generator, 1, _WIDEST), Role.OUTPUT))
    blocks = []
    for i, (source, target) in enumerate(pairwise(groups[1:])):
        blocks.append(_weight(f"layers.{i}.weight", source, target, generator))
        if _integer(generator, 0, 3) > 0:
            sizes = (("out", target.size),)
            blocks.append(WeightBlock(f"layers.{i}.bias", target.name, CONSTANT, "out", sizes))
    first, last = _integer(generator, 1, 2), _integer(generator, 2, len(groups) - 1)
    blocks.append(_weight("skip.weight", groups[first], groups[last], generator))
    return WeightGraph(tuple(groups), tuple(blocks))


def random_tied_graph(generator: torch.Generator) -> WeightGraph:
    """A graph with all that groups and blocks may share, of random sizes.

    A residual stream with one scale for all, its normalised copy with scales of its own, heads of
    queries and keys with inverse scales and an order of their own in each head, values that several
    heads share, squared neurons, a grouped and a depthwise block, one parameter in three blocks.
    """
    names = ("heads", "width", "inner", "stream", "hidden", "shared")
    size = {name: _integer(generator, 2, 4) for name in names}
    nested = dict.fromkeys(("width", "inner", "shared"), ("heads",))
    axes = tuple(Axis(name, n, True, nested.get(name, ())) for name, n in size.items())
    scales = (
        Scale("stream", (), False, True, erased=True),
        Scale("normed", ("stream",), True, True),
        Scale("queries", ("heads", "width"), True, True),
        Scale("values", ("heads", "inner"), True, True),
        Scale("hidden", ("hidden",), False, True),
    )
    groups = _tied_groups(size)
    blocks = _tied_blocks(size, {g.name: g.size for g in groups}, _integer(generator, 1, 3))
    return WeightGraph(groups, blocks, axes, scales)


def _tied_groups(size: Mapping[str, int]) -> tuple[NeuronGroup, ...]:
    common = replace(POSITIVE_SCALE, common=True)
    rows: tuple[tuple[str, Symmetry, tuple[str, ...], str, int], ...] = (
        ("stream", common, ("stream",), "stream", 1),
        ("normed", NONZERO_SCALE, ("stream",), "normed", 1),
        ("queries", NONZERO_SCALE, ("heads", "width"), "queries", 1),
        ("keys", NONZERO_SCALE, ("heads", "width"), "queries", -1),
        ("values", NONZERO_SCALE, ("heads", "inner"), "values", 1),
        ("mixed", NONZERO_SCALE, ("heads", "shared", "inner"), "values", 1),
        ("hidden", POSITIVE_SCALE, ("hidden",), "hidden", 1),
        ("squared", POSITIVE_SCALE, ("hidden",), "hidden", 2),
    )
    hidden = (
        NeuronGroup(
            name,
            prod(size[axis] for axis in axes),
            Role.HIDDEN,
            symmetry,
            axes=axes,
            scales=((scale, power),),
        )
        for name, symmetry, axes, scale, power in rows
    )
    first = NeuronGroup(CONSTANT, 1, Role.CONSTANT), NeuronGroup("input", 3, Role.INPUT)
    return (*first, *hidden, NeuronGroup("output", 2, Role.OUTPUT))


def _tied_blocks(
    size: Mapping[str, int], count: Mapping[str, int], kernel: int
) -> tuple[WeightBlock, ...]:
    """Blocks between the groups of :func:`_tied_groups`, which have ``count`` neurons."""
    columns = (0, size["stream"])
    bounds = [0, *accumulate(count[name] for name in ("queries", "keys", "values"))]
    fused = (bounds[-1], size["stream"])

    def linear(target: str, source: str, rows: tuple[int, int] | None = None) -> WeightBlock:
        axes = (("out", count[target]), ("src", count[source]))
        window = Window(fused, fused, (rows, columns)) if rows else None
        name = "fused" if rows else f"{target}<-{source}"
        return WeightBlock(name, target, source, "out src", axes, window=window)

    bias = (("k0", kernel), ("out", count["keys"]))
    own = ("out", size["shared"] * size["inner"])
    grouped = (("blk", size["heads"]), own, ("src", size["inner"]), ("k0", kernel))
    each = (("blk", size["hidden"]), ("k1", kernel))
    return (
        linear("stream", "input"),
        WeightBlock("norm", "normed", CONSTANT, "out", (("out", size["stream"]),)),
        *(linear(n, "normed", r) for n, r in zip(_FUSED, pairwise(bounds), strict=True)),
        WeightBlock("bias", "keys", CONSTANT, "k0 out", bias),
        WeightBlock("grouped", "mixed", "values", "blk out src k0", grouped, _GROUPED_ENDS),
        linear("stream", "mixed"),
        linear("hidden", "normed"),
        WeightBlock("depthwise", "hidden", "hidden", "blk k1", each, ("blk", "blk")),
        linear("output", "squared"),
        linear("output", "stream"),
    )


def random_params(
    graph: WeightGraph, generator: torch.Generator, *, batch: int = 2
) -> dict[str, Tensor]:
    """Normal parameters (batch, *shape) in float64 for each block of ``graph``."""
    shapes = {name: blocks[0].parameter_shape for name, blocks in graph.parameters.items()}
    return {name: _normal(generator, batch, *shape) for name, shape in shapes.items()}


def random_features(
    graph: WeightGraph,
    generator: torch.Generator,
    *,
    edge_features: tuple[int, int] = (1, 0),
    node_features: tuple[int, int] = (0, 0),
    invariant_features: int = 0,
    batch: int = 2,
) -> WeightFeatures:
    """Normal features in float64, with the given covariant and contravariant channels."""
    nodes: dict[str, Pair] = {}
    edges: dict[str, Pair] = {}
    invariants = {}
    for group in graph.groups:
        plus, minus = (_normal(generator, batch, group.size, c) for c in node_features)
        nodes[group.name] = (plus, minus)
        invariants[group.name] = _normal(generator, batch, group.size, invariant_features)
    for block in graph.blocks:
        shapes = ((batch * block.folds, c, *block.shape) for c in edge_features)
        plus, minus = (_normal(generator, *shape) for shape in shapes)
        edges[block.name] = (plus, minus)
    return WeightFeatures(graph, nodes, edges, invariants)


def transform_features(transform: Transform, features: WeightFeatures) -> WeightFeatures:
    """``g·x``: covariant features times ``q``, contravariant ones over ``q``, all permuted."""
    nodes: dict[str, Pair] = {}
    edges: dict[str, Pair] = {}
    for name, (plus, minus) in features.nodes.items():
        acted = transform.apply_to_nodes(name, plus)
        nodes[name] = (acted, transform.apply_to_nodes(name, minus, power=-1))
    for block in features.graph.blocks:
        plus, minus = features.edges[block.name]
        acted = transform.act_on_edges(block, plus)
        edges[block.name] = (acted, transform.act_on_edges(block, minus, power=-1))
    invariants = {
        name: x if x.shape[1] == 1 else transform.apply_to_nodes(name, x, power=0)
        for name, x in features.invariants.items()
    }
    return WeightFeatures(features.graph, nodes, edges, invariants)


def assert_equivariant(
    function: Callable[[Any], WeightFeatures | Mapping[str, Tensor] | Tensor],
    graph: WeightGraph,
    *,
    edge_features: tuple[int, int] | None = None,
    node_features: tuple[int, int] = (0, 0),
    invariant_features: int = 0,
    generator: torch.Generator | None = None,
    trials: int = 3,
    tolerance: float = 1e-9,
) -> None:
    """Check ``f(g·x) = g·f(x)`` in float64 for random ``x`` and random elements ``g``.

    Args:
        function: of :class:`WeightFeatures` with the given channels or, without
            ``edge_features``, of stacked parameters (batch, *shape) by name. It returns features,
            parameters (batch, *shape) or (batch, k, *shape), or a tensor that is to be invariant.
        generator: of inputs and group elements; seeded with 0 by default.
        tolerance: largest error of a block, relative to its largest entry.

    Raises:
        AssertionError: naming the block with the largest error.
    """
    generator = generator or torch.Generator().manual_seed(0)
    for _ in range(trials):
        transform = random_transform(graph, generator)
        if edge_features is None:
            x: Any = random_params(graph, generator)
            acted: Any = transform.apply(x)
        else:
            x = random_features(
                graph,
                generator,
                edge_features=edge_features,
                node_features=node_features,
                invariant_features=invariant_features,
            )
            acted = transform_features(transform, x)
        with torch.no_grad():
            found, expected = function(acted), _act(transform, function(x))
        errors = _errors(_named_tensors(found), _named_tensors(expected))
        worst = max(errors, key=errors.__getitem__)
        assert errors[worst] <= tolerance, (
            f"not equivariant: {worst} is off by {errors[worst]:.1e} of its largest entry, "
            f"expected at most {tolerance:.1e}"
        )


def _act(transform: Transform, value: Any) -> Any:
    if isinstance(value, WeightFeatures):
        return transform_features(transform, value)
    if isinstance(value, Tensor):
        return value
    parameters = transform.graph.parameters.items()
    ranks = {name: len(blocks[0].parameter_shape) + 1 for name, blocks in parameters}
    if all(value[name].ndim == rank for name, rank in ranks.items()):
        return transform.apply(value)
    acted = transform.apply({name: v.flatten(0, 1) for name, v in value.items()})
    return {name: v.unflatten(0, value[name].shape[:2]) for name, v in acted.items()}


def _named_tensors(value: Any) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {"the output": value}
    if not isinstance(value, WeightFeatures):
        return {f"parameter {name!r}": v for name, v in value.items()}
    named = {f"invariants of group {name!r}": x for name, x in value.invariants.items()}
    for what, pairs in (("group", value.nodes), ("block", value.edges)):
        for name, (plus, minus) in pairs.items():
            named[f"covariant stream of {what} {name!r}"] = plus
            named[f"contravariant stream of {what} {name!r}"] = minus
    return named


def _errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    errors = {}
    for name, value in expected.items():
        if value.numel():
            error = (found[name] - value).abs().max() / value.abs().max().clamp_min(_NEGLIGIBLE)
            errors[name] = float(error.nan_to_num(torch.inf))
    return errors


def _weight(
    name: str, source: NeuronGroup, target: NeuronGroup, generator: torch.Generator
) -> WeightBlock:
    """A linear layer, one after a flatten, or a convolution with a kernel."""
    kind = ("out src", "out (src k0)", "out src k0 k1")[_integer(generator, 0, 2)]
    kernel = [(axis, _integer(generator, 1, 3)) for axis in ("k0", "k1") if axis in kind]
    sizes = (("out", target.size), ("src", source.size), *kernel)
    return WeightBlock(name, target.name, source.name, kind, sizes)


def _integer(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
