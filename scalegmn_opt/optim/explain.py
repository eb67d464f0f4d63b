"""A look inside: how large the last step of each parameter was, and what was mended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan
from typing import TYPE_CHECKING

from torch import Tensor

from scalegmn_opt.figures import new_figure
from scalegmn_opt.optim.guard import Health

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEGEND = 24  # more names than that are not written beside a figure


@dataclass(frozen=True)
class ParameterStep:
    """The last step of one parameter.

    Attributes:
        step_size: ``lr`` times the root mean square of the rule's update in gauge coordinates and
            units: at 1 an aligned step changes a pre-activation by its initial size.
        update_ratio: norm of the update over that of the parameter before it; infinite at zero.
        masked, replaced, limited: what :class:`Health` has counted of it so far.
    """

    step_size: float
    update_ratio: float
    masked: int
    replaced: int
    limited: int


@dataclass(frozen=True)
class Explanation:
    """One recorded step of an optimizer; as a string it is a table.

    Attributes:
        step: its number, from 1.
        parameters: by name, in the optimizer's order, those that had a gradient.
    """

    step: int
    parameters: dict[str, ParameterStep]

    def __str__(self) -> str:
        width = max(len("parameter"), *map(len, self.parameters))
        head = f"{'parameter':{width}}  step size  update/weight  masked  replaced  limited"
        rows = (
            f"{name:{width}}  {row.step_size:9.3g}  {row.update_ratio:13.3g}"
            f"  {row.masked:6}  {row.replaced:8}  {row.limited:7}"
            for name, row in self.parameters.items()
        )
        return "\n".join([f"step {self.step}", head, *rows])


def explained(
    health: Health,
    sizes: Mapping[str, float],
    updates: Mapping[str, Tensor],
    params: Mapping[str, Tensor],
) -> Explanation:
    """What is known of a step: its sizes, the updates as applied, the parameters before it."""
    rows = {
        name: ParameterStep(
            step_size=sizes[name],
            update_ratio=float(update.norm() / params[name].norm()),
            masked=health.masked.get(name, 0),
            replaced=health.replaced.get(name, 0),
            limited=health.limited.get(name, 0),
        )
        for name, update in updates.items()
    }
    return Explanation(health.steps, rows)


def draw_steps(explanations: Sequence[Explanation]) -> "Figure":
    """Step size and update/weight ratio of each parameter over time, from recorded steps.

    Weights are lines, vectors (names that end in ``bias``) are dashed; colours run from the first
    parameter to the last. Steps without a number above zero and steps of parameters without a
    gradient are gaps.

    Args:
        explanations: what ``optimizer.explain()`` gave after some steps.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: there is none.
    """
    if not explanations:
        raise ValueError("explanations: expected at least one, got none")
    figure = new_figure(9.5, 4.4)
    names = list(dict.fromkeys(name for each in explanations for name in each.parameters))
    steps = [each.step for each in explanations]
    panels = (
        ("step_size", "step size, in units of the gauge"),
        ("update_ratio", "norm of update / norm of weights"),
    )
    for ax, (what, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for place, name in enumerate(names):
            rows = [each.parameters.get(name) for each in explanations]
            found = [nan if row is None else getattr(row, what) for row in rows]
            ax.plot(
                steps,
                [value if 0 < value < inf else nan for value in found],
                color=_shade(place / max(1, len(names) - 1)),
                linestyle="--" if name.endswith("bias") else "-",
                linewidth=1.4,
                label=name,
            )
        ax.set(xlabel="step", ylabel=label, yscale="log")
        ax.grid(alpha=0.3)
    if len(names) <= _LEGEND:
        figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def _shade(place: float) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * place)
