"""UpdateRule: the pure function that a learned optimizer learns."""

import os
from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from scalegmn_opt.graph import WeightBlock, WeightGraph, check_parameters, unpack_parameter
from scalegmn_opt.optim.directions import constants
from scalegmn_opt.optim.edges import Edges
from scalegmn_opt.optim.kinds import PLAIN_LAYERS, kinds_of, layers_of
from scalegmn_opt.optim.reading import Reading
from scalegmn_opt.optim.state import Rule, State
from scalegmn_opt.optim.terms import Ends, WeightTerms
from scalegmn_opt.optim.together import Given
from scalegmn_opt.optim.units import in_order
from scalegmn_opt.pretrained import restore, save_weights
from scalegmn_opt.symmetry import gauged, only_permuted

SymmetryName = Literal["scale", "permutation"]

_TIME_SCALES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # steps: a time feature is half-way
_START = 4.0  # the first step of the plain schedule, of a network of three layers
_DECAY = 100.0, 3000.0  # it falls as 1 / t between these numbers of steps
# Before meta-training: what earlier rules were meta-trained to, about.
_SCHEDULE = (-2.4, 3.2, 0.4, -0.2, -0.3, 0.0, 0.15)  # of _TIME_SCALES, after a constant
_KINDS = (0.15, -0.45, 0.35, 0.35, -1.1, -0.9)  # see kinds_of
_COHERENCE = (0.65, 0.5)  # of fast and slow momentum, for three layers
_SHALLOW = (-0.7, 0.0)  # times 3 / layers - 1: what few layers add to them
_DECLINE = 0.4
_MAX_LOG_STEP = 3.0


