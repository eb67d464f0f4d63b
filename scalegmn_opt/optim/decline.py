"""How far gradients have declined since they were largest: how close training is to its end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scalegmn_opt.graph import WeightBlock
from scalegmn_opt.optim.directions import constants, row_sums
from scalegmn_opt.optim.together import Given, below, joint
from scalegmn_opt.optim.units import block_ends

_MOST = 100.0  # a squared gradient is at most so many times the running mean
_MOST_IN_LEVEL = 10.0  # and counts as so many times in that
_LEAST = 1e-2  # of a ratio of squares


@dataclass(frozen=True)
class Trend:
    """The sizes of gradients of parameters that are worked on as one, all (batch, blocks).

    Attributes:
        level: running mean of the squared gradient in gauge coordinates, without a bias toward
            zero; a single one, however large, adds little to it.
        peak: the largest level that ever was.
        outlier: what scales a gradient to ten times its usual size at most, 1 for most. Directions
            are normalised, so that an outlier would be all that momentum knows for long.
        decline: the log of the gradient's size over what it was at its peak. At least that of a
            tenth: gradients also begin large where the scale of targets is not known yet, which
            says nothing of the end, and those of classes that are told apart may vanish.
    """

    level: Tensor
    peak: Tensor
    outlier: Tensor
    decline: Tensor

    @property
    def state(self) -> dict[str, Tensor]:
        """What is kept of it."""
        return {"level": self.level, "peak": self.peak}


def trends(
    given: Given, stacks: Sequence[Sequence[str]], biases: Sequence[str], *, decay: float
) -> list[Trend]:
    """The trends of all stacks of parameters, and of the biases, if there are any, at the end.

    Worked out for all at once.
    """
    squares = [_of_stack(given, names) for names in stacks]
    known = [_known(given, names, joint) for names in stacks]
    if biases:
        squares.append(_of_biases(given, biases))
        known.append(_known(given, biases, below))
    level, peak, steps = (
        torch.cat([x.expand_as(s).flatten() for x, s in zip(own, squares, strict=True)])
        for own in zip(*known, strict=True)
    )
    found = _advanced(torch.cat([s.flatten() for s in squares]), level, peak, steps + 1, decay)
    sizes = [s.numel() for s in squares]
    parts = zip(*(x.split(sizes) for x in found), strict=True)
    return [
        Trend(*(x.reshape(s.shape) for x in part)) for part, s in zip(parts, squares, strict=True)
    ]


def _advanced(
    squares: Tensor, known: Tensor, peak: Tensor, steps: Tensor, decay: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Level, peak, outlier and decline after one more gradient, elementwise."""
    squares = squares.clamp_max(torch.finfo(squares.dtype).max)
    most = _MOST * known
    far = (known > 0) & (squares > most)
    outlier = (torch.where(far, most, 1.0) / torch.where(far, squares, 1.0)).sqrt()
    squares = torch.where(known > 0, squares.minimum(_MOST_IN_LEVEL * known), squares)
    level = torch.lerp(known, squares, (1 - decay) / (1 - decay**steps))
    peak = level.maximum(peak)
    ratio = torch.where(peak > 0, level, 1.0) / torch.where(peak > 0, peak, 1.0)
    return level, peak, outlier, ratio.clamp_min(_LEAST).log() / 2


def _known(
    given: Given, names: Sequence[str], put: Callable[[list[Tensor]], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Level, peak and step (batch, blocks or 1), with the parameters ``put`` together."""
    level, peak, step = (given.states(names, key) for key in ("level", "peak", "step"))
    return put(level), put(peak), put([x[:, None] for x in step])


def _of_stack(given: Given, names: Sequence[str]) -> Tensor:
    """Mean squared gradients (stack · batch, blocks), in gauge coordinates."""
    ends = {key: joint(given.states(names, key)) for key in ("target", "source")}
    grad = joint([given.grads[name] for name in names])
    return mean_squares(given.graph.parameters[names[0]], grad, ends)


def mean_squares(blocks: Sequence[WeightBlock], grad: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """Mean squares (batch, blocks) of a parameter's gradient in gauge coordinates.

    Positive scales, signs and permutations of neurons do not change them.
    """
    found = []
    for block, ends in zip(blocks, block_ends(blocks, own), strict=True):
        target, source = (block.fold(x, i) for i, x in enumerate(ends))
        square = block.pack(grad).square()
        columns = source.square().reciprocal().repeat_interleave(square.shape[3], 1)
        rows = torch.bmm(square.flatten(2), columns[:, :, None]).squeeze(2) * target.square()
        found.append(rows.reshape(len(grad), -1).sum(1) * (len(grad) / square.numel()))
    return torch.stack(found, 1)


def _of_biases(given: Given, names: Sequence[str]) -> Tensor:
    """Mean squared gradients (batch, biases), in gauge coordinates."""
    grads, targets = below([given.grads[n] for n in names]), below(given.states(names, "target"))
    counts = [given.grads[name][0].numel() for name in names]
    sums = row_sums((grads * targets).square(), counts, rows_of(counts, grads.device))
    return sums / constants(counts, grads)


def rows_of(counts: Sequence[int], device: torch.device) -> Tensor:
    """The number of each row's block (sum of counts,), of blocks that lie one below the other."""
    sizes = torch.tensor(counts, device=device)
    blocks = torch.arange(len(counts), device=device)
    return torch.repeat_interleave(blocks, sizes, output_size=sum(counts))
