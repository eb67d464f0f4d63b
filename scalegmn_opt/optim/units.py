"""The units of steps: what an update's size is relative to, and how large updates are in them."""

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from scalegmn_opt.graph import WeightBlock, WeightGraph
from scalegmn_opt.optim.directions import constants


def step_scale(graph: WeightGraph, block: WeightBlock) -> float:
    """Relative size of a step: ``1 / fan_in`` of a weight, ``1 / sqrt(fan_in)`` of a bias.

    A vector on neurons without other incoming weights is treated as one weight a neuron.
    """
    if not block.is_vector:
        return 1.0 / graph.fan_in[block.target]
    if all(other.is_vector for other in graph.incoming[block.target]):
        return 1.0 / (block.shape[0] * block.shape[2])
    return graph.fan_in[block.target] ** -0.5


def block_ends(
    blocks: Sequence[WeightBlock], own: Mapping[str, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """The gauge that a parameter's state keeps, ``s_i`` (batch, out), ``s_j`` (batch, in)."""
    if len(blocks) == 1:
        return [(own["target"], own["source"])]
    targets = own["target"].split([block.nodes[0] for block in blocks], 1)
    sources = own["source"].split([block.nodes[1] for block in blocks], 1)
    return list(zip(targets, sources, strict=True))


@torch.no_grad()
def measured_sizes(
    updates: Mapping[str, Tensor], graph: WeightGraph, state: Mapping[str, Mapping[str, Tensor]]
) -> Tensor:
    """Root mean squares of ``Δŵ / unit`` of updates (batch, blocks), in the updates' order.

    At 1 an aligned update changes a pre-activation by its initial size.
    """
    edges = {b.name: b.pack(u) for n, u in updates.items() for b in graph.parameters[n]}
    return edge_sizes(edges, graph, state, updates)


@torch.no_grad()
def edge_sizes(
    edges: Mapping[str, Tensor],
    graph: WeightGraph,
    state: Mapping[str, Mapping[str, Tensor]],
    names: Iterable[str],
) -> Tensor:
    """As :func:`measured_sizes`, of the updates of blocks (batch · folds, out, in, kernel)."""
    found, units = [], []
    for name in names:
        blocks = graph.parameters[name]
        for block, ends in zip(blocks, block_ends(blocks, state[name]), strict=True):
            found.append(_norms(block, edges[block.name], *ends))
            units.append(step_scale(graph, block) * _root(block))
    norms = torch.stack(found, 1)
    return norms / constants(units, norms)


def _norms(block: WeightBlock, edges: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """Roots (batch,) of the sums of squares of an update in gauge coordinates."""
    if block.is_vector:
        rows = torch.linalg.vector_norm(edges / target[:, :, None, None], dim=(2, 3))
    else:
        edges = edges * block.fold(source, 1)[:, None, :, None]
        rows = torch.linalg.vector_norm(edges, dim=(2, 3)) / block.fold(target, 0)
    return torch.linalg.vector_norm(rows.reshape(len(target), -1), dim=1)


def reaches(graph: WeightGraph, state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    """The largest entry, by parameter, that an update of size 1 may have, with all in one weight.

    It is that of the gauge, which does not change in training.
    """
    found = {}
    for name, own in state.items():
        blocks, peaks = graph.parameters[name], []
        for block, (target, source) in zip(blocks, block_ends(blocks, own), strict=True):
            unit = step_scale(graph, block) * _root(block)
            peaks.append(unit * float(target.detach().max() / source.detach().min()))
        found[name] = max(peaks)
    return found


def _root(block: WeightBlock) -> float:
    return (block.folds * prod(block.shape)) ** 0.5


def in_order(graph: WeightGraph, sizes: Mapping[str, Tensor]) -> Tensor:
    """Sizes (batch,) by block as (batch, blocks), in the order of ``graph.parameters``."""
    every = (block.name for blocks in graph.parameters.values() for block in blocks)
    return torch.stack([sizes[name] for name in every if name in sizes], 1)
