"""What a neuron knows of its place: the same few numbers for every architecture."""

from functools import lru_cache
from math import log1p, pi

import torch
from torch import Tensor

from scalegmn_opt.graph import NeuronGroup, Role, WeightGraph

_FREQUENCIES = 4
GROUP_CHANNELS = len(Role) + 5
NEURON_CHANNELS = 2 * _FREQUENCIES + 1
POSITION_CHANNELS = 2 * _FREQUENCIES


def fourier(position: Tensor) -> Tensor:
    """Sines and cosines (n, 2 frequencies) of positions in [0, 1]."""
    angles = pi * position[:, None] * torch.arange(1, _FREQUENCIES + 1)
    return torch.cat([angles.sin(), angles.cos()], 1)


def _centres(count: int) -> Tensor:
    return (torch.arange(count) + 0.5) / count


@lru_cache(maxsize=256)
def group_encodings(graph: WeightGraph, neuron_encoding: bool) -> dict[str, Tensor]:
    """One row a neuron (nodes or 1, channels), by group name.

    Role, relative depth, fan-in and fan-out, and the kinds of scale are the same for all neurons
    of a group. With ``neuron_encoding`` the neurons of a group that may not be permuted (inputs,
    outputs) are told apart by their relative index.
    """
    return {g.name: _encode(graph, g, neuron_encoding=neuron_encoding) for g in graph.groups}


def _encode(graph: WeightGraph, group: NeuronGroup, *, neuron_encoding: bool) -> Tensor:
    deepest = max(1, *graph.depth.values())
    row = torch.tensor(
        [float(group.role is role) for role in Role]
        + [graph.depth[group.name] / deepest]
        + [log1p(fan[group.name]) / 8 for fan in (graph.fan_in, graph.fan_out)]
        + [float(group.symmetry.flips), float(group.symmetry.rescales)]
    )
    if not neuron_encoding:
        return row[None]
    index = torch.zeros(group.size, NEURON_CHANNELS)
    if not group.symmetry.permutes:
        index = torch.cat([torch.ones(group.size, 1), fourier(_centres(group.size))], 1)
    return torch.cat([row.expand(group.size, -1), index], 1)


@lru_cache(maxsize=256)
def kernel_positions(count: int) -> Tensor:
    """Encodings (count, channels) of the elements of a flattened kernel."""
    return fourier(_centres(count))
