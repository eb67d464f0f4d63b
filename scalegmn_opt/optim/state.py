"""What a rule remembers of each parameter, and the units of its steps."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from scalegmn_opt.graph import WeightBlock, WeightGraph, pack, unpack
from scalegmn_opt.optim.directions import relative_to_noise
from scalegmn_opt.optim.whitening import is_whitened, kept_numbers, whiten
from scalegmn_opt.symmetry import activity_sweep, scale_ratio

State = dict[str, dict[str, Tensor]]  # by parameter; see Rule.init


class Rule(nn.Module):
    """``(graph, params, grads, state) -> (updates, state)`` without side effects.

    A module whose ``forward(graph, params, grads, state)`` gives ``updates`` such that
    ``params + updates`` are the next parameters, and modifies no argument. All tensors have a
    leading batch axis of networks of one graph.

    ``decays`` are those of running averages: ``square`` of squared gradients, any other of
    gradients; ``fast`` and ``square`` have to be there. ``size`` is the plain step's, in units.
    A rule that ``whitens`` calls :meth:`main_directions` at each step.
    """

    decays: ClassVar[dict[str, float]]
    size: ClassVar[float] = 1.0
    whitens: ClassVar[bool] = False

    def init(
        self,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        *,
        input_rms: Tensor | float = 1.0,
    ) -> State:
        """The state before the first step: 4 bytes in float32 a parameter and decay, few a neuron.

        ``step`` (batch,); an average (batch, *shape) for each of ``decays``; the gauge of the
        initial parameters at both ends of a block, ``target`` (batch, out) and ``source``
        (batch, in); for a rule that whitens, ``whitener`` (batch, numbers) of large matrices. With
        the gauge of the present parameters the steps would grow with the weights, exponentially.

        Args:
            input_rms: root mean square of the networks' inputs, a number or (batch,).
        """
        ends = self._gauge(graph, params, input_rms)
        return {
            name: self._rest(params[name], blocks, *ends)
            for name, blocks in graph.parameters.items()
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
            **self._whiteners(p, blocks),
            "target": torch.cat([targets[block.target] for block in blocks], 1),
            "source": torch.cat([sources[block.source] for block in blocks], 1),
        }

    def _whiteners(self, p: Tensor, blocks: tuple[WeightBlock, ...]) -> dict[str, Tensor]:
        count = sum(map(kept_numbers, blocks)) if self.whitens else 0
        return {"whitener": p.new_zeros(len(p), count)} if count else {}

    def main_directions(
        self, graph: WeightGraph, grads: Mapping[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor | None], State]:
        """Whitened descent directions of matrices, None of other blocks, and the next state.

        What is whitened is Nesterov's momentum: a decay of ``fast`` ahead of the average.
        """
        ends = gauge_ends(graph, state)
        found: dict[str, Tensor | None] = {}
        renewed: State = {}
        for name, blocks in graph.parameters.items():
            own, parts = state[name], []
            ahead = torch.lerp(grads[name], own["fast"], self.decays["fast"])
            counts = [kept_numbers(block) for block in blocks]
            kept = own.get("whitener", ahead.new_zeros(len(ahead), 0)).split(counts, 1)
            for block, part in zip(blocks, kept, strict=True):
                found[block.name] = None
                if is_whitened(block):
                    target, source = (block.fold(x, i) for i, x in enumerate(ends[block.name]))
                    momentum = block.pack(ahead) * -target[:, :, None, None]
                    momentum = momentum.div_(source[:, None, :, None])
                    step = int(own["step"][0])
                    found[block.name], part = whiten(block, momentum, part, step=step)
                parts.append(part)
            renewed[name] = {**own, "whitener": torch.cat(parts, 1)} if sum(counts) else own
        return found, renewed

    def _advance(self, state: State, grads: Mapping[str, Tensor]) -> State:
        return {name: self._advance_one(state[name], grad) for name, grad in grads.items()}

    def _advance_one(self, state: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
        averages = {
            key: torch.lerp(grad.square() if key == "square" else grad, state[key], decay)
            for key, decay in self.decays.items()
        }
        return {**state, "step": state["step"] + 1, **averages}

    def plain_step(
        self,
        graph: WeightGraph,
        state: State,
        directions: Mapping[str, Tensor | None] | None = None,
    ) -> dict[str, Tensor]:
        """Updates along ``-m / sqrt(v)`` in gauge coordinates and units; nothing is learned.

        Args:
            directions: by block (batch · folds, out, in, kernel), to be used instead where given.
        """
        ratios = gauge_ratios(graph, state)
        updates = {}
        for block in graph.blocks:
            given = directions[block.name] if directions else None
            direction = self._direction(block, state[block.parameter]) if given is None else given
            updates[block.name] = (
                ratios[block.name] * direction * (self.size * step_scale(graph, block))
            )
        return unpack(graph, updates)

    def _direction(self, block: WeightBlock, state: dict[str, Tensor]) -> Tensor:
        """``-m / sqrt(v)`` (batch · folds, out, in, kernel): downhill, with entries O(1)."""
        fast, square = (block.pack(self.unbiased(state, key)) for key in ("fast", "square"))
        return relative_to_noise(-fast, square)

    def unbiased(self, state: dict[str, Tensor], key: str) -> Tensor:
        """An average (batch, *shape), corrected for its start at zero."""
        values = state[key]
        step = state["step"].to(values).reshape(-1, *[1] * (values.ndim - 1))
        return values / (1 - self.decays[key] ** step)


def step_scale(graph: WeightGraph, block: WeightBlock) -> float:
    """Relative size of a step: ``1 / fan_in`` of a weight, ``1 / sqrt(fan_in)`` of a bias.

    A vector on neurons without other incoming weights is treated as one weight a neuron.
    """
    if not block.is_vector:
        return 1.0 / graph.fan_in[block.target]
    if all(other.is_vector for other in graph.incoming[block.target]):
        return 1.0 / (block.shape[0] * block.shape[2])
    return graph.fan_in[block.target] ** -0.5


def gauge_ends(graph: WeightGraph, state: State) -> dict[str, tuple[Tensor, Tensor]]:
    """The gauge that the state keeps, ``s_i`` (batch, out) and ``s_j`` (batch, in), by block."""
    found = {}
    for name, blocks in graph.parameters.items():
        ends = (
            state[name][end].split([graph.group[getattr(b, end)].size for b in blocks], 1)
            for end in ("target", "source")
        )
        for block, target, source in zip(blocks, *ends, strict=True):
            found[block.name] = target, source
    return found


def gauge_ratios(graph: WeightGraph, state: State) -> dict[str, Tensor]:
    """``s_i / s_j`` (batch · folds, out, in, 1) by block, from the gauge that the state keeps."""
    ends = gauge_ends(graph, state)
    return {block.name: scale_ratio(block, *ends[block.name]) for block in graph.blocks}
