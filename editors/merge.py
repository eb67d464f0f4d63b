"""Several SIRENs as one: a weighted sum of functions is a wider network."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def merge(
    networks: Sequence[Mapping[str, Tensor]], coefficients: Sequence[float]
) -> dict[str, Tensor]:
    """Networks whose functions are `Σ_j c_j f_j`, with the hidden layers side by side.

    Hidden weights are block-diagonal. Permuting or flipping hidden neurons of every `f_j` alike
    does so to every block of the result.

    Shapes: each name -> `(batch, *shape)`, of one depth; hidden widths add up.

    Raises:
        ValueError: no network, unequal names, or another number of coefficients.
    """
    if not networks or len(networks) != len(coefficients):
        raise ValueError(
            f"coefficients must be as many as networks, at least one, "
            f"got {len(coefficients)} for {len(networks)}"
        )
    names = list(networks[0])
    different = [index for index, network in enumerate(networks) if list(network) != names]
    if different:
        raise ValueError(f"networks must all have the names {names}, unlike those at {different}")
    last = len(names) // 2 - 1
    merged = {}
    for layer in range(last + 1):
        weights = [network[f"layers.{layer}.weight"] for network in networks]
        biases = [network[f"layers.{layer}.bias"] for network in networks]
        if layer == last:
            weights, biases = _scaled(weights, coefficients), _scaled(biases, coefficients)
        middle = 0 < layer < last
        weight = _block_diagonal(weights) if middle else torch.cat(weights, 2 if layer else 1)
        merged[f"layers.{layer}.weight"] = weight
        bias = torch.stack(biases).sum(0) if layer == last else torch.cat(biases, 1)
        merged[f"layers.{layer}.bias"] = bias
    return merged


def _scaled(tensors: list[Tensor], coefficients: Sequence[float]) -> list[Tensor]:
    return [c * tensor for c, tensor in zip(coefficients, tensors, strict=True)]


def _block_diagonal(matrices: list[Tensor]) -> Tensor:
    """Matrices (batch, out, in) along the diagonal of (batch, sum of out, sum of in)."""
    rows, columns = (sum(m.shape[axis] for m in matrices) for axis in (1, 2))
    whole = matrices[0].new_zeros(len(matrices[0]), rows, columns)
    row = column = 0
    for matrix in matrices:
        below, right = row + matrix.shape[1], column + matrix.shape[2]
        whole[:, row:below, column:right] = matrix
        row, column = below, right
    return whole
