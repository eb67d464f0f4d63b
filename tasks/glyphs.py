"""Pictures of ten drawn signs, by a formula: strokes on black, as digits are, that nobody wrote."""

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool1d, grid_sample, interpolate

from .data import Dataset

_SIZES = (12000, 1000, 1000)
_VARIANTS = 40  # drawings of a sign in each part
_SIDE = 24  # pixels of a drawing
_WIDTH = 0.12  # of a stroke, of half a side
_CLASSES = 10


def glyphs(generator: torch.Generator, dims: int) -> Dataset:
    """14,000 pictures (1, side, side) of about ``dims`` pixels, in [0, 1], of ten random signs.

    A sign is a smooth curve through five random points. The three parts have 40 drawings of each
    sign of their own, with every point moved by a deviation of a tenth of half a side; each picture
    is one of them, moved as by :func:`moved`.
    """
    points, side = signs(_CLASSES, generator=generator)[:, None], max(8, round(dims**0.5))
    parts = []
    for count in _SIZES:
        shaken = torch.randn(_CLASSES, _VARIANTS, 5, 2, generator=generator)
        drawings = drawn((points + 0.1 * shaken).flatten(0, 1))
        index = torch.randint(len(drawings), (count,), generator=generator)
        parts += [moved(drawings[index], side, generator=generator), index // _VARIANTS]
    return Dataset(*parts, classes=_CLASSES, name="glyphs", shape=(1, side, side))


def signs(count: int, *, generator: torch.Generator) -> Tensor:
    """Five random points each (count, 5, 2), moved and scaled to fill three quarters of a side."""
    points = torch.rand(count, 5, 2, generator=generator)
    low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
    return 1.5 * (points - (low + high) / 2) / (high - low).amax(2, keepdim=True)


def drawn(points: Tensor, side: int = _SIDE) -> Tensor:
    """Pictures (drawings, 1, side, side) of soft strokes along ``points`` (drawings, 5, 2)."""
    line = interpolate(points.mT, size=32, mode="linear", align_corners=True)
    line = avg_pool1d(line, 7, stride=1).mT  # rounds the corners
    rows = torch.linspace(-1, 1, side)
    pixels = torch.cartesian_prod(rows, rows)
    distance = torch.cdist(pixels, line).amin(2)
    return (-(distance / _WIDTH).square()).exp().reshape(-1, 1, side, side)


def moved(pictures: Tensor, side: int, *, generator: torch.Generator) -> Tensor:
    """Square pictures turned, scaled and shifted at random, (pictures, side²).

    Turned by up to 17 degrees, 1 to 1.4 times smaller, shifted by up to 15 % of half a side.
    """
    turn, scale, right, down = torch.rand(4, len(pictures), generator=generator)
    turn, scale = 0.6 * (turn - 0.5), 1 / (0.7 + 0.3 * scale)
    rows = (
        torch.stack([scale * turn.cos(), -scale * turn.sin(), 0.3 * (right - 0.5)], 1),
        torch.stack([scale * turn.sin(), scale * turn.cos(), 0.3 * (down - 0.5)], 1),
    )
    grid = affine_grid(torch.stack(rows, 1), [len(pictures), 1, side, side], align_corners=False)
    return grid_sample(pictures, grid, align_corners=False).flatten(1)
