"""SIRENs as data: a specification, stacked parameters, and batched evaluation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

# Networks x points x widest layer at once while rendering: 64 MB per activation in float32.
_RENDER_ELEMENTS = 2**24


@dataclass(frozen=True)
class SirenSpec:
    """Architecture of one SIREN; holds no tensors.

    `h_0 = x`, `h_{i+1} = sin(w0 (W_i h_i + b_i))` for the hidden layers, last layer linear. The
    output is the intensity itself, in [0, 1] for a fitted image.

    Raises:
        TypeError: a width that is not an integer, or `w0` that is not a number.
        ValueError: a width below 1, no hidden layer, or `w0` not finite and positive.

    References:
        Sitzmann et al., Implicit Neural Representations with Periodic Activation Functions,
        arXiv 2006.09661.
    """

    in_features: int = 2
    hidden: tuple[int, ...] = (32, 32)
    out_features: int = 1
    w0: float = 30.0  # radians per unit of pre-activation

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, tuple) or not self.hidden:
            raise ValueError(f"hidden must be a tuple of at least one width, got {self.hidden!r}")
        _check_width("in_features", self.in_features)
        _check_width("out_features", self.out_features)
        for width in self.hidden:
            _check_width("hidden", width)
        if isinstance(self.w0, bool) or not isinstance(self.w0, int | float):
            raise TypeError(f"w0 must be a number, got {self.w0!r}")
        if not (math.isfinite(self.w0) and self.w0 > 0):
            raise ValueError(f"w0 must be finite and positive, got {self.w0}")

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Number of neurons per layer, coordinates first."""
        return (self.in_features, *self.hidden, self.out_features)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter of one network by name, in the order of the layers."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (n_in, n_out) in enumerate(pairwise(self.layer_sizes)):
            shapes[f"layers.{i}.weight"] = (n_out, n_in)
            shapes[f"layers.{i}.bias"] = (n_out,)
        return shapes

    @property
    def last_layer(self) -> int:
        """Index of the linear output layer."""
        return len(self.hidden)


def _check_width(name: str, width: int) -> None:
    if isinstance(width, bool) or not isinstance(width, int):
        raise TypeError(f"{name} must hold integers, got {width!r}")
    if width < 1:
        raise ValueError(f"{name} must be at least 1, got {width}")


def check_parameters(params: Mapping[str, Tensor], spec: SirenSpec) -> int:
    """Number of networks stacked in `params`, after checking them against `spec`.

    Raises:
        ValueError: names other than those of `spec`, a wrong shape, or unequal batch sizes.
    """
    shapes = spec.parameter_shapes
    if set(params) != set(shapes):
        raise ValueError(f"params must have the names {sorted(shapes)}, got {sorted(params)}")
    batch = params["layers.0.weight"].shape[:1]
    for name, shape in shapes.items():
        if tuple(params[name].shape) != (*batch, *shape):
            expected = ("batch", *shape)
            raise ValueError(
                f"params[{name!r}] must have shape {expected}, got {tuple(params[name].shape)}"
            )
    return batch[0]


