"""GraphOptimizer: an update rule on a weight graph as a ``torch.optim.Optimizer``."""

from collections.abc import Callable, Collection, Iterable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from scalegmn_opt.graph import WeightGraph, trace
from scalegmn_opt.optim.checks import (
    check_devices,
    check_gradient,
    check_options,
    check_parameters,
    check_shapes,
    number,
    size_of_inputs,
)
from scalegmn_opt.optim.compiled import CompiledRule
from scalegmn_opt.optim.directions import scaled
from scalegmn_opt.optim.explain import Explanation, explained
from scalegmn_opt.optim.extend import extended
from scalegmn_opt.optim.guard import LARGEST_STEP, Health, finite, guarded, relative_sizes
from scalegmn_opt.optim.loading import checked_loading
from scalegmn_opt.optim.observed import GaugeName, Observer, check_gauge
from scalegmn_opt.optim.state import Rule, State
from scalegmn_opt.optim.units import reaches
from scalegmn_opt.optim.working import constant, own_precision, rate, unwrapped, working_dtype

_LATER_OPTIONS = {"maximize": False, "differentiable": False, "max_change": None}
_OWN = (
    "rule", "input_rms", "record", "compile", "_graph", "_traced", "_model_parameters", "_health",
    "_explanation", "_observer",
)  # fmt: skip


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
        maximize: bool,
        differentiable: bool,
        max_change: float | None,
        gauge: GaugeName = "swept",
        compile: bool = False,
    ) -> None:
        check_gauge(gauge, model)
        if compile and differentiable:
            raise ValueError("compile: expected False with differentiable=True")
        if (model is None) != (example_inputs is None):
            raise ValueError("model and example_inputs: expected both or neither, got one of them")
        self._graph: WeightGraph | None = None
        self._traced: WeightGraph | None = None
        self.input_rms = 1.0
        self._observer: Observer | None = None
        self._model_parameters: dict[str, Tensor] = {}
        if model is not None and example_inputs is not None:
            called, model = model, unwrapped(model)
            self._model_parameters = dict(model.named_parameters())
            check_parameters(type(self).__name__, self._model_parameters)
            self._traced = trace(model, example_inputs)
            self.input_rms = size_of_inputs(example_inputs)
            if gauge == "observed":
                parallel = isinstance(called, DistributedDataParallel)
                self._observer = Observer(model, model if parallel else called)
        self.rule = rule.requires_grad_(False)
        self.record = False
        self.compile = compile
        self._compiled: CompiledRule | None = None
        self._reach: dict[str, float] = {}  # of the gauge that the state has
        self._health = Health()
        self._explanation: Explanation | None = None
        options = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(
            params, {**options, "differentiable": differentiable, "max_change": max_change}
        )

    @classmethod
    def for_model(cls, model: nn.Module, example_inputs: Sequence[Any], **options: Any) -> Self:
        """The optimizer of all parameters of ``model``, with the options of the class."""
        return cls(model.named_parameters(), model=model, example_inputs=example_inputs, **options)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {name: self.__dict__[name] for name in _OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._compiled, self._reach = None, {}
        for group in self.param_groups:  # state dicts of versions that did not have these
            for key, value in _LATER_OPTIONS.items():
                group.setdefault(key, value)

    @property
    def graph(self) -> WeightGraph:
        """The weight graph of the model's parameters and of any others that were given."""
        if self._graph is None:
            self._graph = extended(self._traced, self.named_parameters())
        return self._graph

    def health(self) -> Health:
        """What the guard has counted since the optimizer was made."""
        return deepcopy(self._health)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the weight graph is rebuilt. A group that is refused is not added."""
        super().add_param_group(param_group)
        self._graph = self._compiled = None
        self._reach = {}
        try:
            self._check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        check_options(group)
        if group["differentiable"] != self.defaults["differentiable"]:
            raise ValueError(
                f"differentiable: expected {self.defaults['differentiable']} in all groups, as of"
                f" the optimizer, got {group['differentiable']}"
            )
        own = {id(p) for p in group["params"]}
        named = {name: p for name, p in self.named_parameters().items() if id(p) in own}
        check_parameters(type(self).__name__, named)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what ``closure`` returns, or None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            self._step()
        return loss

    def _step(self) -> None:
        names = {id(p): name for name, p in self.named_parameters().items()}
        active = {
            names[id(p)]: (p, group)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None and p.numel() > 0
        }
        if not active:
            return
        for name, (p, _) in active.items():
            check_gradient(type(self).__name__, name, p)
        with own_precision(next(iter(active.values()))[0].device):
            updates, state, sizes = self._compute(active)
        self._health.steps += 1
        for name, (_, group) in active.items():
            factor = rate(group)
            sizes[name] *= number(factor)
            if group["max_change"] is not None and sizes[name] > group["max_change"]:
                self._health.limited[name] = self._health.limited.get(name, 0) + 1
                factor = factor * (group["max_change"] / sizes[name])
                sizes[name] = group["max_change"]
            if isinstance(factor, Tensor) or factor != 1.0:
                updates[name] = scaled(updates[name], factor)
        if self.record:
            params = {name: p.detach().to(updates[name]) for name, (p, _) in active.items()}
            self._explanation = explained(self._health, sizes, updates, params)
        for name, (p, group) in active.items():
            self.state[p].update(state[name])
            if group["weight_decay"] != 0:
                p.mul_(1 - rate(group) * group["weight_decay"])
            p.add_(updates[name].to(p))

    def _compute(
        self, active: dict[str, tuple[Tensor, dict[str, Any]]]
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]], dict[str, float]]:
        """Updates before ``lr``, new states, and relative sizes of the updates."""
        params, grads, state = self._read(active)
        self.rule.follow(params[next(iter(grads))])
        new = state.keys() - self._reach.keys()
        self._reach |= reaches(self.graph, {name: state[name] for name in new})
        updates, renewed, sizes = self._apply_rule(params, grads, state)
        if not self.rule.decays and not all(size <= LARGEST_STEP for size in sizes.values()):
            masked = finite(grads, self._health)
            if masked is not grads:
                updates, renewed, sizes = self._apply_rule(params, masked, state)
        own, sizes = guarded(
            {name: updates[name] for name in active},
            {name: sizes[name] for name in active},
            self._reach,
            self.graph,
            renewed,
            self.rule,
            self._health,
            unbounded=[n for n, (_, group) in active.items() if group["max_change"] is not None],
        )
        return (
            {name: update[0] for name, update in own.items()},
            {name: {k: v[0] for k, v in renewed[name].items()} for name in active},
            sizes,
        )

    def _read(
        self, active: dict[str, tuple[Tensor, dict[str, Any]]]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], State]:
        """All parameters (1, *shape), gradients (*shape) of those that the rule works on, states.

        It works on active ones, and, if it has to, on others with a gradient of zero, whose states
        are copies.
        """
        named = self.named_parameters()
        parameters = {name: p for name, p in named.items() if p.numel() > 0}
        if self.graph.parameters.keys() - parameters.keys():  # a group was taken away
            self._graph, self._compiled, self._reach = None, None, {}
        check_devices(type(self).__name__, parameters)
        check_shapes(type(self).__name__, parameters, self.graph)
        dtype = working_dtype(parameters)
        grads = {
            name: (-p.grad if group["maximize"] else p.grad).to(dtype)
            for name, (p, group) in active.items()
        }
        if self.rule.decays:  # which would keep what is not finite
            grads = finite(grads, self._health)
        for name, p in parameters.items():
            may = self.compile and p.requires_grad  # one program for all steps
            if name not in active and (may or self.rule.reads_all):
                grads[name] = torch.zeros_like(p, dtype=dtype)
        params = {name: constant(p)[None] for name, p in parameters.items()}
        # What rests is not read but by an initial sweep.
        params = {name: p.to(dtype) if name in grads else p for name, p in params.items()}
        state = self._states(params, grads.keys(), dtype)
        resting = grads.keys() - active
        state |= {n: {k: v.clone() for k, v in state[n].items()} for n in resting}
        return params, grads, state

    def _apply_rule(
        self, params: dict[str, Tensor], grads: dict[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], State, dict[str, float]]:
        """Updates, the next state, and relative sizes of the updates; see :meth:`Rule.sized`.

        Args:
            grads: (*shape) of parameters that the rule works on.
        """
        grads = {name: grad[None] for name, grad in grads.items()}
        self.rule.overwrites = not torch.is_grad_enabled()
        limits = (group["max_change"] for group in self.param_groups)
        self.rule.measures = self.record or any(limit is not None for limit in limits)
        sized: Callable[..., Any] = partial(self.rule.sized, self.graph)
        if self.compile:
            if self._compiled is None or self._compiled.names != grads.keys():
                self._compiled = CompiledRule(self.rule, self.graph, grads)
            sized = self._compiled
        try:
            updates, state, sizes = sized(params, grads, state)
        finally:
            self.rule.overwrites = False
        names = (name for name in self.graph.parameters if name in grads)
        return updates, state, relative_sizes(names, sizes, self.graph)

    def _states(
        self, params: dict[str, Tensor], names: Collection[str], dtype: torch.dtype
    ) -> State:
        """The states (1, ...) of some parameters; initial where new."""
        own = {n: self.state.get(p) for n, p in self.named_parameters().items() if n in names}
        state = {
            name: {key: value.to(dtype)[None] for key, value in found.items()}
            for name, found in own.items()
            if found
        }
        new = names - state.keys()
        if not new:
            return state
        self._reach = {name: own for name, own in self._reach.items() if name not in new}
        return state | self._initial_state({n: p.to(dtype) for n, p in params.items()}, new)

    def _initial_state(self, params: dict[str, Tensor], names: Collection[str]) -> State:
        some = {} if len(names) == len(params) else {"names": names}
        state = self.rule.init(self.graph, params, input_rms=self.input_rms, **some)
        if self._observer is None:
            return state
        self._observer.remove()
        return self._observer.gauge(self.graph, state)

    def stop_observing(self) -> None:
        """Remove the hooks of ``gauge="observed"``, and keep to the sweep if no step was made."""
        if self._observer is not None:
            self._observer.remove()
            self._observer = None

    def explain(self) -> Explanation:
        """Size of the last step of each parameter, and what was mended; only if ``record`` is set.

        Raises:
            RuntimeError: if no step was recorded.
        """
        if self._explanation is None:
            raise RuntimeError("explain: no step was recorded; set record = True before step()")
        return self._explanation

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, with the state kept in its own precision; refused as a whole if it is wrong.

        Raises:
            ValueError: if the state is of another optimizer, network or version.
        """
        with checked_loading(self, self._expected_state()):
            super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["differentiable"] = self.defaults["differentiable"]
        self._reach = {}
        if self.state:  # it has its gauge
            self.stop_observing()

    def _expected_state(self) -> State:
        """The state before the first step, as meta tensors."""
        params = {
            name: torch.empty(1, *p.shape, device="meta")
            for name, p in self.named_parameters().items()
            if p.numel() > 0
        }
        return self.rule.init(self.graph, params, input_rms=self.input_rms) if params else {}

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
