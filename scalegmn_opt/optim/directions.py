"""Equivariant directions that a rule mixes: momenta by their noise, and whitened momentum."""

import torch
from torch import Tensor

# The first three polynomials ``a x + b x³ + c x⁵`` of Polar Express for singular values down to
# 1e-3 of the largest (Amsel et al., arXiv 2505.16932). What is above 0.01 of the root of the sum of
# squares gets to 0.13 to 1.87, smaller ones are multiplied by 134: in training no worse than closer
# to 1 (docs/meta_training.md), and a half of the cost of Muon's five iterations.
_POLYNOMIALS = (
    (8.2872, -23.5959, 17.3004),
    (4.1071, -2.9478, 0.5448),
    (3.9487, -2.9089, 0.5518),
)
_SAFETY = 1.01  # singular values are divided by this at each iteration


def relative_to_noise(momentum: Tensor, square: Tensor) -> Tensor:
    """``m / sqrt(v)``, and 0 where no gradient was ever seen; invariant to positive scales."""
    return momentum * inverse_root(square)


def inverse_root(square: Tensor) -> Tensor:
    """``1 / sqrt(v)``, finite where ``v`` is zero."""
    return square.clamp_min(torch.finfo(square.dtype).tiny).rsqrt_()


def scaled(x: Tensor, factor: Tensor | float) -> Tensor:
    """``x * factor`` of an ``x`` of the caller's own: in place where autograd does not look."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


def rms(x: Tensor, *, folds: int = 1) -> Tensor:
    """Root mean squares (batch · folds, 1, ...) of ``x``, over all but the batch."""
    size = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    if folds > 1:
        size = torch.linalg.vector_norm(size.reshape(-1, folds), dim=1).repeat_interleave(folds)
        size = size.reshape(-1, *[1] * (x.ndim - 1))
    return size / (folds * x.numel() // x.shape[0]) ** 0.5


def unit_rms(x: Tensor, *, folds: int = 1) -> Tensor:
    """``x`` (batch · folds, ...) over its root mean square over all but the batch; 0 stays 0.

    Over a mean size first, so that squares of tiny numbers do not underflow.
    """
    tiny = torch.finfo(x.dtype).tiny
    size = x.abs().mean(tuple(range(1, x.ndim)), keepdim=True)
    if folds > 1:
        size = size.reshape(-1, folds).mean(1).repeat_interleave(folds).reshape(size.shape)
    x = x / size.clamp_min(tiny)
    return scaled(x, rms(x, folds=folds).clamp_min(tiny).reciprocal())


def whitened(momentum: Tensor, *, folds: int = 1) -> Tensor:
    """Edges (batch · folds, out, in, kernel) whose singular values are about 1, entries O(1).

    The matrix of each fold is (out, in · kernel). In gauge coordinates the map commutes with
    permutations and signs of both groups, and positive scales are not there. A vector is only
    normalised.

    References:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); Amsel et
        al., "The Polar Express", arXiv 2505.16932.
    """
    x = unit_rms(momentum, folds=folds)
    if min(matrix_shape(x)) == 1:
        return x
    return apply_whitener(whitener(x), x)


def whitener(x: Tensor, *, damping: float = 0.0) -> Tensor:
    """``P = (x xᵀ)^(-1/2)`` (batch, n, n) on the smaller side of the matrices x (out, in · kernel).

    By the iteration of ``_POLYNOMIALS`` on the Gram matrix, so that the larger side costs two
    products only.
    ``damping``, a share of the mean squared singular value, is added to each, so that other
    matrices than ``x`` are not amplified without bound either.
    """
    wide = _wide(x)
    gram = torch.bmm(wide, wide.mT)
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] * (1 + damping)
    trace = trace + (trace == 0)
    gram = scaled(gram, trace.reciprocal())
    if damping:
        gram = _plus_identity(gram, damping / (1 + damping) / gram.shape[1])
    total = None
    for iteration, (first, third, fifth) in enumerate(_POLYNOMIALS, 1):
        a, b, c = first / _SAFETY, third / _SAFETY**3, fifth / _SAFETY**5
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # and a times the identity
        if total is None:
            total = _plus_identity(step.clone(), a)
        else:
            total = torch.baddbmm(total, step, total, beta=a)
        if iteration < len(_POLYNOMIALS):
            gram = torch.baddbmm(gram, step, gram, beta=a)
            gram = torch.baddbmm(gram, gram, step, beta=a)
    return scaled(total, trace.rsqrt())


def _plus_identity(matrix: Tensor, factor: float) -> Tensor:
    """``matrix`` (batch, n, n), changed in place."""
    matrix.diagonal(dim1=1, dim2=2).add_(factor)
    return matrix


def apply_whitener(matrix: Tensor, x: Tensor) -> Tensor:
    """``P x`` scaled to entries O(1): orthogonal if ``P`` is the whitener of ``x``."""
    rows = x.flatten(2)
    out = torch.bmm(rows, matrix.mT) if is_tall(x) else torch.bmm(matrix, rows)
    return scaled(out, max(matrix_shape(x)) ** 0.5).reshape(x.shape)


def matrix_shape(x: Tensor) -> tuple[int, int]:
    """Rows and columns (out, in · kernel) of the matrix of an edge tensor."""
    return x.shape[1], x.shape[2] * x.shape[3]


def is_tall(x: Tensor) -> bool:
    """Whether an edge tensor's matrix has more rows than columns."""
    rows, columns = matrix_shape(x)
    return rows > columns


def _wide(x: Tensor) -> Tensor:
    return x.flatten(2).mT if is_tall(x) else x.flatten(2)
