"""ScaleGMN: features of a network's weights to features of its weights, equivariantly."""

import torch
from torch import Tensor, nn

from scalegmn_opt.graph import NeuronGroup, Pair, WeightBlock, WeightFeatures, WeightGraph
from scalegmn_opt.nn.encoding import (
    GROUP_CHANNELS,
    NEURON_CHANNELS,
    POSITION_CHANNELS,
    group_encodings,
    kernel_positions,
)
from scalegmn_opt.nn.linear import StreamLinear
from scalegmn_opt.nn.message import EdgeProducts, EdgeUpdate, Message, NodeUpdate
from scalegmn_opt.nn.scale import StreamNorm


class ScaleGMN(nn.Module):
    """Two-stream scale-equivariant graph metanetwork: ``f(g·x) = g·f(x)``.

    Each neuron and edge carries covariant channels (multiplier ``q``) and contravariant ones
    (``1/q``). No weight depends on a size or depth of the networks it reads, so one model serves
    every graph, and neuron groups with different symmetries meet in one pass.

    For backward, each layer keeps ``10 edge_channels`` numbers an edge and network of a batch, and
    some more a neuron: at the default widths in float32 640 bytes an edge and 6.5 kB a neuron.

    Args:
        edge_features: covariant and contravariant input channels of an edge (weight, gradient).
        node_features: the same of a neuron (activation, adjoint).
        invariant_features: input channels of a neuron that no symmetry changes.
        node_channels, edge_channels: width of each stream.
        hidden_channels: width of the invariant MLPs.
        num_layers: rounds of message passing.
        bidirectional: whether messages also run against the edges.
        neuron_encoding: whether input and output neurons know their index.
        fan_exponent: a sum over ``n`` edges is divided by ``n ** fan_exponent``; 0 is the paper's.

    Shapes:
        ``WeightFeatures`` with the input channels -> ``WeightFeatures`` with ``node_channels`` and
        ``edge_channels`` in both streams.

    Raises:
        ValueError: if ``features`` has other channels than the model was built for.

    References:
        Kalogeropoulos, Bouritsas, Panagakis, "Scale Equivariant Graph Metanetworks",
        NeurIPS 2024, arXiv 2406.10685.
    """

    def __init__(
        self,
        *,
        edge_features: tuple[int, int] = (1, 0),
        node_features: tuple[int, int] = (0, 0),
        invariant_features: int = 0,
        node_channels: int = 32,
        edge_channels: int = 16,
        hidden_channels: int = 64,
        num_layers: int = 4,
        bidirectional: bool = True,
        neuron_encoding: bool = True,
        fan_exponent: float = 0.5,
    ) -> None:
        super().__init__()
        self.edge_features, self.node_features = tuple(edge_features), tuple(node_features)
        self.invariant_features = invariant_features
        self.neuron_encoding = neuron_encoding
        self.extra_channels = (
            GROUP_CHANNELS + (NEURON_CHANNELS if neuron_encoding else 0) + invariant_features
        )
        self.embed_nodes = (
            StreamLinear(self.node_features, (node_channels,) * 2) if any(node_features) else None
        )
        self.embed_biases = StreamLinear(self.edge_features, (node_channels,) * 2)
        self.embed_edges = StreamLinear(self.edge_features, (edge_channels,) * 2)
        self.embed_extra = nn.Linear(self.extra_channels, 2 * node_channels)
        self.norm = StreamNorm()
        self.layers = nn.ModuleList(
            Layer(
                node_channels,
                edge_channels,
                extra_channels=self.extra_channels,
                hidden_channels=hidden_channels,
                bidirectional=bidirectional,
                fan_exponent=fan_exponent,
            )
            for _ in range(num_layers)
        )

    def forward(self, features: WeightFeatures) -> WeightFeatures:
        self._check(features)
        graph, extra = features.graph, self._extra(features)
        inputs = {name: torch.cat(pair, 1) for name, pair in features.edges.items()}
        nodes = {
            g.name: self._embed_group(features, inputs, g, extra[g.name]) for g in graph.groups
        }
        edges = {
            b.name: self.embed_edges.edges(inputs[b.name], self_inverse=graph.self_inverse(b))
            for b in graph.blocks
        }
        for layer in self.layers:
            nodes, edges = layer(graph, nodes, edges, extra)
        return WeightFeatures(
            graph,
            {name: x.chunk(2, 2) for name, x in nodes.items()},
            {name: e.chunk(2, 1) for name, e in edges.items()},
            extra,
        )

    def _extra(self, features: WeightFeatures) -> dict[str, Tensor]:
        """Encodings and invariant inputs (batch, nodes, channels) by group."""
        encodings = group_encodings(features.graph, self.neuron_encoding)
        extra = {}
        for group in features.graph.groups:
            given = features.invariants[group.name]
            encoding = encodings[group.name].to(given)
            shape = (features.batch_size, group.size, -1)
            extra[group.name] = torch.cat([encoding.expand(shape), given.expand(shape)], -1)
        return extra

    def _embed_group(
        self, features: WeightFeatures, edges: dict[str, Tensor], group: NeuronGroup, extra: Tensor
    ) -> Tensor:
        both = group.symmetry.self_inverse
        x = extra.new_zeros(*extra.shape[:2], self.embed_extra.out_features)
        if self.embed_nodes is not None:
            given = torch.cat(features.nodes[group.name], -1)
            x = x + self.embed_nodes(given, self_inverse=both)
        for block in features.graph.incoming[group.name]:
            if block.is_vector:
                biases = edges[block.name].sum((3, 4)).transpose(1, 2)
                x = x + self.embed_biases(biases, self_inverse=both)
        x = x + self.embed_extra(extra) if group.symmetry.scalar_free else x
        return self.norm(x, group.symmetry)

    def _check(self, features: WeightFeatures) -> None:
        for what, expected, found in (
            (
                "edge_features",
                self.edge_features,
                {k: _channels(v, 1) for k, v in features.edges.items()},
            ),
            (
                "node_features",
                self.node_features,
                {k: _channels(v, 2) for k, v in features.nodes.items()},
            ),
            (
                "invariant_features",
                self.invariant_features,
                {k: v.shape[-1] for k, v in features.invariants.items()},
            ),
        ):
            wrong = {name: channels for name, channels in found.items() if channels != expected}
            if wrong:
                raise ValueError(f"{what}: expected {expected} channels, got {wrong}")


