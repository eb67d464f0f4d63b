"""Distances between images, one value per image.

Shapes: images and targets `(batch, channels, height, width)` -> `(batch,)`.
"""

from torch import Tensor

from scalegmn_opt.inr import psnr_from_mse


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every image in dB for a peak of 1; infinite for equal images.

    Raises:
        ValueError: unequal shapes, or no batch of images.
    """
    if images.shape != targets.shape:
        raise ValueError(
            f"targets must have the shape of images, {tuple(images.shape)}, "
            f"got {tuple(targets.shape)}"
        )
    if images.ndim != 4:
        raise ValueError(
            f"images must have shape (batch, channels, height, width), got {tuple(images.shape)}"
        )
    return psnr_from_mse((images - targets).square().mean(dim=(1, 2, 3)))
