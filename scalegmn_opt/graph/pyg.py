"""Networks as torch_geometric graphs and back: a node for each neuron, an edge for each weight."""

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scalegmn_opt.graph.features import WeightFeatures, unpack
from scalegmn_opt.graph.weight_graph import Role, WeightBlock, WeightGraph

if TYPE_CHECKING:
    from torch_geometric.data import Data

_IDENTITY = ("group", "neuron", "edge_index", "block", "kernel")  # what tells nodes and edges apart


def to_pyg(
    graph: WeightGraph, params: Mapping[str, Tensor], grads: Mapping[str, Tensor] | None = None
) -> "Data":
    """One network, given by its parameters (*shape), as a torch_geometric graph.

    The nodes are the neurons of all groups in order, the edges the weights of all blocks in order:
    from source to target, one for each fold, target, source and kernel element, and from the
    constant neuron for biases. ``Batch.from_data_list`` joins networks of any architectures.

    Shapes:
        - ``edge_attr`` (edges, 1 or 2): weight and, with ``grads``, gradient, in their own dtype
        - of nodes, (nodes,): ``group``, ``neuron`` (its index there), ``role`` (index in
          :class:`Role`), ``permutes``, ``flips``, ``rescales``, ``common``, ``fan_in``, ``fan_out``
        - of edges, (edges,): ``block``, ``kernel`` (its element), ``kernel_size``, ``bias``,
          ``block_fan_in`` and ``block_fan_out`` (the block's edges with the same target, source)
        - ``x`` and ``invariants`` (nodes, 0); ``graph``: the ``WeightGraph`` itself

    Raises:
        ValueError: if a parameter is missing, unknown or of the wrong shape, or dtypes or devices
            differ.
    """
    _require_one_kind(params, grads or {})
    both = [v and {name: p[None] for name, p in v.items()} for v in (params, grads)]
    return features_to_pyg(WeightFeatures.from_parameters(graph, *both))[0]


def from_pyg(data: "Data") -> tuple[WeightGraph, dict[str, Tensor], dict[str, Tensor] | None]:
    """Graph, parameters (*shape) and gradients, if any: the exact inverse of :func:`to_pyg`.

    Attributes that do not say which edge is which are not read and may have been replaced.

    Raises:
        ValueError: if ``data`` is a ``Batch``, or its nodes and edges are not those of its graph.
    """
    check_structure(data)
    shape, count = tuple(data.edge_attr.shape), data.edge_index.shape[1]
    if shape not in ((count, 1), (count, 2)):
        raise ValueError(f"data.edge_attr: expected shape ({count}, 1 or 2), got {shape}")
    columns = [_parameters(data, column) for column in range(shape[1])]
    return data.graph, columns[0], columns[1] if len(columns) > 1 else None


def features_to_pyg(features: WeightFeatures) -> list["Data"]:
    """Each of B networks as in :func:`to_pyg`, with all features; they share their structure.

    Shapes:
        ``x`` (nodes, channels) and ``edge_attr`` (edges, channels), covariant channels first, and
        ``invariants`` (nodes, channels)
    """
    from torch_geometric.data import Data

    graph = features.graph
    edges = torch.cat([_rows(b, torch.cat(features.edges[b.name], 1)) for b in graph.blocks], 1)
    nodes = torch.cat([torch.cat(features.nodes[g.name], 2) for g in graph.groups], 1)
    known = [features.invariants[g.name].expand(-1, g.size, -1) for g in graph.groups]
    invariants = torch.cat(known, 1)
    structure = _structure(graph, edges.device)
    return [
        Data(
            x=nodes[i].clone(),
            edge_attr=edges[i].clone(),
            invariants=invariants[i].clone(),
            num_nodes=nodes.shape[1],
            graph=graph,
            **structure,
        )
        for i in range(features.batch_size)
    ]


def features_from_pyg(
    data: "Data", *, edge_features: tuple[int, int], node_features: tuple[int, int] = (0, 0)
) -> WeightFeatures:
    """The features (batch of 1) of one network, with the given channels of each stream.

    ``data`` has the structure that :func:`to_pyg` gave it, see :func:`check_structure`.
    """
    graph, nodes, invariants = data.graph, {}, {}
    sizes = [group.size for group in graph.groups]
    parts = (rows[None].split(sizes, 1) for rows in (data.x, data.invariants))
    for group, x, known in zip(graph.groups, *parts, strict=True):
        nodes[group.name] = x.split(node_features, 2)
        invariants[group.name] = known
    edges = {name: values.split(edge_features, 1) for name, values in _edges(data).items()}
    return WeightFeatures(graph, nodes, edges, invariants)


