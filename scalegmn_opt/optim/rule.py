"""UpdateRule: the pure function that a learned optimizer learns."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from scalegmn_opt.backbone import ScaleGMN
from scalegmn_opt.graph import WeightBlock, WeightFeatures, WeightGraph, pack, unpack
from scalegmn_opt.heads import DeltaHead
from scalegmn_opt.nn import ScaleInv
from scalegmn_opt.optim.directions import relative_to_noise, unit_rms, whitened
from scalegmn_opt.optim.state import Rule, State, gauge_ratios, step_scale
from scalegmn_opt.pretrained import restore, save_weights
from scalegmn_opt.symmetry import gauged

_DIRECTIONS = 3  # fast and slow momentum relative to noise, whitened momentum
_TIME_SCALES = (10.0, 100.0, 1000.0)  # steps at which a time feature is half-way
_MAX_LOG_STEP = 3.0
_SCALAR_GAIN = 10.0  # the few global scalars learn ten times as fast as the network's weights


class UpdateRule(Rule):
    """``(graph, params, grads, state) -> (updates, state)``, equivariant and without side effects.

    The update of an edge is, in gauge coordinates,

    ``Δŵ_ij = step(t) / fan_in · exp(r_i + c_j) · (Σ_k (β_k + r_ik + c_jk) d^k_ij + free_ij)``

    with descent directions ``d`` of entries O(1): fast and slow momentum over the root of the 2nd
    moment, and whitened momentum. The backbone reads the weights and momenta and gives the terms
    ``r`` of the target and ``c`` of the source neuron and the free edge term. With the gauge of the
    initial parameters and ``1 / fan_in`` an aligned step of 1 changes a pre-activation by as much
    as its initial size, whatever the width. An untrained rule is the normalised-momentum step
    ``d = -m / sqrt(v)``.

    All tensors have a leading batch axis of networks of one graph.

    Args:
        node_channels, edge_channels, hidden_channels, num_layers: size of the backbone.

    References:
        Kalogeropoulos et al., arXiv 2406.10685; Metz et al., "VeLO", arXiv 2211.09760 (time and
        momentum features); Jordan et al., "Muon" (2024) (whitened direction).
    """

    decays: ClassVar = {"fast": 0.9, "slow": 0.98, "square": 0.99}

    def __init__(
        self,
        *,
        node_channels: int = 16,
        edge_channels: int = 8,
        hidden_channels: int = 32,
        num_layers: int = 1,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "node_channels": node_channels,
            "edge_channels": edge_channels,
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
        }
        self.backbone = ScaleGMN(
            edge_features=(1, 3),
            invariant_features=2 + len(_TIME_SCALES),
            neuron_encoding=False,
            **self.config,
        )
        self.neuron_terms = ScaleInv(
            node_channels,
            2 * (1 + _DIRECTIONS),
            extra_channels=self.backbone.extra_channels,
            hidden_channels=hidden_channels,
        )
        nn.init.zeros_(self.neuron_terms.out.weight)
        nn.init.zeros_(self.neuron_terms.out.bias)
        self.free = DeltaHead(edge_channels, scale=0.0)
        self.mixture = nn.Parameter(torch.zeros(_DIRECTIONS))
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
        ratios = gauge_ratios(graph, state)
        directions = {
            b.name: self._directions(b, ratios[b.name], state[b.parameter]) for b in graph.blocks
        }
        weights = {n: w / ratios[n] for n, w in pack(graph, params).items()}
        gradients = {n: g * ratios[n] for n, g in pack(graph, grads).items()}
        features = _features(gauged(graph), weights, gradients, state, directions)
        out = self.backbone(features)
        free, terms = self.free(out), self._neuron_terms(out)
        updates = {}
        for block in graph.blocks:
            ends = (terms[name][end] for end, name in enumerate((block.target, block.source)))
            folded = (block.fold(x, end).transpose(1, 2) for end, x in enumerate(ends))
            edge = block.pack(free[block.parameter][:, 0])
            step = self._combine(directions[block.name], edge, *folded)
            length = self._step_length(state[block.parameter]["step"].to(step))
            step = step * length.repeat_interleave(block.folds, 0)
            updates[block.name] = ratios[block.name] * step * step_scale(graph, block)
        return unpack(graph, updates), state

    def _directions(
        self, block: WeightBlock, ratio: Tensor, state: dict[str, Tensor]
    ) -> list[Tensor]:
        """Descent directions (batch · folds, out, in, kernel) in gauge coordinates."""
        square = block.pack(self.unbiased(state, "square"))
        fast = -block.pack(self.unbiased(state, "fast"))
        slow = -block.pack(self.unbiased(state, "slow"))
        relative = [relative_to_noise(momentum, square) for momentum in (fast, slow)]
        return [*relative, whitened(fast * ratio, folds=block.folds)]

    def _neuron_terms(self, out: WeightFeatures) -> dict[str, tuple[Tensor, ...]]:
        """Terms (batch, nodes, 1 + directions) of a neuron as target and as source, by group."""
        terms = {}
        for group in out.graph.groups:
            x = torch.cat(out.nodes[group.name], 2)
            term = self.neuron_terms(x, out.invariants[group.name], group.symmetry)
            terms[group.name] = term.chunk(2, 2)
        return terms

    def _combine(
        self, directions: list[Tensor], free: Tensor, target: Tensor, source: Tensor
    ) -> Tensor:
        """Directions (batch, out, in, kernel), both ends' terms (batch, 1 + directions, nodes)."""
        rows, columns = target[..., None, None], source[..., None, :, None]
        mixture = _SCALAR_GAIN * self.mixture
        step = directions[0] + free
        for k, direction in enumerate(directions):
            step = step + (mixture[k] + rows[:, k + 1] + columns[:, k + 1]) * direction
        log_step = (rows[:, 0] + columns[:, 0]) / _MAX_LOG_STEP
        return step * torch.exp(_MAX_LOG_STEP * log_step.tanh())

    def _step_length(self, steps: Tensor) -> Tensor:
        """A learned schedule without a horizon, (batch, 1, 1, 1), of the steps so far (batch,)."""
        features = torch.cat([torch.ones_like(steps)[:, None], _time(steps)], 1)
        return torch.exp(_SCALAR_GAIN * (features @ self.schedule))[:, None, None, None]


