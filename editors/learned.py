"""Edits that a network learned: the weights of an INR in, the weights of the edited INR out."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from scalegmn_opt.inr import SirenSpec, check_parameters, evaluate, pixel_grid
from scalegmn_opt.pretrained import restore, save_weights

from .edit import Edit, Meaning, PixelEdit, check_strength
from .gauss_newton import LearnedGaussNewton
from .picture import PictureOperator, one_hot
from .tangent import REACH, Tangent, split, tangent_copies
from .targets import blur, denoise, dilate, erode, local_contrast, sharpen

_CHUNK = 32  # networks at once, so that a layer's activations at all pixels stay in cache
_ITERATIONS = 8  # of conjugate gradients, for several copies
COPIES = (1, *REACH)
PACKAGED = ("mnist-morphology", "colour-patches")  # 28x28 digits, 32x32 colour patches
Target = Callable[[Tensor, float], Tensor]
# What learned edits mean on pixels, and what their strengths count.
MEANINGS: dict[str, tuple[Target, str]] = {
    "dilate": (dilate, "3x3 dilations"),
    "erode": (erode, "3x3 erosions"),
    "denoise": (denoise, "3x3 medians"),
    "blur": (blur, "standard deviation in pixels"),
    "sharpen": (sharpen, "relative change of the distance from a blur"),
    "local_contrast": (
        local_contrast,
        "relative change of the distance from the surroundings' mean",
    ),
}


class LearnedEditor(nn.Module):
    """A learned idea of the edited picture, and learned Gauss–Newton steps toward it.

    The editor reads nothing but the weights: it renders them at its pixels, imagines the edited
    picture (:class:`PictureOperator`), and changes the weights in a few rounds of
    :class:`LearnedGaussNewton`. Permuting hidden neurons or flipping their signs does the same to
    the result; a strength of 0 changes nothing.

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
        if midpoints:
            coords = torch.cat([coords, self._corners()])
            targets = torch.cat([targets, self._at_corners(targets)], 1)
            tangent = Tangent.of(params, spec, coords)
        if copies == 1:
            steps = self.approach(
                params, spec, targets, rounds=self.rounds, start=tangent, coords=coords
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
        pictures = outputs.mT.unflatten(2, (self.size, self.size))
        return outputs + self.picture(pictures, strengths).flatten(2).mT

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


class Learned(Edit):
    """Any meaning by a :class:`LearnedEditor`, whose weights are loaded when they are first needed.

    Args:
        meaning: the edit.
        weights, copies, midpoints: see :class:`LearnedEdit`.
    """

    mechanism = "learned"
    loader: ClassVar[type[LearnedEditor]] = LearnedEditor

    def __init__(
        self,
        meaning: Meaning,
        *weights: str | os.PathLike[str],
        copies: int = 1,
        midpoints: bool = False,
    ) -> None:
        if not weights:
            raise ValueError("weights must be at least one name or path, got none")
        if copies not in COPIES:
            raise ValueError(f"copies must be one of {COPIES}, got {copies}")
        self.name, self.unit, self._meaning = meaning.name, meaning.unit, meaning
        self._weights, self.copies, self.midpoints = weights, copies, midpoints

    @cached_property
    def editors(self) -> tuple[LearnedEditor, ...]:
        """The trained networks.

        Raises:
            ValueError: weights of an editor that has not learned this edit.
        """
        editors = tuple(self.loader.from_pretrained(weights) for weights in self._weights)
        for editor in editors:
            if self.name not in editor.edits:
                raise ValueError(
                    f"weights must be of an editor that learned {self.name}, "
                    f"got one of {sorted(editor.edits)}"
                )
        return editors

    def editor_for(self, spec: SirenSpec) -> LearnedEditor:
        """The editor that was trained for such networks.

        Raises:
            ValueError: there is none.
        """
        for editor in self.editors:
            if editor.spec == spec:
                return editor
        known = " or ".join(str(editor.spec) for editor in self.editors)
        raise ValueError(f"spec must be that of an editor for {self.name}, {known}, got {spec}")

    def target(self, images: Tensor, strength: float) -> Tensor:
        return self._meaning.target(images, strength)

    def check(self, spec: SirenSpec, image_size: tuple[int, int]) -> None:
        """As in :class:`Edit`.

        Raises:
            ValueError: networks or pictures that no editor was trained for.
        """
        size = self.editor_for(spec).size
        if tuple(image_size) != (size, size):
            raise ValueError(
                f"image_size must be that of the editor for {self.name}, {(size, size)}, "
                f"got {tuple(image_size)}"
            )

    def apply(
        self, params: Mapping[str, Tensor], spec: SirenSpec, strength: float
    ) -> dict[str, Tensor]:
        """As in :class:`Edit`; warns of a strength beyond those of training.

        Raises:
            ValueError: for a negative strength, or networks that the editor was not trained for.
        """
        editor = self.editor_for(spec)
        self._check_strength(strength, editor)
        count = check_parameters(params, spec)
        first = next(iter(params.values()))
        editor = editor.to(first)
        pieces = []
        with torch.no_grad():
            for start in range(0, count, _CHUNK):
                some = {name: value[start : start + _CHUNK] for name, value in params.items()}
                strengths = self._strengths(editor, next(iter(some.values())), strength)
                options = {"copies": self.copies, "midpoints": self.midpoints}
                pieces.append(editor(some, spec, strengths, **options))
        return {name: torch.cat([piece[name] for piece in pieces]) for name in params}

    def _strengths(self, editor: LearnedEditor, like: Tensor, strength: float) -> Tensor:
        """What the editor reads, for as many networks as there are in `like`."""
        return one_hot(list(editor.edits), self.name, like.new_full((len(like),), strength))

    def _check_strength(self, strength: float, editor: LearnedEditor) -> None:
        check_strength(self.name, strength)
        if strength < 0:
            raise ValueError(f"strength of {self.name} must not be negative, got {strength}")
        largest = editor.edits[self.name]
        if strength > largest:
            message = f"strength of {self.name}: trained up to {largest:g}, got {strength:g}"
            warnings.warn(message, stacklevel=3)


class LearnedEdit(Learned):
    """An edit by a :class:`LearnedEditor`, whose weights are loaded when they are first needed.

    Args:
        name: what recipes call it; one of the editors' edits.
        weights: names of packaged weights, or files' paths; networks choose the editor that was
            trained for their architecture.
        copies: 1 keeps the architecture; 2, 4 or 8 multiply the hidden width and come much closer,
            the more of them, the less sensitive to rounding of the weights.
        midpoints: whether points between the pixels are edited, too, see :class:`LearnedEditor`.

    Raises:
        ValueError: an unknown name, no weights, or another number of copies.
    """

    def __init__(
        self,
        name: str,
        *weights: str | os.PathLike[str],
        copies: int = 1,
        midpoints: bool = False,
    ) -> None:
        if name not in MEANINGS:
            raise ValueError(f"name must be one of {sorted(MEANINGS)}, got {name!r}")
        target, unit = MEANINGS[name]
        meaning = PixelEdit(name, unit, target)
        super().__init__(meaning, *weights, copies=copies, midpoints=midpoints)

    def of(self, copies: int, midpoints: bool) -> "LearnedEdit":
        """The same edit with another number of copies, and with midpoints or without."""
        return LearnedEdit(self.name, *self._weights, copies=copies, midpoints=midpoints)


def learned_edits() -> tuple[LearnedEdit, ...]:
    """Every learned edit, by the packaged editors of 28x28 digits and of 32x32 colour patches."""
    return tuple(LearnedEdit(name, *PACKAGED) for name in MEANINGS)


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
