"""From features of a network's weights to new weights, or to a vector."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalegmn_opt.graph import WeightFeatures, unpack
from scalegmn_opt.nn.linear import StreamLinear
from scalegmn_opt.nn.message import EdgeProducts
from scalegmn_opt.nn.scale import ScaleInv


class DeltaHead(nn.Module):
    """``k`` covariant changes of all parameters, ``δ = s · Γ e``, with a learned scale ``s``.

    Shapes:
        ``WeightFeatures`` with ``edge_channels`` -> dict of (batch, outputs, *shape) by parameter
    """

    def __init__(self, edge_channels: int, *, outputs: int = 1, scale: float = 0.01) -> None:
        super().__init__()
        self.linear = StreamLinear((edge_channels, edge_channels), (outputs, 0))
        self.scale = nn.Parameter(torch.tensor(scale))
        self.outputs = outputs

    def forward(self, features: WeightFeatures) -> dict[str, Tensor]:
        graph, deltas = features.graph, {}
        for block in graph.blocks:
            edges = torch.cat(features.edges[block.name], 1)
            delta = self.linear.edges(edges, self_inverse=graph.self_inverse(block))
            if block.folds > 1:  # (batch, folds, outputs) -> (batch, outputs, folds)
                delta = delta.unflatten(0, (-1, block.folds)).transpose(1, 2).flatten(1, 2)
            deltas[block.name] = self.scale * delta.flatten(0, 1)
        unpacked = unpack(graph, deltas)
        return {name: d.unflatten(0, (-1, self.outputs)) for name, d in unpacked.items()}


class Readout(nn.Module):
    """An invariant vector of a whole network: a learned loss prediction, a class, an embedding.

    ``MLP([mean over groups of mean ScaleInv(x_i), mean over blocks of mean edge invariants])``;
    input and output neurons are told apart by the encodings the backbone passes on.

    Shapes:
        ``WeightFeatures`` with ``node_channels`` and ``edge_channels`` -> (batch, out_channels)

    References:
        arXiv 2406.10685, eq. 14.
    """

    def __init__(
        self,
        node_channels: int,
        edge_channels: int,
        out_channels: int,
        *,
        extra_channels: int,
        hidden_channels: int = 64,
    ) -> None:
        super().__init__()
        self.nodes = ScaleInv(
            node_channels,
            hidden_channels,
            extra_channels=extra_channels,
            hidden_channels=hidden_channels,
        )
        self.products = EdgeProducts(edge_channels)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_channels + edge_channels, hidden_channels),
            nn.ReLU(),
            nn.Linear(hidden_channels, out_channels),
        )

    def forward(self, features: WeightFeatures) -> Tensor:
        graph = features.graph
        nodes = [
            self.nodes(torch.cat(x, 2), features.invariants[name], graph.group[name].symmetry).mean(
                1
            )
            for name, x in features.nodes.items()
        ]
        edges = []
        for block in graph.blocks:
            both = torch.cat(features.edges[block.name], 1)
            products = self.products(both, self_inverse=graph.self_inverse(block))
            edges.append(products.mean((2, 3, 4)).unflatten(0, (-1, block.folds)).mean(1))
        pooled = [torch.stack(parts).mean(0) for parts in (nodes, edges)]
        return self.mlp(torch.cat([F.relu(pooled[0]), pooled[1]], -1))