def check_structure(data: "Data") -> None:
    """Raise a ``ValueError`` unless ``data`` has the nodes and edges of its graph, in order."""
    graph = data.graph if "graph" in data else None
    if not isinstance(graph, WeightGraph):
        hint = "; split a Batch with to_data_list()" if isinstance(graph, list) else ""
        raise ValueError(
            f"data.graph: expected the WeightGraph of one network, got {type(graph).__name__}{hint}"
        )
    expected = _structure(graph, torch.device("cpu"))
    for name in _IDENTITY:
        found = (data[name] if name in data else torch.empty(0)).cpu()
        if found.shape != expected[name].shape:
            shapes = f"expected shape {tuple(expected[name].shape)}, got {tuple(found.shape)}"
            raise ValueError(f"data.{name}: {shapes}")
        if not torch.equal(found, expected[name]):
            count = int((found != expected[name]).sum())
            raise ValueError(
                f"data.{name}: expected the order of data.graph, got {count} other entries"
            )


def _structure(graph: WeightGraph, device: torch.device) -> dict[str, Tensor]:
    """All attributes of :func:`to_pyg` that do not depend on parameters."""
    structure = _node_structure(graph) | _edge_structure(graph)
    return {name: value.to(device) for name, value in structure.items()}


def _node_structure(graph: WeightGraph) -> dict[str, Tensor]:
    groups, roles = graph.groups, list(Role)
    by_group = {
        "group": range(len(groups)),
        "role": [roles.index(group.role) for group in groups],
        **{
            flag: [getattr(group.symmetry, flag) for group in groups]
            for flag in ("permutes", "flips", "rescales", "common")
        },
        "fan_in": [graph.fan_in[group.name] for group in groups],
        "fan_out": [graph.fan_out[group.name] for group in groups],
    }
    nodes = _repeat(by_group, [group.size for group in groups])
    return nodes | {"neuron": torch.cat([torch.arange(group.size) for group in groups])}


def _edge_structure(graph: WeightGraph) -> dict[str, Tensor]:
    shapes = [block.shape for block in graph.blocks]
    by_block = {
        "block": range(len(graph.blocks)),
        "kernel_size": [kernel for _, _, kernel in shapes],
        "bias": [block.is_vector for block in graph.blocks],
        "block_fan_in": [source * kernel for _, source, kernel in shapes],
        "block_fan_out": [out * kernel for out, _, kernel in shapes],
    }
    edges = _repeat(by_block, [_edge_count(block) for block in graph.blocks])
    ends = [_ends(graph, block) for block in graph.blocks]
    kernels = [torch.arange(b.shape[2]).repeat(_edge_count(b) // b.shape[2]) for b in graph.blocks]
    return edges | {"edge_index": torch.cat(ends, 1), "kernel": torch.cat(kernels)}


def _ends(graph: WeightGraph, block: WeightBlock) -> Tensor:
    """Source and target nodes (2, edges) of a block's edges."""
    first, nodes = 0, {}
    for group in graph.groups:
        nodes[group.name] = torch.arange(first, first + group.size)[None]
        first += group.size
    target = block.fold(nodes[block.target], 0)[:, :, None, None]
    source = block.fold(nodes[block.source], 1)[:, None, :, None]
    shape = (block.folds, *block.shape)
    return torch.stack([source.expand(shape).flatten(), target.expand(shape).flatten()])


def _rows(block: WeightBlock, edges: Tensor) -> Tensor:
    """Edges (batch · folds, channels, out, in, kernel) as (batch, edges, channels)."""
    folded = edges.movedim(1, -1).unflatten(0, (-1, block.folds))
    return folded.flatten(1, -2)


def _edges(data: "Data") -> dict[str, Tensor]:
    """Edges (folds, channels, out, in, kernel) by block."""
    blocks = data.graph.blocks
    parts = data.edge_attr.split([_edge_count(block) for block in blocks])
    return {
        block.name: part.unflatten(0, (block.folds, *block.shape)).movedim(-1, 1)
        for block, part in zip(blocks, parts, strict=True)
    }


def _parameters(data: "Data", column: int) -> dict[str, Tensor]:
    """A column of ``edge_attr`` as tensors (*shape) of their own."""
    found = unpack(data.graph, {name: e[:, column] for name, e in _edges(data).items()})
    return {name: p[0].clone(memory_format=torch.contiguous_format) for name, p in found.items()}


def _edge_count(block: WeightBlock) -> int:
    return block.folds * prod(block.shape)


def _repeat(columns: Mapping[str, object], counts: list[int]) -> dict[str, Tensor]:
    repeats = torch.tensor(counts)
    return {k: torch.tensor(list(v)).repeat_interleave(repeats) for k, v in columns.items()}


def _require_one_kind(*values: Mapping[str, Tensor]) -> None:
    kinds = {(p.dtype, p.device) for part in values for p in part.values()}
    if len(kinds) > 1:
        found = sorted(f"{dtype} on {device}" for dtype, device in kinds)
        raise ValueError(f"params and grads: expected one dtype and device, got {found}")