class UpdateRule(Rule):
    """``(graph, params, grads, state) -> (updates, state)``, equivariant and without side effects.

    The update of a weight is, in gauge coordinates,

    ``Δŵ_ij = step / fan_in · N[exp(l_ij) (Σ_k (β_k + m_ijk) d^k_ij + f_ij ŵ_ij)]``

    with descent directions ``d`` of entries O(1): fast and slow momentum over the root of the 2nd
    moment, and a main one, which is whitened momentum of a matrix, and fast momentum of a vector.
    ``N`` gives a block the root mean square of its main direction, so that how far is decided by
    the few numbers of ``step`` alone, and where to by all.

    ``step`` is that of a schedule in time, times ``exp`` of linear functions of what kind of block
    it is (a matrix's smaller side ``n``, a vector, of the last or first layer, of periodic neurons,
    of how many layers), of how coherent its gradients were (:meth:`Edges.coherence`), the more so,
    the more layers there are, since every layer's noise moves the function, and of how far they
    have declined since they were largest (:class:`Trend`), which tells how close the end is.

    ``l``, ``m`` and ``f`` are sums of a term of the target and one of the source neuron, by
    a :class:`NeuronNetwork`, and of the weight itself, by a narrow MLP on products of its own
    features, whose first layer receives terms of both neurons. With ``channels=0`` there are none.

    With the gauge of the initial parameters and ``1 / fan_in`` an aligned step of 1 changes a
    pre-activation by as much as its initial size, whatever the width. An untrained rule has the
    numbers of earlier meta-trained ones, rounded: after a warm-up, as a first step that is too
    large can kill neurons for good, its steps fall as ``1 / (1 + t / 100)``.

    All tensors have a leading batch axis of networks of one graph.

    Args:
        channels: width of each stream of a neuron; 0 for a rule without these networks.
        message_channels: of each stream and direction of messages.
        hidden_channels: width of the neurons' MLPs.
        weight_channels: hidden width of the MLP of a single weight.
        symmetry: what the rule is equivariant to. ``"permutation"`` is an ablation: a gauge of all
            ones, and networks that know of no multipliers; steps then depend on how the network
            is scaled, and with ``channels`` on signs.

    Raises:
        ValueError: for an unknown ``symmetry``.

    References:
        Kalogeropoulos et al., arXiv 2406.10685; Metz et al., "VeLO", arXiv 2211.09760 (time and
        momentum features); Jordan et al., "Muon" (2024) (whitened direction); Moudgil et al.,
        "Celo", arXiv 2501.12670 (schedule and direction learned apart).
    """

    decays: ClassVar = {"fast": 0.9, "slow": 0.98, "square": 0.99}
    size: ClassVar[float] = 0.3  # of the step that stands in for one that cannot be right
    whitens: ClassVar[bool] = True

    def __init__(
        self,
        *,
        channels: int = 16,
        message_channels: int = 8,
        hidden_channels: int = 32,
        weight_channels: int = 8,
        symmetry: SymmetryName = "scale",
    ) -> None:
        super().__init__()
        if symmetry not in get_args(SymmetryName):
            raise ValueError(
                f"symmetry: expected one of {get_args(SymmetryName)}, got {symmetry!r}"
            )
        self.symmetry = symmetry
        self.config: dict[str, Any] = {
            "channels": channels,
            "message_channels": message_channels,
            "hidden_channels": hidden_channels,
            "weight_channels": weight_channels,
            "symmetry": symmetry,
        }
        self.mixture = nn.Parameter(torch.tensor([0.0, 0.0, 1.0]))
        self.schedule = nn.Parameter(torch.tensor(_SCHEDULE))
        self.kinds = nn.Parameter(torch.tensor(_KINDS))
        self.coherence = nn.Parameter(torch.tensor(_COHERENCE))
        self.shallow = nn.Parameter(torch.tensor(_SHALLOW))
        self.decline = nn.Parameter(torch.tensor(_DECLINE))
        self.terms = (
            WeightTerms(
                channels=channels,
                message_channels=message_channels,
                hidden_channels=hidden_channels,
                weight_channels=weight_channels,
                extra=len(_TIME_SCALES),
            )
            if channels
            else None
        )
        if torch.get_default_dtype().itemsize < 4:  # for networks that are made under it
            self.float()

    @property
    def reads_all(self) -> bool:
        """As of any rule; a graph network reads all of the graph."""
        return self.terms is not None or super().reads_all

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> Self:
        """A meta-trained rule, by its name in the package or by a file's path; no network."""
        return restore(cls, name_or_path, kind="rule")

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write a file that :meth:`from_pretrained` reads."""
        save_weights(path, self, kind="rule", config=self.config)

    def _sized(
        self,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
    ) -> tuple[dict[str, Tensor], State, Tensor]:
        """One step and, third, its :func:`measured_sizes`, without measuring them."""
        check_parameters(graph, params)
        names = [name for name in graph.parameters if name in grads]
        blocks = (block for name in names for block in graph.parameters[name])
        weights = {block.name: block.pack(params[block.parameter]) for block in blocks}
        given = Given(graph, weights, grads, state, self._kind_factors(graph))
        reading = Reading(self, given)
        edges: Iterable[Edges] = reading.edges()
        read: Iterable[Ends | None] = repeat(None)
        if self.terms:
            edges = list(edges)
            steps = torch.stack([own["step"] for own in reading.renewed.values()]).amax(0)
            read = self.terms.read(self._seen(graph), edges, _time(steps))
        updates: dict[str, Tensor] = {}
        sizes: dict[str, Tensor] = {}
        exponents = self.coherence + self.shallow * (PLAIN_LAYERS / layers_of(graph) - 1)
        # What one needs is free before the next.
        for found, found_sizes in map(self._update, edges, read, repeat(exponents)):
            updates |= found
            sizes |= found_sizes
        whole = {name: unpack_parameter(graph, name, updates) for name in names}
        return whole, reading.renewed, in_order(graph, sizes)

    def _kept(self, p: Tensor, blocks: tuple[WeightBlock, ...]) -> dict[str, Tensor]:
        levels = {key: p.new_zeros(len(p), len(blocks)) for key in ("level", "peak")}
        return super()._kept(p, blocks) | levels

    def _seen(self, graph: WeightGraph) -> WeightGraph:
        """The graph as the neurons' networks know it."""
        return gauged(graph) if self.symmetry == "scale" else only_permuted(graph)

    def _gauge(
        self, graph: WeightGraph, params: Mapping[str, Tensor], input_rms: Tensor | float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        ends = super()._gauge(graph, params, input_rms)
        if self.symmetry == "scale":
            return ends
        targets, sources = ({n: torch.ones_like(s) for n, s in end.items()} for end in ends)
        return targets, sources

    def _kind_factors(self, graph: WeightGraph) -> dict[str, Tensor]:
        """What the kind of a block multiplies its steps by, ()."""
        kinds = kinds_of(graph)
        factors = (constants(list(kinds.values()), self.kinds) @ self.kinds).exp()
        return dict(zip(kinds, factors.unbind(), strict=True))

    def _update(
        self, edges: Edges, ends: Ends | None, exponents: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The updates of weights and their sizes by block, worked out by chunks of rows."""
        parts = [self._combine(edges, rows, ends) for rows in edges.chunks()]
        step = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        del parts
        size, like = edges.sizes(step), edges.sizes(edges.main_direction())
        factors = edges.by_block((edges.coherence() @ exponents).exp())
        return edges.updates(step, size, like / (size + (size == 0)) * factors)

    def _combine(self, edges: Edges, rows: slice, ends: Ends | None) -> Tensor:
        if self.terms is None or ends is None:
            return edges.mixture(self.mixture, rows)
        directions, weights = edges.directions(rows), edges.weights(rows)
        out = self.terms(directions, weights, ends, rows)
        step = out[:, 1] * weights
        for k, direction in enumerate(directions):
            step = step + (self.mixture[k] + out[:, 2 + k]) * direction
        return step * torch.exp(_MAX_LOG_STEP * (out[:, 0] / _MAX_LOG_STEP).tanh())

    def step_length(self, steps: Tensor) -> Tensor:
        """A learned schedule (batch,) without a horizon; its plain factor falls as ``1 / t``."""
        start, end = _DECAY
        plain = _START * (1 + steps / end) / (1 + steps / start)
        times = _time(steps)
        features = torch.cat([torch.ones_like(times[:, :1]), times], 1)
        return plain * torch.exp(features @ self.schedule)


def _time(steps: Tensor) -> Tensor:
    """Saturating features (batch, scales) of a number of steps (batch,)."""
    steps = steps.unsqueeze(-1)
    return steps / (steps + constants(_TIME_SCALES, steps))
