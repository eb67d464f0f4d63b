"""Optimizers in gauge coordinates without anything learned: controls, and useful by themselves."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scalegmn_opt.graph import WeightBlock, WeightGraph, pack, unpack
from scalegmn_opt.optim.base import GraphOptimizer
from scalegmn_opt.optim.directions import rms, scaled
from scalegmn_opt.optim.observed import GaugeName
from scalegmn_opt.optim.state import Rule, State
from scalegmn_opt.optim.units import edge_sizes, in_order
from scalegmn_opt.symmetry import backward_sweep, forward_sweep

# Above any entry of -m / sqrt(v), 7.3 by Cauchy and Schwarz, and above the root mean square of what
# is whitened: 1.21, as singular values are, or 1 where rows are equalised.
_LARGEST = 10.0


class _AdamRule(Rule):
    decays: ClassVar = {"fast": 0.9, "square": 0.999}
    # of 0.03, 0.1, 0.3, 1, 3 by benchmarks/control_steps.py: 1 is faster for some, and ends a CNN
    size: ClassVar[float] = 0.3

    def _sized(
        self,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
    ) -> tuple[dict[str, Tensor], State, Tensor]:
        updates: dict[str, Tensor] = {}
        renewed: State = {}
        sizes: dict[str, Tensor] = {}
        for name, grad in grads.items():
            blocks, own = graph.parameters[name], self.advanced(state[name], grad)
            directions, renewed[name] = self._directions(blocks, grad, own)
            if self.measures:
                sizes |= self._measured(blocks, directions)
            updates[name] = self.plain_update(graph, blocks, renewed[name], directions)
        if self.measures:
            return updates, renewed, in_order(graph, sizes)
        like = next(iter(updates.values()))
        bound = like.new_full((len(like), 1), _LARGEST * self.size)
        return updates, renewed, bound.expand(-1, sum(len(graph.parameters[n]) for n in grads))

    def _measured(
        self, blocks: Sequence[WeightBlock], directions: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Sizes (batch,) of the steps of blocks."""
        return {
            block.name: self.size
            * rms(direction.detach(), folds=block.folds)[:: block.folds, 0, 0, 0]
            for block, direction in zip(blocks, directions, strict=True)
        }

    def _directions(
        self, blocks: Sequence[WeightBlock], grad: Tensor, own: dict[str, Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        return [self.direction(block, own) for block in blocks], own


class _MuonRule(_AdamRule):
    decays: ClassVar = {"fast": 0.95, "square": 0.999}
    size: ClassVar[float] = 0.3  # of 0.1, 0.3, 0.5, 1 by validation of three perceptrons
    whitens: ClassVar[bool] = True

    def _directions(
        self, blocks: Sequence[WeightBlock], grad: Tensor, own: dict[str, Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        mains, own = self.main_directions(blocks, grad, own)
        found = zip(blocks, mains, strict=True)
        return [self.direction(b, own) if main is None else main for b, main in found], own


class _PathRule(Rule):
    decays: ClassVar = {}
    # of 100, 300, 1000 by validation of three perceptrons, in which max_change=1 costs nothing on
    # digits and 4 and 7 % of the validation loss on MNIST
    size: ClassVar[float] = 300.0
    reads_all = True  # sums over all paths

    def init(
        self,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        *,
        input_rms: Tensor | float = 1.0,
        names: Collection[str] | None = None,
    ) -> State:
        state = super().init(graph, params, input_rms=input_rms, names=names)
        like = next(iter(params.values()))
        sizes = torch.as_tensor(input_rms, dtype=like.dtype, device=like.device).expand(len(like))
        return {name: {**own, "input_rms": sizes.clone()} for name, own in state.items()}

    def _sized(
        self,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
    ) -> tuple[dict[str, Tensor], State, Tensor]:
        state = {name: self.advanced(state[name], grad) for name, grad in grads.items()}
        edges = pack(graph, params)
        size = next(iter(state.values()))["input_rms"]
        forward = forward_sweep(graph, edges, input_rms=size)
        backward = backward_sweep(graph, edges, forward=forward)
        step = self.size / sum(b.folds * prod(b.shape) for b in graph.blocks)
        updates = {}
        for block in graph.blocks:
            source = block.fold(forward.scales[block.source], 1)[:, None, :, None]
            target = block.fold(backward[block.target], 0)[:, :, None, None]
            update = block.pack(grads[block.parameter]) * (-step / target.square())
            updates[block.name] = scaled(update, source.square().reciprocal())
        return unpack(graph, updates), state, edge_sizes(updates, graph, state, graph.parameters)

    def plain_step(self, graph: WeightGraph, state: State) -> dict[str, Tensor]:
        """None: there is no momentum to fall back on."""
        sources = {name: own["source"] for name, own in state.items()}
        shapes = {name: graph.parameters[name][0].parameter_shape for name in state}
        return {name: s.new_zeros(len(s), *shapes[name]) for name, s in sources.items()}


class _Control(GraphOptimizer):
    _rule: ClassVar[type[Rule]]

    def __init__(
        self,
        params: Iterable[Any],
        *,
        model: nn.Module | None = None,
        example_inputs: Sequence[Any] | None = None,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        max_change: float | None = None,
        gauge: GaugeName = "swept",
    ) -> None:
        super().__init__(
            params,
            self._rule(),
            model=model,
            example_inputs=example_inputs,
            lr=lr,
            weight_decay=weight_decay,
            maximize=maximize,
            differentiable=differentiable,
            max_change=max_change,
            gauge=gauge,
        )


class GaugeAdam(_Control):
    """Adam's direction in gauge coordinates: ``Δw_ij = -0.3 lr s_i / (s_j fan_in) m_ij / √v_ij``.

    ``s`` is the size of a neuron's pre-activation at the start (:func:`forward_sweep`), so that a
    step changes a pre-activation by at most about 0.3 of its size, whatever the width, and training
    does not depend on how the network is scaled. One ``lr`` for all networks. Arguments, guard and
    errors as of :class:`LearnedOptimizer`, without a rule; the state is 8 bytes a parameter.

    References:
        Kingma and Ba, arXiv 1412.6980; the gauge after Neyshabur et al., "Path-SGD", 1506.02617.
    """

    _rule = _AdamRule


class GaugeMuon(_Control):
    """Muon in gauge coordinates: momentum with all singular values at about one, by ``1 / fan_in``.

    Steps are of the size of those of :class:`GaugeAdam`, whose direction vectors take. Arguments
    and errors as there; beside its state, ``n²`` numbers of each matrix whose smaller
    side ``n`` is 257 to 2048: the whitening that serves for ``n / 64`` steps.

    References:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """

    _rule = _MuonRule


class PathSGD(GraphOptimizer):
    """Path-SGD: steepest descent in the path norm, ``Δw_ij = -lr · 300 / n · g_ij / (s_j t_i)²``.

    ``(s_j t_i)²`` sums, over all paths through the weight, the product of the other squared
    weights, by a forward and a backward sweep (:func:`backward_sweep`, also on what it means beside
    weights: normalisations, attention, cycles). ``n``, the number of weights, is not in the paper:
    with it one ``lr`` does for perceptrons of 2.4 to 118 thousand weights. Paths are those of the
    weight graph: a kernel counts once, not once for each place that it is applied at, so that for
    convolutions and transformers the step may be too large; ``max_change``, 1 by default, is also
    not in the paper and keeps it in bounds.

    There is no momentum: the state is a few numbers a neuron, and a step that the guard refuses is
    left out. Arguments and errors as of :class:`GaugeAdam`, without ``gauge``: each step sweeps.

    References:
        Neyshabur, Salakhutdinov and Srebro, "Path-SGD", arXiv 1506.02617, section 4.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        model: nn.Module | None = None,
        example_inputs: Sequence[Any] | None = None,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        max_change: float | None = 1.0,
    ) -> None:
        super().__init__(
            params,
            _PathRule(),
            model=model,
            example_inputs=example_inputs,
            lr=lr,
            weight_decay=weight_decay,
            maximize=maximize,
            differentiable=differentiable,
            max_change=max_change,
        )
