"""Edits that are exact on the weights of a SIREN.

The last layer sets intensities, the first one coordinates. Coordinates are those of the network,
the picture being [-1, 1]^2: on a picture that is not square, rotations and slanted shifts act on
the square it is stretched from.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scalegmn_opt.inr import SirenSpec, check_parameters

from .edit import Edit, check_strength
from .targets import resample

Function = Callable[[Tensor], Tensor]  # coords (points, 2) -> (batch, points, channels)
CHANNELS = ("red", "green", "blue")

_LARGEST_ZOOM = (
    16.0  # factors of two; beyond it float32 coordinates of neighbouring pixels coincide
)


class ClosedForm(Edit):
    """An edit that is exact on the function a network is."""

    mechanism = "closed form"

    @abstractmethod
    def of(self, function: Function, strength: float) -> Function:
        """The edited function: what `apply` makes of a network that is `function`."""


class IntensityEdit(ClosedForm):
    """`f'(x) = gain f(x) + offset`: the last layer becomes `gain W`, `gain b + offset`."""

    @abstractmethod
    def intensity_map(self, strength: float, channels: int) -> tuple[Tensor, Tensor]:
        """Gain and offset `(channels,)`.

        Raises:
            ValueError: an edit that pictures of so many channels do not have.
        """

    def of(self, function: Function, strength: float) -> Function:
        def edited(coords: Tensor) -> Tensor:
            values = function(coords)
            gain, offset = self.intensity_map(strength, values.shape[-1])
            return gain.to(values) * values + offset.to(values)

        return edited

    def target(self, images: Tensor, strength: float) -> Tensor:
        check_strength(self.name, strength)
        gain, offset = (x[:, None, None] for x in self.intensity_map(strength, images.shape[1]))
        return gain.to(images) * images + offset.to(images)

    def apply(
        self, params: Mapping[str, Tensor], spec: SirenSpec, strength: float
    ) -> dict[str, Tensor]:
        check_strength(self.name, strength)
        check_parameters(params, spec)
        weight, bias = (f"layers.{spec.last_layer}.{part}" for part in ("weight", "bias"))
        maps = self.intensity_map(strength, spec.out_features)
        gain, offset = (part.to(params[bias]) for part in maps)
        edited = {weight: gain[:, None] * params[weight], bias: gain * params[bias] + offset}
        return {**params, **edited}


class CoordinateEdit(ClosedForm):
    """`f'(x) = f(A x + t)`: the first layer becomes `W A`, `b + W t`."""

    @abstractmethod
    def coordinate_map(self, strength: float) -> tuple[Tensor, Tensor]:
        """Matrix A `(2, 2)` and offset t `(2,)`, from the edited picture to the original."""

    def of(self, function: Function, strength: float) -> Function:
        matrix, offset = self.coordinate_map(strength)
        return lambda coords: function(coords @ matrix.to(coords).mT + offset.to(coords))

    def target(self, images: Tensor, strength: float) -> Tensor:
        check_strength(self.name, strength)
        return resample(images, *self.coordinate_map(strength))

    def apply(
        self, params: Mapping[str, Tensor], spec: SirenSpec, strength: float
    ) -> dict[str, Tensor]:
        check_strength(self.name, strength)
        check_parameters(params, spec)
        if spec.in_features != 2:
            raise ValueError(f"spec.in_features must be 2 for {self.name}, got {spec.in_features}")
        weight, bias = params["layers.0.weight"], params["layers.0.bias"]
        matrix, offset = (part.to(weight) for part in self.coordinate_map(strength))
        edited = {"layers.0.weight": weight @ matrix, "layers.0.bias": bias + weight @ offset}
        return {**params, **edited}


@dataclass(frozen=True)
class Brightness(IntensityEdit):
    """Adds the strength to every intensity."""

    name = "brightness"
    unit = "intensity added"

    def intensity_map(self, strength: float, channels: int) -> tuple[Tensor, Tensor]:
        return torch.ones(channels, dtype=torch.float64), _filled(channels, strength)


@dataclass(frozen=True)
class Contrast(IntensityEdit):
    """Multiplies the distance of every intensity from 0.5 by `1 + strength`."""

    name = "contrast"
    unit = "relative change of the distance from 0.5"

    def intensity_map(self, strength: float, channels: int) -> tuple[Tensor, Tensor]:
        return _filled(channels, 1.0 + strength), _filled(channels, -0.5 * strength)


@dataclass(frozen=True)
class Invert(IntensityEdit):
    """Blends the picture with its negative `1 - x`."""

    name = "invert"
    unit = "share of the negative"

    def intensity_map(self, strength: float, channels: int) -> tuple[Tensor, Tensor]:
        return _filled(channels, 1.0 - 2.0 * strength), _filled(channels, strength)


@dataclass(frozen=True)
class Gain(IntensityEdit):
    """Multiplies the intensities of one colour, or of all, by `1 + strength`."""

    name = "gain"
    unit = "relative change of the intensity"
    options: ClassVar = ("channel",)
    channel: str | None = None

    def __post_init__(self) -> None:
        if self.channel not in (None, *CHANNELS):
            raise ValueError(f"channel must be one of {CHANNELS}, got {self.channel!r}")

    def intensity_map(self, strength: float, channels: int) -> tuple[Tensor, Tensor]:
        if self.channel is not None and channels != len(CHANNELS):
            raise ValueError(
                f"channel {self.channel} of gain: expected pictures of {len(CHANNELS)} channels, "
                f"got {channels}"
            )
        chosen = [self.channel in (None, name) for name in CHANNELS[:channels]]
        gain = 1.0 + strength * torch.tensor(chosen, dtype=torch.float64)
        return gain, torch.zeros(channels, dtype=torch.float64)


def _filled(channels: int, value: float) -> Tensor:
    return torch.full((channels,), value, dtype=torch.float64)


@dataclass(frozen=True)
class DirectedEdit(CoordinateEdit):
    """An edit along a direction, in degrees counter-clockwise as seen; 0 is to the right."""

    options: ClassVar = ("angle",)
    angle: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.angle):
            raise ValueError(f"angle must be finite, got {self.angle}")

    def axes(self) -> tuple[Tensor, Tensor]:
        """Unit vectors along the direction, and a quarter turn to its left."""
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        along = torch.tensor([cos, -sin], dtype=torch.float64)  # y points down
        return along, torch.tensor([-sin, -cos], dtype=torch.float64)


class Shift(DirectedEdit):
    """Moves the picture along the direction."""

    name = "shift"
    unit = "fraction of the picture's width (upwards: of its height)"

    def coordinate_map(self, strength: float) -> tuple[Tensor, Tensor]:
        return torch.eye(2, dtype=torch.float64), -2.0 * strength * self.axes()[0]  # width is 2


class Shear(DirectedEdit):
    """Slants the picture: what lies to the left of the direction moves along it, by its distance.

    At angle 0 the top moves to the right.
    """

    name = "shear"
    unit = "shift along the direction per distance from it"

    def coordinate_map(self, strength: float) -> tuple[Tensor, Tensor]:
        along, left = self.axes()
        matrix = torch.eye(2, dtype=torch.float64) - strength * torch.outer(along, left)
        return matrix, torch.zeros(2, dtype=torch.float64)


class Flip(DirectedEdit):
    """Mirrors the picture along the direction; between 0 and 1 it turns like a card."""

    name = "flip"
    unit = "share of the mirror image's distance; at 0.5 the card is seen from its edge"

    def coordinate_map(self, strength: float) -> tuple[Tensor, Tensor]:
        along, _ = self.axes()
        matrix = torch.eye(2, dtype=torch.float64) - 2 * strength * torch.outer(along, along)
        return matrix, torch.zeros(2, dtype=torch.float64)


@dataclass(frozen=True)
class Rotate(CoordinateEdit):
    """Turns the picture about its centre, counter-clockwise as seen."""

    name = "rotate"
    unit = "degrees counter-clockwise"

    def coordinate_map(self, strength: float) -> tuple[Tensor, Tensor]:
        cos, sin = math.cos(math.radians(strength)), math.sin(math.radians(strength))
        matrix = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)  # y points down
        return matrix, torch.zeros(2, dtype=torch.float64)


@dataclass(frozen=True)
class Zoom(CoordinateEdit):
    """Enlarges the picture about its centre by the factor `2 ** strength`."""

    name = "zoom"
    unit = "doublings of size"

    def coordinate_map(self, strength: float) -> tuple[Tensor, Tensor]:
        if abs(strength) > _LARGEST_ZOOM:
            raise ValueError(f"strength of zoom must be within ±{_LARGEST_ZOOM:g}, got {strength}")
        matrix = 2.0**-strength * torch.eye(2, dtype=torch.float64)
        return matrix, torch.zeros(2, dtype=torch.float64)


Box = tuple[float, float, float, float]  # left, top, right, bottom, in fractions of the picture


@dataclass(frozen=True)
class Crop(CoordinateEdit):
    """Lets a box fill the frame; one of other proportions than the picture is stretched.

    Args:
        box: left, top, right and bottom edge, in fractions of the picture from its upper left.
    """

    name = "crop"
    unit = "share of the way from the whole picture to the box"
    options: ClassVar = ("box",)
    box: Box = (0.25, 0.25, 0.75, 0.75)

    def __post_init__(self) -> None:
        check_box("box", self.box)

    def coordinate_map(self, strength: float) -> tuple[Tensor, Tensor]:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength of crop must be within 0 and 1, got {strength}")
        left, top, right, bottom = self.box
        size = torch.tensor([right - left, bottom - top], dtype=torch.float64)
        centre = torch.tensor([left + right - 1, top + bottom - 1], dtype=torch.float64)
        return torch.diag(1 - strength * (1 - size)), strength * centre


def check_box(name: str, box: Box) -> None:
    """Reject a box that is empty or leaves the picture.

    Raises:
        ValueError: not 0 <= left < right <= 1, or the same of top and bottom.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(
            f"{name} must be left, top, right, bottom with 0 <= left < right <= 1 and "
            f"0 <= top < bottom <= 1, got {list(box)}"
        )
