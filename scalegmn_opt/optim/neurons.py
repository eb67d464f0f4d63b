"""One round of messages between the neurons of a network in training."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from scalegmn_opt.graph import Symmetry, WeightGraph
from scalegmn_opt.nn import ScaleInv, StreamLinear
from scalegmn_opt.nn.encoding import GROUP_CHANNELS, group_encodings
from scalegmn_opt.nn.message import NodeUpdate
from scalegmn_opt.nn.scale import StreamNorm
from scalegmn_opt.optim.edges import INVARIANTS, Edges

_VECTOR = (1, 2)  # covariant and contravariant channels of a bias: weight, fast and slow momentum
_ENDS = 3  # a neuron's incoming and outgoing weights, and its biases

Nodes = dict[str, Tensor]  # (batch, nodes, channels) by group


class NeuronNetwork(nn.Module):
    """A ScaleGMN round on neurons alone: its edges are the weights and the main directions.

    A neuron starts from its bias, the mean invariants of its incoming and outgoing weights and its
    place in the graph, receives ``Σ_j e_ij V x_j`` from both sides, where ``e`` is the weight and
    the main direction in gauge coordinates, and gives invariant terms as target and as source of
    weights. A weight costs products of the two matrices with ``message_channels`` columns each way.

    Args:
        channels: width of each stream of a neuron.
        message_channels: of each stream and direction of messages.
        hidden_channels: width of the invariant MLPs.
        extra: invariant channels that are given for all neurons alike.
        terms: numbers that a neuron gives as target, and as many as source.

    References:
        Kalogeropoulos et al., arXiv 2406.10685, eq. 11-13.
    """

    def __init__(
        self, *, channels: int, message_channels: int, hidden_channels: int, extra: int, terms: int
    ) -> None:
        super().__init__()
        known = GROUP_CHANNELS + _ENDS * INVARIANTS + extra
        self.embed = StreamLinear(_VECTOR, (channels, channels))
        self.embed_extra = nn.Linear(known, 2 * channels)
        self.norm = StreamNorm()
        self.values = nn.ModuleList(
            StreamLinear((channels,) * 2, (message_channels,) * 2) for _ in range(2)
        )
        self.update = NodeUpdate(
            channels, 2 * message_channels, extra_channels=known, hidden_channels=hidden_channels
        )
        self.terms = ScaleInv(
            channels, 2 * terms, extra_channels=known, hidden_channels=hidden_channels
        )

    def forward(
        self, graph: WeightGraph, edges: Sequence[Edges], extra: Tensor
    ) -> tuple[Nodes, Nodes]:
        """Terms (batch, nodes, terms) of a neuron as target, and as source, by group.

        Args:
            graph: of gauge-fixed features, see :func:`~scalegmn_opt.symmetry.gauged`.
            edges: of all blocks.
            extra: (batch, channels), the same for all neurons.
        """
        biases, summaries = _biases(graph, edges, extra), _summaries(graph, edges, extra)
        kinds = _kinds(graph)
        known = [_known(graph, names, summaries, extra) for _, names in kinds]
        x = [
            self._start(_join(biases, names), k, symmetry)
            for (symmetry, names), k in zip(kinds, known, strict=True)
        ]
        received = [
            self._receive(graph, edges, x, direction, values)
            for direction, values in enumerate(self.values)
        ]
        targets: Nodes = {}
        sources: Nodes = {}
        for (symmetry, names), own, k in zip(kinds, x, known, strict=True):
            updated = self.update(own, [_join(r, names) for r in received], k, symmetry)
            target, source = self.terms(updated, k, symmetry).chunk(2, 2)
            targets |= _split(graph, target, names)
            sources |= _split(graph, source, names)
        return targets, sources

    def _start(self, biases: Tensor, known: Tensor, symmetry: Symmetry) -> Tensor:
        x = self.embed(biases, self_inverse=symmetry.self_inverse)
        x = x + self.embed_extra(known) if symmetry.scalar_free else x
        return self.norm(x, symmetry)

    def _receive(
        self,
        graph: WeightGraph,
        edges: Sequence[Edges],
        nodes: list[Tensor],
        direction: int,
        values: StreamLinear,
    ) -> Nodes:
        """Sums of the messages along (0) or against (1) the edges, over the root of the fan."""
        sent: Nodes = {}
        for (symmetry, names), x in zip(_kinds(graph), nodes, strict=True):
            sent |= _split(graph, values(x, self_inverse=symmetry.self_inverse), names)
        sums = {name: torch.zeros_like(x) for name, x in sent.items()}
        fans = (graph.fan_in, graph.fan_out)[direction]
        for part in edges:
            block = part.blocks[0]
            if not block.is_vector:
                to, sender = (block.target, block.source)[:: 1 - 2 * direction]
                message = part.message(block.fold(sent[sender], 1 - direction), direction)
                sums[to] = sums[to] + block.unfold(message, direction) * fans[to] ** -0.5
        return sums


@lru_cache(maxsize=256)
def _kinds(graph: WeightGraph) -> tuple[tuple[Symmetry, tuple[str, ...]], ...]:
    """Names of the groups of each symmetry, which are worked on as one."""
    names: dict[Symmetry, list[str]] = {}
    for group in graph.groups:
        names.setdefault(group.symmetry, []).append(group.name)
    return tuple((symmetry, tuple(same)) for symmetry, same in names.items())


def _join(nodes: Nodes, names: tuple[str, ...]) -> Tensor:
    return torch.cat([nodes[name] for name in names], 1)


def _split(graph: WeightGraph, joined: Tensor, names: tuple[str, ...]) -> Nodes:
    return dict(zip(names, joined.split([graph.group[n].size for n in names], 1), strict=True))


def _biases(graph: WeightGraph, edges: Sequence[Edges], like: Tensor) -> Nodes:
    """Sums of weights and momenta of a neuron's biases (batch, nodes, 3), by group."""
    found = {g.name: like.new_zeros(len(like), g.size, sum(_VECTOR)) for g in graph.groups}
    for part in edges:
        if part.blocks[0].is_vector:
            every = slice(0, part.weight.shape[1])
            fast, slow, _ = part.directions(every)
            channels = torch.stack([part.weights(every), fast, slow], -1).mean((2, 3))
            for name, own in part.by_name(channels).items():
                block = graph.block[name]
                found[block.target] = found[block.target] + block.unfold(own, 0)
    return found


