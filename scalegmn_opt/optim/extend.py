"""The weight graph of all parameters that an optimizer reads, whether traced or not."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from scalegmn_opt.graph import NeuronGroup, WeightBlock, WeightGraph


def extended(graph: WeightGraph | None, parameters: Mapping[str, Tensor]) -> WeightGraph:
    """``graph`` with isolated blocks for parameters that it does not have, and no empty ones."""
    known = set(graph.parameters) if graph else set()
    rest = WeightGraph.from_parameters(
        {name: p.shape for name, p in parameters.items() if name not in known and p.numel() > 0}
    )
    if graph is None:
        return rest
    graph = _without_empty(graph)
    groups: list[NeuronGroup] = [g for g in rest.groups if g.name not in graph.group]
    blocks: tuple[WeightBlock, ...] = rest.blocks
    return replace(graph, groups=(*graph.groups, *groups), blocks=(*graph.blocks, *blocks))


def _without_empty(graph: WeightGraph) -> WeightGraph:
    blocks = tuple(b for b in graph.blocks if 0 not in b.parameter_shape)
    return replace(graph, groups=tuple(g for g in graph.groups if g.size > 0), blocks=blocks)
