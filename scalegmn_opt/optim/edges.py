"""What an update rule reads of each weight, in gauge coordinates and chunks of rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scalegmn_opt.graph import WeightBlock
from scalegmn_opt.optim.directions import constants, inverse_root, rms, row_sums, scaled

DIRECTIONS = 3  # fast and slow momentum relative to noise, main direction
INVARIANTS = 6
_CHUNK = 1 << 15  # weights of all networks that are worked on at a time
_LIMIT = 3.0
_LEAST = 1e-4  # mean of squared signal over noise


@dataclass(frozen=True)
class Edges:
    """Weights (batch · folds, out, in, kernel) of a block, of congruent ones, or of biases.

    Congruent blocks are stacked along the batch axis, biases lie one below the other.

    Attributes:
        blocks: all of them.
        weight, fast, slow, square: parameters and averages of gradients.
        main: whitened momentum where the block is a matrix, None elsewhere.
        fast_gain, slow_gain, length, scale: (batch · folds, out or 1, 1, 1), see below.
        target, source: the gauge at the ends, (batch · folds, out, 1, 1) and (..., 1, in, 1).
        index: of biases, (out,), the number of each neuron's block.

    The gains correct averages and noise for their start at zero; ``scale`` is the relative size of
    a step, by which weights get entries O(1), and ``length`` the step's.
    """

    blocks: Sequence[WeightBlock]
    weight: Tensor
    fast: Tensor
    slow: Tensor
    square: Tensor
    main: Tensor | None
    fast_gain: Tensor
    slow_gain: Tensor
    length: Tensor
    scale: Tensor
    target: Tensor
    source: Tensor
    index: Tensor | None = None

    def chunks(self) -> Iterator[slice]:
        """Ranges of rows, of a bounded number of weights; one when compiled, which needs none."""
        if torch.compiler.is_compiling():
            return iter([slice(0, self.weight.shape[1])])
        rows = max(1, _CHUNK * self.weight.shape[1] // max(1, self.weight.numel()))
        return (slice(i, i + rows) for i in range(0, self.weight.shape[1], rows))

    def sizes(self, x: Tensor) -> Tensor:
        """Root mean squares (batch · folds, out or 1, 1, 1) over each block's part of ``x``."""
        if self.index is None:
            return rms(x, folds=self.blocks[0].folds)
        counts = constants([block.shape[0] for block in self.blocks], x)
        return self.by_block((self._sums(x.square().flatten(2)).squeeze(2) / counts).sqrt())

    def _sums(self, rows: Tensor) -> Tensor:
        """Sums (batch, blocks, channels) of rows (batch, out, channels) of each block."""
        return row_sums(rows, [block.shape[0] for block in self.blocks], self.index)

    def by_block(self, values: Tensor) -> Tensor:
        """Numbers (batch, blocks) for the weights of each block (batch · folds, out or 1, 1, 1)."""
        if self.index is not None:
            values = values[:, self.index]
        elif self.blocks[0].folds > 1:
            values = values.repeat_interleave(self.blocks[0].folds, 0)
        return values[:, :, None, None]

    def by_name(self, values: Tensor) -> dict[str, Tensor]:
        """The part of each block in values (batch · folds, out, ...)."""
        if self.index is None:
            parts = values.chunk(len(self.blocks))
        else:
            parts = values.split([block.shape[0] for block in self.blocks], 1)
        return {block.name: part for block, part in zip(self.blocks, parts, strict=True)}

    def directions(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Descent directions with entries O(1), invariant to positive scales."""
        noise = inverse_root(_rows(self.square, rows))
        fast = _rows(self.fast, rows) * noise * _rows(self.fast_gain, rows)
        slow = _rows(self.slow, rows) * noise * _rows(self.slow_gain, rows)
        return fast, slow, fast if self.main is None else _rows(self.main, rows)

    def mixture(self, factors: Tensor, rows: slice) -> Tensor:
        """``Σ_k β_k d^k`` for factors ``β`` (DIRECTIONS,), in fewer passes than one by one."""
        first, second, third = factors.unbind()
        fast = _rows(self.fast_gain, rows) * (first + third if self.main is None else first)
        slow = _rows(self.slow_gain, rows) * second
        mixed = torch.addcmul(_rows(self.fast, rows) * fast, _rows(self.slow, rows), slow)
        noise = inverse_root(_rows(self.square, rows))
        if self.main is None:
            return mixed * noise
        return torch.addcmul(_rows(self.main, rows) * third, mixed, noise)

    def main_direction(self) -> Tensor:
        """The last of the directions, of all rows."""
        if self.main is not None:
            return self.main
        return self.fast * inverse_root(self.square) * self.fast_gain

    def coherence(self) -> Tensor:
        """How coherent the gradients of each block were, (batch, blocks, 2), by both momenta.

        Half the log of the mean of ``m² / v`` over weights that ever had a gradient: 0 if all
        gradients are the same, the lower the more they are noise.
        """
        chunks = [self._coherence(rows) for rows in self.chunks()]
        rows = chunks[0] if len(chunks) == 1 else torch.cat(chunks, 1)
        if self.index is None:
            rows = rows.reshape(-1, 1, self.blocks[0].folds * rows.shape[1], 3).sum(2)
        else:
            rows = self._sums(rows)
        signal, seen = rows.split([2, 1], 2)
        mean = torch.where(seen > 0, signal / seen.clamp_min(1), 1.0)
        return mean.clamp_min(_LEAST).log() / 2

    def _coherence(self, rows: slice) -> Tensor:
        """Sums of ``m² / v`` of fast and slow momentum and counts, (batch · folds, rows, 3)."""
        square = _rows(self.square, rows)
        noise = inverse_root(square)
        fast, slow = (
            torch.linalg.vector_norm(_rows(x, rows) * noise, dim=(2, 3), keepdim=True)
            * _rows(gain, rows)
            for x, gain in ((self.fast, self.fast_gain), (self.slow, self.slow_gain))
        )
        seen = (square > 0).sum((2, 3), keepdim=True, dtype=square.dtype)
        return torch.cat([fast.square(), slow.square(), seen], 2).squeeze(3)

    def weights(self, rows: slice) -> Tensor:
        """Weights with entries O(1), invariant to positive scales."""
        target = _rows(self.scale.rsqrt() / self.target, rows)
        return _rows(self.weight, rows) * self.source * target

    def updates(
        self, step: Tensor, size: Tensor, gain: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The updates of weights by block from a step, which it may use up, and their sizes.

        Args:
            size: of the step, by :meth:`sizes`.
            gain: what each row is multiplied by, (batch · folds, out or 1, 1, 1).
        """
        length = self.length * gain
        step = scaled(step, self.target * self.scale * length)
        return self.by_name(scaled(step, self.source.reciprocal())), self._sizes(size * length)

    def _sizes(self, rows: Tensor) -> dict[str, Tensor]:
        """One number (batch,) of each block from those of its rows, which are all the same."""
        folds = self.blocks[0].folds
        return {name: part[::folds, 0, 0, 0] for name, part in self.by_name(rows).items()}

    def message(self, values: Tensor, direction: int) -> Tensor:
        """``Σ_j ŵ_ij v_j`` of the first half of the channels, ``Σ_j d_ij v_j`` of the second.

        Along (0) or against (1) the edges: (batch · folds, senders, channels) to receivers.
        """
        weight, main = (_matrices(x) for x in (self.weight, self.main_direction()))
        target = (self.scale.rsqrt() / self.target).squeeze(3)
        source = self.source.squeeze(1)
        one, two = values.chunk(2, 2)
        if direction:
            return torch.cat([source * (weight.mT @ (one * target)), main.mT @ two], 2)
        return torch.cat([target * (weight @ (one * source)), main @ two], 2)

    def summaries(self) -> tuple[Tensor, Tensor]:
        """Mean invariants (batch · folds, nodes, INVARIANTS) of targets' and sources' weights."""
        targets, sources = [], []
        for rows in self.chunks():
            products = invariants(self.directions(rows), self.weights(rows))
            targets.append(products.mean((3, 4)))
            sources.append(products.sum((2, 4)))
        count = self.weight.shape[1] * self.weight.shape[3]
        return torch.cat(targets, 2).mT, sum(sources).mT / count


def invariants(directions: tuple[Tensor, ...], weights: Tensor) -> Tensor:
    """Products (batch, INVARIANTS, out, in, kernel) that neither scale nor sign changes."""
    fast, slow, main = directions
    pairs = (
        (fast, fast),
        (slow, slow),
        (weights, weights),
        (fast, slow),
        (fast, main),
        (weights, main),
    )
    return torch.stack([x * y for x, y in pairs], 1).clamp(-_LIMIT, _LIMIT)


def _matrices(edges: Tensor) -> Tensor:
    """(batch · folds, out, in), with the parallel edges of a kernel as one."""
    return edges.squeeze(3) if edges.shape[3] == 1 else edges.sum(3)


def _rows(values: Tensor, rows: slice) -> Tensor:
    whole = values.shape[1] == 1 or rows.stop - rows.start >= values.shape[1]
    return values if whole else values[:, rows]
