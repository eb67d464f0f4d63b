"""Guards of a step: numbers that are not finite are counted and never spread."""

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scalegmn_opt.graph import WeightGraph
from scalegmn_opt.optim.state import Rule, State, gauge_ends, step_scale

LARGEST_STEP = 100.0  # root mean square of an update relative to the step of size 1


@dataclass
class Health:
    """What the guard of an optimizer has counted.

    Attributes:
        steps: steps taken.
        masked: by parameter, entries of its gradients that were not finite and counted as zero.
        replaced: by parameter, steps whose update was not finite or exploded, and was replaced.
    """

    steps: int = 0
    masked: dict[str, int] = field(default_factory=dict)
    replaced: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing had to be mended."""
        return not self.masked and not self.replaced

    def note(self, counts: dict[str, int], name: str, number: int, what: str) -> None:
        """Count, and warn the first time for each parameter."""
        if name not in counts:
            warnings.warn(
                f"step {self.steps + 1}: {what} of {name!r}; see health()",
                RuntimeWarning,
                stacklevel=2,
            )
        counts[name] = counts.get(name, 0) + number


def finite(name: str, grad: Tensor, health: Health) -> Tensor:
    """``grad`` with zero for entries that are not finite, or whose square would not be."""
    largest = torch.finfo(grad.dtype).max ** 0.5
    good = grad.abs() <= largest
    bad = grad.numel() - int(good.sum())
    if not bad:
        return grad
    health.note(health.masked, name, bad, f"masked {bad} of {grad.numel()} numbers in the gradient")
    return torch.where(good, grad, 0.0)


def guarded(
    updates: dict[str, Tensor], graph: WeightGraph, state: State, rule: Rule, health: Health
) -> dict[str, Tensor]:
    """``updates`` with the rule's plain step for parameters whose update cannot be right.

    An update cannot be right if it has numbers that are not finite, or if in gauge coordinates
    their root mean square is above ``LARGEST_STEP`` times the rule's unit.
    """
    squares = _relative_squares(updates, graph, state)
    sizes = torch.stack(list(squares.values())).sqrt().tolist()
    bad = [name for name, size in zip(squares, sizes, strict=True) if not size <= LARGEST_STEP]
    if not bad:
        return updates
    plain = rule.plain_step(graph, state)
    for name in bad:
        health.note(health.replaced, name, 1, "replaced the update")
    return {**updates, **{name: plain[name].nan_to_num(0.0, 0.0, 0.0) for name in bad}}


def _relative_squares(
    updates: dict[str, Tensor], graph: WeightGraph, state: State
) -> dict[str, Tensor]:
    """Largest mean square of ``Δŵ / unit`` of a parameter's blocks, by parameter."""
    ends = gauge_ends(graph, state)
    worst: dict[str, Tensor] = {}
    for block, update in ((b, b.pack(updates[b.parameter])) for b in graph.blocks):
        rows, columns = (block.fold(end, i) for i, end in enumerate(ends[block.name]))
        powers = torch.einsum("boik,bi->bo", update.square(), columns.square())
        square = (powers / rows.square()).mean() / (
            update[0, 0].numel() * step_scale(graph, block) ** 2
        )
        known = worst.get(block.parameter, square)
        worst[block.parameter] = torch.maximum(known, square)
    return worst
