"""Canonical scales: one number a neuron that turns weights and gradients into invariants."""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf

import torch
from torch import Tensor

from scalegmn_opt.graph import NeuronGroup, Role, WeightBlock, WeightGraph
from scalegmn_opt.graph.order import fewest_missing_first

_BOUNDED = frozenset({"arctan", "erf", "hardtanh", "sine", "softsign", "tanh"})


@dataclass(frozen=True)
class Gauge:
    """Scales ``s`` (batch, nodes) by group, with ``s -> |q| s`` under every group element.

    ``ŵ_ij = w_ij s_j / s_i`` and ``ĝ_ij = g_ij s_i / s_j`` are free of positive scales, and
    ``Δw_ij = (s_i / s_j) Δŵ_ij`` is covariant whatever ``Δŵ`` is computed from them.
    """

    scales: dict[str, Tensor]

    def ratio(self, block: WeightBlock) -> Tensor:
        """``s_i / s_j`` (batch · folds, out, in, 1) of a block's edges."""
        return scale_ratio(block, self.scales[block.target], self.scales[block.source])


def scale_ratio(block: WeightBlock, target: Tensor, source: Tensor) -> Tensor:
    """``s_i / s_j`` (batch · folds, out, in, 1) of the scales (batch, nodes) at a block's ends."""
    target, source = block.fold(target, 0), block.fold(source, 1)
    return (target[:, :, None] / source[:, None, :]).unsqueeze(-1)


def forward_sweep(
    graph: WeightGraph, edges: dict[str, Tensor], *, input_rms: Tensor | float = 1.0
) -> Gauge:
    """``s_i = ||(w_ij s_j)_j, b_i||`` from the inputs forward, with ``s = input_rms`` on inputs.

    Where a group allows no positive scale, or one for all of its neurons, the root mean square over
    the group stands for each of them. Neurons whose incoming weights are all zero get 1. A group
    without incoming weights has the scales of those that its multipliers come from.

    Args:
        edges: packed parameters, by block (batch, out, in, kernel).
        input_rms: root mean square of the network's input, a number or (batch,).
    """
    return Gauge(_sweep(graph, edges, input_rms=input_rms, bounded=False)[0])


