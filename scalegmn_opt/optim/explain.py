"""A look inside: how large the last step of each parameter was, and what was mended."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from scalegmn_opt.optim.guard import Health


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
