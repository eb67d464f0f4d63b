"""The numbers of an edited set of networks."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from scalegmn_opt.inr import INRStore

from .chain import EditRecipe, EditStep

SAMPLE = 16  # networks on a contact sheet, on the finer grid, and refitted for comparison


@dataclass(frozen=True)
class Score:
    """Distances to the target, as means over the networks.

    Attributes:
        mse: of the edited render.
        mse_do_nothing: of the render before the edit.
        psnr: of the edited render in dB, from `mse`; None where it is infinite.
        share_removed: of the do-nothing error; None where there is none, or nothing was to change.
    """

    mse: float
    mse_do_nothing: float
    psnr: float | None
    share_removed: float | None


@dataclass(frozen=True)
class RefitPoint:
    """Adam from the networks before an edit towards its target; means over `SAMPLE` networks."""

    steps: int
    mse: float
    cpu_ms_per_inr: float


@dataclass(frozen=True)
class RefitCurve:
    """Refitting in place of an edit.

    Attributes:
        mse: of the edit itself, on the same networks.
        points: at several numbers of steps.
        break_even_steps: after which a refit is as good as the edit, between the points along a
            straight line in log MSE; None if it is not within the last point.
        break_even_cpu_ms_per_inr: what those steps take.
    """

    mse: float
    points: tuple[RefitPoint, ...]
    break_even_steps: float | None
    break_even_cpu_ms_per_inr: float | None


@dataclass(frozen=True)
class StepScore:
    """The score of one edit of a recipe; its target is the edit of the target before it.

    Attributes:
        mechanism: that was taken.
        score: on the networks' own grid.
        scaled: on the finer grid, against the edit of their own renders; `SAMPLE` networks.
        mse_alone: to the edit of the render just before, the error that this edit adds.
        ms_per_inr, cpu_ms_per_inr: time and processor time in milliseconds per network, loading of
            weights left out.
        curve: refits in its place, if asked for.
        guesses: whether nobody knows, somewhere in the picture, what is right after it.
        warnings: what the edit warned of.
    """

    step: EditStep
    mechanism: str
    score: Score
    scaled: Score
    mse_alone: float
    ms_per_inr: float
    cpu_ms_per_inr: float
    curve: RefitCurve | None
    guesses: bool = False
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """One flat mapping of the edit and its score, and two within it."""
        step = self.step.model_dump(exclude_none=True) | {"mechanism": self.mechanism}
        own = {
            "mse_alone": self.mse_alone,
            "ms_per_inr": self.ms_per_inr,
            "cpu_ms_per_inr": self.cpu_ms_per_inr,
            "guesses": self.guesses,
            "warnings": list(self.warnings),
            "scaled": asdict(self.scaled),
        }
        curve = {} if self.curve is None else {"refit": asdict(self.curve)}
        return {**step, **asdict(self.score), **own, **curve}


@dataclass(frozen=True, eq=False)
class EditReport:
    """Networks before and after a recipe, their renders, and how close these are to the target.

    `total` and `scaled` compare the last picture with the input; `mse_of_input` is the error that
    the networks had before.

    Shapes: `input`, `edited`, `target` `(batch, channels, height, width)`; `difference` the same, 0
    where no target is known; `stages`, which are the input and what it is after each edit, and
    `fine_target` `(SAMPLE or fewer, channels, scale * height, scale * width)`.
    """

    recipe: EditRecipe
    ground_truth: str
    before: INRStore
    after: INRStore
    input: Tensor
    edited: Tensor
    target: Tensor
    difference: Tensor
    scale: int
    stages: tuple[Tensor, ...]
    fine_target: Tensor
    steps: tuple[StepScore, ...]
    mse_of_input: float
    total: Score
    scaled: Score

    @property
    def cpu_ms_per_inr(self) -> float:
        """Processor time of all edits."""
        return sum(step.cpu_ms_per_inr for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """Everything but tensors."""
        drift = [{"after": "input", "mse": self.mse_of_input}]
        drift += [{"after": step.step.edit, "mse": step.score.mse} for step in self.steps]
        total = asdict(self.total) | {"cpu_ms_per_inr": self.cpu_ms_per_inr}
        return {
            "recipe": self.recipe.name,
            "count": len(self.before),
            "ground_truth": self.ground_truth,
            "scale": self.scale,
            "edits": [step.as_dict() for step in self.steps],
            "total": total | {"scaled": asdict(self.scaled)},
            "drift": drift,
        }
