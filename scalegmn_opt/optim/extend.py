"""The weight graph of all parameters that an optimizer reads, whether traced or not."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from itertools import count

from torch import Tensor

from scalegmn_opt.graph import CONSTANT, WeightGraph


def extended(graph: WeightGraph | None, parameters: Mapping[str, Tensor]) -> WeightGraph:
    """``graph`` with isolated blocks for parameters that it does not have, and no empty ones.

    Groups of these blocks are their own, also where a parameter is called as a module is.
    """
    known = set(graph.parameters) if graph else set()
    rest = WeightGraph.from_parameters(
        {name: p.shape for name, p in parameters.items() if name not in known and p.numel() > 0}
    )
    if graph is None:
        return rest
    graph = _without_empty(graph)
    rest = _renamed(rest, {*graph.group, *graph.axis})
    groups = (g for g in rest.groups if g.name not in graph.group)  # not the constant again
    return replace(graph, groups=(*graph.groups, *groups), blocks=(*graph.blocks, *rest.blocks))


def _renamed(graph: WeightGraph, taken: Iterable[str]) -> WeightGraph:
    """``graph`` with names for its groups that are not ``taken``, but for the constant's."""
    names, used = {CONSTANT: CONSTANT}, set(taken)
    for name in graph.group:
        names.setdefault(name, _free(name, used))
        used.add(names[name])
    return replace(
        graph,
        groups=tuple(replace(g, name=names[g.name]) for g in graph.groups),
        blocks=tuple(
            replace(b, target=names[b.target], source=names[b.source]) for b in graph.blocks
        ),
    )


def _free(name: str, taken: Container[str]) -> str:
    return next(n for i in count() if (n := f"{name}{'*' * i}") not in taken)


def _without_empty(graph: WeightGraph) -> WeightGraph:
    blocks = tuple(b for b in graph.blocks if 0 not in b.parameter_shape)
    return replace(graph, groups=tuple(g for g in graph.groups if g.size > 0), blocks=blocks)