def initial_parameters(
    spec: SirenSpec, count: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw `count` SIREN initialisations in float32 on the generator's device.

    Networks are drawn one after the other, so two calls for `a` and `b` networks give the same as
    one for `a + b`.

    Shapes: name -> `(count, *shape)`.

    Raises:
        ValueError: `count` below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    sizes = [math.prod(shape) for shape in spec.parameter_shapes.values()]
    draws = torch.rand(count, sum(sizes), generator=generator, device=generator.device) * 2 - 1
    params = {}
    pieces = zip(spec.parameter_shapes.items(), draws.split(sizes, dim=1), strict=True)
    for index, ((name, shape), piece) in enumerate(pieces):
        layer, is_bias = divmod(index, 2)
        bound = _bias_bound(spec, layer) if is_bias else _weight_bound(spec, layer)
        params[name] = bound * piece.reshape(count, *shape)
    return params


def _weight_bound(spec: SirenSpec, layer: int) -> float:
    fan_in = spec.layer_sizes[layer]
    return 1 / fan_in if layer == 0 else math.sqrt(6 / fan_in) / spec.w0


def _bias_bound(spec: SirenSpec, layer: int) -> float:
    return 1 / math.sqrt(spec.layer_sizes[layer])


class Siren(nn.Module):
    """One SIREN of a specification as a module, freshly initialised.

    Shapes: coords `(..., in_features)` -> intensities `(..., out_features)`.
    """

    def __init__(self, spec: SirenSpec, *, generator: torch.Generator) -> None:
        super().__init__()
        self.spec = spec
        sizes = spec.layer_sizes
        # skip_init: the default initialisation would draw from the global random state.
        self.layers = nn.ModuleList(
            skip_init(nn.Linear, n_in, n_out, device=generator.device)
            for n_in, n_out in pairwise(sizes)
        )
        drawn = initial_parameters(spec, 1, generator)
        self.load_state_dict({name: value[0] for name, value in drawn.items()})

    def forward(self, coords: Tensor) -> Tensor:
        hidden = coords
        for layer in self.layers[:-1]:
            hidden = torch.sin(self.spec.w0 * layer(hidden))
        return self.layers[-1](hidden)

    def extra_repr(self) -> str:
        return f"{self.spec.layer_sizes}, w0={self.spec.w0}"


def pixel_grid(height: int, width: int) -> Tensor:
    """Coordinates of the pixel centres, row by row: x to the right, y downwards.

    The picture is [-1, 1]^2. Centres lie at `-1 + (2 i + 1) / n`, so another resolution samples
    the same picture.

    Shapes: `(height * width, 2)`, float64.

    Raises:
        ValueError: `height` or `width` below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}")
    x = (2 * torch.arange(width, dtype=torch.float64) + 1) / width - 1
    y = (2 * torch.arange(height, dtype=torch.float64) + 1) / height - 1
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)


def evaluate(params: Mapping[str, Tensor], spec: SirenSpec, coords: Tensor) -> Tensor:
    """Evaluate every network at the same coordinates, all at once and differentiably.

    Shapes: coords `(points, in_features)` -> `(batch, points, out_features)`.

    Raises:
        ValueError: parameters that do not fit `spec`, or coordinates of another shape.
    """
    batch = check_parameters(params, spec)
    if coords.ndim != 2 or coords.shape[1] != spec.in_features:
        raise ValueError(
            f"coords must have shape (points, {spec.in_features}), got {tuple(coords.shape)}"
        )
    hidden = coords.to(params["layers.0.weight"]).expand(batch, -1, -1)
    for i in range(spec.last_layer):
        # alpha and beta fold w0 into the product: two passes over the activations fewer.
        weight, bias = params[f"layers.{i}.weight"], params[f"layers.{i}.bias"]
        hidden = torch.baddbmm(bias[:, None], hidden, weight.mT, alpha=spec.w0, beta=spec.w0).sin()
    weight, bias = (params[f"layers.{spec.last_layer}.{part}"] for part in ("weight", "bias"))
    return torch.baddbmm(bias[:, None], hidden, weight.mT)


def render(params: Mapping[str, Tensor], spec: SirenSpec, height: int, width: int) -> Tensor:
    """Render every network as an image of any resolution; intensities are not clipped.

    Without gradients the memory beyond the result stays bounded, whatever the batch and the
    resolution.

    Shapes: `(batch, out_features, height, width)`.

    Raises:
        ValueError: parameters that do not fit `spec`, `in_features` other than 2, or an empty
            resolution.
    """
    batch = check_parameters(params, spec)
    if spec.in_features != 2:
        raise ValueError(f"spec.in_features must be 2 to render an image, got {spec.in_features}")
    points = max(1, _RENDER_ELEMENTS // max(spec.hidden))
    pieces = pixel_grid(height, width).to(params["layers.0.weight"]).split(points)
    count = max(1, points // pieces[0].shape[0])
    rows = []
    for start in range(0, max(batch, 1), count):
        some = {name: value[start : start + count] for name, value in params.items()}
        rows.append(torch.cat([evaluate(some, spec, piece) for piece in pieces], dim=1))
    # (batch, height * width, channels) -> (batch, channels, height, width)
    return torch.cat(rows).mT.reshape(batch, spec.out_features, height, width)
