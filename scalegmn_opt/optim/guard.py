"""Guards of a step: numbers that are not finite are counted and never spread."""

import os
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, isnan
from pathlib import Path

import torch
from torch import Tensor

from scalegmn_opt.graph import WeightGraph
from scalegmn_opt.optim.state import Rule, State
from scalegmn_opt.optim.units import measured_sizes

LARGEST_STEP = 100.0  # root mean square of an update relative to the step of size 1
_INSIDE = tuple(
    f"{Path(file).parent}{os.sep}" for file in (torch.__file__, Path(__file__).parent)
)  # of torch and of this package


@dataclass
class Health:
    """What the guard of an optimizer has counted.

    Attributes:
        steps: steps taken.
        masked: by parameter, entries of its gradients that were not finite and counted as zero.
        replaced: by parameter, steps whose update was not finite or exploded, and was replaced.
        limited: by parameter, steps that ``max_change`` made smaller.
    """

    steps: int = 0
    masked: dict[str, int] = field(default_factory=dict)
    replaced: dict[str, int] = field(default_factory=dict)
    limited: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing had to be mended; a step that was only limited is in order."""
        return not self.masked and not self.replaced

    def note(self, counts: dict[str, int], name: str, number: int, what: str) -> None:
        """Count, and warn the first time for each parameter."""
        if name not in counts:
            warnings.warn(
                f"step {self.steps + 1}: {what} of {name!r}; see health()",
                RuntimeWarning,
                stacklevel=frames_inside(),
            )
        counts[name] = counts.get(name, 0) + number


def frames_inside() -> int:
    """How far up from the caller is the line that is neither of torch nor of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    return level


def finite(grads: dict[str, Tensor], health: Health) -> dict[str, Tensor]:
    """``grads``, or others with zero for entries that are not finite or whose squares are not."""
    norms = torch.stack(torch._foreach_norm(list(grads.values())))
    if isfinite(sum(norms.tolist())):
        return grads
    return {name: _masked(name, grad, health) for name, grad in grads.items()}


def _masked(name: str, grad: Tensor, health: Health) -> Tensor:
    good = grad.detach().abs() <= torch.finfo(grad.dtype).max ** 0.5
    bad = grad.numel() - int(good.sum())
    if not bad:
        return grad
    health.note(health.masked, name, bad, f"masked {bad} of {grad.numel()} numbers in the gradient")
    return torch.where(good, grad, 0.0)


def guarded(
    updates: Mapping[str, Tensor],
    sizes: Mapping[str, float],
    reach: Mapping[str, float],
    graph: WeightGraph,
    state: State,
    rule: Rule,
    health: Health,
    *,
    unbounded: Collection[str] = (),
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """``updates`` with the rule's plain step for parameters whose update cannot be right.

    An update cannot be right if it has numbers that are not finite, or if in gauge coordinates
    their root mean square is above ``LARGEST_STEP`` times the rule's unit, unless they are of
    ``unbounded``. Second, the :func:`relative_sizes` of what is returned.

    Args:
        sizes: :func:`relative_sizes` of ``updates`` as far as the rule knows.
        reach: by parameter, the largest entry of an update of size 1: :func:`reaches`. Where one
            may be near the largest number, or its way there may be, the update is measured.
    """
    most = torch.finfo(next(iter(updates.values())).dtype).max ** 0.25
    doubtful = {
        n: updates[n]
        for n, size in sizes.items()
        if not (size <= LARGEST_STEP and size * reach[n] < most)
    }
    if not doubtful:
        return dict(updates), dict(sizes)
    measured = measured_sizes(doubtful, graph, state)
    sizes = {**sizes, **relative_sizes(doubtful, measured, graph)}
    largest = {name: inf if name in unbounded else LARGEST_STEP for name in doubtful}
    bad = [n for n in doubtful if not isfinite(sizes[n]) or sizes[n] > largest[n]]
    if not bad:
        return dict(updates), dict(sizes)
    plain = rule.plain_step(graph, state)
    for name in bad:
        health.note(health.replaced, name, 1, "replaced the update")
    mended = {name: plain[name].nan_to_num(0.0, 0.0, 0.0) for name in bad}
    mended_sizes = relative_sizes(mended, measured_sizes(mended, graph, state), graph)
    return {**updates, **mended}, {**sizes, **mended_sizes}


def relative_sizes(names: Iterable[str], sizes: Tensor, graph: WeightGraph) -> dict[str, float]:
    """The largest size of each parameter's blocks.

    Args:
        sizes: of one network (1, blocks) of the blocks of ``names``, as :func:`measured_sizes`.
    """
    found = dict.fromkeys(names, 0.0)
    owners = (name for name in found for _ in graph.parameters[name])
    for name, size in zip(owners, sizes.tolist()[0], strict=True):
        found[name] = _larger(found[name], size)
    return found


def _larger(first: float, second: float) -> float:
    return second if second > first or isnan(second) else first
