"""Refits by learned Gauss–Newton steps: few steps where Adam needs many."""

import math
import os
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from scalegmn_opt.inr import SirenSpec, evaluate, pixel_grid

from .gauss_newton import LearnedGaussNewton
from .learned import PACKAGED
from .learned_editor import LearnedEditor
from .tangent import Tangent, join, split

_FAR = 3  # steps that the network is too far from the picture for its tangent; chosen on digits
_ITERATIONS = 8  # of conjugate gradients, in the steps after them
_ELEMENTS = 2**19  # networks x pixels x widest layer at once: 2 MB per activation in float32
Params = dict[str, Tensor]


class LearnedSteps:
    """The steps of a :class:`LearnedEditor`, which any SIREN can take toward any picture.

    Three learned steps come near; where the tangent holds, whole Gauss-Newton steps go on. Of all
    networks on its way, each one keeps the nearest to its picture.

    Args:
        weights: name of packaged weights, or a file's path; loaded when they are first needed.
    """

    def __init__(self, weights: str | os.PathLike[str] = PACKAGED[0]) -> None:
        self._weights = weights

    @cached_property
    def step(self) -> LearnedGaussNewton:
        """The trained step."""
        return LearnedEditor.from_pretrained(self._weights).step

    def refine(
        self, params: Mapping[str, Tensor], images: Tensor, spec: SirenSpec, *, steps: int
    ) -> Params:
        """Networks nearer to images (batch, channels, height, width); `params` are not modified.

        Raises:
            ValueError: `params` and `spec` do not fit together, or images that are not finite.
        """
        if not images.isfinite().all():
            raise ValueError("images must be finite, got NaN or infinity")
        coords = pixel_grid(*images.shape[2:]).to(images)
        size = max(1, _ELEMENTS // (len(coords) * max(spec.hidden)))
        pieces = []
        with torch.no_grad():
            for start in range(0, len(images), size):
                some = {name: value[start : start + size] for name, value in params.items()}
                targets = images[start : start + size].flatten(2).mT
                pieces.append(self._approach(some, spec, targets, coords, steps))
        return {name: torch.cat([piece[name] for piece in pieces]) for name in params}

    def _approach(
        self, params: Params, spec: SirenSpec, targets: Tensor, coords: Tensor, steps: int
    ) -> Params:
        learned, best = self.step.to(targets), params
        least = targets.new_full((len(targets),), math.inf)
        for number in range(steps):
            tangent = Tangent.of(params, spec, coords)
            best, least = _better(params, tangent.outputs, targets, best=best, least=least)
            if number < _FAR:
                params = learned(params, spec, tangent, targets)
            else:
                params = _whole_step(params, tangent, targets)
        return _better(params, evaluate(params, spec, coords), targets, best=best, least=least)[0]


def _whole_step(params: Params, tangent: Tangent, targets: Tensor) -> Params:
    delta = tangent.solve(targets - tangent.outputs, _ITERATIONS)
    return split([matrix + d for matrix, d in zip(join(params), delta, strict=True)])


def _better(
    params: Params, outputs: Tensor, targets: Tensor, *, best: Params, least: Tensor
) -> tuple[Params, Tensor]:
    """The better of two for each network, and its squared error; NaN is never better."""
    errors = (outputs - targets).square().mean((1, 2))
    nearer = errors < least
    chosen = {
        name: torch.where(nearer.reshape(-1, *[1] * (value.ndim - 1)), value, best[name])
        for name, value in params.items()
    }
    return chosen, torch.where(nearer, errors, least)
