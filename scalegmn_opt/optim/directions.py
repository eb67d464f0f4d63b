"""Equivariant directions that a rule mixes: momenta by their noise, and whitened momentum."""

import torch
from torch import Tensor

# Newton-Schulz coefficients of Muon (Jordan et al. 2024): singular values go to about 1
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def relative_to_noise(momentum: Tensor, square: Tensor) -> Tensor:
    """``m / sqrt(v)``, and 0 where no gradient was ever seen; invariant to positive scales."""
    seen = square > 0
    return torch.where(seen, momentum * torch.where(seen, square, 1.0).rsqrt(), 0.0)


def unit_rms(x: Tensor, *, folds: int = 1) -> Tensor:
    """``x`` (batch · folds, ...) over its root mean square over all but the batch; 0 stays 0."""
    x = x.unflatten(0, (-1, folds))
    axes = tuple(range(1, x.ndim))
    peak = x.abs().amax(axes, keepdim=True)  # squares of tiny gradients underflow
    scaled = x / torch.where(peak > 0, peak, 1.0)
    mean = scaled.square().mean(axes, keepdim=True)
    return (scaled * torch.where(mean > 0, mean, 1.0).rsqrt()).flatten(0, 1)


def whitened(momentum: Tensor, *, folds: int = 1) -> Tensor:
    """Edges (batch · folds, out, in, kernel) with all singular values at about one, entries O(1).

    The matrix of each fold is (out, in · kernel). In gauge coordinates the map commutes with
    permutations and signs of both groups, and positive scales are not there. A vector is only
    normalised.

    References:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """
    x = unit_rms(momentum, folds=folds).flatten(2)
    rows, columns = x.shape[1:]
    if min(rows, columns) == 1:
        return unit_rms(momentum, folds=folds)
    x = x.mT if rows > columns else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.mT if rows > columns else x
    return (x * max(rows, columns) ** 0.5).reshape(momentum.shape)
