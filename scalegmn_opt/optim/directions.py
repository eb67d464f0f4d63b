"""Equivariant directions that a rule mixes: momenta by their noise, and whitened momentum."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Newton-Schulz coefficients of Muon (Jordan et al. 2024). After four iterations singular values
# above 0.01 of the root of the sum of squares are at 0.68 to 1.21, smaller ones are multiplied by
# 141: in training as good as five (docs/meta_training.md).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 4
_SQUARE = 1.5  # up to this ratio of its sides the iterations on a matrix itself are cheaper
_WHOLE = 256  # largest side of symmetric products that are worked out as a whole


def relative_to_noise(momentum: Tensor, square: Tensor) -> Tensor:
    """``m / sqrt(v)``, and 0 where no gradient was ever seen; invariant to positive scales."""
    return momentum * inverse_root(square)


def inverse_root(square: Tensor) -> Tensor:
    """``1 / sqrt(v)``, finite where ``v`` is zero."""
    return square.clamp_min(torch.finfo(square.dtype).tiny).rsqrt_()


def scaled(x: Tensor, factor: Tensor | float) -> Tensor:
    """``x * factor`` of an ``x`` of the caller's own: in place where autograd does not look."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


def constants(numbers: Sequence[float], like: Tensor) -> Tensor:
    """``numbers`` as a tensor beside ``like``; its own ``new_tensor`` knows no device in vmap."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)


def rms(x: Tensor, *, folds: int = 1) -> Tensor:
    """Root mean squares (batch · folds, 1, ...) of ``x``, over all but the batch."""
    size = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    if folds > 1:
        size = torch.linalg.vector_norm(size.reshape(-1, folds), dim=1).repeat_interleave(folds)
        size = size.reshape(-1, *[1] * (x.ndim - 1))
    return size / (folds * x.numel() // x.shape[0]) ** 0.5


def row_sums(values: Tensor, counts: Sequence[int], index: Tensor) -> Tensor:
    """Sums (batch, blocks, ...) of values (batch, rows, ...) over the rows of each block.

    Args:
        counts: the number of rows of each block.
        index: the number of each row's block (rows,).
    """
    if torch.compiler.is_compiling():  # additions by index do not compile for several threads
        return torch.stack([part.sum(1) for part in values.split(list(counts), 1)], 1)
    empty = values.new_zeros(len(values), len(counts), *values.shape[2:])
    return empty.index_add(1, index, values)


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
    """Edges (batch · folds, out, in, kernel) with all singular values at about one, entries O(1).

    The matrix of each fold is (out, in · kernel). In gauge coordinates the map commutes with
    permutations and signs of both groups, and positive scales are not there. A vector is only
    normalised.

    References:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """
    x = unit_rms(momentum, folds=folds)
    short, long = sorted(matrix_shape(x))
    if short == 1:
        return x
    return _newton_schulz(x) if long <= _SQUARE * short else apply_whitener(whitener(x), x)


def _newton_schulz(x: Tensor) -> Tensor:
    """What :func:`apply_whitener` makes of ``x`` and its own whitener, by iterations on ``x``."""
    rows = _wide(x)
    norm = torch.linalg.vector_norm(rows, dim=(1, 2), keepdim=True)
    rows = rows / (norm + (norm == 0))
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_ITERATIONS):
        gram = torch.bmm(rows, rows.mT)
        rows = torch.baddbmm(rows, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), rows, beta=a)
    rows = scaled(rows, max(matrix_shape(x)) ** 0.5)
    return (rows.mT if is_tall(x) else rows).reshape(x.shape)


def whitener(x: Tensor, *, damping: float = 0.0) -> Tensor:
    """``P = (x xᵀ)^(-1/2)`` (batch, n, n) on the smaller side of the matrices x (out, in · kernel).

    By Newton-Schulz on the Gram matrix, so that the larger side costs two products only.
    ``damping``, a share of the mean squared singular value, is added to each, so that other
    matrices than ``x`` are not amplified without bound either.
    """
    wide = _wide(x)
    gram = _symmetric(wide, wide.mT)
    trace = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] * (1 + damping)
    trace = trace + (trace == 0)
    gram = scaled(gram, trace.reciprocal())
    if damping:
        gram = _plus_identity(gram, damping / (1 + damping) / gram.shape[1])
    a, b, c = _NEWTON_SCHULZ
    total = None
    for iteration in range(_ITERATIONS):
        step = _symmetric(gram, gram, gram, beta=b, alpha=c)  # and a times the identity
        if total is None:
            total = _plus_identity(step.clone(), a)
        else:
            total = _symmetric(step, total, total, beta=a)
        if iteration + 1 < _ITERATIONS:
            gram = _symmetric(step, gram, gram, beta=a)
            gram = _symmetric(gram, step, gram, beta=a)
    return scaled(total, trace.rsqrt())


def _symmetric(
    first: Tensor,
    second: Tensor,
    added: Tensor | None = None,
    *,
    beta: float = 0.0,
    alpha: float = 1.0,
) -> Tensor:
    """``beta added + alpha first second`` (batch, n, n) where that is known to be symmetric.

    Of large ones little more than the upper half is worked out.
    """
    size = first.shape[1]
    if size <= _WHOLE or torch.is_grad_enabled():
        if added is None:
            return torch.bmm(first, second)
        return torch.baddbmm(added, first, second, beta=beta, alpha=alpha)
    out = first.new_empty(len(first), size, size)
    added = out if added is None else added
    quarter = -(-size // 4)
    for start in range(0, size, quarter):
        end = min(start + quarter, size)
        upper = out[:, start:end, start:]
        torch.baddbmm(
            added[:, start:end, start:],
            first[:, start:end],
            second[:, :, start:],
            beta=beta,
            alpha=alpha,
            out=upper,
        )
        out[:, end:, start:end] = upper[:, :, end - start :].mT
    return out


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