def _features(
    graph: WeightGraph,
    weights: dict[str, Tensor],
    gradients: dict[str, Tensor],
    state: State,
    directions: dict[str, list[Tensor]],
) -> WeightFeatures:
    """Gauge-fixed weights (+) and momenta (-) of edges; noise and time as neuron invariants."""
    edges, invariants = {}, {}
    for block in graph.blocks:
        name = block.name
        plus = weights[name] * step_scale(graph, block) ** -0.5
        fast, slow, _ = directions[name]
        gradient = unit_rms(gradients[name], folds=block.folds).clamp(-5, 5)
        minus = torch.stack([-gradient, fast, slow], 1)
        edges[name] = (plus.clamp(-5, 5).unsqueeze(1), minus)
    first = next(iter(state.values()))["fast"]
    for group in graph.groups:
        blocks = graph.incoming[group.name]
        invariants[group.name] = _invariants(blocks, state, directions, first)
    empty = {g.name: first.new_zeros(len(first), g.size, 0) for g in graph.groups}
    return WeightFeatures(graph, {name: (e, e) for name, e in empty.items()}, edges, invariants)


def _invariants(
    blocks: tuple[WeightBlock, ...],
    state: State,
    directions: dict[str, list[Tensor]],
    like: Tensor,
) -> Tensor:
    """(batch, nodes or 1, channels): how much of the gradient is signal, and how old it is."""
    if not blocks:
        return like.new_zeros(len(like), 1, 2 + len(_TIME_SCALES))
    signal = [
        sum(b.unfold(directions[b.name][k].square().mean((2, 3)), 0) for b in blocks) / len(blocks)
        for k in (0, 1)
    ]
    steps = state[blocks[0].parameter]["step"].to(like)
    time = _time(steps)[:, None].expand(-1, signal[0].shape[1], -1)
    return torch.cat([torch.stack(signal, -1), time], -1)


def _time(steps: Tensor) -> Tensor:
    """Saturating features (batch, scales) of a number of steps (batch,)."""
    return torch.stack([steps / (steps + scale) for scale in _TIME_SCALES], -1)
