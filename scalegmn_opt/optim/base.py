"""GraphOptimizer: an update rule on a weight graph as a ``torch.optim.Optimizer``."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import reduce
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scalegmn_opt.graph import NeuronGroup, WeightBlock, WeightGraph, trace
from scalegmn_opt.optim.guard import Health, finite, guarded
from scalegmn_opt.optim.state import Rule, State


class GraphOptimizer(Optimizer):
    """What all optimizers here have in common: the model's graph, a guard, the habits of torch.

    :class:`LearnedOptimizer` describes it for users. A subclass gives its ``rule``, which is owned
    by the optimizer from then on.
    """

    def __init__(
        self,
        params: Iterable[Any],
        rule: Rule,
        *,
        model: nn.Module | None,
        example_inputs: Sequence[Any] | None,
        lr: float | Tensor,
        weight_decay: float,
    ) -> None:
        if (model is None) != (example_inputs is None):
            raise ValueError("model and example_inputs: expected both or neither, got one of them")
        self._graph: WeightGraph | None = None
        self._traced: WeightGraph | None = None
        self.input_rms = 1.0
        self._model_parameters: dict[str, Tensor] = {}
        if model is not None and example_inputs is not None:
            self._traced = trace(model, example_inputs)
            self.input_rms = _rms(example_inputs)
            self._model_parameters = dict(model.named_parameters())
        self.rule = rule.requires_grad_(False)
        self._health = Health()
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @classmethod
    def for_model(cls, model: nn.Module, example_inputs: Sequence[Any], **options: Any) -> Self:
        """The optimizer of all parameters of ``model``, with the options of the class."""
        return cls(model.named_parameters(), model=model, example_inputs=example_inputs, **options)

    def __getstate__(self) -> dict[str, Any]:
        own = ("rule", "_graph", "_traced", "input_rms", "_model_parameters", "_health")
        return super().__getstate__() | {name: self.__dict__[name] for name in own}

    @property
    def graph(self) -> WeightGraph:
        """The weight graph of the model's parameters and of any others that were given."""
        if self._graph is None:
            self._graph = _extend(self._traced, self.named_parameters())
        return self._graph

    def health(self) -> Health:
        """What the guard has counted since the optimizer was made."""
        return deepcopy(self._health)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the weight graph is rebuilt. A group that is refused is not added."""
        super().add_param_group(param_group)
        self._graph = None
        try:
            self._check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        for key in ("lr", "weight_decay"):
            if not float(group[key]) >= 0.0:
                raise ValueError(f"{key}: expected a number of at least 0.0, got {group[key]}")
        own = {id(p) for p in group["params"]}
        for name, p in self.named_parameters().items():
            if id(p) in own and p.is_complex():
                raise TypeError(f"params: expected real parameters, got complex {name!r}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what ``closure`` returns, or None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        names = {id(p): name for name, p in self.named_parameters().items()}
        active = [
            (names[id(p)], p, group)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None and p.numel() > 0
        ]
        if not active:
            return loss
        for name, p, _ in active:
            self._check_gradient(name, p)
        updates, state = self._compute([(name, p) for name, p, _ in active])
        self._health.steps += 1
        for name, p, group in active:
            self.state[p].update(state[name])
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_((group["lr"] * updates[name]).to(p))
        return loss

    def _compute(
        self, active: list[tuple[str, Tensor]]
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """The rule on the whole graph; parameters without a gradient count as at rest."""
        named = self.named_parameters()
        parameters = {name: p for name, p in named.items() if p.numel() > 0}
        dtype = _working_dtype(parameters)
        params = {name: p.detach().to(dtype)[None] for name, p in parameters.items()}
        grads = {name: torch.zeros_like(p) for name, p in params.items()}
        for name, p in active:
            grads[name] = finite(name, p.grad.to(dtype), self._health)[None]
        state: State = {
            name: {key: value.to(dtype)[None] for key, value in self.state[p].items()}
            for name, p in parameters.items()
            if self.state.get(p)
        }
        if len(state) < len(params):
            state = self.rule.init(self.graph, params, input_rms=self.input_rms) | state
        self.rule.to(device=next(iter(params.values())).device, dtype=dtype)
        updates, state = self.rule(self.graph, params, grads, state)
        updates = guarded(updates, self.graph, state, self.rule, self._health)
        return (
            {name: updates[name][0] for name, _ in active},
            {name: {k: v[0] for k, v in state[name].items()} for name, _ in active},
        )

    def _check_gradient(self, name: str, p: Tensor) -> None:
        if p.grad.layout is not torch.strided:
            raise TypeError(
                f"{type(self).__name__}: gradient of {name!r} is {p.grad.layout}, expected dense"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, with the state kept in its own precision."""
        super().load_state_dict(state_dict)
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(saved, own, strict=True):  # torch has cast to the parameter's dtype
            for key, value in state_dict["state"].get(index, {}).items():
                self.state[p][key] = value.detach().clone().to(p.device)

    def named_parameters(self) -> dict[str, Tensor]:
        """All tensors the rule reads, by the model's, the given, or a name of their place."""
        named = dict(self._model_parameters)
        known = {id(p) for p in named.values()}
        for index, group in enumerate(self.param_groups):
            places = [f"param_groups[{index}].{i}" for i in range(len(group["params"]))]
            given = group.get("param_names") or places
            for name, place, p in zip(given, places, group["params"], strict=True):
                if id(p) not in known:
                    named[place if name in named else name] = p
        return named


def _extend(graph: WeightGraph | None, parameters: dict[str, Tensor]) -> WeightGraph:
    """``graph`` with isolated blocks for parameters that it does not have, and no empty ones."""
    known = set(graph.parameters) if graph else set()
    rest = WeightGraph.from_parameters(
        {name: p.shape for name, p in parameters.items() if name not in known and p.numel() > 0}
    )
    if graph is None:
        return rest
    graph = _without_empty(graph)
    groups: list[NeuronGroup] = [g for g in rest.groups if g.name not in graph.group]
    blocks: tuple[WeightBlock, ...] = rest.blocks
    return replace(graph, groups=(*graph.groups, *groups), blocks=(*graph.blocks, *blocks))


def _without_empty(graph: WeightGraph) -> WeightGraph:
    blocks = tuple(b for b in graph.blocks if 0 not in b.parameter_shape)
    return replace(graph, groups=tuple(g for g in graph.groups if g.size > 0), blocks=blocks)


def _working_dtype(parameters: dict[str, Tensor]) -> torch.dtype:
    """float32, or float64 if there are float64 parameters."""
    dtypes = (p.dtype for p in parameters.values())
    return reduce(torch.promote_types, dtypes, torch.float32)


def _rms(inputs: Sequence[Any]) -> float:
    """Root mean square of the first floating-point input; 1 if there is none, or only zeros."""
    for x in inputs:
        if isinstance(x, Tensor) and x.is_floating_point():
            return float(x.detach().double().square().mean().sqrt()) or 1.0
    return 1.0
