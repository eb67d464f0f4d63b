"""What an edit is: one meaning in image space, and a mechanism that achieves it on the weights."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from scalegmn_opt.inr import SirenSpec


class Meaning(ABC):
    """What an edit does to pictures, with a strength, 0 meaning no change.

    Attributes:
        name: what recipes call it.
        unit: what the strength counts.
        options: what else a recipe may say about it.
        guessed: `(height, width)`, True where nobody knows what is right after it; None if nowhere.

    Shapes: images `(batch, channels, height, width)`.
    """

    name: str
    unit: str
    options: ClassVar[tuple[str, ...]] = ()
    guessed: Tensor | None = None

    @abstractmethod
    def target(self, images: Tensor, strength: float) -> Tensor:
        """The edited images, computed on pixels."""

    def with_options(self, options: Mapping[str, Any]) -> "Meaning":
        """The same edit with other values of some of its `options`."""
        return replace(self, **options) if options else self  # type: ignore[type-var]


class Edit(Meaning):
    """A meaning, and a mechanism on networks that achieves it.

    `render(apply(params, spec, s)) = target(render(params), s)`, as well as the mechanism can.

    Attributes:
        mechanism: how `apply` works, such as "closed form" or "learned".

    Shapes: params name -> `(batch, *shape)`.
    """

    mechanism: str

    @abstractmethod
    def apply(
        self, params: Mapping[str, Tensor], spec: SirenSpec, strength: float
    ) -> dict[str, Tensor]:
        """The edited networks; tensors that stay the same may be shared with `params`.

        Hidden layers may come out wider than those of `spec`, see `widened`.
        """

    def check(self, spec: SirenSpec, image_size: tuple[int, int]) -> None:
        """Reject networks that the mechanism is not made for.

        Args:
            image_size: `(height, width)` of their pictures.

        Raises:
            ValueError: another architecture, or pictures of another size.
        """


@dataclass(frozen=True)
class PixelEdit(Meaning):
    """An edit that is known on pixels alone; networks can be refitted to its result."""

    name: str
    unit: str
    function: Callable[[Tensor, float], Tensor]

    def target(self, images: Tensor, strength: float) -> Tensor:
        check_strength(self.name, strength)
        return self.function(images, strength)


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
