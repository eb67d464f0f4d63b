"""Whitened momentum at a bounded cost: the whitener of a large matrix is kept for some steps."""

from math import ceil

from torch import Tensor

from scalegmn_opt.graph import WeightBlock
from scalegmn_opt.optim.directions import (
    apply_whitener,
    rms,
    scaled,
    unit_rms,
    whitened,
    whitener,
)

EXACT_RANK = 64  # largest smaller side of a matrix whose whitener is computed anew at every step
LARGEST_RANK = 2048  # largest smaller side of a matrix that is whitened
_DAMPING = 0.1  # of the mean squared singular value, for a whitener that outlives its momentum


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
    block: WeightBlock, momentum: Tensor, kept: Tensor, *, step: int
) -> tuple[Tensor, Tensor]:
    """The whitened momentum (batch · folds, out, in, kernel), and the whiteners to keep.

    The whitener of a matrix of smaller side n above 64 serves for ``n / 64`` steps, so that a
    weight costs about as much as at n = 64, and is renewed at each power of two before the
    first of these intervals has passed. A direction by an old one is never larger than by a new.

    Args:
        momentum: in gauge coordinates.
        kept: (batch, numbers) from the step before, :func:`kept_numbers` of them.
        step: number of this step, from 1.
    """
    if not kept_numbers(block):
        return whitened(momentum, folds=block.folds), kept
    x = unit_rms(momentum, folds=block.folds)
    period = ceil(rank(block) / EXACT_RANK)
    if step % period == 0 or (step < period and step & (step - 1) == 0):
        matrix = whitener(x, damping=_DAMPING)
        kept = matrix.reshape(kept.shape)
    side = rank(block)
    direction = apply_whitener(kept.reshape(-1, side, side), x)
    return shortened(direction, folds=block.folds), kept


def shortened(x: Tensor, *, folds: int) -> Tensor:
    """``x`` of the caller's own over its root mean square by network, where that is above one."""
    return scaled(x, rms(x, folds=folds).clamp_min(1.0).reciprocal())
