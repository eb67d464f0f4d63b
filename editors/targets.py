"""Image-space ground truth: what an edit means on pixels.

Shapes: images `(batch, channels, height, width)` throughout. Intensities are not clipped. A
strength of 0 changes nothing; beyond the border, the nearest pixel goes on.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from scalegmn_opt.inr import pixel_grid

_TRUNCATE = 4.0  # standard deviations at which a Gaussian is cut off, as in scipy.ndimage
_SHARPEN_RADIUS = 1.0  # pixels: edges
_CONTRAST_RADIUS = 3.0  # pixels: strokes and other small forms
_SIDE = 32  # pixels: strengths may be that, or the picture's longer side
_HARMONIC_TOLERANCE = 1e-5  # of the intensities' range


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
    """Grey dilation: every pixel becomes the maximum of its 3x3 neighbourhood, `strength` times.

    A fraction blends two whole numbers of dilations.

    Raises:
        ValueError: a negative strength, or one beyond the picture's longer side and 32 pixels; so
            do `erode`, `denoise` and `blur`.
    """
    return _repeat(_maximum, images, strength)


def erode(images: Tensor, strength: float) -> Tensor:
    """Grey erosion: every pixel becomes the minimum of its 3x3 neighbourhood, as in `dilate`."""
    return _repeat(lambda x: -_maximum(-x), images, strength)


def denoise(images: Tensor, strength: float) -> Tensor:
    """Median filter: every pixel becomes the median of its 3x3 neighbourhood, as in `dilate`."""
    return _repeat(_median, images, strength)


def blur(images: Tensor, strength: float) -> Tensor:
    """Gaussian blur with a standard deviation of `strength` pixels."""
    _check_strength(strength, images)
    if strength == 0:
        return images
    radius = max(1, math.floor(_TRUNCATE * strength + 0.5))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.softmax(-0.5 * (offsets / strength) ** 2, 0).to(images)
    planes = images.flatten(0, 1).unsqueeze(1)
    for shape, padding in (((-1, 1), (0, 0, radius, radius)), ((1, -1), (radius, radius, 0, 0))):
        padded = functional.pad(planes, padding, mode="replicate")
        planes = functional.conv2d(padded, kernel.reshape(1, 1, *shape))
    return planes.reshape(images.shape)


def sharpen(images: Tensor, strength: float) -> Tensor:
    """Unsharp mask: the distance from a blur by one pixel grows by the factor `1 + strength`."""
    return images + strength * (images - blur(images, _SHARPEN_RADIUS))


def local_contrast(images: Tensor, strength: float) -> Tensor:
    """The distance from the surroundings' mean grows by the factor `1 + strength`.

    The mean is Gaussian with a standard deviation of three pixels.
    """
    return images + strength * (images - blur(images, _CONTRAST_RADIUS))


def inpaint(images: Tensor, strength: float, *, mask: Tensor) -> Tensor:
    """Blend masked pixels with the harmonic function that continues what surrounds them.

    A masked pixel becomes the mean of its four neighbours; at the border, of those it has. The
    strength is the share of that picture, within the mask.

    Shapes: mask `(height, width)`, boolean.

    Raises:
        TypeError: a mask that is not boolean.
        ValueError: a mask of another size, or one that leaves no pixel.
    """
    _check_not_negative(strength)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, got {mask.dtype}")
    if mask.shape != images.shape[2:]:
        expected = tuple(images.shape[2:])
        raise ValueError(f"mask must have the images' size {expected}, got {tuple(mask.shape)}")
    if mask.all():
        raise ValueError("mask must leave a pixel to continue from, got every pixel masked")
    return torch.lerp(images, harmonic(images, mask), strength) if mask.any() else images


def harmonic(images: Tensor, mask: Tensor) -> Tensor:
    """The pictures with masked pixels replaced by the mean of their neighbours, as in `inpaint`.

    Conjugate gradients on the masked pixels, for every channel of every image at once.

    Shapes: mask `(height, width)`, or `(batch, 1, height, width)` for one of every picture.
    """
    inside = mask.to(images)
    solution = torch.where(mask, images.mean((2, 3), keepdim=True), images)
    residual = -inside * _laplacian(solution)
    direction, square = residual, residual.square().sum((2, 3), keepdim=True)
    for _ in range(int(mask.sum((-2, -1)).max())):  # enough in exact arithmetic
        if residual.abs().max() <= _HARMONIC_TOLERANCE:
            break
        along = inside * _laplacian(direction)
        curvature = (direction * along).sum((2, 3), keepdim=True)
        step = torch.where(curvature > 0, square / curvature, 0.0)
        solution, residual = solution + step * direction, residual - step * along
        before, square = square, residual.square().sum((2, 3), keepdim=True)
        direction = residual + torch.where(before > 0, square / before, 0.0) * direction
    return solution


def _repeat(operator: Callable[[Tensor], Tensor], images: Tensor, strength: float) -> Tensor:
    """`operator` a whole number of times, then a blend with once more."""
    _check_strength(strength, images)
    whole = math.floor(strength)
    for _ in range(whole):
        images = operator(images)
    fraction = strength - whole
    return torch.lerp(images, operator(images), fraction) if fraction else images


def _maximum(images: Tensor) -> Tensor:
    return functional.max_pool2d(images, kernel_size=3, stride=1, padding=1)  # pads with -inf


def _median(images: Tensor) -> Tensor:
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).median(-1).values


def _laplacian(images: Tensor) -> Tensor:
    """Sum of the differences to the four neighbours, positive semi-definite."""
    down, right = images.diff(dim=2), images.diff(dim=3)
    rows = functional.pad(down, (0, 0, 1, 0)) - functional.pad(down, (0, 0, 0, 1))
    columns = functional.pad(right, (1, 0, 0, 0)) - functional.pad(right, (0, 1, 0, 0))
    return rows + columns


def _check_not_negative(strength: float) -> None:
    if not strength >= 0:
        raise ValueError(f"strength must not be negative, got {strength}")


def _check_strength(strength: float, images: Tensor) -> None:
    _check_not_negative(strength)
    most = max(_SIDE, *images.shape[2:])
    if strength > most:
        raise ValueError(f"strength must be at most {most} pixels here, got {strength}")
