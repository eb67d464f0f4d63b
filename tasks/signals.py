"""Ten classes of one-dimensional signals, drawn by a formula: a picture task without pictures."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .data import Dataset

LENGTH = 40  # values in a signal
_TEMPLATE = 12
_SIZES = (3000, 600, 600)


@lru_cache(maxsize=1)
def signals() -> Dataset:
    """4200 signals (1, 40) of ten classes: a class is a smooth shape, moved, stretched and tilted.

    Shapes are curves through six random points. Each signal has its own length, place, height
    (from 0.6 to 1.4) and slope, slow noise of deviation 0.2 and fast noise of deviation 0.1; it is
    always the same set (seed 0).

    References:
        After the idea of Greydanus and Kobak, "Scaling down deep learning with MNIST-1D",
        arXiv 2011.14439; shapes and noise are of our own make.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = _smooth(torch.randn(10, 6, generator=generator), _TEMPLATE)
    shapes = shapes - shapes.mean(1, keepdim=True)
    shapes = shapes / shapes.std(1, keepdim=True)
    total = sum(_SIZES)
    targets = torch.randint(10, (total,), generator=generator)
    drawn = _drawn(shapes[targets], generator=generator)
    inputs = drawn + _noise(total, generator=generator)
    (x0, x1, x2), (y0, y1, y2) = inputs.split(_SIZES), targets.split(_SIZES)
    return Dataset(x0, y0, x1, y1, x2, y2, classes=10, name="signals", shape=(1, LENGTH))


def _drawn(shapes: Tensor, *, generator: torch.Generator) -> Tensor:
    """Each shape (samples, template) somewhere on a line (samples, LENGTH) that is zero else."""
    length, place, height, slope = torch.rand(4, len(shapes), 1, generator=generator)
    length = _TEMPLATE * (1 + length)
    start = place * (LENGTH - length)
    position = (torch.arange(LENGTH) - start) / length  # in [0, 1) within the shape
    index = (position.clamp(0, 1) * (_TEMPLATE - 1)).round().long()
    values = shapes.gather(1, index) * (0.6 + 0.8 * height) + (slope - 0.5) * position
    return torch.where((position >= 0) & (position < 1), values, 0.0)


def _noise(total: int, *, generator: torch.Generator) -> Tensor:
    slow = _smooth(torch.randn(total, 8, generator=generator), LENGTH)
    return 0.2 * slow + 0.1 * torch.randn(total, LENGTH, generator=generator)


def _smooth(points: Tensor, length: int) -> Tensor:
    """Curves (batch, length) that pass near ``points`` (batch, number)."""
    return interpolate(points[:, None], size=length, mode="linear", align_corners=True)[:, 0]
