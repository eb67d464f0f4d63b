"""The network behind learned edits: the weights of an INR in, the weights of the edited INR out."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from scalegmn_opt.inr import SirenSpec, evaluate, pixel_grid
from scalegmn_opt.pretrained import restore, save_weights

from .beyond import within
from .gauss_newton import LearnedGaussNewton
from .picture import PictureOperator
from .tangent import Tangent, split, tangent_copies

_ITERATIONS = 8  # of conjugate gradients, for several copies


class LearnedEditor(nn.Module):
    """A learned idea of the edited picture, and learned Gauss–Newton steps toward it.

    The editor reads nothing but the weights: it renders them at its pixels, imagines the edited
    picture (:class:`PictureOperator`), and changes the weights in a few rounds of
    :class:`LearnedGaussNewton`. Permuting hidden neurons or flipping their signs does the same to
    the result; a strength of 0 changes nothing. One beyond those of training is imagined as
    several within (:func:`within`), and has twice as many rounds.

    Args:
        edits: names of the edits, each with the largest strength it is trained for.
        size: pixels along each side of the pictures.
        spec: the networks it is trained for.
        rounds: Gauss–Newton steps.
        picture_channels: width of the picture operator.
        iterations, probes, node_channels, edge_channels, hidden_channels, num_layers, gradient: of
            a step, see :class:`LearnedGaussNewton`.

    Shapes:
        params name -> (batch, *shape), strengths (batch, edits) -> params

    References:
        Kalogeropoulos et al., arXiv 2406.10685 (INR editing); probe features: Kofinas et al.,
        "Graph Neural Networks for Learning Equivariant Representations of Neural Networks",
        arXiv 2403.12143.
    """

    kind: ClassVar[str] = "editor"  # of its weights' files
    masked: ClassVar[bool] = False  # whether the picture operator reads a mask

    def __init__(
        self,
        *,
        edits: Mapping[str, float],
        size: int = 28,
        spec: Mapping[str, Any] | SirenSpec | None = None,
        rounds: int = 2,
        picture_channels: int = 16,
        iterations: int = 2,
        probes: int = 5,
        node_channels: int = 16,
        edge_channels: int = 8,
        hidden_channels: int = 32,
        num_layers: int = 1,
        gradient: bool = False,
    ) -> None:
        super().__init__()
        step = {
            "iterations": iterations,
            "probes": probes,
            "node_channels": node_channels,
            "edge_channels": edge_channels,
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
            "gradient": gradient,
        }
        self.spec = _as_spec(spec)
        self.edits, self.size, self.rounds = dict(edits), size, rounds
        self.config: dict[str, Any] = {
            "edits": self.edits,
            "size": size,
            "spec": _as_mapping(self.spec),
            "rounds": rounds,
            "picture_channels": picture_channels,
            **step,
        }
        self.picture = PictureOperator(
            len(self.edits), channels=picture_channels, masked=self.masked
        )
        self.step = LearnedGaussNewton(**step)
        self.register_buffer("coords", pixel_grid(size, size).float(), persistent=False)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> Self:
        """A trained editor, by its name in the package or by a file's path; no network."""
        return restore(cls, name_or_path, kind=cls.kind).requires_grad_(False)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write a file that :meth:`from_pretrained` reads."""
        save_weights(path, self, kind=self.kind, config=self.config)

    def forward(
        self,
        params: Mapping[str, Tensor],
        spec: SirenSpec,
        strengths: Tensor,
        *,
        copies: int = 1,
        midpoints: bool = False,
    ) -> dict[str, Tensor]:
        """Networks of the same shapes or, for 2, 4 or 8 copies, of as many times the hidden width.

        Several copies follow their tangent exactly: one long solve replaces the rounds. With
        `midpoints`, the corners where four pixels meet are edited, too, toward the bicubic
        interpolation of the imagined picture: less noise between the pixels, that of the fit
        included, even at a strength of 0; for twice the time.
        """
        coords, tangent = self.coords, Tangent.of(params, spec, self.coords)
        targets = self._imagine(tangent.outputs, strengths)
        largest = strengths.new_tensor(list(self.edits.values()))
        # As much again for a change that no training has seen.
        rounds = self.rounds * (1 + bool((strengths > largest).any()))
        if midpoints:
            coords = torch.cat([coords, self._corners()])
            targets = torch.cat([targets, self._at_corners(targets)], 1)
            tangent = Tangent.of(params, spec, coords)
        if copies == 1:
            steps = self.approach(
                params, spec, targets, rounds=rounds, start=tangent, coords=coords
            )
            del tangent  # large: its memory serves the second step
            *_, edited = steps
            return edited
        delta = tangent.solve(targets - tangent.outputs, _ITERATIONS)
        return tangent_copies(params, split(delta), copies)

    def imagine(self, params: Mapping[str, Tensor], spec: SirenSpec, strengths: Tensor) -> Tensor:
        """The edited pictures, (batch, points, out_features), as the editor guesses them."""
        return self._imagine(evaluate(params, spec, self.coords), strengths)

    def _imagine(self, outputs: Tensor, strengths: Tensor) -> Tensor:
        pieces, factor = within(strengths, self.edits)
        pictures = begun = outputs.mT.unflatten(2, (self.size, self.size))
        for piece in pieces:
            pictures = pictures + self.picture(pictures, piece)
        return outputs + factor * (pictures - begun).flatten(2).mT

    def _corners(self) -> Tensor:
        """Inner corners of the pixels, (points, 2)."""
        inner = torch.arange(1, self.size).to(self.coords) * (2 / self.size) - 1
        return torch.cartesian_prod(inner, inner).flip(1)

    def _at_corners(self, targets: Tensor) -> Tensor:
        pictures = targets.mT.unflatten(2, (self.size, self.size))
        grid = self._corners().expand(len(targets), 1, -1, -1)
        options = {"mode": "bicubic", "padding_mode": "border", "align_corners": False}
        return grid_sample(pictures, grid.to(pictures), **options)[:, :, 0].mT

    def approach(
        self,
        params: Mapping[str, Tensor],
        spec: SirenSpec,
        targets: Tensor,
        *,
        rounds: int,
        start: Tangent | None = None,
        coords: Tensor | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """The networks after each step toward targets (batch, points, out_features).

        Steps are differentiated each by itself: what one begins with is constant. `start` is the
        tangent at `params`, if it is known already; `coords` are other points than the pixels.
        """
        coords = self.coords if coords is None else coords
        for _ in range(rounds):
            params = {name: value.detach() for name, value in params.items()}
            start = start or Tangent.of(params, spec, coords)
            params, start = self.step(params, spec, start, targets), None
            yield params


def _as_spec(spec: Mapping[str, Any] | SirenSpec | None) -> SirenSpec:
    if spec is None:
        return SirenSpec()
    if isinstance(spec, SirenSpec):
        return spec
    return SirenSpec(**{**spec, "hidden": tuple(spec["hidden"])})


def _as_mapping(spec: SirenSpec) -> dict[str, Any]:
    return {
        "in_features": spec.in_features,
        "hidden": list(spec.hidden),
        "out_features": spec.out_features,
        "w0": spec.w0,
    }
