"""LearnedOptimizer: an update rule as a ``torch.optim.Optimizer``."""

import os
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scalegmn_opt.graph import NeuronGroup, WeightBlock, WeightGraph, trace
from scalegmn_opt.optim.rule import State, UpdateRule

DEFAULT_RULE = "small"


class LearnedOptimizer(Optimizer):
    """A drop-in optimizer whose update is computed by a meta-trained, scale-equivariant rule.

    ``θ <- (1 - lr · weight_decay) θ + lr · rule(θ, ∇L, state)``. With ``model`` and
    ``example_inputs`` the rule sees the weight graph of the whole model, and training from
    permuted, rescaled or sign-flipped parameters gives the same function at each step. Without
    them each parameter is a block of its own.

    Args:
        params: parameters or parameter groups, named or not; a group may have its own ``lr`` and
            ``weight_decay``.
        model: the module that the parameters belong to; it is traced, not kept.
        example_inputs: positional arguments of one forward call of ``model``.
        rule: an :class:`UpdateRule`, the name of packaged weights, or a path to some.
        lr: multiplier of the rule's own step; 1.0 is the step it was trained with. A weight's
            change at ``lr=1`` moves a pre-activation by at most about its own size.
        weight_decay: share of each parameter removed per step at ``lr=1``.

    State: ``fast``, ``slow``, ``square`` of the parameter's shape in float32 (float64 for float64
    parameters), 12 bytes a parameter, and ``step``.

    Raises:
        ValueError: for a negative ``lr`` or ``weight_decay``, ``model`` without
            ``example_inputs`` or the reverse, and, by :meth:`step`, for a gradient that is not
            finite; nothing has changed then.
        TypeError: for complex parameters and sparse gradients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        model: nn.Module | None = None,
        example_inputs: Sequence[Any] | None = None,
        rule: UpdateRule | str | os.PathLike[str] = DEFAULT_RULE,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        if (model is None) != (example_inputs is None):
            raise ValueError("model and example_inputs: expected both or neither, got one of them")
        self._graph: WeightGraph | None = None
        self._traced: WeightGraph | None = None
        self._input_rms = 1.0
        self._model_parameters: dict[str, Tensor] = {}
        if model is not None and example_inputs is not None:
            self._traced = trace(model, example_inputs)
            self._input_rms = _rms(example_inputs)
            self._model_parameters = dict(model.named_parameters())
        is_rule = isinstance(rule, UpdateRule)
        self.rule = deepcopy(rule) if is_rule else UpdateRule.from_pretrained(rule)
        self.rule.requires_grad_(False)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        example_inputs: Sequence[Any],
        *,
        rule: UpdateRule | str | os.PathLike[str] = DEFAULT_RULE,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
    ) -> "LearnedOptimizer":
        """The optimizer of all parameters of ``model``."""
        return cls(
            model.named_parameters(),
            model=model,
            example_inputs=example_inputs,
            rule=rule,
            lr=lr,
            weight_decay=weight_decay,
        )

    def __getstate__(self) -> dict[str, Any]:
        own = ("rule", "_graph", "_traced", "_input_rms", "_model_parameters")
        return super().__getstate__() | {name: self.__dict__[name] for name in own}

    @property
    def graph(self) -> WeightGraph:
        """The weight graph of the model's parameters and of any others that were given."""
        if self._graph is None:
            self._graph = _extend(self._traced, self._named_parameters())
        return self._graph

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the weight graph is rebuilt."""
        super().add_param_group(param_group)
        self._graph = None
        group = self.param_groups[-1]
        for name, low in (("lr", 0.0), ("weight_decay", 0.0)):
            if not float(group[name]) >= low:
                raise ValueError(f"{name}: expected a number of at least {low}, got {group[name]}")
        for name, p in self._named_group(len(self.param_groups) - 1):
            if p.is_complex():
                raise TypeError(f"params: expected real parameters, got complex {name!r}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what ``closure`` returns, or None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        active = [
            (name, p, group)
            for index, group in enumerate(self.param_groups)
            for name, p in self._named_group(index)
            if p.grad is not None
        ]
        if not active:
            return loss
        for name, p, _ in active:
            _check_gradient(name, p)
        updates, state = self._compute([(name, p) for name, p, _ in active])
        for name, p, group in active:
            self.state[p].update(state[name])
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_((group["lr"] * updates[name]).to(p))
        return loss

    def _compute(
        self, active: list[tuple[str, Tensor]]
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """The rule on the whole graph; parameters without a gradient count as at rest."""
        parameters = self._named_parameters()
        params = {name: _working(p.detach())[None] for name, p in parameters.items()}
        state: State = UpdateRule.init(params)
        grads = {name: torch.zeros_like(p) for name, p in params.items()}
        for name, p in active:
            grads[name] = _working(p.grad)[None]
        for name, p in parameters.items():
            if self.state.get(p):
                state[name] = {key: value[None] for key, value in self.state[p].items()}
        device = next(iter(params.values())).device
        self.rule.to(device=device, dtype=torch.promote_types(_dtype(params), torch.float32))
        updates, state = self.rule(self.graph, params, grads, state, input_rms=self._input_rms)
        return (
            {name: updates[name][0] for name, _ in active},
            {name: {k: v[0] for k, v in state[name].items()} for name, _ in active},
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, with the state kept in its own precision."""
        super().load_state_dict(state_dict)
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(saved, own, strict=True):  # torch has cast to the parameter's dtype
            for key, value in state_dict["state"].get(index, {}).items():
                self.state[p][key] = value.detach().clone().to(p.device)

    def _named_group(self, index: int) -> list[tuple[str, Tensor]]:
        """Names of a group's parameters: the model's, the given, or ``param_groups[i].j``."""
        group = self.param_groups[index]
        known = {id(p): name for name, p in self._model_parameters.items()}
        given = group.get("param_names") or [
            f"param_groups[{index}].{i}" for i in range(len(group["params"]))
        ]
        pairs = zip(given, group["params"], strict=True)
        return [(known.get(id(p), name), p) for name, p in pairs]

    def _named_parameters(self) -> dict[str, Tensor]:
        """All tensors the rule reads: the model's parameters and those of the groups."""
        named = dict(self._model_parameters)
        for index in range(len(self.param_groups)):
            for name, p in self._named_group(index):
                unique = name if named.get(name, p) is p else f"param_groups[{index}].{name}"
                named[unique] = p
        return named