class Layer(nn.Module):
    """One round: messages in both directions, new neuron features, new edge features."""

    def __init__(
        self,
        node_channels: int,
        edge_channels: int,
        *,
        extra_channels: int,
        hidden_channels: int,
        bidirectional: bool,
        fan_exponent: float,
    ) -> None:
        super().__init__()
        self.fan_exponent = fan_exponent
        directions = 2 if bidirectional else 1
        self.messages = nn.ModuleList(
            Message(node_channels, edge_channels) for _ in range(directions)
        )
        self.products = EdgeProducts(edge_channels)
        self.nodes = NodeUpdate(
            node_channels,
            directions * edge_channels,
            extra_channels=extra_channels + 2 * edge_channels,
            hidden_channels=hidden_channels,
        )
        self.edges = EdgeUpdate(
            node_channels,
            edge_channels,
            extra_channels=extra_channels,
            position_channels=POSITION_CHANNELS,
            hidden_channels=hidden_channels,
        )

    def forward(
        self,
        graph: WeightGraph,
        nodes: dict[str, Tensor],
        edges: dict[str, Tensor],
        extra: dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        products = {
            b.name: self.products(edges[b.name], self_inverse=graph.self_inverse(b))
            for b in graph.blocks
        }
        received = [self._receive(graph, nodes, edges, r) for r in range(len(self.messages))]
        known = _with_summaries(graph, products, extra)
        symmetry = {group.name: group.symmetry for group in graph.groups}
        nodes = {
            name: self.nodes(x, [r[name] for r in received], known[name], symmetry[name])
            for name, x in nodes.items()
        }
        terms = {
            name: self.edges.node_terms(x, extra[name], symmetry[name]) for name, x in nodes.items()
        }
        edges = {
            b.name: self.edges(
                edges[b.name],
                products[b.name],
                kernel_positions(b.shape[2]).to(edges[b.name]),
                ends=(b.fold(nodes[b.target], 0), b.fold(nodes[b.source], 1)),
                terms=(
                    _fold_terms(b, terms[b.target][0], 0),
                    _fold_terms(b, terms[b.source][1], 1),
                ),
                symmetries=(symmetry[b.target], symmetry[b.source]),
            )
            for b in graph.blocks
        }
        return nodes, edges

    def _receive(
        self, graph: WeightGraph, nodes: dict[str, Tensor], edges: dict[str, Tensor], direction: int
    ) -> dict[str, Tensor]:
        """Normalised sums of the messages along (0) or against (1) the edges, by group."""
        reverse, message = direction == 1, self.messages[direction]
        fans = graph.fan_out if reverse else graph.fan_in
        sums: dict[str, list[Tensor]] = {name: [] for name in nodes}
        for block in graph.blocks:
            ends = (block.target, block.source)
            sender, receiver = ends if reverse else ends[::-1]
            symmetry = graph.group[sender].symmetry
            senders = block.fold(nodes[sender], 0 if reverse else 1)
            received = message(edges[block.name], senders, symmetry, reverse=reverse)
            sums[receiver].append(block.unfold(received, 1 if reverse else 0))
        channels = next(iter(edges.values())).shape[1]
        return {
            name: fans[name] ** -self.fan_exponent * sum(parts)
            if parts
            else nodes[name].new_zeros(*nodes[name].shape[:2], channels)
            for name, parts in sums.items()
        }


def _with_summaries(
    graph: WeightGraph, products: dict[str, Tensor], extra: dict[str, Tensor]
) -> dict[str, Tensor]:
    """``extra`` with the mean edge invariants of each neuron's incoming and outgoing edges."""
    channels = next(iter(products.values())).shape[1]
    ends: tuple[dict[str, list[Tensor]], ...] = tuple(
        {name: [] for name in extra} for _ in range(2)
    )
    for block in graph.blocks:
        for end, name in enumerate((block.target, block.source)):
            mean = products[block.name].mean((3 - end, 4)).transpose(1, 2)
            ends[end][name].append(block.unfold(mean, end))
    out = {}
    for name, given in extra.items():
        empty = given.new_zeros(*given.shape[:2], channels)
        means = [sum(end[name]) if end[name] else empty for end in ends]
        out[name] = torch.cat([given, *means], -1)
    return out


def _fold_terms(block: WeightBlock, terms: Tensor, end: int) -> Tensor:
    """Terms (batch, channels, nodes) of the neurons at one end, as the edges are folded."""
    if block.folds == 1:
        return terms
    return block.fold(terms.transpose(1, 2), end).transpose(1, 2)


def _channels(pair: Pair, axis: int) -> tuple[int, int]:
    return pair[0].shape[axis], pair[1].shape[axis]
