"""The optimizers inside other libraries."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scalegmn_opt.optim.base import GraphOptimizer
from scalegmn_opt.optim.controls import GaugeAdam, GaugeMuon, PathSGD
from scalegmn_opt.optim.optimizer import LearnedOptimizer


def register_with_higher() -> None:
    """Let ``higher.innerloop_ctx`` unroll the optimizers of this package, as it does torch's own.

    Gradients pass through the rule to the initial parameters, and to an ``lr`` that is overridden
    by a tensor. The guard and ``max_change`` are not part of an unrolled step.

    Raises:
        ImportError: if ``higher`` is not installed.
    """
    try:
        import higher
    except ImportError as error:
        raise ImportError("higher is not installed: pip install 'scalegmn-opt[higher]'") from error

    class Differentiable(higher.optim.DifferentiableOptimizer):
        def __init__(self, other: GraphOptimizer, *args: Any, **kwargs: Any) -> None:
            super().__init__(other, *args, **kwargs)
            self._unrolled = _Unrolled(other)

        def _update(self, grouped_grads: Sequence[Sequence[Tensor | None]], **_: Any) -> None:
            self._unrolled.update(self.param_groups, self.state, grouped_grads)

    for optimizer in (LearnedOptimizer, GaugeAdam, GaugeMuon, PathSGD):
        higher.register_optim(optimizer, Differentiable)


class _Unrolled:
    """A step of an optimizer on tensors that are not its own, without changing any in place."""

    def __init__(self, other: GraphOptimizer) -> None:
        self._graph, self._rule, self._input_rms = other.graph, other.rule, other.input_rms
        named = other.named_parameters()
        names = {id(p): name for name, p in named.items()}
        self._names = [[names[id(p)] for p in group["params"]] for group in other.param_groups]
        own = {name for group in self._names for name in group}
        self._others = {name: p.detach() for name, p in named.items() if name not in own}

    def update(
        self,
        groups: Sequence[dict[str, Any]],
        states: Sequence[dict[int, dict[str, Tensor]]],
        grads: Sequence[Sequence[Tensor | None]],
    ) -> None:
        """New tensors in ``groups`` and ``states``; a parameter without a gradient stays."""
        places = {
            name: (g, i) for g, names in enumerate(self._names) for i, name in enumerate(names)
        }
        params = {name: groups[g]["params"][i][None] for name, (g, i) in places.items()}
        params |= {name: p[None] for name, p in self._others.items()}
        params = {name: p for name, p in params.items() if p.numel() > 0}
        known = {name: grads[g][i] for name, (g, i) in places.items() if grads[g][i] is not None}
        state = {
            name: {key: value[None] for key, value in states[g][i].items()}
            for name, (g, i) in places.items()
            if states[g].get(i)
        }
        if len(state) < len(params):
            state = self._rule.init(self._graph, params, input_rms=self._input_rms) | state
        every = {name: torch.zeros_like(p) for name, p in params.items()}
        for name in known.keys() & params.keys():
            grad = known[name][None]
            every[name] = -grad if groups[places[name][0]]["maximize"] else grad
        updates, state = self._rule(self._graph, params, every, state)
        for name in known:
            if name not in params:
                continue
            g, i = places[name]
            lr, decay = groups[g]["lr"], groups[g]["weight_decay"]
            groups[g]["params"][i] = (1 - lr * decay) * params[name][0] + lr * updates[name][0]
            states[g][i] = {key: value[0] for key, value in state[name].items()}
