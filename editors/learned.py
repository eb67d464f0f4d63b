"""Edits that a network learned: the weights of an INR in, the weights of the edited INR out."""

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from scalegmn_opt.backbone import ScaleGMN
from scalegmn_opt.graph import WeightBlock, WeightFeatures, WeightGraph, pack
from scalegmn_opt.heads import DeltaHead
from scalegmn_opt.inr import SirenSpec, check_parameters, pixel_grid, siren_graph
from scalegmn_opt.pretrained import restore, save_weights

from .edit import Edit, check_strength
from .targets import dilate

_CHUNK = 256  # networks at once: about 200 MB of features without gradients


class LearnedEditor(nn.Module):
    """``θ' = θ + strength · s · rms(θ) · δ(θ, strength)``: a ScaleGMN ``δ``, a learned ``s``.

    The backbone reads each weight relative to its block's root mean square and, as features of the
    neurons, their activations at a grid of probe coordinates. Permuting hidden neurons or flipping
    their signs does the same to the result; a strength of 0 changes nothing. Networks of any width
    and depth can be read.

    Args:
        probes: points along each side of the probe grid.
        node_channels, edge_channels, hidden_channels, num_layers: size of the backbone.

    Shapes:
        params name -> (batch, *shape), strength (batch,) -> params

    References:
        Kalogeropoulos et al., arXiv 2406.10685 (INR editing); probe features: Kofinas et al.,
        "Graph Neural Networks for Learning Equivariant Representations of Neural Networks",
        arXiv 2403.12143.
    """

    def __init__(
        self,
        *,
        probes: int = 14,
        node_channels: int = 32,
        edge_channels: int = 16,
        hidden_channels: int = 64,
        num_layers: int = 4,
    ) -> None:
        super().__init__()
        sizes = {
            "node_channels": node_channels,
            "edge_channels": edge_channels,
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
        }
        self.config: dict[str, Any] = {"probes": probes, **sizes}
        self.backbone = ScaleGMN(
            edge_features=(1, 0), node_features=(probes**2, 0), invariant_features=1, **sizes
        )
        self.head = DeltaHead(edge_channels)
        self.register_buffer("coords", pixel_grid(probes, probes).float(), persistent=False)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> Self:
        """A trained editor, by its name in the package or by a file's path; no network."""
        return restore(cls, name_or_path, kind="editor").requires_grad_(False)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write a file that :meth:`from_pretrained` reads."""
        save_weights(path, self, kind="editor", config=self.config)

    def forward(
        self, params: Mapping[str, Tensor], spec: SirenSpec, strength: Tensor
    ) -> dict[str, Tensor]:
        check_parameters(params, spec)
        graph = siren_graph(spec)
        features = self._features(graph, params, spec, strength)
        deltas = self.head(self.backbone(features))
        edited = {}
        for name, value in params.items():
            shape = (-1, *[1] * (value.ndim - 1))
            step = strength.reshape(shape) * _rms(value)
            edited[name] = value + step * deltas[name][:, 0]
        return edited

    def _features(
        self, graph: WeightGraph, params: Mapping[str, Tensor], spec: SirenSpec, strength: Tensor
    ) -> WeightFeatures:
        edges = {}
        for name, edge in pack(graph, {n: p / _rms(p) for n, p in params.items()}).items():
            edges[name] = (edge.unsqueeze(1), edge.new_zeros(len(edge), 0, *edge.shape[1:]))
        nodes = {name: (x, x[..., :0]) for name, x in self._probe(graph, params, spec).items()}
        given = strength.reshape(-1, 1, 1)
        return WeightFeatures(graph, nodes, edges, {g.name: given for g in graph.groups})

    def _probe(
        self, graph: WeightGraph, params: Mapping[str, Tensor], spec: SirenSpec
    ) -> dict[str, Tensor]:
        """Activations (batch, nodes, points) at the probe coordinates, by group."""
        first = params["layers.0.weight"]
        ones = first.new_ones(len(first), 1, len(self.coords))
        activations = {group.name: ones for group in graph.groups}
        x = self.coords.to(first).T.expand(len(first), -1, -1)
        for block in _weights_in_order(graph):
            activations[block.source] = x
            name = block.parameter.removesuffix("weight") + "bias"
            z = torch.baddbmm(params[name].unsqueeze(2), params[block.parameter], x)
            activation = graph.group[block.target].activation
            x = z if activation is None else activation(z)
            activations[block.target] = x
        return activations


def _weights_in_order(graph: WeightGraph) -> list[WeightBlock]:
    return [block for block in graph.blocks if not block.is_vector]


def _rms(x: Tensor) -> Tensor:
    """Root mean square (batch, 1, ...) of each network's tensor; 1 where all is zero."""
    mean = x.square().mean(tuple(range(1, x.ndim)), keepdim=True)
    return torch.where(mean > 0, mean, 1.0).sqrt()


class LearnedEdit(Edit):
    """An edit by a :class:`LearnedEditor`, whose weights are loaded when it is first applied.

    Args:
        name: what recipes call it.
        unit: what the strength counts; the editor is trained for strengths from 0 to 1.
        weights: name of packaged weights, or a file's path.
        target: the edited images of images (batch, channels, height, width) and a strength.
    """

    mechanism = "learned"

    def __init__(
        self,
        name: str,
        unit: str,
        *,
        weights: str | os.PathLike[str],
        target: Callable[[Tensor, float], Tensor],
    ) -> None:
        self.name, self.unit = name, unit
        self._weights, self._target = weights, target

    @cached_property
    def editor(self) -> LearnedEditor:
        """The trained network."""
        return LearnedEditor.from_pretrained(self._weights)

    def target(self, images: Tensor, strength: float) -> Tensor:
        return self._target(images, strength)

    def apply(
        self, params: Mapping[str, Tensor], spec: SirenSpec, strength: float
    ) -> dict[str, Tensor]:
        """As in :class:`Edit`.

        Raises:
            ValueError: for a strength outside [0, 1], for which the editor was not trained.
        """
        check_strength(self.name, strength)
        if not 0 <= strength <= 1:
            raise ValueError(
                f"strength of {self.name}: expected a number in [0, 1], got {strength}"
            )
        count = check_parameters(params, spec)
        first = next(iter(params.values()))
        editor = self.editor.to(first)
        pieces = []
        with torch.no_grad():
            for start in range(0, count, _CHUNK):
                some = {name: value[start : start + _CHUNK] for name, value in params.items()}
                batch = len(next(iter(some.values())))
                pieces.append(editor(some, spec, first.new_full((batch,), strength)))
        return {name: torch.cat([piece[name] for piece in pieces]) for name in params}


def dilation(weights: str | os.PathLike[str] = "dilate-small") -> LearnedEdit:
    """3x3 grey dilation of 28x28 pictures of strokes: bright lines become a pixel wider."""
    unit = "share of the dilated picture, 0 to 1"
    return LearnedEdit("dilate", unit, weights=weights, target=dilate)
