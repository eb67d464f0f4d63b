"""Image-space ground truth: what an edit means on pixels.

Shapes: images `(batch, channels, height, width)` throughout. Intensities are not clipped.
"""

import torch
from torch import Tensor
from torch.nn import functional

from scalegmn_opt.inr import pixel_grid


def change_intensity(images: Tensor, gain: float, offset: float) -> Tensor:
    """`gain * images + offset`."""
    return gain * images + offset


def resample(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Bilinear sample of every image at `matrix x + offset` for every pixel centre x.

    Outside the image everything is 0.

    Shapes: matrix `(2, 2)`, offset `(2,)`, in the coordinates of `pixel_grid`.
    """
    batch, _, height, width = images.shape
    coords = pixel_grid(height, width) @ matrix.double().mT + offset.double()
    grid = coords.to(images).reshape(1, height, width, 2).expand(batch, -1, -1, -1)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def dilate(images: Tensor, strength: float) -> Tensor:
    """`(1 - strength) x + strength max(3x3 neighbourhood of x)`, inside the image."""
    dilated = functional.max_pool2d(images, kernel_size=3, stride=1, padding=1)  # pads with -inf
    return torch.lerp(images, dilated, strength)
