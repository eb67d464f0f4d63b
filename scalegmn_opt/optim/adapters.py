"""The optimizers inside other libraries."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scalegmn_opt.optim.base import GraphOptimizer
from scalegmn_opt.optim.controls import GaugeAdam, GaugeMuon, PathSGD
from scalegmn_opt.optim.optimizer import LearnedOptimizer
from scalegmn_opt.optim.working import own_precision, rate, working_dtype


def register_with_higher() -> None:
    """Let ``higher.innerloop_ctx`` unroll the optimizers of this package, as it does torch's own.

    Gradients pass through the rule to the initial parameters, and to an ``lr`` that is overridden
    by a tensor. The guard and ``max_change`` are not part of an unrolled step. An optimizer with
    ``gauge="observed"`` that has not made a step is unrolled with the gauge of the sweep.

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
    """A step of an optimizer on tensors that are not its own, without changing any in place.

    It works in the precision that the optimizer works in, and moves the rule to it as that does.
    """

    def __init__(self, other: GraphOptimizer) -> None:
        self._graph, self._rule, self._input_rms = other.graph, other.rule, other.input_rms
        named = other.named_parameters()
        names = {id(p): name for name, p in named.items()}
        groups = enumerate(other.param_groups)
        self._places = {
            names[id(p)]: (g, i) for g, group in groups for i, p in enumerate(group["params"])
        }
        self._others = {name: p.detach() for name, p in named.items() if name not in self._places}

    def update(
        self,
        groups: Sequence[dict[str, Any]],
        states: Sequence[dict[int, dict[str, Tensor]]],
        grads: Sequence[Sequence[Tensor | None]],
    ) -> None:
        """New tensors in ``groups`` and ``states``; a parameter without a gradient stays."""
        places = self._places.items()
        given = {name: groups[g]["params"][i] for name, (g, i) in places} | self._others
        given = {name: p for name, p in given.items() if p.numel() > 0}
        dtype = working_dtype(given)
        params = {name: p.to(dtype)[None] for name, p in given.items()}
        self._rule.follow(next(iter(params.values())))
        state = {
            name: {key: value.to(dtype)[None] for key, value in states[g][i].items()}
            for name, (g, i) in places
            if states[g].get(i)
        }
        active = {n: (g, i) for n, (g, i) in places if n in given and grads[g][i] is not None}
        every = {name: torch.zeros_like(p) for name, p in params.items() if self._rule.reads_all}
        for name, (g, i) in active.items():
            grad = grads[g][i].to(dtype)[None]
            every[name] = -grad if groups[g]["maximize"] else grad
        with own_precision(next(iter(params.values())).device):
            if not every.keys() <= state.keys():
                state = self._rule.init(self._graph, params, input_rms=self._input_rms) | state
            updates, state = self._rule(self._graph, params, every, state)
        for name, (g, i) in active.items():
            p, lr = given[name], rate(groups[g])
            kept = (1 - lr * groups[g]["weight_decay"]) * p
            groups[g]["params"][i] = kept.to(p) + (lr * updates[name][0]).to(p)
            states[g][i] = {key: value[0] for key, value in state[name].items()}
