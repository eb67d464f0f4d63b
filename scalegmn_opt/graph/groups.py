"""Symmetries of a neuron group, and the activations that allow them (arXiv 2406.10685)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Symmetry:
    """What may be done to the neurons of one group without changing the network's function.

    A group element is a permutation and one multiplier ``q`` a neuron; the incoming weights and
    biases of a neuron are multiplied by its ``q``, the outgoing weights divided by it.
    """

    permutes: bool  # neurons may be reordered
    flips: bool  # q may be negative
    rescales: bool  # |q| may differ from 1
    common: bool = False  # one q for all neurons of the group (before a LayerNorm)

    @property
    def self_inverse(self) -> bool:
        """Whether ``q = 1/q`` for each element, so that covariant and contravariant coincide."""
        return not self.rescales

    @property
    def scalar_free(self) -> bool:
        """Whether ``q = 1`` only: adding a constant to a neuron's features is allowed."""
        return not (self.flips or self.rescales)

    def canon(self, x: Tensor) -> Tensor:
        """``x`` (..., nodes, channels) without its positive scale: ``x / ||x||`` if there is one.

        The norm is a neuron's own, or, with one scale for all, the root mean square of the
        neurons' norms. A sign is not removed here; it is averaged out by :meth:`even`.
        """
        if not self.rescales:
            return x
        square = x.square().sum(-1, keepdim=True)
        if self.common:
            square = square.mean(-2, keepdim=True)
        empty = square == 0  # a neuron without features stays zero, with a zero derivative
        return torch.where(empty, 0.0, x * torch.where(empty, 1.0, square).rsqrt())

    def even(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``function(x)``, made even in ``x`` where the group flips: ``(f(x) + f(-x)) / 2``."""
        return (function(x) + function(-x)) / 2 if self.flips else function(x)


FIXED = Symmetry(permutes=False, flips=False, rescales=False)
PERMUTATION = Symmetry(permutes=True, flips=False, rescales=False)
SIGN = Symmetry(permutes=True, flips=True, rescales=False)
POSITIVE_SCALE = Symmetry(permutes=True, flips=False, rescales=True)
NONZERO_SCALE = Symmetry(permutes=True, flips=True, rescales=True)


@dataclass(frozen=True)
class Activation:
    """An elementwise function, by its name in :data:`ACTIVATIONS`, with its one parameter.

    ``parameter`` is the negative slope of ``leaky_relu``, the angular frequency of ``sine`` and
    the scale factor before any other activation (1 unless the module multiplies first).
    """

    name: str
    parameter: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.name!r}; choose from {sorted(ACTIVATIONS)}")

    @property
    def symmetry(self) -> Symmetry:
        """The largest symmetry under which the activation commutes with ``q``."""
        return ACTIVATIONS[self.name][0]

    def __call__(self, z: Tensor) -> Tensor:
        """``σ(z)`` elementwise."""
        return ACTIVATIONS[self.name][1](z, self.parameter)


def _scaled(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, float], Tensor]:
    return lambda z, factor: function(factor * z)


# name -> (symmetry, function of the pre-activation and the parameter)
ACTIVATIONS: dict[str, tuple[Symmetry, Callable[[Tensor, float], Tensor]]] = {
    "identity": (NONZERO_SCALE, lambda z, factor: factor * z),
    "relu": (POSITIVE_SCALE, _scaled(F.relu)),
    "leaky_relu": (POSITIVE_SCALE, lambda z, slope: F.leaky_relu(z, slope)),
    "abs": (POSITIVE_SCALE, _scaled(torch.abs)),
    "sine": (SIGN, _scaled(torch.sin)),
    "tanh": (SIGN, _scaled(torch.tanh)),
    "erf": (SIGN, _scaled(torch.erf)),
    "arctan": (SIGN, _scaled(torch.atan)),
    "hardtanh": (SIGN, _scaled(F.hardtanh)),
    "softsign": (SIGN, _scaled(F.softsign)),
    "gelu": (PERMUTATION, _scaled(F.gelu)),
    "silu": (PERMUTATION, _scaled(F.silu)),
    "sigmoid": (PERMUTATION, _scaled(torch.sigmoid)),
    "softplus": (PERMUTATION, _scaled(F.softplus)),
    "elu": (PERMUTATION, _scaled(F.elu)),
    "selu": (PERMUTATION, _scaled(F.selu)),
    "mish": (PERMUTATION, _scaled(F.mish)),
    "cos": (PERMUTATION, _scaled(torch.cos)),
    "exp": (PERMUTATION, _scaled(torch.exp)),
}
