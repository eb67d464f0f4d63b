"""Refitting: any edit that is known on pixels, by steps of gradient descent from given networks."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from scalegmn_opt.graph import WeightGraph
from scalegmn_opt.inr import SirenSpec, StackedOptimizer, refine, render
from scalegmn_opt.optim.state import Rule, State

from .edit import Edit, Meaning, check_strength
from .learned_steps import LearnedSteps

REFIT, LEARNED_REFIT = "refit", "learned refit"
_INPUT_RMS = 1 / sqrt(3)  # of coordinates in [-1, 1]


@dataclass(frozen=True, eq=False)
class Refit(Edit):
    """Fit networks to the edited picture, which is computed from their own render.

    Args:
        meaning: the edit.
        image_size: `(height, width)` of the picture.
        steps: of the optimizer.
        mask: `(height, width)`, where in the picture the edit is seen, from 0 to 1; everywhere if
            None.
        optimizer: warm-started; the Adam of `inr.fit` if None. Or learned Gauss-Newton steps.
        progress: whether a progress bar is shown.

    Raises:
        ValueError: a mask of another size than the picture's, or not within [0, 1].
    """

    meaning: Meaning
    image_size: tuple[int, int]
    steps: int = 50
    mask: Tensor | None = None
    optimizer: StackedOptimizer | LearnedSteps | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.mask is not None:
            check_mask(self.mask, self.image_size)

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.meaning.name

    @property
    def unit(self) -> str:  # type: ignore[override]
        return self.meaning.unit

    @property
    def mechanism(self) -> str:  # type: ignore[override]
        return LEARNED_REFIT if isinstance(self.optimizer, LearnedSteps) else REFIT

    def target(self, images: Tensor, strength: float) -> Tensor:
        edited = self.meaning.target(images, strength)
        return edited if self.mask is None else images.lerp(edited, self.mask.to(images))

    def apply(
        self, params: Mapping[str, Tensor], spec: SirenSpec, strength: float
    ) -> dict[str, Tensor]:
        """As in `Edit`; the steps may not suffice, `measure` tells.

        Raises:
            ValueError: also if a network does not stay finite.
        """
        check_strength(self.name, strength)
        target = self.target(render(params, spec, *self.image_size), strength)
        if isinstance(self.optimizer, LearnedSteps):
            return self.optimizer.refine(params, target, spec, steps=self.steps)
        return refine(
            params,
            target,
            spec,
            steps=self.steps,
            optimizer=self.optimizer,
            progress=self.progress,
        ).params


def check_mask(mask: Tensor, image_size: tuple[int, int]) -> None:
    """Reject a mask that does not lie over the picture, or is not within [0, 1].

    Raises:
        ValueError: another shape than `image_size`, or other values.
    """
    if tuple(mask.shape) != tuple(image_size):
        raise ValueError(
            f"mask must have the pictures' size {tuple(image_size)}, got {tuple(mask.shape)}"
        )
    if not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError("mask must hold values from 0 to 1")


@dataclass(frozen=True, eq=False)
class RuleOptimizer:
    """An update rule of `scalegmn_opt.optim` as the optimizer of a refit.

    Args:
        rule: a pure function `(graph, params, grads, state) -> (updates, state)`.
        graph: of the networks, from `siren_graph`.
        learning_rate: multiplies the updates.
    """

    rule: Rule
    graph: WeightGraph
    learning_rate: float = 1.0

    def init(self, params: Mapping[str, Tensor]) -> State:
        return self.rule.init(self.graph, params, input_rms=_INPUT_RMS)

    def step(
        self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], State]:
        updates, state = self.rule(self.graph, params, grads, state)
        return {name: self.learning_rate * value for name, value in updates.items()}, state
