"""Blends between two edits: a weighted sum of pictures is a wider network."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scalegmn_opt.inr import SirenSpec

from .edit import Edit
from .merge import merge


@dataclass(frozen=True, eq=False)
class Blend(Edit):
    """`(1 - w)` of one edit and `w` of another, each of the picture before; as exact as they are.

    Hidden layers of both lie side by side.

    Args:
        one: its strength is the blend's.
        other, other_strength: the second edit.
        weight: `w`, from 0 to 1.
    """

    one: Edit
    other: Edit
    other_strength: float
    weight: float

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.one.name}, {self.weight:g} of {self.other.name}"

    @property
    def unit(self) -> str:  # type: ignore[override]
        return self.one.unit

    @property
    def mechanism(self) -> str:  # type: ignore[override]
        return f"{self.one.mechanism} + {self.other.mechanism}"

    @property
    def guessed(self) -> Tensor | None:  # type: ignore[override]
        regions = [edit.guessed for edit in (self.one, self.other) if edit.guessed is not None]
        return torch.stack(regions).any(0) if regions else None

    def target(self, images: Tensor, strength: float) -> Tensor:
        one = self.one.target(images, strength)
        return one.lerp(self.other.target(images, self.other_strength), self.weight)

    def apply(
        self, params: Mapping[str, Tensor], spec: SirenSpec, strength: float
    ) -> dict[str, Tensor]:
        one = self.one.apply(params, spec, strength)
        other = self.other.apply(params, spec, self.other_strength)
        return merge([one, other], [1 - self.weight, self.weight])
