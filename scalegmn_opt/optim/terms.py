"""The learned terms of a weight's update."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scalegmn_opt.graph import WeightGraph
from scalegmn_opt.nn.linear import mix, weight
from scalegmn_opt.optim.edges import DIRECTIONS, INVARIANTS, Edges, invariants
from scalegmn_opt.optim.neurons import NeuronNetwork

Ends = tuple[Tensor, Tensor]  # terms of target and source neurons (batch, terms, nodes, 1, 1)
OUTPUTS = 2 + DIRECTIONS  # log step, share of the weight, mixture of directions


class WeightTerms(nn.Module):
    """Invariant terms of each weight: of its two neurons, and of a narrow MLP on its features.

    All are zero before meta-training.

    Shapes:
        directions and weights (batch, rows, in, kernel), ends (batch, terms, nodes, 1, 1) ->
        (batch, OUTPUTS, rows, in, kernel)

    Args:
        channels, message_channels, hidden_channels, extra: of the :class:`NeuronNetwork`.
        weight_channels: hidden width of the MLP.
    """

    def __init__(
        self,
        *,
        channels: int,
        message_channels: int,
        hidden_channels: int,
        weight_channels: int,
        extra: int,
    ) -> None:
        super().__init__()
        self.neurons = NeuronNetwork(
            channels=channels,
            message_channels=message_channels,
            hidden_channels=hidden_channels,
            extra=extra,
            terms=weight_channels + OUTPUTS,
        )
        nn.init.zeros_(self.neurons.terms.out.weight)
        nn.init.zeros_(self.neurons.terms.out.bias)
        self.first = weight(weight_channels, INVARIANTS)
        self.second = nn.Parameter(torch.zeros(OUTPUTS, weight_channels))

    def read(self, graph: WeightGraph, edges: Sequence[Edges], extra: Tensor) -> list[Ends]:
        """Terms of the neurons at both ends of each of ``edges``; see :class:`NeuronNetwork`."""
        targets, sources = self.neurons(graph, edges, extra)
        found = []
        for part in edges:
            first = part.blocks[0]
            target = torch.cat([b.fold(targets[b.target], 0) for b in part.blocks], 1)
            source = first.fold(sources[first.source], 1)
            found.append((target.mT[..., None, None], source.mT[:, :, None, :, None]))
        return found

    def forward(
        self, directions: tuple[Tensor, ...], weights: Tensor, ends: Ends, rows: slice
    ) -> Tensor:
        target, source = ends[0][:, :, rows], ends[1]
        first = len(self.first)
        hidden = mix(self.first, invariants(directions, weights))
        hidden = hidden.add_(target[:, :first]).add_(source[:, :first]).relu_()
        return mix(self.second, hidden).add_(target[:, first:]).add_(source[:, first:])
