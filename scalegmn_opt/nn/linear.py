"""Linear maps that commute with every multiplier.

Inside the layers the two streams of a neuron or edge lie in one tensor, covariant channels first.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def weight(out_channels: int, in_channels: int, *, gain: float = 1.0) -> nn.Parameter:
    """An ``(out, in)`` matrix, uniform with variance ``gain² / in``."""
    bound = gain * math.sqrt(3.0 / max(in_channels, 1))
    return nn.Parameter(torch.empty(out_channels, in_channels).uniform_(-bound, bound))


def mix(matrix: Tensor, edges: Tensor, bias: Tensor | None = None) -> Tensor:
    """``matrix`` (out, in) over the channels of edges (batch, in, ...), plus ``bias`` (out,)."""
    flat, matrices = edges.flatten(2), matrix.expand(len(edges), -1, -1)
    if bias is None:
        mixed = torch.bmm(matrices, flat)
    else:
        mixed = torch.baddbmm(bias[:, None], matrices, flat)
    return mixed.unflatten(2, edges.shape[2:])


class StreamLinear(nn.Module):
    """``x⁺ -> Γ⁺ x⁺`` and ``x⁻ -> Γ⁻ x⁻``; where ``q = 1/q`` the streams may mix.

    Without a bias, so that ``f(q x⁺, x⁻/q) = (q f⁺, f⁻/q)`` (Kalogeropoulos et al. 2024, eq. 9).

    Args:
        in_channels: covariant and contravariant channels of the input.
        out_channels: the same of the output.
        residual: start near the identity, as a residual connection that can be unlearned.
    """

    def __init__(
        self,
        in_channels: tuple[int, int],
        out_channels: tuple[int, int],
        *,
        gain: float = 1.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        gain = gain / math.sqrt(2.0)  # two streams make one output where they mix
        columns = [weight(sum(out_channels), count, gain=gain) for count in in_channels]
        self.weight = nn.Parameter(torch.cat(columns, 1).detach())
        streams = [torch.ones(o, i) for o, i in zip(out_channels, in_channels, strict=True)]
        self.register_buffer("own", torch.block_diag(*streams), persistent=False)
        if residual:
            with torch.no_grad():
                self.weight += torch.block_diag(*(torch.eye(*stream.shape) for stream in streams))

    def matrix(self, *, self_inverse: bool) -> Tensor:
        """The map of both streams as one matrix (out, in)."""
        return self.weight if self_inverse else self.weight * self.own

    def forward(self, x: Tensor, *, self_inverse: bool) -> Tensor:
        """Nodes (batch, nodes, channels) to nodes."""
        return F.linear(x, self.matrix(self_inverse=self_inverse))

    def edges(self, edges: Tensor, *, self_inverse: bool) -> Tensor:
        """Edges (batch, channels, out, in, kernel) to edges, with the same weights."""
        return mix(self.matrix(self_inverse=self_inverse), edges)
