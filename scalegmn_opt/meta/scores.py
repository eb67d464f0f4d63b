"""Numbers of training curves, and of many of them."""

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

SMOOTHING = 10  # a curve is averaged over a tenth of its length: less, and minima are luck


def trailing_mean(losses: Sequence[float]) -> list[float]:
    """Mean of each loss and those before it, over a tenth of the curve; infinite after an end."""
    window = max(1, len(losses) // SMOOTHING)
    return [
        sum(losses[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(losses))
    ]


def steps_to(losses: Sequence[float], target: float) -> int | None:
    """Steps until the trailing mean is at most ``target``, None if it never is.

    Before a whole window has passed nothing counts as reached: early means are of few batches.
    """
    window = max(1, len(losses) // SMOOTHING)
    for step, loss in enumerate(trailing_mean(losses), start=1):
        if step >= window and loss <= target:
            return step
    return None


def diverged(losses: Sequence[float]) -> bool:
    """Whether a loss is not finite, or training ends above where it began."""
    return not all(map(isfinite, losses)) or trailing_mean(losses)[-1] > losses[0]


def interquartile_mean(values: Tensor) -> Tensor:
    """Mean of the middle half of the last axis: a quarter is cut off at each end.

    Values at the cuts count with the share that belongs to the middle half.
    """
    ordered, count = values.sort(-1).values, values.shape[-1]
    positions = torch.arange(count, dtype=ordered.dtype)
    inside = torch.minimum(positions + 1, torch.tensor(0.75 * count)) - torch.maximum(
        positions, torch.tensor(0.25 * count)
    )
    weights = inside.clamp(min=0)
    return (ordered * weights).sum(-1) / weights.sum()


def interval(
    values: Mapping[str, Sequence[float]], *, generator: torch.Generator, resamples: int = 2000
) -> tuple[float, float, float]:
    """Inter-quartile mean over all tasks and seeds, and a 95 % bootstrap interval of it.

    Seeds are drawn again within each task (``values`` by task), tasks are kept.

    References:
        Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice",
        arXiv 2108.13264.
    """
    rows = [torch.tensor(seeds, dtype=torch.float64) for seeds in values.values()]
    drawn = [
        row[torch.randint(len(row), (resamples, len(row)), generator=generator)] for row in rows
    ]
    means = interquartile_mean(torch.cat(drawn, 1))
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(interquartile_mean(torch.cat(rows))), low, high
