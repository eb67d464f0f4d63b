"""Phases of a SIREN's neurons: what their biases say beyond the function."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .siren import SirenSpec, check_parameters


def canonical_phases(params: Mapping[str, Tensor], spec: SirenSpec) -> dict[str, Tensor]:
    """The same functions with every hidden bias between 0 and `π / (2 w0)`; new tensors.

    A neuron `sin(w0 (w x + b))` changes its sign where `b` grows by `π / w0`, or where `w` and `b`
    both change theirs; the weights that go out from it follow. Networks that differ in nothing else
    become equal, but for neurons whose bias is at an end of the range.

    Shapes: name -> `(batch, *shape)`, as `params`.

    Raises:
        ValueError: parameters that do not fit `spec`.

    References:
        Sitzmann et al., arXiv 2006.09661 (SIREN).
    """
    check_parameters(params, spec)
    edited, half_turn = dict(params), math.pi / spec.w0
    for layer in range(spec.last_layer):
        weight, bias = f"layers.{layer}.weight", f"layers.{layer}.bias"
        turns = (edited[bias].double() / half_turn).round()
        wrapped = (edited[bias].double() - turns * half_turn).to(edited[bias])
        sign = torch.where(wrapped < 0, -1.0, 1.0).to(wrapped)
        edited[bias], edited[weight] = sign * wrapped, sign[..., None] * edited[weight]
        outgoing = sign * (1 - 2 * turns.remainder(2)).to(wrapped)
        following = f"layers.{layer + 1}.weight"
        edited[following] = edited[following] * outgoing[:, None]
    last = f"layers.{spec.last_layer}.bias"
    edited[last] = edited[last].clone()
    return edited
