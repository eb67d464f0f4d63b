"""Optimizers in gauge coordinates without anything learned: controls, and useful by themselves."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from scalegmn_opt.graph import WeightGraph
from scalegmn_opt.optim.base import GraphOptimizer
from scalegmn_opt.optim.state import Rule, State


class _AdamRule(Rule):
    decays: ClassVar = {"fast": 0.9, "square": 0.999}

    def forward(
        self,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
    ) -> tuple[dict[str, Tensor], State]:
        state = self._advance(state, grads)
        return self.plain_step(graph, state), state


class _MuonRule(_AdamRule):
    decays: ClassVar = {"fast": 0.95, "square": 0.999}
    size: ClassVar[float] = 0.3  # of 0.1, 0.3, 0.5, 1 by validation of three perceptrons
    whitens: ClassVar[bool] = True

    def forward(
        self,
        graph: WeightGraph,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
    ) -> tuple[dict[str, Tensor], State]:
        directions, state = self.main_directions(graph, grads, self._advance(state, grads))
        return self.plain_step(graph, state, directions), state


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
    ) -> None:
        super().__init__(
            params,
            self._rule(),
            model=model,
            example_inputs=example_inputs,
            lr=lr,
            weight_decay=weight_decay,
        )


class GaugeAdam(_Control):
    """Adam's direction in gauge coordinates: ``Δw_ij = -lr · s_i / (s_j fan_in) · m_ij / √v_ij``.

    ``s`` is the size of a neuron's pre-activation at the start (:func:`forward_sweep`), so that a
    step of 1 changes a pre-activation by at most about its size, whatever the width, and training
    does not depend on how the network is scaled. One ``lr`` for all networks. Arguments, guard and
    errors as of :class:`LearnedOptimizer`, without a rule; the state is 8 bytes a parameter.

    References:
        Kingma and Ba, arXiv 1412.6980; the gauge after Neyshabur et al., "Path-SGD", 1506.02617.
    """

    _rule = _AdamRule


class GaugeMuon(_Control):
    """Muon in gauge coordinates: momentum with all singular values at about one, by ``1 / fan_in``.

    At ``lr=1`` a step is 0.3 of the unit of :class:`GaugeAdam`, whose direction vectors take.
    Arguments, state and errors as there.

    References:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """

    _rule = _MuonRule
