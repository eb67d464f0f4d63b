"""Guards of a step: numbers that are not finite are counted and never spread."""

import os
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, isnan, prod
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from scalegmn_opt.graph import WeightBlock, WeightGraph
from scalegmn_opt.optim.state import Rule, State, block_ends, step_scale

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


def finite(grads: Mapping[str, Tensor], health: Health) -> dict[str, Tensor]:
    """``grads`` with zero for entries that are not finite, or whose squares would not be."""
    if isfinite(float(get_total_norm([grad.detach() for grad in grads.values()]))):
        return dict(grads)
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
        sizes: :func:`relative_sizes` of ``updates``.
    """
    largest = {name: inf if name in unbounded else LARGEST_STEP for name in updates}
    bad = [n for n in updates if not isfinite(sizes[n]) or sizes[n] > largest[n]]
    if not bad:
        return dict(updates), dict(sizes)
    plain = rule.plain_step(graph, state)
    for name in bad:
        health.note(health.replaced, name, 1, "replaced the update")
    mended = {name: plain[name].nan_to_num(0.0, 0.0, 0.0) for name in bad}
    mended_sizes = relative_sizes(mended, block_norms(mended, graph, state), graph)
    return {**updates, **mended}, {**sizes, **mended_sizes}


@torch.no_grad()
def block_norms(updates: Mapping[str, Tensor], graph: WeightGraph, state: State) -> Tensor:
    """Roots of the sums of squares of updates in gauge coordinates, (blocks,) in their order."""
    norms = []
    for name, update in updates.items():
        blocks = graph.parameters[name]
        for block, ends in zip(blocks, block_ends(blocks, state[name]), strict=True):
            norms.append(_norm(block, update, *ends))
    return torch.stack(norms)


def _norm(block: WeightBlock, update: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """Root of the sum of squares of an update in gauge coordinates."""
    edges = block.pack(update)
    if block.is_vector:
        return torch.linalg.vector_norm(edges / target[:, :, None, None])
    rows = torch.linalg.vector_norm(edges * block.fold(source, 1)[:, None, :, None], dim=(2, 3))
    return torch.linalg.vector_norm(rows / block.fold(target, 0))


def relative_sizes(updates: Iterable[str], norms: Tensor, graph: WeightGraph) -> dict[str, float]:
    """Root mean square of ``Δŵ / unit``, the largest of a parameter's blocks, by parameter.

    At 1 an aligned update changes a pre-activation by its initial size.

    Args:
        updates: the parameters' names.
        norms: of all their blocks, by :func:`block_norms`.
    """
    sizes = dict.fromkeys(updates, 0.0)
    owners = [(name, block) for name in sizes for block in graph.parameters[name]]
    for (name, block), norm in zip(owners, norms.tolist(), strict=True):
        unit = step_scale(graph, block) * (block.folds * prod(block.shape)) ** 0.5
        sizes[name] = _larger(sizes[name], norm / unit)
    return sizes


def _larger(first: float, second: float) -> float:
    return second if second > first or isnan(second) else first
