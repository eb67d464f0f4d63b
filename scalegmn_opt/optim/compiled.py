"""A rule on one graph as a compiled program."""

import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from scalegmn_opt.graph import WeightGraph
from scalegmn_opt.optim.state import Rule, State

Updates = dict[str, Tensor]

_numbers = count()


class CompiledRule:
    """``(params, grads, state) -> (updates, state, sizes)`` of a rule on a graph, by torch.compile.

    As :meth:`Rule.sized`. The first call compiles. What belongs to the rule and the graph, and of
    which parameters there are gradients, is taken as it is then, and looked at no more: checking it
    would take longer than a step of a small network. Shapes, dtypes and devices of the tensors are
    checked at each call, and compiled for anew.

    Args:
        names: of the parameters of which there will be gradients.
    """

    def __init__(self, rule: Rule, graph: WeightGraph, names: Iterable[str]) -> None:
        def step(params: Updates, grads: Updates, state: State) -> tuple[Updates, State, Tensor]:
            return rule.sized(graph, params, grads, state)

        self.names = frozenset(names)
        for part in (graph, *graph.groups, *graph.blocks):
            _work_out(part)
        self._step = torch.compile(
            _by_itself(step),
            fullgraph=True,
            dynamic=False,
            options={"guard_filter_fn": _of_tensors},
        )
        self._is_new = True

    def __call__(
        self, params: Updates, grads: Updates, state: State
    ) -> tuple[Updates, State, Tensor]:
        if not self._is_new:
            return self._step(params, grads, state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own code, and of caches it skips
            found = self._step(params, grads, state)
        self._is_new = False
        return found


def _by_itself(function: FunctionType) -> FunctionType:
    """``function`` with a code of its own: torch finds, and counts, programs by the code.

    Without it a rule would run the program of another graph whose tensors are of the same shapes.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    return FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)


def _work_out(part: object) -> None:
    """All cached properties, which Python 3.11 takes a lock for: compiled programs may not."""
    for name, kind in vars(type(part)).items():
        if isinstance(kind, cached_property):
            getattr(part, name)


def _of_tensors(guards: Sequence[Any]) -> list[bool]:
    return [guard.guard_type == "TENSOR_MATCH" for guard in guards]
