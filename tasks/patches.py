"""Patches of two real photographs."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

_OVERLAP = 2  # neighbours lie a patch's size over this number apart
_TEST = 0.25  # share of every photograph's width, at its right


@dataclass(frozen=True, eq=False)
class Patches:
    """Training and test patches (batch, 3, size, size), in [0, 1], that share no pixel."""

    train: Tensor
    test: Tensor


def photographs(size: int) -> Patches:
    """Square patches of scikit-learn's two sample photographs, at full and at half resolution.

    Patches overlap by half. The order is shuffled once and for all (seed 0).

    Raises:
        ImportError: if scikit-learn or Pillow is not installed.
        ValueError: if ``size`` is not even and positive, or too large for the photographs.
    """
    if size < 2 or size % 2:
        raise ValueError(f"size must be even and positive, got {size}")
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for image in _load():
        for scaled in (image, avg_pool2d(image, 2)):
            border = int((1 - _TEST) * scaled.shape[2])
            for part, some in zip(parts, scaled.split(border, 2), strict=False):
                if min(some.shape[1:]) < size:
                    raise ValueError(f"size must fit {tuple(some.shape[1:])} pixels, got {size}")
                part.append(_tiles(some, size))
    generator = torch.Generator().manual_seed(0)
    joined = [torch.cat(part) for part in parts]
    return Patches(*(part[torch.randperm(len(part), generator=generator)] for part in joined))


def _tiles(image: Tensor, size: int) -> Tensor:
    step = size // _OVERLAP
    tiles = image.unfold(1, size, step).unfold(2, size, step)  # (3, rows, columns, size, size)
    return tiles.permute(1, 2, 0, 3, 4).flatten(0, 1).contiguous()


def _load() -> list[Tensor]:
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise ImportError(
            'photographs() needs scikit-learn and Pillow: pip install "scalegmn-opt[data,images]"'
        ) from error
    images = load_sample_images().images
    return [torch.tensor(image).permute(2, 0, 1).float() / 255 for image in images]