def _summaries(graph: WeightGraph, edges: Sequence[Edges], like: Tensor) -> list[Nodes]:
    """Mean invariants of a neuron's incoming and outgoing weights and biases, by group."""
    empty = {g.name: like.new_zeros(len(like), g.size, INVARIANTS) for g in graph.groups}
    found: list[dict[str, list[Tensor]]] = [{n: [] for n in empty} for _ in range(_ENDS)]
    for part in edges:
        targets, sources = part.summaries()
        for name, own in part.by_name(targets).items():
            block = graph.block[name]
            found[2 if block.is_vector else 0][block.target].append(block.unfold(own, 0))
        block = part.blocks[0]
        found[1][block.source].append(block.unfold(sources, 1))
    return [{n: sum(f) / len(f) if f else empty[n] for n, f in end.items()} for end in found]


def _known(
    graph: WeightGraph, names: tuple[str, ...], summaries: list[Nodes], extra: Tensor
) -> Tensor:
    """Invariants (batch, nodes, channels) of the groups ``names``: place, weights, ``extra``."""
    encodings = group_encodings(graph, False)
    places = [encodings[n].expand(graph.group[n].size, -1) for n in names]
    place = torch.cat(places).to(extra).expand(len(extra), -1, -1)
    given = extra[:, None].expand(-1, place.shape[1], -1)
    return torch.cat([place, *(_join(end, names) for end in summaries), given], 2)
