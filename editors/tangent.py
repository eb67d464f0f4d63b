"""SIRENs to first order in their weights, and the change of weights that a wanted change needs.

`f(θ + δ) ≈ f(θ) + J δ`. A SIREN of 28x28 pixels has more weights than pixels, so that almost every
change of the picture is `J δ` for some δ; Kronecker-factored curvature (K-FAC) leads conjugate
gradients there in a few iterations. One network follows `J δ` for small δ only; several networks
side by side follow it for every δ, see `tangent_copies`.

References: Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate
Curvature", arXiv 1503.05671.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from scalegmn_opt.inr import SirenSpec, check_parameters

from .merge import merge

_DAMPING = 1e-2  # of the mean eigenvalue of a Kronecker factor
# How far along δ the copies lie, by their number: as far as what they do not cancel, the terms of
# that order, stays below one part in thousands. Measured on dilations of digits.
REACH = {2: 2**0.5 / 64, 4: 0.2, 8: 0.5}

# Weight and bias of each layer as one matrix (batch, out, in + 1).
Matrices = list[Tensor]
Room = list[list[Tensor]]  # three tensors like the activations of each hidden layer


@dataclass(frozen=True, eq=False)
class Tangent:
    """Stacked SIRENs at given points, ready for `J δ` and `Jᵀ v`.

    Attributes:
        weights: of each layer, `(batch, out, in)`.
        inputs: of each layer, and a last column of ones, `(batch, points, in + 1)`.
        slopes: derivative of each hidden activation, `w0 cos(w0 z)`, `(batch, points, nodes)`.
        outputs: `f`, `(batch, points, out_features)`.
    """

    weights: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]
    outputs: Tensor

    @classmethod
    def of(cls, params: Mapping[str, Tensor], spec: SirenSpec, coords: Tensor) -> Self:
        """Shapes: params name -> `(batch, *shape)`, coords `(points, in_features)`.

        Raises:
            ValueError: parameters that do not fit `spec`.
        """
        count = check_parameters(params, spec)
        matrices = join(params)
        hidden = _with_ones(coords.to(matrices[0]).expand(count, -1, -1))
        inputs, slopes = [hidden], []
        for matrix in matrices[:-1]:
            angle = torch.bmm(inputs[-1], spec.w0 * matrix.mT)
            slopes.append(angle.cos().mul_(spec.w0))
            inputs.append(_with_ones(angle.sin_()))
        weights = tuple(matrix[..., :-1] for matrix in matrices)
        return cls(weights, tuple(inputs), tuple(slopes), inputs[-1] @ matrices[-1].mT)

    def movements(self, delta: Matrices, room: Room | None = None) -> list[Tensor]:
        """Changes of every layer before its activation, `(batch, points, nodes)`; last is `J δ`.

        Those of hidden layers lie in `room`, if it is given.
        """
        ahead, spare, _ = room or [[None] * len(self.slopes)] * 3
        moved = [torch.bmm(self.inputs[0], delta[0].mT, out=ahead[0])]
        for layer, slope in enumerate(self.slopes, 1):
            turned = torch.mul(slope, moved[-1], out=spare[layer - 1])
            place = ahead[layer] if layer < len(ahead) else None
            change = torch.bmm(self.inputs[layer], delta[layer].mT, out=place)
            moved.append(change.baddbmm_(turned, self.weights[layer].mT))
        return moved

    def pull(self, values: Tensor, room: Room | None = None) -> Matrices:
        """`Jᵀ v` of values `(batch, points, out_features)`."""
        places = [None] * len(self.slopes) if room is None else room[0]
        gradients = [values.mT @ self.inputs[-1]]
        for layer in reversed(range(len(self.slopes))):
            values = torch.bmm(values, self.weights[layer + 1], out=places[layer])
            values = values.mul_(self.slopes[layer])
            gradients.append(values.mT @ self.inputs[layer])
        return gradients[::-1]

    def factors(self) -> list[tuple[Tensor, Tensor]]:
        """Inverse Kronecker factors of `Jᵀ J` for each layer: of adjoints, and of inputs.

        Permuting or flipping neurons does so to rows and columns of the factors.
        """
        points = len(self.inputs[0][0])
        batch, _, channels = self.outputs.shape
        adjoint = torch.eye(channels).to(self.outputs).expand(batch, -1, -1)
        inputs = [x.mT @ x / points for x in self.inputs]
        factors = [(adjoint, _inverse(inputs[-1]))]
        for slope, weight, moment in zip(
            self.slopes[::-1], self.weights[:0:-1], inputs[-2::-1], strict=True
        ):
            adjoint = (weight.mT @ adjoint @ weight) * (slope.mT @ slope / points)
            factors.append((_inverse(adjoint), _inverse(moment)))
        return factors[::-1]

    def solve(self, wanted: Tensor, iterations: int) -> Matrices:
        """The δ that conjugate gradients reach for `J δ = wanted` from zero.

        Shapes: wanted `(batch, points, out_features)`.
        """
        *_, (delta, _, _) = self._iterations(wanted, iterations, self._room())
        return delta

    @torch.no_grad()
    def stages(self, wanted: Tensor, iterations: int) -> tuple[list[Matrices], list[Tensor]]:
        """What `solve` reaches after each iteration, and the `movements` of the last one.

        At least one iteration; without gradients.
        """
        stages, room = [], self._room()
        total = [*room[2], torch.empty_like(wanted)]
        for delta, step, moved in self._iterations(wanted, iterations, room):
            for sum_, m in zip(total, moved, strict=True):
                if stages:
                    sum_.addcmul_(step, m)
                else:
                    torch.mul(step, m, out=sum_)
            stages.append(delta)
        return stages, total

    @torch.no_grad()
    def _iterations(
        self, wanted: Tensor, iterations: int, room: Room
    ) -> Iterator[tuple[Matrices, Tensor, list[Tensor]]]:
        """δ, the last step's length (batch, 1, 1), and the movements of its direction.

        Movements are overwritten by the next iteration.
        """
        factors = self.factors()
        delta = [w.new_zeros(*w.shape[:2], w.shape[2] + 1) for w in self.weights]
        direction, residual, power = delta, wanted, wanted.new_zeros(len(wanted), 1, 1)
        for _ in range(iterations):
            gradient = self.pull(residual, room)
            natural = [g @ m @ a for m, (g, a) in zip(gradient, factors, strict=True)]
            before, power = power, _inner(gradient, natural)
            keep = _ratio(power, before)
            direction = [n + keep * d for n, d in zip(natural, direction, strict=True)]
            moved = self.movements(direction, room)
            step = _ratio(power, moved[-1].square().sum((1, 2), keepdim=True))
            delta = [d + step * s for d, s in zip(delta, direction, strict=True)]
            yield delta, step, moved
            residual = residual - step * moved[-1]

    def _room(self) -> Room:
        """Memory for all products of a solve: new one for each would take as long as they do.

        In one block, because the C library gives many smaller ones back to the system at the end of
        a step, and then each of their pages has to be asked for again in the next one.
        """
        sizes = [slope.numel() for slope in self.slopes] * 3
        pieces = self.outputs.new_empty(sum(sizes)).split(sizes)
        shaped = [piece.view_as(s) for piece, s in zip(pieces, self.slopes * 3, strict=True)]
        layers = len(self.slopes)
        return [shaped[:layers], shaped[layers : 2 * layers], shaped[2 * layers :]]


def join(params: Mapping[str, Tensor]) -> Matrices:
    """Weight and bias of every layer, in order, as one matrix."""
    layers = range(len(params) // 2)
    names = [(f"layers.{i}.weight", f"layers.{i}.bias") for i in layers]
    return [torch.cat([params[w], params[b].unsqueeze(2)], 2) for w, b in names]


def split(matrices: Matrices) -> dict[str, Tensor]:
    """The inverse of `join`."""
    params = {}
    for layer, matrix in enumerate(matrices):
        params[f"layers.{layer}.weight"] = matrix[..., :-1]
        params[f"layers.{layer}.bias"] = matrix[..., -1]
    return params


def tangent_copies(
    params: Mapping[str, Tensor], delta: Mapping[str, Tensor], copies: int
) -> dict[str, Tensor]:
    """Networks of `copies` times the width that render `f + J δ`, up to one part in thousands.

    `Σ_j c_j f(θ + s_j δ) = f + J δ + O(s^copies)`, the derivative's finite difference at Chebyshev
    points; two copies are `(C + ½) f(θ + δ/2C) - (C - ½) f(θ - δ/2C)` with `C = 32`. More copies
    lie farther apart and have smaller coefficients, so that rounding of the weights counts less.

    Args:
        copies: one of `REACH`.

    Shapes: params and delta name -> `(batch, *shape)`.
    """
    points, coefficients = _difference(copies)
    networks = [{name: v + s * delta[name] for name, v in params.items()} for s in points]
    return merge(networks, coefficients)


def _difference(copies: int) -> tuple[list[float], list[float]]:
    """`s` and `c` with `Σ c = 1`, `Σ c s = 1` and `Σ c s^m = 0` for all other `m < copies`."""
    orders = torch.arange(copies, dtype=torch.float64)
    nodes = torch.cos(math.pi * (2 * orders + 1) / (2 * copies))
    wanted = torch.zeros_like(orders)
    wanted[0], wanted[1] = 1.0, 1 / REACH[copies]
    coefficients = torch.linalg.solve(nodes ** orders[:, None], wanted)
    return (REACH[copies] * nodes).tolist(), coefficients.tolist()


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(()).expand(*x.shape[:2], 1)], 2)


def _inverse(factor: Tensor) -> Tensor:
    """Inverse of the damped matrices (batch, n, n); the identity where all is zero."""
    size = factor.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    damping = torch.where(size > 0, _DAMPING * size, 1.0)
    lower, _ = torch.linalg.cholesky_ex(factor + damping * torch.eye(factor.shape[-1]).to(factor))
    return torch.cholesky_inverse(lower)


def _inner(one: Matrices, other: Matrices) -> Tensor:
    return sum((a * b).sum((1, 2), keepdim=True) for a, b in zip(one, other, strict=True))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """The quotient, and 0 where the divisor is not positive."""
    return torch.where(below > 0, above / below, 0.0)
