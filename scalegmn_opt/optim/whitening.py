"""Whitened momentum at a bounded cost: the whitener of a large matrix is kept for some steps."""

from math import ceil

import torch
from torch import Tensor

from scalegmn_opt.graph import WeightBlock
from scalegmn_opt.optim.directions import (
    apply_whitener,
    is_tall,
    matrix_shape,
    scaled,
    unit_rms,
    whitened,
    whitener,
)

EXACT_RANK = 256  # largest smaller side of a matrix whose whitener is computed anew at every step
LARGEST_RANK = 2048  # largest smaller side of a matrix that is whitened
_PERIOD = 64  # the whitener of a larger one, of smaller side n, serves for n / 64 steps
_DAMPING = 0.01  # of the mean squared singular value, for a whitener that outlives its momentum
_LEAST = 0.1  # size of a row that is brought to 1


def rank(block: WeightBlock) -> int:
    """Smaller side of the matrices (out, in · kernel) of a block; 1 for a bias."""
    return min(block.shape[0], block.shape[1] * block.shape[2])


def is_whitened(block: WeightBlock) -> bool:
    """Whether a block is treated as a matrix: neither a vector nor too large."""
    return 1 < rank(block) <= LARGEST_RANK


def kept_numbers(block: WeightBlock) -> int:
    """Numbers that the state has of a block's whiteners, 0 if they are not kept."""
    kept = is_whitened(block) and rank(block) > EXACT_RANK
    return block.folds * rank(block) ** 2 if kept else 0


def whiten(
    block: WeightBlock, momentum: Tensor, kept: Tensor, *, step: Tensor
) -> tuple[Tensor, Tensor]:
    """The whitened momentum (batch · folds, out, in, kernel), and the whiteners to keep.

    The whitener of a matrix of smaller side n above 256 serves for ``n / 64`` steps, so that a
    weight costs less than at n = 256, and is renewed at each power of two before the first of
    these intervals has passed. What it makes of later momenta is not orthogonal: it is
    :func:`equalised`.

    Args:
        momentum: in gauge coordinates.
        kept: (batch, numbers) from the step before, :func:`kept_numbers` of them.
        step: number of this step (batch,), from 1; the first counts.
    """
    if not kept_numbers(block):
        return whitened(momentum, folds=block.folds), kept
    x = unit_rms(momentum, folds=block.folds)
    renew = _renewed_in_program if torch.compiler.is_compiling() else _renewed
    kept = renew(kept, x, step)
    side = rank(block)
    direction = apply_whitener(kept.reshape(-1, side, side), x)
    return equalised(direction), kept


def _renewed(kept: Tensor, x: Tensor, step: Tensor) -> Tensor:
    """The whiteners (batch, numbers) of the matrices x at this step: new ones, or ``kept``."""
    number, period = int(step[0]), ceil(min(matrix_shape(x)) / _PERIOD)
    if number % period == 0 or (number < period and number & (number - 1) == 0):
        return whitener(x, damping=_DAMPING).reshape(kept.shape)
    return kept


@torch.library.custom_op("scalegmn_opt::renewed_whitener", mutates_args=())
def _renewed_in_program(kept: Tensor, x: Tensor, step: Tensor) -> Tensor:
    """:func:`_renewed` for compiled programs, which do not branch on numbers in a tensor."""
    found = _renewed(kept, x, step)
    return found.clone() if found is kept else found


@_renewed_in_program.register_fake
def _(kept: Tensor, x: Tensor, step: Tensor) -> Tensor:
    return torch.empty_like(kept)


def equalised(x: Tensor) -> Tensor:
    """``x`` of the caller's own with rows of root mean square 1, if they had a tenth of it.

    Smaller ones are ten times larger. Rows are along the smaller side of the matrix: those of
    an orthogonal one are of equal size.
    """
    along = (1, 3) if is_tall(x) else (2, 3)
    size = torch.linalg.vector_norm(x, dim=along, keepdim=True) / max(matrix_shape(x)) ** 0.5
    return scaled(x, size.clamp_min(_LEAST).reciprocal())
