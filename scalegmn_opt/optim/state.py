"""What a rule is, and what it remembers of each parameter."""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from scalegmn_opt.graph import WeightBlock, WeightGraph, pack, unpack_blocks
from scalegmn_opt.optim.directions import inverse_root, scaled
from scalegmn_opt.optim.units import block_ends, measured_sizes, step_scale
from scalegmn_opt.optim.whitening import is_whitened, kept_numbers, whiten
from scalegmn_opt.symmetry import activity_sweep

State = dict[str, dict[str, Tensor]]  # by parameter; see Rule.init


class Rule(nn.Module):
    """``(graph, params, grads, state) -> (updates, state)`` without side effects.

    A module whose ``forward(graph, params, grads, state)`` gives ``updates`` such that
    ``params + updates`` are the next parameters, and modifies no argument. All tensors have a
    leading batch axis of networks of one graph. A subclass defines ``forward`` or, if it knows how
    large its steps are, ``_sized``, which gives what :meth:`sized` does.

    ``decays`` are those of running averages: ``square`` of squared gradients, any other of
    gradients; ``fast`` and ``square`` have to be there. ``size`` is the plain step's, in units.
    A rule that ``whitens`` calls :meth:`main_directions` for each parameter at each step. One that
    ``reads_all`` has to be given all gradients and states, as one that defines ``forward`` is.

    ``overwrites`` is set by an optimizer that gives its state away: averages are then renewed in
    their own memory, which saves 4 bytes a parameter and decay. ``measures`` is set by one that has
    to know how large steps are: where a rule would have to measure, bounds do otherwise.
    """

    decays: ClassVar[dict[str, float]]
    size: ClassVar[float] = 1.0
    whitens: ClassVar[bool] = False
    overwrites: bool = False
    measures: bool = False

    @property
    def reads_all(self) -> bool:
        """Whether it has to be given all gradients and states."""
        return type(self).forward is not Rule.forward

    def forward(
        self,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
    ) -> tuple[dict[str, Tensor], State]:
        """One step: ``params + updates`` are the next parameters; no argument is modified.

        Args:
            params: (batch, *shape) by name.
            grads: likewise, of all parameters; or of some, with their states, unless the rule
                ``reads_all``: only these have updates and a next state then.
            state: from :meth:`init` or the previous step.
        """
        updates, state, _ = self._sized(graph, params, grads, state)
        return updates, state

    def _sized(
        self,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
    ) -> tuple[dict[str, Tensor], State, Tensor]:
        raise NotImplementedError

    def sized(
        self,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
    ) -> tuple[dict[str, Tensor], State, Tensor]:
        """One step and, third, its :func:`measured_sizes`, of blocks as in ``graph.parameters``.

        They may be bounds unless the rule ``measures``.
        """
        if type(self).forward is Rule.forward:
            return self._sized(graph, params, grads, state)
        updates, state = self(graph, params, grads, state)
        ordered = {name: updates[name] for name in graph.parameters if name in updates}
        return updates, state, measured_sizes(ordered, graph, state)

    def follow(self, like: Tensor) -> None:
        """Move to where ``like`` is, and to its dtype, unless there."""
        if any(p.dtype != like.dtype or p.device != like.device for p in self.parameters()):
            self.to(like)

    def init(
        self,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        *,
        input_rms: Tensor | float = 1.0,
        names: Collection[str] | None = None,
    ) -> State:
        """The state before the first step: 4 bytes in float32 a parameter and decay, few a neuron.

        ``step`` (batch,); an average (batch, *shape) for each of ``decays``; the gauge of the
        initial parameters at both ends of a block, ``target`` (batch, out) and ``source``
        (batch, in); for a rule that whitens, ``whitener`` (batch, numbers) of large matrices. With
        the gauge of the present parameters the steps would grow with the weights, exponentially.

        Args:
            params: (batch, *shape) by name, all of them.
            input_rms: root mean square of the networks' inputs, a number or (batch,).
            names: of which parameters; None: of all.
        """
        ends = self._gauge(graph, params, input_rms)
        return {
            name: self._rest(params[name], blocks, *ends)
            for name, blocks in graph.parameters.items()
            if names is None or name in names
        }

    def _gauge(
        self, graph: WeightGraph, params: Mapping[str, Tensor], input_rms: Tensor | float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Scales (batch, nodes) of neurons as targets and as sources of weights, by group."""
        return activity_sweep(graph, pack(graph, params), input_rms=input_rms)

    def _rest(
        self,
        p: Tensor,
        blocks: tuple[WeightBlock, ...],
        targets: Mapping[str, Tensor],
        sources: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        return {
            "step": torch.zeros(len(p), dtype=p.dtype, device=p.device),
            **{key: torch.zeros_like(p) for key in self.decays},
            **self._kept(p, blocks),
            "target": torch.cat([targets[block.target] for block in blocks], 1),
            "source": torch.cat([sources[block.source] for block in blocks], 1),
        }

    def _kept(self, p: Tensor, blocks: tuple[WeightBlock, ...]) -> dict[str, Tensor]:
        """What is remembered beside averages and the gauge, before the first step."""
        count = sum(map(kept_numbers, blocks)) if self.whitens else 0
        return {"whitener": p.new_zeros(len(p), count)} if count else {}

    def main_directions(
        self, blocks: Sequence[WeightBlock], grad: Tensor, own: dict[str, Tensor]
    ) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        """Whitened descent directions of a parameter's matrices, None of other blocks; its state.

        What is whitened is Nesterov's momentum: a decay of ``fast`` ahead of the average.
        """
        if not any(map(is_whitened, blocks)):
            return [None] * len(blocks), own
        ahead = torch.lerp(grad, own["fast"], self.decays["fast"])
        counts = [kept_numbers(block) for block in blocks]
        if sum(counts):
            kept = own["whitener"].split(counts, 1)
        else:
            kept = [ahead.new_zeros(len(ahead), 0)] * len(blocks)
        found: list[Tensor | None] = []
        renewed = []
        for block, part, ends in zip(blocks, kept, block_ends(blocks, own), strict=True):
            direction = None
            if is_whitened(block):
                target, source = (block.fold(x, i) for i, x in enumerate(ends))
                momentum = scaled(block.pack(ahead), -target[:, :, None, None])
                momentum = scaled(momentum, source.reciprocal()[:, None, :, None])
                direction, part = whiten(block, momentum, part, step=own["step"])
            found.append(direction)
            renewed.append(part)
        if all(new is old for new, old in zip(renewed, kept, strict=True)):
            return found, own
        whitener = torch.cat(renewed, 1) if len(renewed) > 1 else renewed[0]
        return found, {**own, "whitener": whitener}

    def advanced(self, own: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
        """The state of a parameter after one more gradient, but for what is whitened."""
        averages = {}
        for key, decay in self.decays.items():
            given, old = grad.square() if key == "square" else grad, own[key]
            # Programs of torch.compile write to contiguous tensors only.
            in_place = self.overwrites and not torch.compiler.is_compiling()
            new = torch.lerp(given, old, decay, out=old if in_place else None)
            averages[key] = old.copy_(new) if self.overwrites and not in_place else new
        return {**own, "step": own["step"] + 1, **averages}

    def plain_step(self, graph: WeightGraph, state: State) -> dict[str, Tensor]:
        """Updates along ``-m / sqrt(v)`` in gauge coordinates and units; nothing is learned."""
        updates = {}
        for name, own in state.items():
            blocks = graph.parameters[name]
            directions = [self.direction(block, own) for block in blocks]
            updates[name] = self.plain_update(graph, blocks, own, directions)
        return updates

    def plain_update(
        self,
        graph: WeightGraph,
        blocks: Sequence[WeightBlock],
        own: dict[str, Tensor],
        directions: Sequence[Tensor],
    ) -> Tensor:
        """The plain step of one parameter (batch, *shape).

        Args:
            directions: of its blocks (batch · folds, out, in, kernel), which are used up.
        """
        parts = []
        for block, direction, ends in zip(blocks, directions, block_ends(blocks, own), strict=True):
            target, source = (block.fold(x, i) for i, x in enumerate(ends))
            size = self.size * step_scale(graph, block)
            update = scaled(direction, size * target[:, :, None, None])
            parts.append(scaled(update, source.reciprocal()[:, None, :, None]))
        return unpack_blocks(blocks, parts)

    def direction(self, block: WeightBlock, own: dict[str, Tensor]) -> Tensor:
        """``-m / sqrt(v)`` (batch · folds, out, in, kernel): downhill, with entries O(1)."""
        step, decays = own["step"].to(own["fast"]), self.decays
        gain = -(1 - decays["square"] ** step).sqrt() / (1 - decays["fast"] ** step)
        fast, square = (block.pack(own[key]) for key in ("fast", "square"))
        gain = gain.repeat_interleave(block.folds).reshape(-1, 1, 1, 1)
        return scaled(inverse_root(square), gain) * fast
