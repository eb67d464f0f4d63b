"""Messages along the edges, and updates of nodes and edges, of a two-stream graph network."""

import torch
from torch import Tensor, nn

from scalegmn_opt.graph import Symmetry
from scalegmn_opt.nn.linear import StreamLinear, mix, weight
from scalegmn_opt.nn.scale import ReScaleEq, ScaleEq, ScaleInv, StreamNorm, exchange


class Message(nn.Module):
    """``m⁺_i = Σ_j e⁺_ij ⊙ V x⁺_j`` and ``m⁻_i = Σ_j e⁻_ij ⊙ V x⁻_j``, or both against the edges.

    Against the edges the two edge streams exchange their places: ``m⁻_j = Σ_i e⁺_ij ⊙ V x⁻_i`` is
    how an adjoint moves backward along a weight, without any reciprocal of it.

    Shapes:
        edges (batch, 2 edge_channels, out, in, kernel) and senders (batch, nodes, 2 node_channels)
        -> (batch, receivers, 2 edge_channels)
    """

    def __init__(self, node_channels: int, edge_channels: int) -> None:
        super().__init__()
        self.value = StreamLinear((node_channels,) * 2, (edge_channels,) * 2)

    def forward(
        self, edges: Tensor, senders: Tensor, symmetry: Symmetry, *, reverse: bool
    ) -> Tensor:
        values = self.value(senders, self_inverse=symmetry.self_inverse).transpose(1, 2)
        matrices = edges.squeeze(-1) if edges.shape[-1] == 1 else edges.sum(-1)
        if reverse:
            sums = (exchange(values, 1).unsqueeze(-2) @ matrices).squeeze(-2)
            return exchange(sums, 1).transpose(1, 2)
        return (matrices @ values.unsqueeze(-1)).squeeze(-1).transpose(1, 2)


class EdgeProducts(nn.Module):
    """``tanh(P e⁺ ⊙ P' e⁻)``: invariants of an edge, without any reciprocal.

    Shapes:
        (batch, 2 channels, out, in, kernel) -> (batch, channels, out, in, kernel)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = StreamLinear((channels, channels), (channels, channels))

    def forward(self, edges: Tensor, *, self_inverse: bool) -> Tensor:
        plus, minus = self.linear.edges(edges, self_inverse=self_inverse).chunk(2, 1)
        return (plus * minus).tanh_()


class NodeUpdate(nn.Module):
    """``x' = StreamNorm(ScaleEq([x, m_forward, m_backward]))`` (arXiv 2406.10685, eq. 12).

    Shapes:
        x (batch, nodes, 2 channels), messages (batch, nodes, 2 message_channels) -> as x
    """

    def __init__(
        self, channels: int, message_channels: int, *, extra_channels: int, hidden_channels: int
    ) -> None:
        super().__init__()
        self.update = ScaleEq(
            channels + message_channels,
            channels,
            extra_channels=extra_channels,
            hidden_channels=hidden_channels,
        )
        self.norm = StreamNorm()

    def forward(
        self, x: Tensor, messages: list[Tensor], extra: Tensor, symmetry: Symmetry
    ) -> Tensor:
        halves = zip(*(part.chunk(2, -1) for part in (x, *messages)), strict=True)
        joined = torch.cat([part for half in halves for part in half], -1)
        return self.norm(self.update(joined, extra, symmetry), symmetry)


class EdgeUpdate(nn.Module):
    """``e' = (W e) ⊙ relu-MLP(x_i, x_j, e⁺e⁻, position) + ReScaleEq(x_i, x_j)``.

    The MLP's first layer is a sum of one term a target neuron, one a source neuron and one a
    kernel position, added by broadcast, so that an edge costs its own channels only. The rank-one
    term lets a weight of zero move. The map starts near the identity.

    Shapes:
        edges (batch, 2 edge_channels, out, in, kernel), products (batch, edge_channels, out, in,
        kernel), ends two (batch, nodes, 2 node_channels), terms two (batch, edge_channels, nodes),
        position (kernel, position_channels) -> as edges
    """

    def __init__(
        self,
        node_channels: int,
        edge_channels: int,
        *,
        extra_channels: int,
        position_channels: int,
        hidden_channels: int,
    ) -> None:
        super().__init__()
        self.linear = StreamLinear(
            (edge_channels,) * 2, (edge_channels,) * 2, gain=0.5, residual=True
        )
        self.nodes = ScaleInv(
            node_channels,
            2 * edge_channels,
            extra_channels=extra_channels,
            hidden_channels=hidden_channels,
        )
        self.products = weight(edge_channels, edge_channels)
        self.position = weight(edge_channels, position_channels)
        self.gate = weight(2 * edge_channels, edge_channels, gain=0.5)
        self.gate_bias = nn.Parameter(torch.ones(2 * edge_channels))
        self.rank_one = ReScaleEq(node_channels, edge_channels)

    def node_terms(self, x: Tensor, extra: Tensor, symmetry: Symmetry) -> tuple[Tensor, Tensor]:
        """The terms of a neuron as target and as source, each (batch, edge_channels, nodes)."""
        target, source = self.nodes(x, extra, symmetry).transpose(1, 2).chunk(2, 1)
        return target, source

    def forward(
        self,
        edges: Tensor,
        products: Tensor,
        position: Tensor,
        *,
        ends: tuple[Tensor, Tensor],
        terms: tuple[Tensor, Tensor],
        symmetries: tuple[Symmetry, Symmetry],
    ) -> Tensor:
        place = (self.position @ position.T)[:, None, None, :]
        source = terms[1][..., None, :, None] + place
        hidden = mix(self.products, products).add_(terms[0][..., None, None]).add_(source).relu_()
        gates = mix(self.gate, hidden, self.gate_bias)
        both = all(symmetry.self_inverse for symmetry in symmetries)
        gated = self.linear.edges(edges, self_inverse=both) * gates
        return gated.addcmul(*self.rank_one(ends[0], ends[1], symmetries))
