"""Canonical scales: one number a neuron that turns weights and gradients into invariants."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from scalegmn_opt.graph import Role, WeightBlock, WeightGraph


@dataclass(frozen=True)
class Gauge:
    """Scales ``s`` (batch, nodes) by group, with ``s -> |q| s`` under every group element.

    ``ŵ_ij = w_ij s_j / s_i`` and ``ĝ_ij = g_ij s_i / s_j`` are free of positive scales, and
    ``Δw_ij = (s_i / s_j) Δŵ_ij`` is covariant whatever ``Δŵ`` is computed from them.
    """

    scales: dict[str, Tensor]

    def ratio(self, block: WeightBlock) -> Tensor:
        """``s_i / s_j`` (batch, out, in, 1) of a block's edges."""
        target, source = self.scales[block.target], self.scales[block.source]
        return (target[:, :, None] / source[:, None, :]).unsqueeze(-1)


def forward_sweep(
    graph: WeightGraph, edges: dict[str, Tensor], *, input_rms: Tensor | float = 1.0
) -> Gauge:
    """``s_i = ||(w_ij s_j)_j, b_i||`` from the inputs forward, with ``s = input_rms`` on inputs.

    Where a group allows no positive scale the root mean square over the group stands for each of
    its neurons. Neurons whose incoming weights are all zero get 1.

    Args:
        edges: packed parameters, by block (batch, out, in, kernel).
        input_rms: root mean square of the network's input, a number or (batch,).
    """
    first = next(iter(edges.values()))
    one = first.new_ones(len(first), 1)
    rms = torch.as_tensor(input_rms, dtype=first.dtype, device=first.device).expand(len(first))
    scales: dict[str, Tensor] = {}
    for name, blocks in graph.sweep:
        group = graph.group[name]
        if group.role is Role.INPUT:
            scales[name] = rms[:, None].expand(-1, group.size)
        elif not blocks:
            scales[name] = one.expand(-1, group.size)
        else:
            square = sum(_incoming_power(edges[b.parameter], scales[b.source]) for b in blocks)
            scales[name] = _scale(square, shared=not group.symmetry.rescales)
    return Gauge(scales)


def _incoming_power(weights: Tensor, source: Tensor) -> Tensor:
    """``Σ_jk (w_ijk s_j)²``, (batch, out)."""
    return torch.einsum("boik,bi->bo", weights.square(), source.square())


def _scale(square: Tensor, *, shared: bool) -> Tensor:
    if shared:
        square = square.mean(1, keepdim=True).expand_as(square)
    return torch.where(square > 0, square, 1.0).sqrt()


@lru_cache(maxsize=256)
def gauged(graph: WeightGraph) -> WeightGraph:
    """The graph of gauge-fixed features: positive scales are gone, permutations and signs stay."""
    groups = (replace(g, symmetry=replace(g.symmetry, rescales=False)) for g in graph.groups)
    return WeightGraph(tuple(groups), graph.blocks)
