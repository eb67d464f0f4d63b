"""Filling a region with what pictures of the training data have in such a place."""

import os
from typing import ClassVar

import torch
from torch import Tensor

from scalegmn_opt.inr import SirenSpec

from .learned import Learned
from .learned_editor import LearnedEditor
from .masks import Inpaint
from .targets import harmonic

INPAINTER = "mnist-inpainting"  # 28x28 digits


class InpaintingEditor(LearnedEditor):
    """A :class:`LearnedEditor` whose strengths are maps: where to fill, and by how much.

    It does not look at what the region holds. The smoothest continuation of the surroundings is
    what it begins with; its picture operator, which sees the region, too, changes that to what it
    saw in training. Pixels outside of the region are to stay.

    Shapes:
        params name -> (batch, *shape), strengths (batch, height, width) from 0 to 1 -> params
    """

    kind: ClassVar[str] = "inpainting editor"
    masked: ClassVar[bool] = True

    def _imagine(self, outputs: Tensor, strengths: Tensor) -> Tensor:
        pictures = outputs.mT.unflatten(2, (self.size, self.size))
        shares = strengths.unsqueeze(1)
        region = shares > 0
        begin = harmonic(pictures, region)
        everywhere = torch.ones_like(strengths[:, 0, :1])
        filled = begin + self.picture(begin, everywhere, region.to(begin))
        return pictures.lerp(filled, shares).flatten(2).mT


class LearnedInpaint(Learned):
    """Fills a region by an :class:`InpaintingEditor`; what belongs there nobody knows.

    Its target, the smoothest continuation, is but another guess: see :class:`Truth`.

    Args:
        region: (height, width), True where the picture is filled.
        weights, copies, midpoints: as of :class:`LearnedEdit`; the packaged weights if none.

    Raises:
        ValueError: another number of copies.
    """

    loader: ClassVar[type[LearnedEditor]] = InpaintingEditor

    def __init__(
        self,
        region: Tensor,
        *weights: str | os.PathLike[str],
        copies: int = 1,
        midpoints: bool = False,
    ) -> None:
        used = weights or (INPAINTER,)
        super().__init__(Inpaint(region), *used, copies=copies, midpoints=midpoints)
        self.guessed = region

    def check(self, spec: SirenSpec, image_size: tuple[int, int]) -> None:
        """As in :class:`Edit`.

        Raises:
            TypeError: a region that is not boolean.
            ValueError: also a region of another size, or one that leaves no pixel.
        """
        super().check(spec, image_size)
        self.target(torch.zeros(1, 1, *image_size), 1.0)  # rejects such regions

    def _strengths(self, editor: LearnedEditor, like: Tensor, strength: float) -> Tensor:
        return strength * self.guessed.to(like).expand(len(like), -1, -1)
