"""UpdateRule: the pure function that a learned optimizer learns."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from scalegmn_opt.graph import WeightBlock, WeightGraph, pack, unpack
from scalegmn_opt.nn.linear import mix, weight
from scalegmn_opt.optim.edges import DIRECTIONS, INVARIANTS, Edges, invariants, joined
from scalegmn_opt.optim.neurons import NeuronNetwork
from scalegmn_opt.optim.state import Rule, State, gauge_ends, step_scale
from scalegmn_opt.pretrained import restore, save_weights
from scalegmn_opt.symmetry import gauged

_TIME_SCALES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # steps: a time feature is half-way
_DECAY = 30.0, 3000.0  # the plain step falls as 1 / t between these numbers of steps
_MAX_LOG_STEP = 3.0
_SCALAR_GAIN = 10.0  # the few global scalars learn ten times as fast as the network's weights


class UpdateRule(Rule):
    """``(graph, params, grads, state) -> (updates, state)``, equivariant and without side effects.

    The update of a weight is, in gauge coordinates,

    ``Δŵ_ij = step(t) / fan_in · exp(r_i + c_j + e_ij) · (Σ_k (β_k + r_ik + c_jk + e_ijk) d^k_ij
    + e'_ij ŵ_ij)``

    with descent directions ``d`` of entries O(1): fast and slow momentum over the root of the 2nd
    moment, and a main one, which is whitened momentum of a matrix and fast momentum of a vector.
    A :class:`NeuronNetwork` gives the terms ``r`` of the target and ``c`` of the source neuron; a
    narrow MLP on products of a weight's own features, whose first layer receives terms of both
    neurons, gives ``e``. With the gauge of the initial parameters and ``1 / fan_in`` an aligned step
    of 1 changes a pre-activation by as much as its initial size, whatever the width. An untrained
    rule is a step of ``3 / (1 + t / 30)`` along the main direction.

    All tensors have a leading batch axis of networks of one graph.

    Args:
        channels: width of each stream of a neuron.
        message_channels: of each stream and direction of messages.
        hidden_channels: width of the neurons' MLPs.
        weight_channels: hidden width of the MLP of a single weight.

    References:
        Kalogeropoulos et al., arXiv 2406.10685; Metz et al., "VeLO", arXiv 2211.09760 (time and
        momentum features); Jordan et al., "Muon" (2024) (whitened direction).
    """

    decays: ClassVar = {"fast": 0.9, "slow": 0.98, "square": 0.99}
    size: ClassVar[float] = 3.0
    whitens: ClassVar[bool] = True

    def __init__(
        self,
        *,
        channels: int = 16,
        message_channels: int = 8,
        hidden_channels: int = 32,
        weight_channels: int = 8,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "channels": channels,
            "message_channels": message_channels,
            "hidden_channels": hidden_channels,
            "weight_channels": weight_channels,
        }
        self._outputs = 2 + DIRECTIONS  # log step, decay, mixture
        self.neurons = NeuronNetwork(
            channels=channels,
            message_channels=message_channels,
            hidden_channels=hidden_channels,
            extra=len(_TIME_SCALES),
            terms=weight_channels + self._outputs,
        )
        out = self.neurons.terms.out
        nn.init.zeros_(out.weight)
        nn.init.zeros_(out.bias)
        self.first = weight(weight_channels, INVARIANTS)
        self.second = nn.Parameter(torch.zeros(self._outputs, weight_channels))
        self.mixture = nn.Parameter(torch.tensor([0.0, 0.0, 1.0]) / _SCALAR_GAIN)
        self.schedule = nn.Parameter(torch.zeros(1 + len(_TIME_SCALES)))

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> Self:
        """A meta-trained rule, by its name in the package or by a file's path; no network."""
        return restore(cls, name_or_path, kind="rule")

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write a file that :meth:`from_pretrained` reads."""
        save_weights(path, self, kind="rule", config=self.config)

    def forward(
        self,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
    ) -> tuple[dict[str, Tensor], State]:
        """One step: ``params + updates`` are the next parameters; no argument is modified.

        Args:
            params, grads: (batch, *shape) by name.
            state: from :meth:`init` or the previous step.
        """
        state = self._advance(state, grads)
        edges, state = self._edges(graph, params, grads, state)
        steps = torch.stack([values["step"] for values in state.values()]).amax(0)
        targets, sources = self.neurons(gauged(graph), edges, _time(steps))
        updates: dict[str, Tensor] = {}
        for part in edges:
            first = part.blocks[0]
            target = torch.cat([b.fold(targets[b.target], 0) for b in part.blocks], 1)
            update = self._update(part, target.mT, first.fold(sources[first.source], 1).mT)
            updates |= {block.name: own for block, own in part.split(update)}
        return unpack(graph, updates), state

    def _edges(
        self,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
    ) -> tuple[list[Edges], State]:
        directions, state = self.main_directions(graph, grads, state)
        weights, ends = pack(graph, params), gauge_ends(graph, state)
        gains = {name: self._gains(values["step"]) for name, values in state.items()}
        parts = []
        for block in graph.blocks:
            own = state[block.parameter]
            like = {k: _each(v, block.folds) for k, v in gains[block.parameter].items()}
            parts.append(
                Edges(
                    (block,),
                    weights[block.name],
                    *(block.pack(own[key]) for key in self.decays),
                    directions[block.name],
                    **like,
                    scale=torch.full_like(like["length"], step_scale(graph, block)),
                    target=block.fold(ends[block.name][0], 0)[:, :, None, None],
                    source=block.fold(ends[block.name][1], 1)[:, None, :, None],
                )
            )
        plain = [p for p in parts if _is_plain_bias(p.blocks[0])]
        rest = [p for p in parts if not _is_plain_bias(p.blocks[0])]
        return ([*rest, joined(plain)] if plain else rest), state

    def _gains(self, steps: Tensor) -> dict[str, Tensor]:
        """Factors (batch,) of fast and slow momentum over noise, and the length of a step."""
        noise = (1 - self.decays["square"] ** steps).sqrt()
        gains = {f"{k}_gain": -noise / (1 - self.decays[k] ** steps) for k in ("fast", "slow")}
        return {**gains, "length": self._step_length(steps)}

    def _update(self, edges: Edges, target: Tensor, source: Tensor) -> Tensor:
        """The updates of weights, by chunks of rows, from terms (batch, terms, nodes) of both ends."""
        parts = [
            edges.updates(self._combine(edges, rows, target[:, :, rows], source), rows)
            for rows in edges.chunks()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _combine(self, edges: Edges, rows: slice, target: Tensor, source: Tensor) -> Tensor:
        directions, weights = edges.directions(rows), edges.weights(rows)
        first = len(self.first)
        ends = target[..., None, None], source[..., None, :, None]
        hidden = mix(self.first, invariants(directions, weights))
        hidden = hidden.add_(ends[0][:, :first]).add_(ends[1][:, :first]).relu_()
        out = mix(self.second, hidden).add_(ends[0][:, first:]).add_(ends[1][:, first:])
        step = out[:, 1] * weights
        for k, direction in enumerate(directions):
            step = step + (_SCALAR_GAIN * self.mixture[k] + out[:, 2 + k]) * direction
        return step * torch.exp(_MAX_LOG_STEP * (out[:, 0] / _MAX_LOG_STEP).tanh())

    def _step_length(self, steps: Tensor) -> Tensor:
        """A learned schedule without a horizon (batch,), near ``size / (1 + t / 30)`` at first."""
        start, end = _DECAY
        plain = self.size * (1 + steps / end) / (1 + steps / start)
        times = _time(steps)
        features = torch.cat([torch.ones_like(times[:, :1]), times], 1)
        return plain * torch.exp(_SCALAR_GAIN * (features @ self.schedule))


def _is_plain_bias(block: WeightBlock) -> bool:
    return block.is_vector and block.shape[1:] == (1, 1) and block.folds == 1


def _each(values: Tensor, folds: int) -> Tensor:
    """Values (batch,) for all folds (batch · folds, 1, 1, 1)."""
    return values.repeat_interleave(folds)[:, None, None, None]


def _time(steps: Tensor) -> Tensor:
    """Saturating features (batch, scales) of a number of steps (batch,)."""
    return torch.stack([steps / (steps + scale) for scale in _TIME_SCALES], -1)
