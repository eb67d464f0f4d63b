"""Tensors on a weight graph: parameters, gradients and what layers make of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scalegmn_opt.graph.weight_graph import WeightBlock, WeightGraph

Pair = tuple[Tensor, Tensor]  # a covariant tensor (multiplier q) and a contravariant one (1/q)


def pack(graph: WeightGraph, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters or gradients (batch, *shape) as edges (batch · folds, out, in, kernel), by block.

    Raises:
        ValueError: if a parameter is missing, unknown, or of the wrong shape.
    """
    check_parameters(graph, values)
    return {block.name: block.pack(values[block.parameter]) for block in graph.blocks}


def unpack(graph: WeightGraph, edges: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Edges (batch · folds, out, in, kernel) as parameters (batch, *shape), ``pack``'s inverse."""
    return {name: unpack_parameter(graph, name, edges) for name in graph.parameters}


def unpack_parameter(graph: WeightGraph, name: str, edges: Mapping[str, Tensor]) -> Tensor:
    """One parameter (batch, *shape) from the edges of its blocks, by their names."""
    blocks = graph.parameters[name]
    return unpack_blocks(blocks, [edges[block.name] for block in blocks])


def unpack_blocks(blocks: Sequence[WeightBlock], edges: Sequence[Tensor]) -> Tensor:
    """One parameter from the edges of its blocks, which are parts of it."""
    parts = [block.unpack(own) for block, own in zip(blocks, edges, strict=True)]
    if blocks[0].window is None:
        return parts[0]
    whole = parts[0].new_empty(len(parts[0]), *blocks[0].parameter_shape)
    for block, part in zip(blocks, parts, strict=True):
        block.window.view(whole).copy_(part)
    return whole


def check_parameters(graph: WeightGraph, values: Mapping[str, Tensor]) -> None:
    """Raise a ``ValueError`` unless ``values`` are stacked parameters of ``graph``."""
    names = list(graph.parameters)
    missing, unknown = sorted(set(names) - set(values)), sorted(set(values) - set(names))
    if missing or unknown:
        raise ValueError(f"params: expected {names}, missing {missing}, unknown {unknown}")
    batches = {name: value.shape[:1] for name, value in values.items()}
    if len(set(batches.values())) > 1:
        raise ValueError(f"params: expected one batch size, got {batches}")
    for name, (block, *_) in graph.parameters.items():
        shape = tuple(values[name].shape)
        if shape[1:] != block.parameter_shape:
            expected = ("batch", *block.parameter_shape)
            raise ValueError(f"params[{name!r}]: expected shape {expected}, got {shape}")


@dataclass(frozen=True)
class WeightFeatures:
    """Covariant and contravariant features of B networks of one graph.

    Shapes:
        - ``nodes[group]``: two tensors (batch, nodes, channels)
        - ``edges[block]``: two tensors (batch · folds, channels, out, in, kernel)
        - ``invariants[group]``: (batch, nodes or 1, channels)

    Channels come first on edges so that mixing them is one matrix product over all edges and a
    message one over each channel. A stream without features has zero channels.

    A batch is one tensor a block and stream, without padding or indices: in float32 an edge of a
    network takes 4 bytes, or 8 with its gradient. See :class:`ScaleGMN` for what layers add.
    """

    graph: WeightGraph
    nodes: dict[str, Pair]
    edges: dict[str, Pair]
    invariants: dict[str, Tensor]

    @classmethod
    def from_parameters(
        cls,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor] | None = None,
    ) -> "WeightFeatures":
        """One covariant channel (the weight) and, with ``grads``, one contravariant channel."""
        plus = {name: edge.unsqueeze(1) for name, edge in pack(graph, params).items()}
        if grads is None:
            minus = {name: edge[:, :0] for name, edge in plus.items()}
        else:
            minus = {name: edge.unsqueeze(1) for name, edge in pack(graph, grads).items()}
        edges = {name: (plus[name], minus[name]) for name in plus}
        first = next(iter(params.values()))
        empty = {g.name: first.new_zeros(len(first), g.size, 0) for g in graph.groups}
        return cls(graph, {name: (e, e) for name, e in empty.items()}, edges, empty)

    def to_parameters(self) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Parameters and gradients again: the exact inverse of :meth:`from_parameters`."""
        plus = unpack(self.graph, {name: pair[0][:, 0] for name, pair in self.edges.items()})
        if any(pair[1].shape[1] == 0 for pair in self.edges.values()):
            return plus, None
        return plus, unpack(self.graph, {name: pair[1][:, 0] for name, pair in self.edges.items()})

    def tensors(self) -> Iterator[Tensor]:
        """All node and edge tensors."""
        for pair in (*self.nodes.values(), *self.edges.values()):
            yield from pair

    @property
    def batch_size(self) -> int:
        """Number of networks."""
        return len(next(self.tensors()))


def stack_parameters(networks: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Parameters of several networks of one graph, stacked along a leading batch axis."""
    return {name: torch.stack([net[name] for net in networks]) for name in networks[0]}
