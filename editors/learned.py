"""Edits that a network learned from examples."""

import os
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from scalegmn_opt.inr import SirenSpec, check_parameters

from .edit import Edit, Meaning, PixelEdit, check_strength
from .learned_editor import LearnedEditor
from .picture import one_hot
from .tangent import REACH
from .targets import blur, denoise, dilate, erode, local_contrast, sharpen

_CHUNK = 32  # networks at once, so that a layer's activations at all pixels stay in cache
COPIES = (1, *REACH)
PACKAGED = ("mnist-morphology", "colour-patches")  # 28x28 digits, 32x32 colour patches
Target = Callable[[Tensor, float], Tensor]
# What learned edits mean on pixels, and what their strengths count.
MEANINGS: dict[str, tuple[Target, str]] = {
    "dilate": (dilate, "3x3 dilations"),
    "erode": (erode, "3x3 erosions"),
    "denoise": (denoise, "3x3 medians"),
    "blur": (blur, "standard deviation in pixels"),
    "sharpen": (sharpen, "relative change of the distance from a blur"),
    "local_contrast": (
        local_contrast,
        "relative change of the distance from the surroundings' mean",
    ),
}


class Learned(Edit):
    """Any meaning by a :class:`LearnedEditor`, whose weights are loaded when they are first needed.

    Args:
        meaning: the edit.
        weights, copies, midpoints: see :class:`LearnedEdit`.
    """

    mechanism = "learned"
    loader: ClassVar[type[LearnedEditor]] = LearnedEditor

    def __init__(
        self,
        meaning: Meaning,
        *weights: str | os.PathLike[str],
        copies: int = 1,
        midpoints: bool = False,
    ) -> None:
        if not weights:
            raise ValueError("weights must be at least one name or path, got none")
        if copies not in COPIES:
            raise ValueError(f"copies must be one of {COPIES}, got {copies}")
        self.name, self.unit, self._meaning = meaning.name, meaning.unit, meaning
        self._weights, self.copies, self.midpoints = weights, copies, midpoints

    @cached_property
    def editors(self) -> tuple[LearnedEditor, ...]:
        """The trained networks.

        Raises:
            ValueError: weights of an editor that has not learned this edit.
        """
        editors = tuple(self.loader.from_pretrained(weights) for weights in self._weights)
        for editor in editors:
            if self.name not in editor.edits:
                raise ValueError(
                    f"weights must be of an editor that learned {self.name}, "
                    f"got one of {sorted(editor.edits)}"
                )
        return editors

    def editor_for(self, spec: SirenSpec) -> LearnedEditor:
        """The editor that was trained for such networks.

        Raises:
            ValueError: there is none.
        """
        for editor in self.editors:
            if editor.spec == spec:
                return editor
        known = " or ".join(str(editor.spec) for editor in self.editors)
        raise ValueError(f"spec must be that of an editor for {self.name}, {known}, got {spec}")

    def target(self, images: Tensor, strength: float) -> Tensor:
        return self._meaning.target(images, strength)

    def check(self, spec: SirenSpec, image_size: tuple[int, int]) -> None:
        """As in :class:`Edit`.

        Raises:
            ValueError: networks or pictures that no editor was trained for.
        """
        size = self.editor_for(spec).size
        if tuple(image_size) != (size, size):
            raise ValueError(
                f"image_size must be that of the editor for {self.name}, {(size, size)}, "
                f"got {tuple(image_size)}"
            )

    def apply(
        self, params: Mapping[str, Tensor], spec: SirenSpec, strength: float
    ) -> dict[str, Tensor]:
        """As in :class:`Edit`; warns of a strength beyond those of training.

        Raises:
            ValueError: for a negative strength, or networks that the editor was not trained for.
        """
        editor = self.editor_for(spec)
        self._check_strength(strength, editor)
        count = check_parameters(params, spec)
        first = next(iter(params.values()))
        editor = editor.to(first)
        pieces = []
        with torch.no_grad():
            for start in range(0, count, _CHUNK):
                some = {name: value[start : start + _CHUNK] for name, value in params.items()}
                strengths = self._strengths(editor, next(iter(some.values())), strength)
                options = {"copies": self.copies, "midpoints": self.midpoints}
                pieces.append(editor(some, spec, strengths, **options))
        return {name: torch.cat([piece[name] for piece in pieces]) for name in params}

    def _strengths(self, editor: LearnedEditor, like: Tensor, strength: float) -> Tensor:
        """What the editor reads, for as many networks as there are in `like`."""
        return one_hot(list(editor.edits), self.name, like.new_full((len(like),), strength))

    def _check_strength(self, strength: float, editor: LearnedEditor) -> None:
        check_strength(self.name, strength)
        if strength < 0:
            raise ValueError(f"strength of {self.name} must not be negative, got {strength}")
        largest = editor.edits[self.name]
        if strength > largest:
            message = f"strength of {self.name}: trained up to {largest:g}, got {strength:g}"
            warnings.warn(message, stacklevel=3)


class LearnedEdit(Learned):
    """An edit by a :class:`LearnedEditor`, whose weights are loaded when they are first needed.

    Args:
        name: what recipes call it; one of the editors' edits.
        weights: names of packaged weights, or files' paths; networks choose the editor that was
            trained for their architecture.
        copies: 1 keeps the architecture; 2, 4 or 8 multiply the hidden width and come much closer,
            the more of them, the less sensitive to rounding of the weights.
        midpoints: whether points between the pixels are edited, too, see :class:`LearnedEditor`.

    Raises:
        ValueError: an unknown name, no weights, or another number of copies.
    """

    def __init__(
        self,
        name: str,
        *weights: str | os.PathLike[str],
        copies: int = 1,
        midpoints: bool = False,
    ) -> None:
        if name not in MEANINGS:
            raise ValueError(f"name must be one of {sorted(MEANINGS)}, got {name!r}")
        target, unit = MEANINGS[name]
        meaning = PixelEdit(name, unit, target)
        super().__init__(meaning, *weights, copies=copies, midpoints=midpoints)

    def of(self, copies: int, midpoints: bool) -> "LearnedEdit":
        """The same edit with another number of copies, and with midpoints or without."""
        return LearnedEdit(self.name, *self._weights, copies=copies, midpoints=midpoints)


def learned_edits() -> tuple[LearnedEdit, ...]:
    """Every learned edit, by the packaged editors of 28x28 digits and of 32x32 colour patches."""
    return tuple(LearnedEdit(name, *PACKAGED) for name in MEANINGS)