def activity_sweep(
    graph: WeightGraph, edges: dict[str, Tensor], *, input_rms: Tensor | float = 1.0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sizes (batch, nodes) of a change that a neuron would notice, and of what it gives, by group.

    Both are the scales of :func:`forward_sweep`, but where an odd activation ``σ(f z)`` is bounded
    by one: there a pre-activation of more than ``1 / f`` is not more sensitive for its size, and no
    more than one comes out. Such neurons have no positive scale, so that as pairs of sizes at the
    ends of a weight they are a gauge as well. Arguments as there.
    """
    return _sweep(graph, edges, input_rms=input_rms, bounded=True)


def _sweep(
    graph: WeightGraph,
    edges: dict[str, Tensor],
    *,
    input_rms: Tensor | float,
    bounded: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    batch = len(edges[graph.blocks[0].name]) // graph.blocks[0].folds
    one = edges[graph.blocks[0].name].new_ones(batch, 1)
    rms = torch.as_tensor(input_rms, dtype=one.dtype, device=one.device).expand(batch)
    scales: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for name, blocks in graph.sweep:
        group = graph.group[name]
        if group.role is Role.INPUT:
            scales[name] = rms[:, None].expand(-1, group.size)
        elif name in graph.derived:
            scales[name] = _derived(graph, group, scales, one)
        elif not blocks:
            scales[name] = one.expand(-1, group.size)
        else:
            square = sum(_incoming_power(b, edges[b.name], outputs[b.source]) for b in blocks)
            shared = not group.symmetry.rescales or group.symmetry.common
            scales[name] = _scale(square, shared=shared)
        outputs[name] = scales[name]
        largest = largest_change(group) if bounded else inf
        if largest < inf:
            outputs[name] = (scales[name] / largest).clamp_max(1.0)
            scales[name] = scales[name].clamp_max(largest)
    return scales, outputs


def largest_change(group: NeuronGroup) -> float:
    """``1 / f`` for an odd activation ``σ(f z)`` bounded by one: more is not noticed; or inf."""
    if group.activation and group.activation.name in _BOUNDED:
        return 1.0 / abs(group.activation.parameter)
    return inf


def backward_sweep(
    graph: WeightGraph, edges: dict[str, Tensor], *, forward: Gauge
) -> dict[str, Tensor]:
    """``t_j = ||(w_ij t_i)_i||`` from the outputs back, ``t = 1`` on outputs: ``t -> t / |q|``.

    By name (batch, nodes), for groups that weights lead to. In a homogeneous network ``s_j² t_i²``
    is the sum, over all paths through ``w_ij``, of the product of the other squared weights. What
    is no weight has no such product: neurons that only a normalisation, a product or an attention
    reads get ``1 / s_i``, as if their next stop divided by their size. In a cycle, as of a
    residual stream, a group takes the outgoing weights whose targets come before it. Shared scales
    and neurons whose outgoing weights are all zero are treated as in :func:`forward_sweep`.

    Args:
        edges: as of the forward sweep.
        forward: its result.
    """
    found: dict[str, Tensor] = {}
    for name, blocks in _backward_order(graph):
        group, s = graph.group[name], forward.scales[name]
        if group.role is Role.OUTPUT:
            found[name] = torch.ones_like(s)
        elif not blocks:
            found[name] = 1 / s
        else:
            square = sum(_outgoing_power(b, edges[b.name], found[b.target]) for b in blocks)
            shared = not group.symmetry.rescales or group.symmetry.common
            found[name] = _scale(square, shared=shared)
    return found


@lru_cache(maxsize=256)
def _backward_order(graph: WeightGraph) -> tuple[tuple[str, tuple[WeightBlock, ...]], ...]:
    """Targets of weights from the last on, each with its outgoing blocks to those before it."""
    outgoing: dict[str, list[WeightBlock]] = {block.target: [] for block in reversed(graph.blocks)}
    for block in graph.blocks:
        if block.source in outgoing and block.source != block.target:
            outgoing[block.source].append(block)
    needs = {name: [block.target for block in blocks] for name, blocks in outgoing.items()}
    outputs = {group.name for group in graph.groups if group.role is Role.OUTPUT}
    steps: dict[str, tuple[WeightBlock, ...]] = {}
    for name in fewest_missing_first(needs, begun=outputs, every=()):
        steps[name] = tuple(block for block in outgoing[name] if block.target in steps)
    return tuple(steps.items())


def _outgoing_power(block: WeightBlock, weights: Tensor, target: Tensor) -> Tensor:
    """``Σ_ik (w_ijk t_i)²``, (batch, nodes)."""
    target = block.fold(target, 0)
    return block.unfold(torch.einsum("boik,bo->bi", weights.square(), target.square()), 1)


def _incoming_power(block: WeightBlock, weights: Tensor, source: Tensor) -> Tensor:
    """``Σ_jk (w_ijk s_j)²``, (batch, nodes)."""
    source = block.fold(source, 1)
    return block.unfold(torch.einsum("boik,bi->bo", weights.square(), source.square()), 0)


def _derived(
    graph: WeightGraph, group: NeuronGroup, scales: dict[str, Tensor], one: Tensor
) -> Tensor:
    """Products of powers of other groups' scales, constant along the axes they do not have."""
    names = graph.group_axes(group)
    sizes = [graph.axis[name].size for name in names]
    total = one.expand(-1, group.size).unflatten(1, sizes)
    for owner, power in graph.derived[group.name]:
        axes = graph.group_axes(graph.group[owner])
        own = scales[owner].unflatten(1, [graph.axis[name].size for name in axes])
        lost = tuple(1 + i for i, name in enumerate(axes) if name not in names)
        own = own.square().mean(lost).sqrt() if lost else own
        kept = [name for name in axes if name in names]
        own = own.permute(0, *(1 + kept.index(name) for name in names if name in kept))
        shape = [size if n in kept else 1 for n, size in zip(names, sizes, strict=True)]
        total = total * own.reshape(-1, *shape) ** power
    return total.flatten(1)


def _scale(square: Tensor, *, shared: bool) -> Tensor:
    if shared:
        square = square.mean(1, keepdim=True).expand_as(square)
    return torch.where(square > 0, square, 1.0).sqrt()


@lru_cache(maxsize=256)
def gauged(graph: WeightGraph) -> WeightGraph:
    """The graph of gauge-fixed features: positive scales are gone, permutations and signs stay."""
    groups = (
        replace(g, symmetry=replace(g.symmetry, rescales=False, common=False)) for g in graph.groups
    )
    scales = (replace(scale, rescales=False, erased=False) for scale in graph.scales)
    return WeightGraph(tuple(groups), graph.blocks, graph.axes, tuple(scales))


@lru_cache(maxsize=256)
def only_permuted(graph: WeightGraph) -> WeightGraph:
    """The graph with its permutations and without any multipliers, positive or negative."""
    none = {"flips": False, "rescales": False, "common": False}
    groups = (replace(g, symmetry=replace(g.symmetry, **none), scales=()) for g in graph.groups)
    return WeightGraph(tuple(groups), graph.blocks, graph.axes)