def _extend(graph: WeightGraph | None, parameters: dict[str, Tensor]) -> WeightGraph:
    """``graph`` with isolated blocks for the parameters that it does not have."""
    known = {block.parameter for block in graph.blocks} if graph else set()
    rest = WeightGraph.from_parameters(
        {name: p.shape for name, p in parameters.items() if name not in known}
    )
    if graph is None:
        return rest
    groups: list[NeuronGroup] = [g for g in rest.groups if g.name not in graph.group]
    blocks: tuple[WeightBlock, ...] = rest.blocks
    return WeightGraph((*graph.groups, *groups), (*graph.blocks, *blocks))


def _check_gradient(name: str, p: Tensor) -> None:
    if p.grad.layout is not torch.strided:
        raise TypeError(
            f"LearnedOptimizer: gradient of {name!r} is {p.grad.layout}, expected dense"
        )
    bad = p.grad.numel() - int(torch.isfinite(p.grad).sum())
    if bad:
        raise ValueError(
            f"gradient of {name!r}: expected finite numbers, got {bad} of {p.grad.numel()} that "
            "are not; no parameter was changed"
        )


def _working(x: Tensor) -> Tensor:
    """In float32, or float64 for float64 tensors."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _dtype(params: dict[str, Tensor]) -> torch.dtype:
    return next(iter(params.values())).dtype


def _rms(inputs: Sequence[Any]) -> float:
    """Root mean square of the first floating-point input; 1 if there is none, or only zeros."""
    for x in inputs:
        if isinstance(x, Tensor) and x.is_floating_point():
            return float(x.detach().double().square().mean().sqrt()) or 1.0
    return 1.0
