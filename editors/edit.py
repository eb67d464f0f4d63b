"""What an edit is: one meaning in image space, and a mechanism that achieves it on the weights."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from scalegmn_opt.inr import SirenSpec


class Edit(ABC):
    """One image-space meaning with a strength, 0 meaning no change, and its mechanism on networks.

    `render(apply(params, spec, s)) = target(render(params), s)`, as well as the mechanism can.

    Attributes:
        name: what recipes call it.
        unit: what the strength counts.
        mechanism: how `apply` works, such as "closed form" or "learned".

    Shapes: params name -> `(batch, *shape)`; images `(batch, channels, height, width)`.
    """

    name: str
    unit: str
    mechanism: str

    @abstractmethod
    def target(self, images: Tensor, strength: float) -> Tensor:
        """The edited images, computed on pixels."""

    @abstractmethod
    def apply(
        self, params: Mapping[str, Tensor], spec: SirenSpec, strength: float
    ) -> dict[str, Tensor]:
        """The edited networks; tensors that stay the same may be shared with `params`.

        Hidden layers may come out wider than those of `spec`, see `widened`.
        """


class DirectedEdit(Edit):
    """An edit along a direction, in degrees counter-clockwise as seen; 0 is to the right."""

    angle: float

    @abstractmethod
    def at_angle(self, angle: float) -> "DirectedEdit":
        """The same edit along another direction."""


def widened(spec: SirenSpec, params: Mapping[str, Tensor]) -> SirenSpec:
    """`spec` with the hidden widths that `params` have."""
    widths = (params[f"layers.{i}.bias"].shape[1] for i in range(spec.last_layer))
    return replace(spec, hidden=tuple(widths))


def check_strength(name: str, strength: float) -> None:
    """Reject a strength that is not a finite number.

    Raises:
        ValueError: NaN or infinity.
    """
    if not math.isfinite(strength):
        raise ValueError(f"strength of {name} must be finite, got {strength}")
