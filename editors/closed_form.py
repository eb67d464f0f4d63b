"""Edits that are exact on the weights of a SIREN.

The last layer sets intensities, the first one coordinates. Coordinates are those of the network,
the picture being [-1, 1]^2: on a picture that is not square, rotations and slanted shifts act on
the square it is stretched from.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from scalegmn_opt.inr import SirenSpec, check_parameters

from .edit import DirectedEdit, Edit, check_strength
from .targets import change_intensity, resample

_LARGEST_ZOOM = (
    16.0  # factors of two; beyond it float32 coordinates of neighbouring pixels coincide
)


class IntensityEdit(Edit):
    """`f'(x) = gain f(x) + offset`: the last layer becomes `gain W`, `gain b + offset`."""

    mechanism = "closed form"

    @abstractmethod
    def intensity_map(self, strength: float) -> tuple[float, float]:
        """Gain and offset."""

    def target(self, images: Tensor, strength: float) -> Tensor:
        check_strength(self.name, strength)
        return change_intensity(images, *self.intensity_map(strength))

    def apply(
        self, params: Mapping[str, Tensor], spec: SirenSpec, strength: float
    ) -> dict[str, Tensor]:
        check_strength(self.name, strength)
        check_parameters(params, spec)
        gain, offset = self.intensity_map(strength)
        weight, bias = (f"layers.{spec.last_layer}.{part}" for part in ("weight", "bias"))
        return {**params, weight: gain * params[weight], bias: gain * params[bias] + offset}


class CoordinateEdit(Edit):
    """`f'(x) = f(A x + t)`: the first layer becomes `W A`, `b + W t`."""

    mechanism = "closed form"

    @abstractmethod
    def coordinate_map(self, strength: float) -> tuple[Tensor, Tensor]:
        """Matrix A `(2, 2)` and offset t `(2,)`, from the edited picture to the original."""

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


class Brightness(IntensityEdit):
    """Adds the strength to every intensity."""

    name = "brightness"
    unit = "intensity added"

    def intensity_map(self, strength: float) -> tuple[float, float]:
        return 1.0, strength


class Contrast(IntensityEdit):
    """Multiplies the distance of every intensity from 0.5 by `1 + strength`."""

    name = "contrast"
    unit = "relative change of the distance from 0.5"

    def intensity_map(self, strength: float) -> tuple[float, float]:
        return 1.0 + strength, -0.5 * strength


class Invert(IntensityEdit):
    """Blends the picture with its negative `1 - x`."""

    name = "invert"
    unit = "share of the negative"

    def intensity_map(self, strength: float) -> tuple[float, float]:
        return 1.0 - 2.0 * strength, strength


class Shift(CoordinateEdit, DirectedEdit):
    """Moves the picture along a direction, given in degrees counter-clockwise as seen."""

    name = "shift"
    unit = "fraction of the picture's width (upwards: of its height)"

    def __init__(self, *, angle: float = 0.0) -> None:
        if not math.isfinite(angle):
            raise ValueError(f"angle must be finite, got {angle}")
        self.angle = angle

    def at_angle(self, angle: float) -> "Shift":
        return Shift(angle=angle)

    def coordinate_map(self, strength: float) -> tuple[Tensor, Tensor]:
        radians = math.radians(self.angle)
        direction = torch.tensor([math.cos(radians), -math.sin(radians)], dtype=torch.float64)
        return torch.eye(2, dtype=torch.float64), -2.0 * strength * direction  # the width is 2


class Rotate(CoordinateEdit):
    """Turns the picture about its centre, counter-clockwise as seen."""

    name = "rotate"
    unit = "degrees counter-clockwise"

    def coordinate_map(self, strength: float) -> tuple[Tensor, Tensor]:
        cos, sin = math.cos(math.radians(strength)), math.sin(math.radians(strength))
        matrix = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)  # y points down
        return matrix, torch.zeros(2, dtype=torch.float64)


class Zoom(CoordinateEdit):
    """Enlarges the picture about its centre by the factor `2 ** strength`."""

    name = "zoom"
    unit = "doublings of size"

    def coordinate_map(self, strength: float) -> tuple[Tensor, Tensor]:
        if abs(strength) > _LARGEST_ZOOM:
            raise ValueError(f"strength of zoom must be within ±{_LARGEST_ZOOM:g}, got {strength}")
        matrix = 2.0**-strength * torch.eye(2, dtype=torch.float64)
        return matrix, torch.zeros(2, dtype=torch.float64)
