"""Gauss–Newton steps of SIRENs toward pictures, corrected by a network that learned how."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scalegmn_opt.backbone import ScaleGMN
from scalegmn_opt.graph import CONSTANT, WeightBlock, WeightFeatures, WeightGraph, pack
from scalegmn_opt.heads import DeltaHead
from scalegmn_opt.inr import SirenSpec, pixel_grid, siren_graph

from .tangent import Matrices, Tangent, split

_SMALLEST = 1e-6  # below it, sizes are not told apart


class LearnedGaussNewton(nn.Module):
    """``θ' = θ + s d + rms(d) Δ``: conjugate gradients lead to ``d``, a ScaleGMN knows ``Δ``.

    ``J d`` comes near the wanted change of the picture, but the network follows its tangent for
    small steps only. The backbone reads weights, two stages of ``d``, and of every neuron its
    activations at probe points, how they move, and how far its angle turns; it learned which parts
    of ``d`` are too long and what to do instead. Permuting hidden neurons or flipping their signs
    does the same to the result; where no change is wanted, nothing changes. Networks of any width
    and depth can be read.

    Args:
        iterations: of conjugate gradients for ``d``.
        probes: points along each side of the probe grid.
        node_channels, edge_channels, hidden_channels, num_layers: size of the backbone.
        gradient: whether the backbone also reads, contravariantly, how the squared error to the
            targets falls with every weight.

    Shapes:
        params name -> (batch, *shape), targets (batch, points, out_features) -> params
    """

    def __init__(
        self,
        *,
        iterations: int = 2,
        probes: int = 5,
        node_channels: int = 16,
        edge_channels: int = 8,
        hidden_channels: int = 32,
        num_layers: int = 1,
        gradient: bool = False,
    ) -> None:
        super().__init__()
        self.iterations, self.gradient = iterations, gradient
        self.backbone = ScaleGMN(
            edge_features=(3, int(gradient)),
            node_features=(2 * probes**2, 0),
            invariant_features=3,
            node_channels=node_channels,
            edge_channels=edge_channels,
            hidden_channels=hidden_channels,
            num_layers=num_layers,
        )
        self.head = DeltaHead(edge_channels, scale=0.1)
        self.length = nn.Parameter(torch.tensor(0.6))
        self.register_buffer("coords", pixel_grid(probes, probes).float(), persistent=False)

    def forward(
        self, params: Mapping[str, Tensor], spec: SirenSpec, tangent: Tangent, targets: Tensor
    ) -> dict[str, Tensor]:
        with torch.no_grad():  # what the backbone reads is constant
            features, direction = self._features(params, spec, tangent, targets)
        corrections = self.head(self.backbone(features))
        edited = {}
        for name, value in params.items():
            size = _mean_square(direction[name]).sqrt()
            step = self.length * direction[name] + size * corrections[name][:, 0]
            edited[name] = value + step
        return edited

    def _features(
        self, params: Mapping[str, Tensor], spec: SirenSpec, tangent: Tangent, targets: Tensor
    ) -> tuple[WeightFeatures, dict[str, Tensor]]:
        graph, wanted = siren_graph(spec), targets - tangent.outputs
        reached, moved = tangent.stages(wanted, self.iterations)
        direction, stages = reached[-1], [split(reached[0]), split(reached[-1])]
        descent = split(tangent.pull(wanted)) if self.gradient else None
        edges = _edges(graph, params, stages, descent)
        *hidden, change = moved
        sizes = torch.stack([_size(wanted), _size(wanted - change)], -1)  # (batch, 2)
        turns = [_size(moved, 1, unit=spec.w0) for moved in hidden]
        nodes = self._probe(graph, params, spec, direction)
        invariants = _invariants(graph, sizes, turns)
        return WeightFeatures(graph, nodes, edges, invariants), stages[-1]

    def _probe(
        self,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        spec: SirenSpec,
        direction: Matrices,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Activations and their movements at the probe points, (batch, nodes, 2 points)."""
        tangent = Tangent.of(params, spec, self.coords)
        moved = tangent.movements(direction)
        inputs = [x[..., :-1] for x in tangent.inputs]
        ones = torch.ones_like(inputs[0][..., :1])
        hidden = [slope * m for slope, m in zip(tangent.slopes, moved[:-1], strict=True)]
        states = [ones, *inputs, tangent.outputs]
        changes = [0 * ones, 0 * inputs[0], *hidden, moved[-1]]
        groups = [CONSTANT, *_groups_in_order(graph)]
        nodes = {
            name: torch.cat([state, change], 1).mT
            for name, state, change in zip(groups, states, changes, strict=True)
        }
        return {name: (x, x[..., :0]) for name, x in nodes.items()}


def _edges(
    graph: WeightGraph,
    params: Mapping[str, Tensor],
    stages: list[dict[str, Tensor]],
    descent: dict[str, Tensor] | None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Weights and descent relative to their tensor's size; directions to the last direction's."""
    parts = [{name: value / _rms(value) for name, value in params.items()}]
    parts += [{n: stage[n] / _rms(stages[-1][n]) for n in params} for stage in stages]
    covariant = len(parts)
    if descent is not None:
        parts.append({name: value / _rms(value) for name, value in descent.items()})
    packed = [pack(graph, part) for part in parts]
    edges = {name: torch.stack([part[name] for part in packed], 1) for name in packed[0]}
    return {name: (edge[:, :covariant], edge[:, covariant:]) for name, edge in edges.items()}


def _invariants(graph: WeightGraph, sizes: Tensor, turns: list[Tensor]) -> dict[str, Tensor]:
    """Logarithms of the wanted change, of what the tangent leaves, and of a neuron's turn."""
    turn = dict(zip(_groups_in_order(graph)[1:], turns, strict=False))  # hidden groups only
    invariants = {}
    for group in graph.groups:
        shared = sizes[:, None].expand(-1, group.size, -1)
        own = turn.get(group.name, torch.zeros_like(shared[..., 0]))
        invariants[group.name] = torch.cat([shared, own.unsqueeze(2)], 2)
    return invariants


def _groups_in_order(graph: WeightGraph) -> list[str]:
    """Names of the groups from the coordinates to the output."""
    blocks: list[WeightBlock] = [block for block in graph.blocks if not block.is_vector]
    return [blocks[0].source, *(block.target for block in blocks)]


def _size(x: Tensor, axis: int | tuple[int, int] = (1, 2), *, unit: float = 1.0) -> Tensor:
    """Logarithm of the root mean square along axes, times `unit`."""
    norm = torch.linalg.vector_norm(x, dim=axis)  # makes no copy of x, which is large
    count = x.numel() / norm.numel()
    return (norm * (unit / count**0.5)).clamp_min(_SMALLEST).log()


def _rms(x: Tensor) -> Tensor:
    """Root mean square (batch, 1, ...) of each network's tensor; 1 where all is zero."""
    mean = _mean_square(x)
    return torch.where(mean > 0, mean, 1.0).sqrt()


def _mean_square(x: Tensor) -> Tensor:
    return x.square().mean(tuple(range(1, x.ndim)), keepdim=True)
