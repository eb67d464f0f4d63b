"""What pictures should be after the edits of a recipe: what results are held to."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scalegmn_opt.inr import SirenSpec, evaluate, pixel_grid, render

from .blend import Blend
from .closed_form import ClosedForm, CoordinateEdit, Function, IntensityEdit
from .edit import Meaning
from .refit import Refit

_POINTS = 2**18  # networks x coordinates at once
_WHOLE = 0.999  # share of a resampled pixel that has to come from inside the picture


@dataclass(frozen=True, eq=False)
class Truth:
    """Pictures on a grid that is `scale` times as fine as the edits' own pixels.

    Edits of neighbourhoods mean pixels of scale 1: on a finer grid, every offset within a pixel is
    edited as a picture of its own, so that a 3x3 dilation reaches as far as on the coarse grid.

    Attributes:
        known: which pixels have a truth; what a rotation brings in from outside an image has none,
            nor has what an edit guesses.
        function: the same pictures as a function, as long as every edit was in closed form.

    Shapes: images `(batch, channels, scale * height, scale * width)`; known the same, with one
    picture and channel.
    """

    images: Tensor
    known: Tensor
    scale: int = 1
    function: Function | None = None

    @classmethod
    def of_images(cls, images: Tensor) -> "Truth":
        """Source images; their function between the pixels is not known."""
        return cls(images, torch.ones_like(images[:1, :1], dtype=torch.bool))

    @classmethod
    def of_networks(
        cls, params: Mapping[str, Tensor], spec: SirenSpec, size: tuple[int, int], scale: int = 1
    ) -> "Truth":
        """The renders of networks, which are functions of the whole plane."""
        images = render(params, spec, scale * size[0], scale * size[1])
        known = torch.ones_like(images[:1, :1], dtype=torch.bool)
        return cls(images, known, scale, lambda coords: evaluate(params, spec, coords))

    def after(self, edit: Meaning, strength: float) -> "Truth":
        """The truth after one more edit.

        Raises:
            ValueError: nothing of the picture is left, or a strength that the edit rejects.
        """
        edited = self._after(edit, strength)
        if edit.guessed is None:
            return edited
        return replace(edited, known=edited.known & ~self._fine(edit.guessed))

    def _after(self, edit: Meaning, strength: float) -> "Truth":
        if isinstance(edit, Blend):
            return self._between(edit, strength)
        if isinstance(edit, Refit):
            return self._within(edit.mask, self.after(edit.meaning, strength))
        if self.function is not None and isinstance(edit, ClosedForm):
            function = edit.of(self.function, strength)
            return replace(self, images=self._sample(function), function=function)
        if isinstance(edit, CoordinateEdit):
            inside = edit.target(self.known.to(self.images), strength) > _WHOLE
            if not inside.any():
                raise ValueError(
                    f"strength of {edit.name}: expected one that leaves some of the picture, "
                    f"got {strength}"
                )
            images = edit.target(self.images, strength)
            return replace(self, images=images, known=inside, function=None)
        images = _by_offset(edit, self.images, strength, scale=self.scale)
        return replace(self, images=images, function=None)

    def mse(self, images: Tensor) -> Tensor:
        """Mean squared error of every picture where the truth is known.

        Shapes: images as those of the truth -> `(batch,)`.
        """
        errors = (images - self.images).square().mean(1) * self.known[:, 0]
        return errors.sum((1, 2)) / self.known.sum()

    def differs(self, other: "Truth") -> bool:
        """Whether the pictures differ where both are known."""
        known = self.known & other.known
        return bool(((self.images != other.images) & known).any())

    def _between(self, edit: Blend, strength: float) -> "Truth":
        one, other = self.after(edit.one, strength), self.after(edit.other, edit.other_strength)
        images, known = one.images.lerp(other.images, edit.weight), one.known & other.known
        return replace(self, images=images, known=known, function=None)

    def _within(self, mask: Tensor | None, edited: "Truth") -> "Truth":
        if mask is None:
            return edited
        fine = self._fine(mask).to(self.images)
        known = torch.where(fine > 0, edited.known, self.known)
        images = self.images.lerp(edited.images, fine)
        return replace(self, images=images, known=known, function=None)

    def _fine(self, mask: Tensor) -> Tensor:
        """A mask of the edits' own pixels on this grid."""
        fine = mask.to(self.images.device).repeat_interleave(self.scale, 0)
        return fine.repeat_interleave(self.scale, 1)

    def _sample(self, function: Function) -> Tensor:
        batch, channels, height, width = self.images.shape
        coords = pixel_grid(height, width).to(self.images)
        with torch.no_grad():
            pieces = [function(some) for some in coords.split(max(1, _POINTS // batch))]
        return torch.cat(pieces, 1).mT.reshape(batch, channels, height, width)


def _by_offset(edit: Meaning, images: Tensor, strength: float, *, scale: int) -> Tensor:
    if scale == 1 or isinstance(edit, IntensityEdit):
        return edit.target(images, strength)
    edited = torch.empty_like(images)
    for row in range(scale):
        for column in range(scale):
            part = (..., slice(row, None, scale), slice(column, None, scale))
            edited[part] = edit.target(images[part], strength)
    return edited
