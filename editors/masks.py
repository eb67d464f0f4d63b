"""Where in a picture an edit is seen: a box, or an image file."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from scalegmn_opt.inr import load_images, pixel_grid

from .closed_form import Box, check_box
from .edit import Meaning, check_strength
from .refit import check_mask
from .targets import inpaint


@dataclass(frozen=True, eq=False)
class Inpaint(Meaning):
    """Fills a region with the smoothest continuation of what surrounds it."""

    region: Tensor | None = None  # (height, width), True where the picture is filled

    name = "inpaint"
    unit = "share of the filling"

    def of(self, mask: Tensor | None) -> "Inpaint":
        """The edit with a region to fill: the lighter half of `mask`.

        Raises:
            ValueError: no mask.
        """
        if mask is None:
            raise ValueError("mask of inpaint must be given: the region to fill")
        return replace(self, region=mask > 0.5)

    def target(self, images: Tensor, strength: float) -> Tensor:
        check_strength(self.name, strength)
        assert self.region is not None, "of() comes first"
        return inpaint(images, strength, mask=self.region.to(images.device))


def load_mask(mask: Box | str, image_size: tuple[int, int]) -> Tensor:
    """The mask of a recipe: 1 where the edit is seen, 0 where the picture stays.

    Args:
        mask: left, top, right and bottom edge in fractions of the picture from its upper left; or
            the path of a grey image of the picture's size, white where the edit is seen.

    Shapes: `(height, width)`, float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty box, a file that is no single image, or an image of another size.
    """
    if isinstance(mask, str):
        return _read(Path(mask), image_size)
    check_box("mask", mask)
    x, y = (0.5 * pixel_grid(*image_size) + 0.5).unbind(1)
    left, top, right, bottom = mask
    inside = (left <= x) & (x <= right) & (top <= y) & (y <= bottom)
    return inside.reshape(image_size).to(torch.float32)


def _read(path: Path, image_size: tuple[int, int]) -> Tensor:
    images, _ = load_images([path])
    if len(images) != 1:
        raise ValueError(f"mask must be one image, got {len(images)} in {path}")
    mask = images[0].mean(0)
    try:
        check_mask(mask, image_size)
    except ValueError as error:
        raise ValueError(f"{error} in {path}") from error
    return mask
