"""Scale-invariant and scale-equivariant maps of neuron features (Kalogeropoulos et al. 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalegmn_opt.graph import Symmetry
from scalegmn_opt.nn.linear import StreamLinear, weight


class ScaleInv(nn.Module):
    """``ScaleInv(x) = MLP([canon(x⁺), canon(x⁻), tanh(Γx⁺ ⊙ Γ'x⁻), extra])``.

    A positive scale is divided out, a sign averaged out by ``(ρ(x) + ρ(-x)) / 2``, which keeps the
    relative signs of a neuron's channels; the products of the two streams are invariant to both.

    Shapes:
        x (batch, nodes, 2 channels), extra (batch, nodes, extra_channels) -> (batch, nodes,
        out_channels)

    References:
        Kalogeropoulos, Bouritsas, Panagakis, "Scale Equivariant Graph Metanetworks",
        arXiv 2406.10685, eq. 8.
    """

    def __init__(
        self, channels: int, out_channels: int, *, extra_channels: int, hidden_channels: int
    ) -> None:
        super().__init__()
        self.canonical = weight(hidden_channels, 2 * channels)
        self.product_plus = weight(channels, channels)
        self.product_minus = weight(channels, channels)
        self.invariant = nn.Linear(channels + extra_channels, hidden_channels)
        self.out = nn.Linear(hidden_channels, out_channels)

    def forward(self, x: Tensor, extra: Tensor, symmetry: Symmetry) -> Tensor:
        plus, minus = x.chunk(2, -1)
        canonical = torch.cat([symmetry.canon(plus), symmetry.canon(minus)], -1)
        products = F.linear(plus, self.product_plus) * F.linear(minus, self.product_minus)
        invariant = self.invariant(torch.cat([products.tanh(), extra], -1))
        hidden = symmetry.even(
            lambda part: F.relu(part + invariant), F.linear(canonical, self.canonical)
        )
        return self.out(hidden)


class ScaleEq(nn.Module):
    """``ScaleEq(x) = (Γ x) ⊙ ScaleInv(x)`` on both streams, with a free term where ``q = 1``.

    Neurons of input, output and permutation-only groups have no scale to keep, so that
    ``ScaleInv(x)`` is a plain MLP for them, and a second part of its output is added. The map
    starts near the identity on the first ``out_channels`` of each stream.

    Shapes:
        x (batch, nodes, 2 in_channels), extra (batch, nodes, extra_channels) -> (batch, nodes,
        2 out_channels)

    References:
        arXiv 2406.10685, eq. 9.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, extra_channels: int, hidden_channels: int
    ) -> None:
        super().__init__()
        self.linear = StreamLinear(
            (in_channels, in_channels), (out_channels, out_channels), residual=True
        )
        self.gate = ScaleInv(
            in_channels,
            4 * out_channels,
            extra_channels=extra_channels,
            hidden_channels=hidden_channels,
        )
        with torch.no_grad():  # gates of 1 and no free term, before anything is learned
            self.gate.out.weight.mul_(0.5)
            self.gate.out.bias.fill_(0.0)[: 2 * out_channels] = 1.0

    def forward(self, x: Tensor, extra: Tensor, symmetry: Symmetry) -> Tensor:
        gate, free = self.gate(x, extra, symmetry).chunk(2, -1)
        out = self.linear(x, self_inverse=symmetry.self_inverse) * gate
        return out + free if symmetry.scalar_free else out


class ReScaleEq(nn.Module):
    """``ReScaleEq(x_i, y_j) = (Γ x_i) ⊙ (Γ' y_j)`` for all pairs of neurons: a rank-one edge term.

    The multiplier is the product of the two: ``x⁺_i`` with ``y⁻_j`` scales like a weight, and
    ``x⁻_i`` with ``y⁺_j`` like a gradient, which is the form ``δ_i a_j`` of backpropagation.

    Shapes:
        x (batch, out, 2 channels), y (batch, in, 2 channels) -> two factors (batch, 2 channels',
        out, 1, 1) and (batch, 2 channels', 1, in, 1), whose product has the edge's two streams

    References:
        arXiv 2406.10685, eq. 10.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        channels = ((in_channels, in_channels), (out_channels, out_channels))
        self.target = StreamLinear(*channels, gain=0.5)
        self.source = StreamLinear(*channels, gain=0.5)

    def forward(
        self, x: Tensor, y: Tensor, symmetries: tuple[Symmetry, Symmetry]
    ) -> tuple[Tensor, Tensor]:
        target = self.target(x, self_inverse=symmetries[0].self_inverse).transpose(1, 2)
        source = self.source(y, self_inverse=symmetries[1].self_inverse).transpose(1, 2)
        return target[..., None, None], exchange(source, 1)[..., None, :, None]


class StreamNorm(nn.Module):
    """``x / sqrt(1 + λ² |x|²)`` with an invariant ``|x|²``, so that products of features stay O(1).

    ``|x|²`` is the mean square of a neuron's channels where they have no positive scale, and the
    product of the root mean squares of its two streams where they do. ``λ = 0`` is the identity.

    Shapes:
        (batch, nodes, 2 channels) -> the same
    """

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, symmetry: Symmetry) -> Tensor:
        if symmetry.rescales:
            plus, minus = (_root_mean_square(stream) for stream in x.chunk(2, -1))
            square = plus * minus
        else:
            square = x.square().mean(-1, keepdim=True)
        return x * (1 + self.strength.square() * square).rsqrt()


def _root_mean_square(x: Tensor) -> Tensor:
    mean = x.square().mean(-1, keepdim=True)
    empty = mean == 0  # the root has no derivative there
    return torch.where(empty, 0.0, torch.where(empty, 1.0, mean).sqrt())


def exchange(x: Tensor, axis: int) -> Tensor:
    """The contravariant half of ``axis`` first, then the covariant one."""
    return torch.cat(x.chunk(2, axis)[::-1], axis)
